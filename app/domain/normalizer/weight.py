"""How many canonical bytes the entries of a state take, found before any of them is cleaned.

A hostile state has hundreds of thousands of entries that the encoder refuses: an exception and a
clean copy for each would cost seconds. Their bytes are added up instead.
"""

from collections.abc import Collection
from typing import Any

from app.domain.normalizer.canonical import (
    Tally,
    canonical_json,
    clean_scalar,
    clean_value,
    strip_text,
)

_ESCAPED_NUL = b"\\u0000"
_SHORT = 4  # Up to here a call for each element is faster than sorting them by kind.


def weigh_entries(state: dict[str, Any]) -> list[int]:
    """Return the canonical bytes of each entry in its order: key, colon, value and a comma.

    The values are nested as deep as the encoder goes at most.
    """
    keys, values = _weigh_each(state), _weigh_each(state.values())
    return [key + value + 2 for key, value in zip(keys, values, strict=True)]


def _weigh_each(values: Collection[Any]) -> list[int]:
    try:
        encoded = list(map(canonical_json, values))
    except (ValueError, TypeError):  # Lone surrogates, endless integers, types that JSON lacks.
        return list(map(_weigh, values))
    if _ESCAPED_NUL in b"".join(encoded):
        return list(map(_weigh, values))
    return list(map(len, encoded))


def _weigh(value: Any) -> int:
    """Return the canonical bytes of one value, as it is when what cannot be kept is removed."""
    kind = type(value)
    if kind is str:
        return len(canonical_json(strip_text(value)))
    if kind is list:
        total = sum(map(_weigh, value)) if len(value) <= _SHORT else _weigh_many(value)
        return total + len(value) + 1 if value else 2
    if kind is dict:
        return _weigh_object(value)
    return len(canonical_json(clean_scalar(value, Tally(), exact_integers=True)))


def _weigh_object(value: dict[Any, Any]) -> int:
    if not value:
        return 2
    names = {strip_text(key) for key in value if type(key) is str}
    if len(names) < len(value):
        # Some go: which of them is left is for the cleaning to say.
        return len(canonical_json(clean_value(value, Tally(), exact_integers=True)))
    return _weigh_many(names) + _weigh_many(value.values()) + 2 * len(value) + 1


def _weigh_many(values: Collection[Any]) -> int:
    """Return the bytes of all values together, without what stands between them."""
    texts = [value for value in values if type(value) is str]
    nested = [value for value in values if type(value) in (list, dict)]
    others = [value for value in values if type(value) not in (str, list, dict)]
    total = sum(map(_weigh, nested))
    if texts:
        total += _weigh("".join(texts)) + 2 * (len(texts) - 1)
    if others:
        try:
            total += len(canonical_json(others)) - len(others) - 1
        except (ValueError, TypeError):
            total += sum(map(_weigh, others))
    return total
