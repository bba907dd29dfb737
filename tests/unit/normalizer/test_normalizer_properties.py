"""What holds for every result, however wrong: no crash, caps, stable bytes, nothing silent."""

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from raw_results import ACTIONS, ANYTHING, JSON, OUTPUTS, RESULTS, action, markdown, result

from app.domain.contract import ContractViolation, decode_result
from app.domain.normalizer import Normalized, canonical_json, normalize
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
