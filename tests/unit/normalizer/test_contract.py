"""Decoding of an untrusted result.json: what is accepted as it is, what is refused and why."""

import gc
import json
import math
from typing import Any

import pytest

from app.domain.contract import (
    MAX_CONTAINERS,
    MAX_NESTING,
    MAX_PARTS,
    MAX_RESULT_BYTES,
    ContractViolation,
    decode_result,
)


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b'{"a": 1, "a": 2}', {"a": 2}),
        (b"[1e400, -1e400, Infinity, -Infinity]", [math.inf, -math.inf, math.inf, -math.inf]),
        (b'["\\ud83d\\ude00"]', ["😀"]),
        (b'["\\ud800", "\\u0000"]', ["\ud800", "\x00"]),
        (b"[%s]" % (b"9" * 4300), [int("9" * 4300)]),
        (b"[%s, -%s]" % (b"9" * 4301, b"9" * 5000), [math.inf, -math.inf]),
        (b" [-0, -0.0, 1.0, 1e22] ", [0, -0.0, 1.0, 1e22]),
        (b"null", None),
    ],
)
def test_what_a_tool_may_write_is_decoded(data: bytes, value: Any) -> None:
    assert repr(decode_result(data)) == repr(value)


def test_nan_is_decoded_and_long_integers_beside_it() -> None:
    nan, long, short = decode_result(b'[NaN, %s, 7, {"a": "\xc3\xa5"}]' % (b"1" * 9000))[:3]
    assert math.isnan(nan)
    assert (long, short) == (math.inf, 7)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not_json"),
        (b"{", "not_json"),
        (b"{'a': 1}", "not_json"),
        (b"[1,]", "not_json"),
        (b"[1] [2]", "not_json"),
        (b'["\n"]', "not_json"),
        (b"[nan]", "not_json"),
        (b"[01]", "not_json"),
        (b'\xef\xbb\xbf{"a": 1}', "not_json"),
        ('{"a": 1}'.encode("utf-16"), "not_utf8"),
        (b'["\xff"]', "not_utf8"),
        (b'["\xed\xa0\x80"]', "not_utf8"),
        (b"[" * (MAX_NESTING + 1) + b"]" * (MAX_NESTING + 1), "too_deep"),
        (b"[" * 100_000 + b"]" * 100_000, "too_deep"),
        (b'{"a":' * 100_000, "too_deep"),
        (b"[" * 100_000 + b"NaN" + b"]" * 100_000, "too_deep"),
        (b"[" + b"[]," * MAX_CONTAINERS + b"[]]", "too_many_values"),
        (b"{" + b'"a":1,' * (MAX_PARTS - 1) + b'"b":1}', "too_many_values"),
        (b"{" + b'"a":[],' * (MAX_PARTS // 2) + b'"b":1}', "too_many_values"),
        (b'"' + b"x" * MAX_RESULT_BYTES + b'"', "too_large"),
    ],
    ids=lambda value: value if isinstance(value, str) else value[:12].hex(),
)
def test_what_is_no_result_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(ContractViolation) as caught:
        decode_result(data)
    assert caught.value.reason == reason
    assert caught.value.message.startswith("Verktygets resultat ")


def test_as_many_parts_as_allowed_are_decoded() -> None:
    data = b"{" + b'"a":[],' * (MAX_PARTS // 2 - 1) + b'"b":1}'
    assert decode_result(data) == {"a": [], "b": 1}


def test_the_collector_goes_on_after_any_decoding() -> None:
    decode_result(b"[]")
    with pytest.raises(ContractViolation):
        decode_result(b"[")
    assert gc.isenabled()


def test_nesting_at_the_cap_is_decoded_whatever_the_callers_depth() -> None:
    data = b'[{"a":' * (MAX_NESTING // 2) + b"1" + b"}]" * (MAX_NESTING // 2)

    def decode_at(depth: int) -> Any:
        return decode_at(depth - 1) if depth else decode_result(data)

    assert decode_at(0) == decode_at(300) == json.loads(data)


def test_brackets_in_strings_are_no_nesting() -> None:
    text = "[{" * 1000
    assert decode_result(json.dumps([text]).encode()) == [text]
