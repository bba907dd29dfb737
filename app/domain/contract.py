"""Runner contract v2: what a result.json may be before anybody looks at what it says.

The file is written by untrusted code. Decoding is bounded in time and memory and gives plain JSON
values (dict, list, str, int, float, bool, None), however strange; `normalize` judges them.
"""

import gc
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

CONTRACT_VERSION = 2
STATUS_SUCCEEDED = "succeeded"
STATUS_FAILED = "failed"
STATUSES = (STATUS_SUCCEEDED, STATUS_FAILED)

MAX_RESULT_BYTES = 8 * 1024 * 1024
MAX_NESTING = 256
# A list or an object takes up to 240 bytes of memory for 8 of text, a key up to 150 for 10: these
# two keep a hostile result below 200 MB and a second. They count the characters, strings included,
# which is cheap and only ever too strict for results that no page could show.
MAX_CONTAINERS = 400_000
MAX_PARTS = 600_000  # Lists, objects and keys together.
MAX_INTEGER_DIGITS = 4300  # int() refuses longer text, because its time is quadratic.

# What Python's encoder writes and a strict decoder refuses, if only after reading up to it.
_PYTHON_ONLY = (b"NaN", b"Infinity", b"\\ud", b"\\uD")


class ContractViolation(Exception):
    """The result breaks the contract, so nothing of it counts and the run fails.

    `reason` is stable and English, the message is Swedish and for the user.
    """

    code = "contract_violation"

    def __init__(self, reason: str, message: str) -> None:
        self.reason = reason
        self.message = message
        super().__init__(message)


def decode_result(data: bytes) -> Any:
    """Return the plain JSON values of a result.json. Of duplicate keys the last one holds.

    NaN and infinities come as floats, as does any number that no float holds; an integer of more
    than 4300 digits comes as an infinity. Lone surrogates and NUL stay in their strings.

    Raises:
        ContractViolation: `too_large`, `too_many_values`, `not_utf8`, `not_json` or `too_deep`.
    """
    if len(data) > MAX_RESULT_BYTES:
        raise ContractViolation(
            "too_large",
            f"Verktygets resultat är {len(data)} byte; högst {MAX_RESULT_BYTES} tas emot.",
        )
    containers = data.count(b"[") + data.count(b"{")
    keys = data.count(b":")
    if containers > MAX_CONTAINERS or containers + keys > MAX_PARTS:
        raise ContractViolation(
            "too_many_values", "Verktygets resultat består av för många delar för att kunna visas."
        )
    try:
        with _paused_collection():
            value = _decode(data)
    except UnicodeDecodeError:
        raise ContractViolation("not_utf8", "Verktygets resultat är inte giltig UTF-8.") from None
    except ValueError:
        raise ContractViolation("not_json", "Verktygets resultat är inte giltig JSON.") from None
    except RecursionError:
        raise _too_deep() from None
    # The decoders' own limit depends on how deep the caller's stack is; this one does not.
    if containers > MAX_NESTING and _is_deeper(value, MAX_NESTING):
        raise _too_deep()
    return value


@contextmanager
def _paused_collection() -> Iterator[None]:
    """Keep the collector from searching what grows: half of the time, and there are no cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _decode(data: bytes) -> Any:
    # The standard library's decoder takes it all but is slower; the text is not read twice for it.
    if not any(word in data for word in _PYTHON_ONLY):
        try:
            return msgspec.json.decode(data)
        except msgspec.DecodeError:
            pass
    text = data.decode()
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        raise
    except ValueError:  # int() refused one. A hook costs a call for every integer, so only now.
        return json.loads(text, parse_int=_integer)


def _integer(text: str) -> int | float:
    if len(text) <= MAX_INTEGER_DIGITS:
        return int(text)
    return -math.inf if text.startswith("-") else math.inf


def _is_deeper(value: Any, limit: int) -> bool:
    level = [value]
    for _ in range(limit):
        below: list[Any] = []
        for item in level:
            kind = type(item)
            if kind is not list and kind is not dict:
                continue
            children = item if kind is list else item.values()
            # One pass in C tells the many flat containers from the few that nest.
            kinds = set(map(type, children))
            if list in kinds or dict in kinds:
                below += [child for child in children if type(child) in (list, dict)]
        level = below
        if not level:
            return False
    return True


def _too_deep() -> ContractViolation:
    return ContractViolation(
        "too_deep", f"Verktygets resultat är nästlat djupare än {MAX_NESTING} nivåer."
    )
