"""How large and how deep an untrusted value is, found without recursion and without copies.

The work is bounded by the cap that the value is held against, not by the value: what is certainly
too large is not walked to its end.
"""

from typing import Any

import msgspec

from app.domain.normalizer.canonical import (
    FLOAT_LIMIT,
    SAFE_INTEGER,
    Tally,
    canonical_json,
    clean_value,
)

_PLAIN = frozenset({str, bool, type(None)})
_CONTAINERS = frozenset({dict, list})
# Deeper values are never encoded: the encoder's own limit depends on the caller's stack.
_MAX_ENCODED_DEPTH = 256
_ESCAPED_NUL = b"\\u0000"


class Measure(msgspec.Struct):
    """Figures of one value. Depth counts nested lists and objects; a scalar has depth 0."""

    depth: int = 0
    keys: int = 0
    longest_array: int = 0
    oversize: bool = False
    needs_cleaning: bool = False


def measure(value: Any, max_bytes: int) -> Measure:
    """Walk a value level by level.

    `oversize` means that its canonical JSON is longer than `max_bytes` for certain; the other
    figures may then be those of its upper levels only. `needs_cleaning` speaks of numbers, keys
    and types, not of the text inside strings.
    """
    found = Measure()
    nodes = 0
    level = [value] if type(value) in _CONTAINERS else []
    if not level:
        found.needs_cleaning = type(value) not in _PLAIN
    while level:
        found.depth += 1
        for item in level:
            nodes += len(item)
            if type(item) is dict:
                found.keys += len(item)
            elif len(item) > found.longest_array:
                found.longest_array = len(item)
        # The shortest node is a digit and a comma, the shortest container two brackets and one.
        found.oversize = nodes * 2 > max_bytes + 1
        below: list[Any] = []
        for item in level:
            if type(item) is dict:
                children: Any = item.values()
                if not found.needs_cleaning:
                    found.needs_cleaning = any(type(key) is not str for key in item)
            else:
                children = item
            kinds = set(map(type, children))
            if kinds <= _PLAIN:
                continue
            if not kinds.isdisjoint(_CONTAINERS):
                below += [child for child in children if type(child) in _CONTAINERS]
            if not found.oversize and not found.needs_cleaning:
                found.needs_cleaning = _any_unclean(children, kinds)
        level = below
        if found.oversize and len(level) * 3 > max_bytes:
            break
    return found


def _any_unclean(children: Any, kinds: set[type]) -> bool:
    if not kinds <= _PLAIN | _CONTAINERS | {int, float}:
        return True
    for child in children:
        kind = type(child)
        if kind is int:
            if not -SAFE_INTEGER <= child <= SAFE_INTEGER:
                return True
        elif kind is float and not (
            -FLOAT_LIMIT < child < FLOAT_LIMIT and (child or str(child)[0] != "-")
        ):
            return True
    return False


def encode_raw(value: Any, found: Measure) -> bytes | None:
    """Return a raw value as JSON, or None where the encoder cannot write it."""
    if found.depth > _MAX_ENCODED_DEPTH:
        return None
    try:
        return canonical_json(value)
    except (ValueError, TypeError):  # Lone surrogates, endless integers, types that JSON lacks.
        return None


def clean_measured(value: Any, found: Measure, tally: Tally) -> tuple[Any, int | None]:
    """Return the canonical value and its bytes; None bytes if it is too large to be weighed.

    For values whose depth has been checked. One without faults is returned as it is, not copied.
    """
    data = encode_raw(value, found)
    if not found.oversize and (data is None or found.needs_cleaning or _ESCAPED_NUL in data):
        value = clean_value(value, tally)
        data = canonical_json(value)
    return value, None if data is None else len(data)
