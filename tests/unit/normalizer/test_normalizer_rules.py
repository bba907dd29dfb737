"""Order, repairs, duplicates and budgets of the normalizer; what breaks the contract."""

import math
from typing import Any

import pytest
from raw_results import action, chart, field, markdown, messages, options, result, table

from app.domain.contract import ContractViolation
from app.domain.normalizer import canonical_json, normalize
from app.domain.policy import CURATED_POLICY, DEFAULT_POLICY, UiPolicy

BUDGET = DEFAULT_POLICY.max_payload_bytes


def test_smallest_result_is_the_payload_of_the_adr() -> None:
    found = normalize({"contract_version": 2, "status": "succeeded"})
    assert found.ui_payload == {"contract_version": 2, "outputs": [], "next_actions": []}
    assert found.ui_payload_bytes == b'{"contract_version":2,"next_actions":[],"outputs":[]}'
    assert (found.status, found.error_summary, found.state, found.notices) == (
        "succeeded",
        None,
        None,
        (),
    )


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (None, "not_an_object"),
        ([], "not_an_object"),
        ("text", "not_an_object"),
        ({}, "contract_version"),
        (result() | {"contract_version": 1}, "contract_version"),
        (result() | {"contract_version": "2"}, "contract_version"),
        (result() | {"contract_version": True}, "contract_version"),
        (result() | {"contract_version": 2.0}, "contract_version"),
        (result() | {"status": "running"}, "status"),
        (result() | {"status": None}, "status"),
        (result() | {"status": ["succeeded"]}, "status"),
        (result() | {"outputs": {}}, "outputs_not_a_list"),
        (result() | {"outputs": 0}, "outputs_not_a_list"),
        (result() | {"next_actions": "a"}, "next_actions_not_a_list"),
        (result(actions=[action("a"), action("b"), action("a")]), "duplicate_action_id"),
        (result(actions=[action("a"), action("a\x00")]), "duplicate_action_id"),
    ],
)
def test_broken_contract_is_a_violation(raw: Any, reason: str) -> None:
    with pytest.raises(ContractViolation) as caught:
        normalize(raw)
    assert caught.value.reason == reason
    assert caught.value.code == "contract_violation"
    assert "Verktyget" in caught.value.message


def test_clash_with_a_backend_action_is_a_violation() -> None:
    with pytest.raises(ContractViolation, match="restart"):
        normalize(result(actions=[action("restart")]), backend_actions=[action("restart")])


def test_duplicates_beyond_the_cap_are_a_violation_too() -> None:
    actions = [action(f"a{index}") for index in range(30)]
    with pytest.raises(ContractViolation):
        normalize(result(actions=[*actions, action("a29")]))


def test_actions_are_sorted_within_their_source_the_tools_first() -> None:
    found = normalize(
        result(actions=[action("z"), action("b"), action("å")]),
        backend_actions=[action("y"), action("a")],
    )
    assert [item["action_id"] for item in found.ui_payload["next_actions"]] == [
        "b",
        "z",
        "å",
        "a",
        "y",
    ]


def test_backend_actions_keep_their_place_among_too_many() -> None:
    tools = [action(f"t{index:02}") for index in range(12)]
    found = normalize(result(actions=tools), backend_actions=[action("restart")])
    kept = [item["action_id"] for item in found.ui_payload["next_actions"]]
    assert kept == [item["action_id"] for item in tools[:9]] + ["restart"]
    assert "12" in messages(found, "too_many_actions")


def test_outputs_keep_their_order_and_a_bad_one_its_place() -> None:
    found = normalize(result(markdown("1"), {"kind": "video"}, markdown("3"), None, markdown("5")))
    outputs = found.ui_payload["outputs"]
    assert [item.get("markdown") for item in outputs] == ["1", None, "3", None, "5"]
    assert found.notices == ("output_kind_unknown", "output_invalid")
    assert outputs[1] == {
        "kind": "notice",
        "level": "warning",
        "code": "output_kind_unknown",
        "message": "Resultat 2 visas inte: sorten ”video” är okänd.",
    }


def test_numbers_take_the_form_that_the_database_keeps() -> None:
    value = [1e22, -0.0, 1.0, 0.1, 2**53, 10**22, -(10**400)]
    found = normalize(result({"kind": "json", "value": value}))
    shown = found.ui_payload["outputs"][0]["value"]
    assert found.ui_payload_bytes.count(b"10000000000000000000000,") == 2
    assert shown[:6] == [10**22, 0.0, 1.0, 0.1, 2**53, 10**22]
    assert math.copysign(1, shown[1]) == 1
    assert shown[6] == f"-1{'0' * 400}"
    assert found.notices == ("integer_as_text",)


@pytest.mark.parametrize(("value", "shown"), [(-0.0, b"0.0"), (1e22, b"1" + b"0" * 22)])
def test_one_number_alone_takes_that_form_too(value: float, shown: bytes) -> None:
    found = normalize(result({"kind": "json", "value": [value]}))
    assert b'"value":[%s]' % shown in found.ui_payload_bytes


def test_integers_that_javascript_would_round_are_shown_as_text() -> None:
    found = normalize(result(table([{"a": 2**53 + 1}, {"a": -(2**64) - 1}, {"a": 2**64}])))
    rows = found.ui_payload["outputs"][0]["rows"]
    assert rows == [{"a": "9007199254740993"}, {"a": "-18446744073709551617"}, {"a": 2**64}]
    assert messages(found, "integer_as_text").startswith("Resultat 1 (tabell): 2 heltal")


def test_state_keeps_integers_exactly() -> None:
    state = {"seed": 2**127 - 1}
    found = normalize(result(state=state))
    assert found.state == state
    assert found.notices == ()


def test_many_long_integers_are_too_large_before_they_are_written() -> None:
    long = [10**4000] * 100
    found = normalize(result({"kind": "json", "value": long}, {"kind": "json", "value": long[:20]}))
    assert found.notices == ("json_too_large", "integer_as_text")
    assert f"det är {len(canonical_json(long))} byte" in messages(found, "json_too_large")
    # What is too long for any reader takes four bytes, however long it is.
    found = normalize(result({"kind": "json", "value": [10**400_000]}))
    assert found.notices == ("integer_too_large",)


def test_endless_integers_become_null() -> None:
    found = normalize(result(table([{"a": 10**5000}]), state={"a": [10**5000]}))
    assert found.ui_payload["outputs"][0]["rows"] == [{"a": None}]
    assert found.state == {"a": [None]}
    assert found.notices == ("integer_too_large",)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_becomes_null_everywhere(number: float) -> None:
    found = normalize(
        result(
            table([{"a": number}]),
            {"kind": "json", "value": {"a": [number]}},
            chart(width=number),
            actions=[action("a", field("n", "number"), prefill={"n": number})],
            state={"a": {"b": number}},
        )
    )
    kept_table, kept_json, kept_chart, notice = found.ui_payload["outputs"]
    assert kept_table["rows"] == [{"a": None}]
    assert kept_json["value"] == {"a": [None]}
    assert kept_chart["spec"]["width"] is None
    assert found.ui_payload["next_actions"][0]["prefill"] == {"n": None}
    assert found.state == {"a": {"b": None}}
    assert found.notices == ("number_not_finite",)
    assert len(notice["message"].splitlines()) == 5


@pytest.mark.parametrize("junk", ["\x00", "\ud800", "\udfff", "\x00\udc80\x00"])
def test_nul_and_lone_surrogates_go_everywhere(junk: str) -> None:
    found = normalize(
        result(
            markdown(f"a{junk}å"),
            {"kind": "html_sandboxed", "html": f"<b>{junk}</b>"},
            {"kind": "notice", "level": "info", "message": f"a{junk}"},
            table([{f"a{junk}": f"x{junk}"}], (f"a{junk}",)) | {"title": f"T{junk}"},
            {"kind": "json", "value": {f"k{junk}": [f"v{junk}"]}},
            chart(title=f"T{junk}"),
            actions=[action(f"id{junk}", field(f"f{junk}", "enum", options=options(1)))],
            state={f"s{junk}": f"t{junk}"},
            status="failed",
        )
        | {"error_summary": f"fel{junk}"}
    )
    text = found.ui_payload_bytes.decode()
    assert "\\u0000" not in text
    outputs = found.ui_payload["outputs"]
    assert outputs[0]["markdown"] == "aå"
    assert outputs[3]["rows"] == [{"a": "x"}]
    assert outputs[4]["value"] == {"k": ["v"]}
    assert found.ui_payload["next_actions"][0]["action_id"] == "id"
    assert found.state == {"s": "t"}
    assert found.error_summary == "fel"
    assert found.notices == ("character_removed",)
    assert f"Resultat 1 (text): {len(junk)} tecken" in outputs[-1]["message"]


def test_surrogate_pair_of_an_emoji_stays() -> None:
    assert normalize(result(markdown("😀 e\u0301"))).notices == ()


@pytest.mark.parametrize("order", [["a", "a\x00", "a\ud800"], ["a\ud800", "a\x00", "a"]])
def test_of_keys_that_become_equal_the_clean_one_wins(order: list[str]) -> None:
    value = {key: f"of {key!r}" for key in order}
    found = normalize(result({"kind": "json", "value": value}, state=value))
    assert found.ui_payload["outputs"][0]["value"] == {"a": "of 'a'"}
    assert found.state == {"a": "of 'a'"}
    assert "2 nycklar" in messages(found, "key_clash")


def test_duplicate_and_unusable_fields_go_and_the_others_stay() -> None:
    found = normalize(
        result(
            actions=[
                action(
                    "a",
                    field("x", "string"),
                    field("x", "integer"),
                    field("y", "file"),
                    field("", "string"),
                    field("e", "enum"),
                    field("z", "boolean", required=True),
                )
            ]
        )
    )
    kept = found.ui_payload["next_actions"][0]["fields"]
    assert kept == [field("x", "string"), field("z", "boolean", required=True)]
    assert "1 av 6 fält" in messages(found, "field_duplicate")
    assert "3 av 6 fält" in messages(found, "field_invalid")


def test_of_thousands_of_useless_fields_the_first_are_looked_at_and_all_are_counted() -> None:
    useless = [field(f"e{index}", "enum", options=[1]) for index in range(249)]
    fields: list[Any] = [*useless, field("last looked at"), *useless, field("x"), 1]
    found = normalize(result(actions=[action("a", *fields)]))
    assert found.ui_payload["next_actions"][0]["fields"] == [field("last looked at")]
    assert "250 av 501 fält" in messages(found, "field_invalid")
    assert "501 fält, högst 25 visas: 250 togs bort" in messages(found, "too_many_fields")


def test_of_thousands_of_useless_options_the_first_are_looked_at_and_all_are_counted() -> None:
    useless: list[Any] = [{"value": index} for index in range(999)]
    choices = [*useless, *options(1), *useless, 1]
    found = normalize(result(actions=[action("a", field("x", "enum", options=choices))]))
    assert found.ui_payload["next_actions"][0]["fields"][0]["options"] == options(1)
    assert "1000 av 2000 alternativ" in messages(found, "option_invalid")
    assert "2000 alternativ, högst 100 visas: 999 togs" in messages(found, "too_many_options")


def test_duplicate_options_and_columns_go() -> None:
    doubled = [*options(2), {"value": "v0", "label": "Igen"}, {"label": "Utan"}]
    columns = [{"key": "a", "label": "A"}, {"key": "a", "label": "B"}]
    found = normalize(
        result(
            {"kind": "table", "columns": columns, "rows": [{"a": 1}, "x"]},
            actions=[action("a", field("e", "enum", options=doubled))],
        )
    )
    assert found.ui_payload["outputs"][0]["columns"] == columns[:1]
    assert found.ui_payload["next_actions"][0]["fields"][0]["options"] == options(2)
    assert set(found.notices) == {
        "table_columns_duplicate",
        "table_rows_invalid",
        "option_duplicate",
        "option_invalid",
    }


def test_prefill_holds_values_of_the_form_only() -> None:
    prefill = {"x": "hej", "m": ["v0", "v1"], "other": 1, "n": {"a": 1}}
    fields = [field("x"), field("m", "multi_enum", options=options(2)), field("n", "integer")]
    found = normalize(result(actions=[action("a", *fields, prefill=prefill)]))
    assert found.ui_payload["next_actions"][0]["prefill"] == {"x": "hej", "m": ["v0", "v1"]}
    assert "2 av 4" in messages(found, "prefill_invalid")


def test_names_are_measured_in_bytes() -> None:
    name = "å" * 65
    found = normalize(result(actions=[action(name), action("a", field(name))]))
    assert found.ui_payload["next_actions"] == [action("a")]
    assert set(found.notices) == {"action_invalid", "field_invalid"}


def test_repairs_of_the_error_summary_are_told() -> None:
    found = normalize(result(status="failed") | {"error_summary": "a\x00"})
    assert found.error_summary == "a"
    assert found.notices == ("character_removed",)
    assert normalize(result() | {"error_summary": 7}).notices == ("error_summary_invalid",)


@pytest.mark.parametrize("summary", [None, "", " \n", "\x00", 7])
def test_failure_without_words_gets_some(summary: Any) -> None:
    found = normalize(result(status="failed") | {"error_summary": summary})
    assert found.error_summary == "Verktyget misslyckades utan att säga varför."
    assert normalize(result() | {"error_summary": summary}).error_summary != found.error_summary


def test_state_that_is_no_object_changes_nothing() -> None:
    found = normalize(result(state=["a"]))
    assert found.state is None
    assert found.notices == ("state_not_object",)


def test_null_state_means_unchanged_and_an_empty_one_does_not() -> None:
    assert normalize(result(state=None)).state is None
    assert normalize(result(state={})).state == {}


def test_over_the_cap_the_largest_keys_of_the_state_go_ties_by_name() -> None:
    kib = 1024
    state = {"c": "x" * 30 * kib, "b": "x" * 30 * kib, "d": 1, "a": "x" * 2 * kib, "e": "x" * 9000}
    found = normalize(result(state=state))
    assert found.state is not None
    assert found.state.keys() == {"a", "c", "d", "e"}
    told = messages(found, "state_too_large")
    assert str(len(canonical_json(state))) in told
    assert "1 av 5 nycklar" in told
    assert "”b”" in told


@pytest.mark.parametrize("policy", [DEFAULT_POLICY, CURATED_POLICY], ids=lambda item: item.name)
def test_state_keeps_as_many_small_keys_as_fit(policy: UiPolicy) -> None:
    state = {f"key{index:02}": "x" * (policy.max_state_bytes // 20) for index in range(25)}
    found = normalize(result(state=dict(reversed(state.items()))), policy=policy)
    assert found.state is not None
    size = len(canonical_json(found.state))
    assert size <= policy.max_state_bytes
    assert size + policy.max_state_bytes // 20 > policy.max_state_bytes
    # Of equal size those first by name went.
    assert list(found.state) == sorted(state)[-len(found.state) :]


def test_of_thousands_of_equal_keys_the_last_by_name_stay() -> None:
    names = [f"{index * 7919 % 20_000:06}" for index in range(20_000)]
    found = normalize(result(state=dict.fromkeys(names, 0)))
    assert found.state is not None
    assert sorted(found.state) == sorted(names)[-DEFAULT_POLICY.max_json_keys :]
    assert str(len(canonical_json(dict.fromkeys(names, 0)))) in messages(found, "state_too_large")


@pytest.mark.parametrize("junk", ["\x00", "\ud800", ["\ud800", {"\x00": "\udfff"}]], ids=ascii)
def test_what_cannot_be_saved_does_not_count_towards_the_states_bytes(junk: Any) -> None:
    state = {f"{index:06}": 0 for index in range(40_000)} | {"junk": [junk] * 9}
    clean = state | {"junk": [["", {"": ""}] if isinstance(junk, list) else ""] * 9}
    found = normalize(result(state=state))
    told = messages(found, "state_too_large")
    assert told.startswith(f"Verktygets sparade läge: {len(canonical_json(clean))} byte, högst")


def test_state_key_that_is_too_deep_goes_alone() -> None:
    deep: Any = 1
    for _ in range(50):
        deep = {"a": deep}
    found = normalize(result(state={"deep": deep, "big": "x" * 65_000}))
    assert found.state == {"big": "x" * 65_000}
    assert "51 nivåer" in messages(found, "state_too_deep")


def test_largest_outputs_are_replaced_until_the_budget_holds() -> None:
    html = {"kind": "html_sandboxed", "html": "x" * 96 * 1024}
    found = normalize(result(markdown("1"), *[html] * 9, markdown("2"), actions=[action()]))
    outputs = found.ui_payload["outputs"]
    assert len(found.ui_payload_bytes) <= BUDGET
    # Ties by position: the first two of nine equal ones are too many.
    assert [item["kind"] for item in outputs] == [
        "markdown",
        "notice",
        "notice",
        *["html_sandboxed"] * 7,
        "markdown",
    ]
    assert found.notices == ("payload_too_large",) * 2
    assert str(len(canonical_json(html))) in outputs[1]["message"]
    assert str(BUDGET) in outputs[1]["message"]
    assert found.ui_payload["next_actions"] == [action()]


def test_the_largest_output_goes_first_wherever_it_is() -> None:
    small = {"kind": "html_sandboxed", "html": "x" * 70_000}
    large = {"kind": "html_sandboxed", "html": "x" * 90_000}
    found = normalize(result(*[small] * 5, large, *[small] * 5))
    kinds = [item["kind"] for item in found.ui_payload["outputs"]]
    assert kinds.index("notice") == 5
    assert kinds.count("notice") == 1


def test_only_outputs_that_are_shown_count_towards_the_budget() -> None:
    # Sixty are cut to 49, so replacing the fiftieth, the largest, would save nothing.
    outputs = [markdown("x" * 17_000) for _ in range(60)]
    outputs[49] = markdown("x" * 60_000)
    found = normalize(result(*outputs))
    assert len(found.ui_payload_bytes) <= BUDGET
    assert len(found.ui_payload["outputs"]) == 50


def _giant(action_id: str, texts: int) -> dict[str, Any]:
    """Return an action within all caps of about 1.2 kB for each of its options."""
    fields = [
        field(
            f"f{index}",
            "multi_enum",
            options=[
                {"value": f"{option:0510}", "label": "y" * 512}
                for option in range(min(200, texts - 200 * index))
            ],
        )
        for index in range((texts + 199) // 200)
    ]
    return action(action_id, *fields)


@pytest.mark.parametrize("texts", [450, 680, 4000])
def test_one_giant_action_costs_no_small_output(texts: int) -> None:
    small = [markdown(f"{index} " + "x" * 9000) for index in range(40)]
    found = normalize(result(*small, actions=[action("a"), _giant("giant", texts), action("z")]))
    kept = [item["action_id"] for item in found.ui_payload["next_actions"]]
    assert found.ui_payload["outputs"][:40] == small
    assert kept == ["a", "z"]
    assert found.notices == ("actions_too_large",)
    assert "giant" in messages(found, "actions_too_large")


def test_large_actions_stay_where_they_fit() -> None:
    found = normalize(result(markdown(), actions=[_giant("giant", 600)]))
    assert found.notices == ()


def test_even_giant_backend_actions_leave_the_budget_whole() -> None:
    found = normalize(result(markdown()), backend_actions=[_giant("a", 2000), action("b")])
    assert len(found.ui_payload_bytes) <= BUDGET
    assert [item["action_id"] for item in found.ui_payload["next_actions"]] == ["b"]
    assert found.ui_payload["outputs"][0] == markdown()


def test_sixty_bad_outputs_are_fifty_with_the_notice_inside() -> None:
    found = normalize(result(*[{"kind": "x"}] * 60))
    assert len(found.ui_payload["outputs"]) == 50
    assert found.notices == ("output_kind_unknown",) * 49 + ("too_many_outputs",)


def test_a_notice_with_many_faults_lists_some_and_counts_the_rest() -> None:
    fields = [field(f"f{index}", "string", placeholder="?") for index in range(25)]
    told = messages(normalize(result(actions=[action("a", *fields)])), "members_unknown")
    assert len(told.splitlines()) == 21
    assert told.endswith("… och 5 till.")


def test_table_text_in_cells_is_cut_at_whole_characters() -> None:
    found = normalize(result(table([{"a": "å" * 300}, {"a": [1]}, {"b": 1}])))
    rows = found.ui_payload["outputs"][0]["rows"]
    assert rows == [{"a": "å" * 254 + "…"}, {"a": None}, {}]
    assert "600 byte" in messages(found, "table_cells_too_long")
    assert set(found.notices) == {
        "table_cells_too_long",
        "table_cells_invalid",
        "table_cells_unknown",
    }


def test_names_from_the_tool_cannot_break_a_message() -> None:
    found = normalize(result({"kind": "\n\u202e" + "x" * 10_000}, actions=[action("a\nb")]))
    assert "\n" not in messages(found, "output_kind_unknown")
    assert len(messages(found, "output_kind_unknown")) < 200
