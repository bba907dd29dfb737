"""One form for every value, so that the same value is always the same bytes.

PostgreSQL keeps JSON numbers as decimals: 1e22 comes back as 10000000000000000000000, and -0.0 as
0.0. Numbers are therefore brought to the form that survives decoding, storing and encoding:

- a float of at least 1e16 becomes the integer that it is, -0.0 becomes 0.0;
- NaN and infinities become null;
- in what a browser shows, an integer that a double cannot hold exactly becomes its digits as a
  string, since JavaScript would show other digits. A tool's state keeps it: only Python reads it;
- an integer of more than about 4300 digits, which Python would refuse to read back, becomes null.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import msgspec

canonical_json: Callable[[Any], bytes] = msgspec.json.Encoder(order="sorted").encode
"""Return UTF-8 JSON with sorted keys and no spaces.

Of values as `normalize` makes them it gives the same bytes before and after a `jsonb` column.
"""

# Below this a float is written with its fraction or exponent, and stays a float on its way back.
FLOAT_LIMIT = 1e16
SAFE_INTEGER = 2**53
MAX_INTEGER_BITS = 14_280  # 4299 digits; int() and str() refuse more than 4300.

_REMOVED = re.compile("[\x00\ud800-\udfff]")
_LONG_TEXT = 200  # From here on encoding is faster than searching, if not for its exception.

Tally = Counter[str]
"""How often each kind of repair was made; `notices.NoticeLog.report` words it."""


def clean_value(value: Any, tally: Tally, *, exact_integers: bool = False) -> Any:
    """Return a copy that is canonical JSON, and count every repair.

    Recursive: the caller has checked the depth. With `exact_integers`, integers that a double
    cannot hold stay integers. Of keys that become equal, the one that was clean already wins, then
    the first by code points, so that the order of keys plays no part.
    """
    kind = type(value)
    if kind is list:
        return [clean_value(item, tally, exact_integers=exact_integers) for item in value]
    if kind is not dict:
        return clean_scalar(value, tally, exact_integers=exact_integers)
    result: dict[str, Any] = {}
    unclean: list[str] = []
    for key, item in value.items():
        if type(key) is not str:
            tally["value_not_json"] += 1
        elif _is_clean(key):
            result[key] = clean_value(item, tally, exact_integers=exact_integers)
        else:
            unclean.append(key)
    for key in sorted(unclean):
        cleaned = clean_text(key, tally)
        if cleaned in result:
            tally["key_clash"] += 1
        else:
            result[cleaned] = clean_value(value[key], tally, exact_integers=exact_integers)
    return result


def clean_scalar(value: Any, tally: Tally, *, exact_integers: bool = False) -> Any:
    """Return the canonical form of what is neither list nor object; null if it has none."""
    kind = type(value)
    if kind is str:
        return clean_text(value, tally)
    if kind is int:
        if -SAFE_INTEGER <= value <= SAFE_INTEGER:
            return value
        return _clean_integer(value, tally, exact_integers)
    if kind is float:
        if -FLOAT_LIMIT < value < FLOAT_LIMIT:
            return value or 0.0  # also of -0.0, which is false
        if math.isfinite(value):
            return int(value)
        tally["number_not_finite"] += 1
        return None
    if value is None or kind is bool:
        return value
    tally["value_not_json"] += 1
    return None


def _clean_integer(value: int, tally: Tally, exact_integers: bool) -> int | str | None:
    if value.bit_length() > MAX_INTEGER_BITS:
        tally["integer_too_large"] += 1
        return None
    if exact_integers or _is_exact_double(value):
        return value
    tally["integer_as_text"] += 1
    return str(value)


def _is_exact_double(value: int) -> bool:
    try:
        return int(float(value)) == value
    except OverflowError:
        return False


def clean_text(text: str, tally: Tally) -> str:
    """Return the text without NUL, which PostgreSQL refuses, and without lone surrogates."""
    if _is_clean(text):
        return text
    cleaned = strip_text(text)
    tally["character_removed"] += len(text) - len(cleaned)
    return cleaned


def strip_text(text: str) -> str:
    """Return what `clean_text` does; of texts most of which are not clean it is the faster one."""
    if not text.isascii():
        text = text.encode(errors="ignore").decode()
    return text.replace("\x00", "") if "\x00" in text else text


def _is_clean(text: str) -> bool:
    if text.isascii():
        return "\x00" not in text
    if len(text) < _LONG_TEXT:
        return _REMOVED.search(text) is None
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\x00" not in text


def count_bytes(text: str) -> int:
    """Return the length in UTF-8 of a clean text."""
    return len(text) if text.isascii() else len(text.encode())


def cut_text(text: str, max_bytes: int) -> str:
    """Return at most `max_bytes` of UTF-8, whole characters, with an ellipsis if something went."""
    if count_bytes(text) <= max_bytes:
        return text
    ellipsis = "…"
    return text.encode()[: max_bytes - len(ellipsis.encode())].decode(errors="ignore") + ellipsis
