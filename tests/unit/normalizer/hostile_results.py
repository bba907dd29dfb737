"""Results of up to 8 MiB that are made to hurt; run as a program to weigh them in a fresh process.

Prints one JSON object: name → CPU seconds and peak bytes above the idle process, from the bytes of
the file to the normalized payload, or to the refusal.
"""

import contextlib
import json
import multiprocessing
import sys
import time
from collections.abc import Callable
from pathlib import Path

from app.domain.contract import MAX_RESULT_BYTES, ContractViolation, decode_result
from app.domain.normalizer import normalize

_FRAME = 600


def _result(outputs: bytes = b"[]", actions: bytes = b"[]", state: bytes = b"null") -> bytes:
    return (
        b'{"contract_version":2,"status":"succeeded","outputs":%s,"next_actions":%s,"state":%s}'
        % (outputs, actions, state)
    )


def _fill(unit: bytes) -> bytes:
    """Return a JSON list with as many equal elements as a result can hold."""
    return b"[" + b",".join([unit] * ((MAX_RESULT_BYTES - _FRAME) // (len(unit) + 1))) + b"]"


def _object(count: int, value: bytes = b"0", key: str = "%06x") -> bytes:
    """Return an object with many keys, those that the caller counts."""
    return b"{" + b",".join(b'"%s":%s' % ((key % i).encode(), value) for i in range(count)) + b"}"


def _json(value: bytes) -> bytes:
    return _result(b'[{"kind":"json","value":%s}]' % value)


def _text(unit: bytes) -> bytes:
    text = unit * ((MAX_RESULT_BYTES - _FRAME) // len(unit))
    return _result(b'[{"kind":"markdown","markdown":"%s"}]' % text)


def _form(fields: bytes, count: int = 1) -> bytes:
    actions = [
        b'{"action_id":"a%d","label":"b","kind":"form","fields":%s}' % (i, fields)
        for i in range(count)
    ]
    return _result(actions=b"[%s]" % b",".join(actions))


def _charts(spec: bytes) -> bytes:
    output = b'{"kind":"vega_lite","spec":%s}' % spec
    count = min(50, (MAX_RESULT_BYTES - _FRAME) // len(output))
    return _result(b"[" + b",".join([output] * count) + b"]")


# Those of many parts have nearly as many as `contract` lets through.
HOSTILE: dict[str, Callable[[], bytes]] = {
    "deep lists": lambda: _json(b"[" * 4_000_000 + b"]" * 4_000_000),
    "deep objects": lambda: _json(b'{"a":' * 1_200_000 + b"1" + b"}" * 1_200_000),
    "many small lists": lambda: _json(b"[%s0]" % (b"[]," * 390_000)),
    "too many lists": lambda: _json(_fill(b"[]")),
    "many keys in an output": lambda: _json(_object(590_000)),
    "many keys in the state": lambda: _result(state=_object(590_000)),
    "many keys and NaN in the state": lambda: _result(
        state=_object(590_000)[:-1] + b',"z":NaN,"y":1e400}'
    ),
    "many keys with surrogates": lambda: _result(state=_object(480_000, key="%06x\\ud800")),
    "surrogates in the state": lambda: _result(state=_object(390_000, b'"\\ud800"')),
    "surrogates in lists of the state": lambda: _result(state=_object(299_000, b'["\\ud800"]')),
    "surrogates in lists of the state under few keys": lambda: _result(
        state=_object(36_000, b"[%s]" % b",".join([b'"\\ud800"'] * 24))
    ),
    "too many keys": lambda: _result(state=_object(830_000, key="%x")),
    "state of deep values": lambda: _result(state=_object(36_000, b"[[[[[[[[[[[]]]]]]]]]]]")),
    "huge text": lambda: _text(b"a"),
    "huge text of NUL": lambda: _text(b"\\u0000"),
    "huge text of surrogates": lambda: _text(b"\\udfff"),
    "huge text of emoji": lambda: _text("😀".encode()),
    "huge text of combining marks": lambda: _text("\u0301".encode()),
    "1e400": lambda: _json(_fill(b"1e400")),
    "NaN": lambda: _json(_fill(b"NaN")),
    "floats": lambda: _json(_fill(b"1.5")),
    "floats and NaN": lambda: _json(b"[NaN,%s]" % _fill(b"1.5")),
    "small integers": lambda: _json(_fill(b"0")),
    "small integers in the state": lambda: _result(state=b'{"a":%s}' % _fill(b"0")),
    "integers of 20 digits": lambda: _json(_fill(b"9" * 20)),
    "integers of 4000 digits": lambda: _json(b"[%s]" % b",".join([b"9" * 4000] * 2000)),
    "integers of 4290 digits": lambda: _json(_fill(b"9" * 4290)),
    "integers of 4290 digits in the state": lambda: _result(state=b'{"a":%s}' % _fill(b"9" * 4290)),
    "integers of 4290 digits in cells": lambda: _result(
        b'[{"kind":"table","columns":[{"key":"a","label":"A"},{"key":"b","label":"B"},'
        b'{"key":"c","label":"C"}],"rows":[%s]}]'
        % b",".join([b'{"a":%s,"b":%s,"c":%s}' % ((b"9" * 4290,) * 3)] * 640)
    ),
    "integers of 4300 digits": lambda: _json(_fill(b"9" * 4300)),
    "integers of 4301 digits": lambda: _json(_fill(b"9" * 4301)),
    "one integer of 8 MiB": lambda: _json(b"9" * (MAX_RESULT_BYTES - _FRAME)),
    "one float of 8 MiB": lambda: _json(b"0." + b"9" * (MAX_RESULT_BYTES - _FRAME)),
    "short strings": lambda: _json(_fill(b'"ab"')),
    "a million outputs": lambda: _result(_fill(b"1")),
    "a million actions": lambda: _result(actions=_fill(b"1")),
    "many actions": lambda: _result(
        actions=b"[%s]"
        % b",".join(
            b'{"action_id":"%05d","label":"b","kind":"form","fields":[],"prefill":{"a":1},"more":{}}'
            % i
            for i in range(59_000)
        )
    ),
    "a million rows": lambda: _result(
        b'[{"kind":"table","columns":[{"key":"a","label":"A"}],"rows":%s}]' % _fill(b"1")
    ),
    "a million fields": lambda: _form(_fill(b"1")),
    "fields without options": lambda: _form(
        b"[" + b",".join(b'{"name":"%d","kind":"enum"}' % i for i in range(199_000)) + b"]"
    ),
    "fields of unusable options": lambda: _form(
        b"[%s]"
        % b",".join(b'{"name":"f%05d","kind":"enum","options":[1]}' % i for i in range(11_900)),
        count=10,
    ),
    "options with unclean values": lambda: _form(
        b'[{"name":"a","kind":"enum","options":[%s]}]'
        % b",".join(b'{"value":"%05d\\ud800"}' % i for i in range(299_000))
    ),
    "equal fields": lambda: _form(b"[%s]" % b",".join([b'{"name":"a","kind":"text"}'] * 199_000)),
    "wide charts": lambda: _charts(b'{"a":[%s{}]}' % (b'"a",' * 128_000)),
    "charts of many parts": lambda: _charts(b'{"a":[%s]}' % b",".join([b'{"a":{}}'] * 3900)),
    "tables of NaN": lambda: _result(
        b"[%s]"
        % b",".join(
            [
                b'{"kind":"table","columns":[%s],"rows":[%s]}'
                % (
                    b",".join(b'{"key":"%d","label":"x"}' % i for i in range(40)),
                    b",".join([b"{%s}" % b",".join(b'"%d":NaN' % i for i in range(40))] * 280),
                )
            ]
            * 50
        )
    ),
}


def _weigh(name: str) -> tuple[float, int]:
    data = HOSTILE[name]()
    assert len(data) <= MAX_RESULT_BYTES, len(data)
    # Start the peak anew (proc(5), clear_refs). The file's own bytes count with the rest.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_bytes("VmRSS") - len(data)
    started = time.process_time()
    with contextlib.suppress(ContractViolation):
        normalize(decode_result(data))
    return time.process_time() - started, _status_bytes("VmHWM") - before


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field + ":"))


if __name__ == "__main__":
    names = sys.argv[1:] or list(HOSTILE)
    # A process for each: what one result leaves in the allocator would hide what the next takes.
    with multiprocessing.get_context("fork").Pool(2, maxtasksperchild=1) as pool:
        weights = pool.map(_weigh, names, chunksize=1)
    print(json.dumps(dict(zip(names, weights, strict=True))))
