"""Every figure of both policies: at the cap nothing changes, one over is handled and told."""

from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from raw_results import action, chart, field, markdown, messages, nest, options, result, table

from app.domain.normalizer import Normalized, canonical_json, normalize
from app.domain.policy import CURATED_POLICY, DEFAULT_POLICY, UiPolicy, policy_for

both_policies = pytest.mark.parametrize(
    "policy", [DEFAULT_POLICY, CURATED_POLICY], ids=lambda policy: policy.name
)


class Cap(NamedTuple):
    """A cap by the field that holds it, a result that is `size` large, and how excess is told."""

    member: str
    make: Callable[[int], dict[str, Any]]
    code: str
    measure: Callable[[Normalized], int]


def _outputs(normalized: Normalized) -> list[dict[str, Any]]:
    return [item for item in normalized.ui_payload["outputs"] if item.get("level") != "warning"]


def _first(normalized: Normalized) -> dict[str, Any]:
    """Return the first output that is no notice of the normalizer; empty if there is none."""
    return next(iter(_outputs(normalized)), {})


def _utf8(text: str) -> int:
    return len(text.encode())


def _wide(size: int) -> dict[str, Any]:
    keys = tuple(f"k{index}" for index in range(size))
    return result(table([dict.fromkeys(keys, 1)], keys))


def _state(normalized: Normalized) -> dict[str, Any]:
    assert normalized.state is not None
    return normalized.state


def _fields(normalized: Normalized) -> list[dict[str, Any]]:
    fields: list[dict[str, Any]] = normalized.ui_payload["next_actions"][0]["fields"]
    return fields


def _json_of(size: int) -> dict[str, Any]:
    # Quotes around the text, two of each.
    return result({"kind": "json", "value": "x" * (size - 2)})


def _chart_of(size: int) -> dict[str, Any]:
    frame = len(canonical_json(chart(description="")["spec"]))
    return result(chart(description="x" * (size - frame)))


def _actions(count: int) -> list[dict[str, Any]]:
    return [action(f"id{index:03}") for index in range(count)]


def _enum(kind: str) -> Callable[[int], dict[str, Any]]:
    return lambda size: result(actions=[action("a", field("x", kind, options=options(size)))])


CAPS = [
    Cap(
        "max_markdown_bytes",
        lambda size: result(markdown("x" * size)),
        "markdown_too_long",
        lambda found: _utf8(_first(found)["markdown"]),
    ),
    Cap(
        "max_html_bytes",
        lambda size: result({"kind": "html_sandboxed", "html": "x" * size}),
        "html_too_large",
        lambda found: _utf8(_first(found).get("html", "")),
    ),
    Cap(
        "max_json_bytes",
        _json_of,
        "json_too_large",
        lambda found: len(canonical_json(_first(found).get("value"))),
    ),
    Cap(
        "max_json_depth",
        lambda size: result({"kind": "json", "value": nest(size)}),
        "json_too_deep",
        lambda found: str(_first(found).get("value")).count("["),
    ),
    Cap(
        "max_json_keys",
        lambda size: result({"kind": "json", "value": [dict.fromkeys(map(str, range(size)))]}),
        "json_too_many_keys",
        lambda found: len(_first(found).get("value", [{}])[0]),
    ),
    Cap(
        "max_json_array_length",
        lambda size: result({"kind": "json", "value": {"a": [0] * size}}),
        "json_array_too_long",
        lambda found: len(_first(found).get("value", {"a": []})["a"]),
    ),
    Cap(
        "max_table_rows",
        lambda size: result(table([{"a": 1}] * size)),
        "table_too_many_rows",
        lambda found: len(_first(found)["rows"]),
    ),
    Cap(
        "max_table_columns",
        _wide,
        "table_too_many_columns",
        lambda found: len(_first(found)["columns"]),
    ),
    Cap(
        "max_cell_bytes",
        lambda size: result(table([{"a": "x" * size}])),
        "table_cells_too_long",
        lambda found: _utf8(_first(found)["rows"][0]["a"]),
    ),
    Cap(
        "max_vega_bytes",
        _chart_of,
        "vega_too_large",
        lambda found: len(canonical_json(_first(found).get("spec"))),
    ),
    Cap(
        "max_next_actions",
        lambda size: result(actions=_actions(size)),
        "too_many_actions",
        lambda found: len(found.ui_payload["next_actions"]),
    ),
    Cap(
        "max_fields",
        lambda size: result(actions=[action("a", *(field(f"f{i}") for i in range(size)))]),
        "too_many_fields",
        lambda found: len(_fields(found)),
    ),
    Cap(
        "max_enum_options",
        _enum("enum"),
        "too_many_options",
        lambda found: len(_fields(found)[0]["options"]),
    ),
    Cap(
        "max_multi_enum_options",
        _enum("multi_enum"),
        "too_many_options",
        lambda found: len(_fields(found)[0]["options"]),
    ),
    Cap(
        "max_state_bytes",
        lambda size: result(state={"a": "x" * (size - 8)}),  # {"a":""}
        "state_too_large",
        lambda found: len(canonical_json(_state(found))),
    ),
    Cap(
        "max_json_depth",
        lambda size: result(state={"a": nest(size - 1)}),
        "state_too_deep",
        lambda found: 1 + str(_state(found).get("a")).count("["),
    ),
    Cap(
        "max_json_keys",
        lambda size: result(state=dict.fromkeys((f"k{i}" for i in range(size)), 1)),
        "state_too_many_keys",
        lambda found: len(_state(found)),
    ),
    Cap(
        "max_message_bytes",
        lambda size: result({"kind": "notice", "level": "info", "message": "x" * size}),
        "message_too_long",
        lambda found: _utf8(_first(found)["message"]),
    ),
    Cap(
        "max_title_bytes",
        lambda size: result(table([]) | {"title": "x" * size}),
        "title_too_long",
        lambda found: _utf8(_first(found)["title"]),
    ),
    Cap(
        "max_label_bytes",
        lambda size: result(actions=[action("a") | {"label": "x" * size}]),
        "label_too_long",
        lambda found: _utf8(found.ui_payload["next_actions"][0]["label"]),
    ),
    Cap(
        "max_key_bytes",
        lambda size: result(table([], ("x" * size, "b"))),
        "table_columns_invalid",
        lambda found: max(_utf8(column["key"]) for column in _first(found)["columns"]),
    ),
    Cap(
        "max_name_bytes",
        lambda size: result(actions=[action("x" * size)]),
        "action_invalid",
        lambda found: sum(_utf8(item["action_id"]) for item in found.ui_payload["next_actions"]),
    ),
    Cap(
        "max_name_bytes",
        lambda size: result(actions=[action("a", field("x" * size))]),
        "field_invalid",
        lambda found: sum(_utf8(item["name"]) for item in _fields(found)),
    ),
    Cap(
        "max_option_value_bytes",
        lambda size: result(
            actions=[
                action(
                    "a",
                    field("x", "enum", options=[{"value": "x" * size, "label": "L"}, *options(1)]),
                )
            ]
        ),
        "option_invalid",
        lambda found: max(_utf8(item["value"]) for item in _fields(found)[0]["options"]),
    ),
    Cap(
        "max_prefill_text_bytes",
        lambda size: result(actions=[action("a", field("x", "text"), prefill={"x": "x" * size})]),
        "prefill_invalid",
        lambda found: _utf8(found.ui_payload["next_actions"][0]["prefill"].get("x", "")),
    ),
]
# What is counted is told by its true figure; of names that are too long, how many there are.
_TOLD_BY_NUMBER = {
    "table_columns_invalid",
    "action_invalid",
    "field_invalid",
    "option_invalid",
    "prefill_invalid",
}


@both_policies
@pytest.mark.parametrize("cap", CAPS, ids=lambda cap: f"{cap.member}-{cap.code}")
def test_at_the_cap_nothing_changes(policy: UiPolicy, cap: Cap) -> None:
    size = getattr(policy, cap.member)
    raw = cap.make(size)

    found = normalize(raw, policy=policy)

    assert found.notices == ()
    assert found.ui_payload["outputs"] == raw["outputs"]
    assert found.ui_payload["next_actions"] == raw["next_actions"]
    assert found.state == raw["state"]
    assert cap.measure(found) == size


@both_policies
@pytest.mark.parametrize("cap", CAPS, ids=lambda cap: f"{cap.member}-{cap.code}")
def test_one_over_the_cap_is_handled_and_told(policy: UiPolicy, cap: Cap) -> None:
    size = getattr(policy, cap.member)

    found = normalize(cap.make(size + 1), policy=policy)

    assert found.notices == (cap.code,)
    assert cap.measure(found) <= size
    told = messages(found, cap.code)
    assert str(size) in told
    if cap.code not in _TOLD_BY_NUMBER:
        assert str(size + 1) in told


@both_policies
def test_error_summary_is_cut_at_its_cap(policy: UiPolicy) -> None:
    cap = policy.max_error_summary_bytes
    whole = normalize(result(status="failed") | {"error_summary": "x" * cap}, policy=policy)
    cut = normalize(result(status="failed") | {"error_summary": "å" * cap}, policy=policy)

    assert whole.error_summary == "x" * cap
    assert whole.notices == ()
    assert cut.error_summary is not None
    assert _utf8(cut.error_summary) <= cap
    assert str(2 * cap) in messages(cut, "error_summary_too_long")


@both_policies
def test_as_many_outputs_as_allowed_are_all_kept(policy: UiPolicy) -> None:
    raw = result(*(markdown(str(index)) for index in range(policy.max_outputs)))
    found = normalize(raw, policy=policy)
    assert found.ui_payload["outputs"] == raw["outputs"]


@both_policies
@pytest.mark.parametrize("excess", [1, 10, 5000])
def test_too_many_outputs_leave_room_for_the_notice(policy: UiPolicy, excess: int) -> None:
    total = policy.max_outputs + excess
    raw = result(*(markdown(str(index)) for index in range(total)))

    found = normalize(raw, policy=policy)

    outputs = found.ui_payload["outputs"]
    assert len(outputs) == policy.max_outputs
    assert outputs[:-1] == raw["outputs"][: policy.max_outputs - 1]
    assert outputs[-1]["code"] == "too_many_outputs"
    assert str(total) in outputs[-1]["message"]
    assert str(policy.max_outputs - 1) in outputs[-1]["message"]


@both_policies
def test_notices_count_within_the_number_of_outputs(policy: UiPolicy) -> None:
    long = markdown("x" * (policy.max_markdown_bytes + 1))
    small = [table([{"a": float("nan")}]) for _ in range(policy.max_outputs - 1)]

    found = normalize(result(long, *small), policy=policy)

    assert len(found.ui_payload["outputs"]) == policy.max_outputs
    assert found.notices == ("too_many_outputs", "markdown_too_long", "number_not_finite")


def test_policies_have_the_figures_of_the_adr() -> None:
    kib = 1024
    common = {"max_vega_bytes": 512 * kib, "max_vega_rows": 4000, "max_vega_depth": 8}
    for policy, figures in (
        (DEFAULT_POLICY, (64, 768, 50, 10, 25, 64, 96, 96, 10, 1000, 2000, 750, 40, 512, 100, 200)),
        (
            CURATED_POLICY,
            (256, 1024, 150, 25, 60, 256, 192, 256, 20, 5000, 10_000, 2500, 80, 1024, 300, 600),
        ),
    ):
        assert (
            policy.max_state_bytes // kib,
            policy.max_payload_bytes // kib,
            policy.max_outputs,
            policy.max_next_actions,
            policy.max_fields,
            policy.max_markdown_bytes // kib,
            policy.max_html_bytes // kib,
            policy.max_json_bytes // kib,
            policy.max_json_depth,
            policy.max_json_keys,
            policy.max_json_array_length,
            policy.max_table_rows,
            policy.max_table_columns,
            policy.max_cell_bytes,
            policy.max_enum_options,
            policy.max_multi_enum_options,
        ) == figures
        assert policy.max_vega_layers == 16
        assert all(getattr(policy, member) == figure for member, figure in common.items())


def test_only_curated_apps_have_the_curated_policy() -> None:
    assert policy_for("curated_app") is CURATED_POLICY
    assert policy_for("tool_version") is DEFAULT_POLICY
