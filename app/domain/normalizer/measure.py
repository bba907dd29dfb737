"""How large and how deep an untrusted value is, found without recursion and without copies.

The work is bounded by the cap that the value is held against, not by the value: what is certainly
too large is not walked to its end.
"""

from itertools import chain
from typing import Any

import msgspec

from app.domain.normalizer.canonical import (
    FLOAT_LIMIT,
    MAX_INTEGER_BITS,
    SAFE_INTEGER,
    Tally,
    canonical_json,
    clean_value,
)

_PLAIN = frozenset({str, bool, type(None)})
_CONTAINERS = frozenset({dict, list})
# No decoder gives deeper values, and none is encoded: the encoder's own limit depends on the
# caller's stack.
_MAX_DEPTH = 256
_ESCAPED_NUL = b"\\u0000"


class Measure(msgspec.Struct):
    """Figures of one value. Depth counts nested lists and objects; a scalar has depth 0."""

    depth: int = 0
    keys: int = 0
    longest_array: int = 0
    oversize: bool = False
    needs_cleaning: bool = False
    complete: bool = True


def measure(value: Any, max_bytes: int) -> Measure:
    """Walk a value level by level.

    `oversize` means that its canonical JSON is longer than `max_bytes` for certain. The walk may
    end early for what is oversize or far too deep: the figures are then lower bounds, not
    `complete`. `needs_cleaning` speaks of numbers, keys and types, not of the text inside strings,
    and of values that are not oversize.
    """
    found = Measure(needs_cleaning=type(value) not in _PLAIN | _CONTAINERS)
    level = [value] if type(value) in _CONTAINERS else []
    nodes = 0
    while level:
        dicts = [item for item in level if type(item) is dict]
        lists = [item for item in level if type(item) is list]
        found.depth += 1
        found.keys += sum(map(len, dicts))
        found.longest_array = max(found.longest_array, max(map(len, lists), default=0))
        children = list(chain.from_iterable(lists + [item.values() for item in dicts]))
        nodes += len(children)
        # The least that n nodes take is n digits, n - 1 commas and the outermost brackets.
        found.oversize = found.oversize or nodes * 2 + 1 > max_bytes
        kinds = set(map(type, children))
        if not found.oversize and not found.needs_cleaning:
            names = set(map(type, chain.from_iterable(dicts)))
            found.needs_cleaning = not names <= {str} or _is_any_unclean(children, kinds)
        if not found.oversize and found.needs_cleaning and int in kinds:
            # Writing an integer takes the square of its digits, so what many take is found first.
            bits = [child.bit_length() for child in children if type(child) is int]
            written = sum(count for count in bits if count <= MAX_INTEGER_BITS)
            found.oversize = written * 3 // 10 > max_bytes
        level = []
        if not kinds.isdisjoint(_CONTAINERS):
            level = [child for child in children if type(child) in _CONTAINERS]
        if found.depth > _MAX_DEPTH or (found.oversize and len(level) * 3 > max_bytes):
            found.complete = not level
            break
    return found


def _is_any_unclean(children: list[Any], kinds: set[type]) -> bool:
    if kinds <= _PLAIN | _CONTAINERS:
        return False
    if not kinds <= _PLAIN | _CONTAINERS | {int, float}:
        return True
    return any(map(_is_unclean_number, children))


def _is_unclean_number(value: Any) -> bool:
    kind = type(value)
    if kind is int:
        return not -SAFE_INTEGER <= value <= SAFE_INTEGER
    if kind is float:
        # Negative zero too; NaN compares as false.
        return not -FLOAT_LIMIT < value < FLOAT_LIMIT or (value == 0 and str(value) == "-0.0")
    return False


def is_deeper(value: Any, depth: int) -> bool:
    """Tell whether lists and objects are nested more than `depth` deep; looks no deeper."""
    if type(value) not in _CONTAINERS:
        return False
    if depth == 0:
        return True
    children = value.values() if type(value) is dict else value
    return any(
        is_deeper(child, depth - 1)
        for child in children
        if type(child) in _CONTAINERS and (child or depth == 1)
    )


def encode_raw(value: Any, found: Measure) -> bytes | None:
    """Return a raw value as JSON, or None where the encoder cannot write it."""
    if found.depth > _MAX_DEPTH or not found.complete:
        return None
    try:
        return canonical_json(value)
    except (ValueError, TypeError):  # Lone surrogates, endless integers, types that JSON lacks.
        return None


def clean_measured(
    value: Any, found: Measure, tally: Tally, *, exact_integers: bool = False
) -> tuple[Any, int | None]:
    """Return the canonical value and its bytes; None bytes if it is too large to be weighed.

    For values whose depth has been checked. One without faults is returned as it is, not copied.
    """
    data = encode_raw(value, found) if found.oversize or not found.needs_cleaning else None
    if not found.oversize and (data is None or _ESCAPED_NUL in data):
        value = clean_value(value, tally, exact_integers=exact_integers)
        data = canonical_json(value)
    return value, None if data is None else len(data)
