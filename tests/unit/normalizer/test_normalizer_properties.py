"""What holds for every result, however wrong: no crash, caps, stable bytes, nothing silent."""

import json
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_results import (
    ACTIONS,
    ANYTHING,
    JSON,
    KEYS,
    OUTPUTS,
    RESULTS,
    SCALARS,
    action,
    field,
    markdown,
    messages,
    result,
    table,
)

from app.domain.contract import ContractViolation, decode_result
from app.domain.normalizer import Normalized, canonical_json, normalize
from app.domain.normalizer.canonical import Tally, clean_text, clean_value
from app.domain.normalizer.notices import quote
from app.domain.normalizer.weight import weigh_entries
from app.domain.policy import CURATED_POLICY, DEFAULT_POLICY, UiPolicy

POLICIES = st.sampled_from([DEFAULT_POLICY, CURATED_POLICY])
many = settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)


def _normalize(raw: Any, policy: UiPolicy = DEFAULT_POLICY) -> Normalized | None:
    """Return None where the result breaks the contract."""
    try:
        return normalize(raw, policy=policy)
    except ContractViolation as violation:
        assert violation.reason
        assert str(violation)
        return None


@many
@given(raw=ANYTHING, policy=POLICIES)
def test_never_raises_but_contract_violation(raw: Any, policy: UiPolicy) -> None:
    found = _normalize(raw, policy)
    if found is not None:
        assert canonical_json(found.ui_payload) == found.ui_payload_bytes
        assert found.ui_payload.keys() == {"contract_version", "outputs", "next_actions"}


@many
@given(raw=RESULTS, policy=POLICIES)
def test_normalizing_its_own_output_changes_nothing(raw: Any, policy: UiPolicy) -> None:
    first = _normalize(raw, policy)
    if first is None:
        return
    again = normalize(
        first.ui_payload
        | {"status": first.status, "state": first.state, "error_summary": first.error_summary},
        policy=policy,
    )
    assert again.ui_payload_bytes == first.ui_payload_bytes
    assert again.state == first.state
    assert again.error_summary == first.error_summary
    assert again.notices == ()


def _reorder(value: Any, data: st.DataObject) -> Any:
    if isinstance(value, list):
        return [_reorder(item, data) for item in value]
    if isinstance(value, dict):
        keys = data.draw(st.permutations(list(value)))
        return {key: _reorder(value[key], data) for key in keys}
    return value


@settings(many, max_examples=60)
@given(raw=RESULTS, data=st.data())
def test_order_of_keys_plays_no_part(raw: Any, data: st.DataObject) -> None:
    first, second = _normalize(raw), _normalize(_reorder(raw, data))
    if first is None or second is None:
        assert first is second
        return
    assert first.ui_payload_bytes == second.ui_payload_bytes
    assert canonical_json(first.state) == canonical_json(second.state)
    assert first.notices == second.notices


@many
@given(raw=RESULTS, policy=POLICIES)
def test_input_is_not_changed(raw: Any, policy: UiPolicy) -> None:
    before = repr(raw)
    _normalize(raw, policy)
    assert repr(raw) == before


@many
@given(raw=RESULTS)
def test_decoded_bytes_are_the_payload(raw: Any) -> None:
    found = _normalize(raw)
    if found is not None:
        assert canonical_json(json.loads(found.ui_payload_bytes)) == found.ui_payload_bytes
        assert b"\\u0000" not in found.ui_payload_bytes


@many
@given(raw=RESULTS)
def test_whatever_changed_is_told(raw: Any) -> None:
    found = _normalize(raw)
    if found is None or found.notices:
        return
    # No notice: then every part is as the tool wrote it, but for the form of numbers and sorting.
    assert found.ui_payload["outputs"] == raw["outputs"]
    assert found.state == raw["state"]
    by_id = sorted(raw["next_actions"], key=lambda item: item["action_id"])
    assert found.ui_payload["next_actions"] == by_id


def _told(found: Normalized, where: str, lines: dict[str, str]) -> int:
    """Return the sum of the figures that the notices of these codes tell about one place."""
    return sum(
        int(figure)
        for code, words in lines.items()
        for figure in re.findall(f"^{re.escape(where)}: {words}", messages(found, code), re.M)
    )


_ACTIONS_LOST = {
    "action_invalid": r"(\d+) av \d+ togs bort",
    "too_many_actions": r".*: (\d+) togs bort",
}
_FIELDS_LOST = {
    "field_invalid": r"(\d+) av \d+ fält",
    "field_duplicate": r"(\d+) av \d+ fält",
    "too_many_fields": r".*: (\d+) togs bort",
}
_COLUMNS_LOST = {
    "table_columns_invalid": r"(\d+) av \d+ kolumner",
    "table_columns_duplicate": r"(\d+) av \d+ kolumner",
    "table_too_many_columns": r".*: (\d+) togs bort",
}
_ROWS_GIVEN = {"table_too_many_rows": r"(\d+) rader, de första"}
_ROWS_LOST = {"table_rows_invalid": r"(\d+) rader är inte"}


_FIELDS = st.lists(st.builds(field, st.sampled_from(["a", "b", "c", ""])) | SCALARS, max_size=4)
_ROWS = st.lists(st.just({"a": 1}) | SCALARS, max_size=4)


@many
@given(raw=RESULTS, fields=_FIELDS, rows=_ROWS, factor=st.sampled_from([1, 50, 400]))
def test_notices_tell_how_much_was_dropped(
    raw: Any, fields: list[Any], rows: list[Any], factor: int
) -> None:
    more = [action(f"x{n:02}", *(fields if n == 0 else [])) for n in range(min(factor, 12))]
    raw["next_actions"] = more + raw["next_actions"]
    raw["outputs"] = [table(rows), *raw["outputs"]]
    for item in _objects(raw["outputs"]) + _objects(raw["next_actions"]):
        for member in ("rows", "fields"):
            if isinstance(item.get(member), list):
                item[member] = item[member] * factor
    found = _normalize(raw)
    if found is None:
        return
    _check_actions_told(found, raw["next_actions"])
    for position, (made, kept) in enumerate(
        zip(raw["outputs"], found.ui_payload["outputs"], strict=False), start=1
    ):
        if kept["kind"] == "table":
            where = f"Resultat {position} (tabell)"
            column_count, row_count = len(made["columns"]), len(made["rows"])
            assert column_count - len(kept["columns"]) == _told(found, where, _COLUMNS_LOST)
            over = max(0, row_count - DEFAULT_POLICY.max_table_rows)
            assert row_count - over - len(kept["rows"]) == _told(found, where, _ROWS_LOST)
            assert _told(found, where, _ROWS_GIVEN) == (row_count if over else 0)


def _check_actions_told(found: Normalized, given: list[Any]) -> None:
    kept = {item["action_id"]: item for item in found.ui_payload["next_actions"]}
    too_large = messages(found, "actions_too_large").splitlines()
    assert len(given) - len(kept) == _told(found, "Nästa steg", _ACTIONS_LOST) + len(too_large)
    for item in _objects(given):
        name = item.get("action_id")
        name = clean_text(name, Tally()) if isinstance(name, str) else None
        if name in kept:
            lost = len(item.get("fields") or []) - len(kept[name]["fields"])
            assert lost == _told(found, f"Nästa steg {quote(name)}", _FIELDS_LOST)


def _objects(values: list[Any]) -> list[dict[str, Any]]:
    return [value for value in values if isinstance(value, dict)]


@many
@given(outputs=st.lists(OUTPUTS, max_size=8), bad=JSON)
def test_bad_output_costs_no_other(outputs: list[Any], bad: Any) -> None:
    good = [markdown(str(index)) for index in range(3)]
    found = normalize(result(good[0], *outputs, good[1], bad, good[2], state={"a": 1}))
    assert [item for item in found.ui_payload["outputs"] if item in good] == good
    assert found.state == {"a": 1}


@many
@given(bad=ACTIONS)
def test_bad_action_costs_no_other(bad: Any) -> None:
    good = action("good-one")
    found = normalize(result(markdown(), actions=[good, bad]))
    assert good in found.ui_payload["next_actions"]
    assert found.ui_payload["outputs"][0] == markdown()


def _walk(value: Any, depth: int = 0) -> tuple[int, int, int]:
    """Return depth, number of keys and the longest array."""
    if not isinstance(value, (dict, list)):
        return depth, 0, 0
    children = list(value.values()) if isinstance(value, dict) else value
    found = [_walk(child, depth + 1) for child in children]
    keys = len(value) if isinstance(value, dict) else 0
    length = len(value) if isinstance(value, list) else 0
    return (
        max([depth + 1, *(item[0] for item in found)]),
        keys + sum(item[1] for item in found),
        max([length, *(item[2] for item in found)]),
    )


def _check_output(output: dict[str, Any], policy: UiPolicy) -> None:
    kind = output["kind"]
    if kind == "markdown":
        assert len(output["markdown"].encode()) <= policy.max_markdown_bytes
    elif kind == "html_sandboxed":
        assert len(output["html"].encode()) <= policy.max_html_bytes
    elif kind == "notice":
        assert len(output["message"].encode()) <= policy.max_message_bytes
        assert output["level"] in {"info", "warning", "error"}
    elif kind == "json":
        depth, keys, longest = _walk(output["value"])
        assert len(canonical_json(output["value"])) <= policy.max_json_bytes
        assert depth <= policy.max_json_depth
        assert keys <= policy.max_json_keys
        assert longest <= policy.max_json_array_length
    elif kind == "table":
        assert len(output["columns"]) <= policy.max_table_columns
        assert len(output["rows"]) <= policy.max_table_rows
        names = [column["key"] for column in output["columns"]]
        assert len(set(names)) == len(names)
        for row in output["rows"]:
            assert row.keys() <= set(names)
            for cell in row.values():
                assert cell is None or isinstance(cell, (str, int, float))
                assert len(str(cell).encode()) <= policy.max_cell_bytes
    else:
        assert kind == "vega_lite"
        assert len(canonical_json(output["spec"])) <= policy.max_vega_bytes


@pytest.mark.parametrize("policy", [DEFAULT_POLICY, CURATED_POLICY], ids=lambda item: item.name)
@settings(many, max_examples=60)
@given(raw=RESULTS, factor=st.sampled_from([1, 3, 40]))
def test_every_cap_holds_on_the_bytes(policy: UiPolicy, raw: Any, factor: int) -> None:
    raw = raw | {"outputs": raw["outputs"] * factor}
    found = _normalize(raw, policy)
    if found is None:
        return
    outputs, actions = found.ui_payload["outputs"], found.ui_payload["next_actions"]
    assert len(found.ui_payload_bytes) <= policy.max_payload_bytes
    assert len(outputs) <= policy.max_outputs
    assert len(actions) <= policy.max_next_actions
    for output in outputs:
        _check_output(output, policy)
    for item in actions:
        assert len(item["fields"]) <= policy.max_fields
        names = [field["name"] for field in item["fields"]]
        assert len(set(names)) == len(names)
    if found.state is not None:
        depth, keys, _ = _walk(found.state)
        assert len(canonical_json(found.state)) <= policy.max_state_bytes
        assert depth <= policy.max_json_depth
        assert keys <= policy.max_json_keys


# Numbers are weighed as the tool wrote them, so only those that the cleaning leaves are drawn.
_EXACT = st.none() | st.integers() | st.just(0.5) | st.just(float("nan")) | st.text(max_size=5)
_WEIGHED = st.recursive(
    _EXACT | st.sampled_from(["\x00", "a\ud800", '"\\\n\x7f', "é😀"]),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@many
@given(state=st.dictionaries(KEYS, _WEIGHED, max_size=4))
def test_weights_are_those_of_the_clean_values(state: dict[str, Any]) -> None:
    clean = [clean_value(value, Tally(), exact_integers=True) for value in state.values()]
    names = [clean_text(key, Tally()) for key in state]
    assert weigh_entries(state) == [
        len(canonical_json({name: value})) - 1 for name, value in zip(names, clean, strict=True)
    ]


@many
@given(data=st.binary(max_size=60) | ANYTHING.map(lambda value: json.dumps(value)[:200].encode()))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        value = decode_result(data)
    except ContractViolation:
        return
    _normalize(value)


@many
@given(raw=RESULTS.filter(lambda raw: "1" * 4000 not in repr(raw)))
def test_what_python_writes_is_decoded_as_it_was(raw: Any) -> None:
    try:
        data = json.dumps(raw).encode()
    except ValueError:  # An integer that Python itself does not write.
        return
    assert repr(decode_result(data)) == repr(json.loads(data))
