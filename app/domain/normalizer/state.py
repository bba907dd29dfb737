"""The tool's state: a JSON object within its caps, less the top-level keys that do not fit.

A key is kept whole or dropped whole: half a value would be a value that the tool never wrote.
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from app.domain.normalizer.canonical import Tally, clean_value
from app.domain.normalizer.measure import Measure, is_deeper, measure
from app.domain.normalizer.notices import NoticeLog, Place, quote
from app.domain.normalizer.weight import weigh_entries
from app.domain.policy import UiPolicy

_LISTED_KEYS = 20


def normalize_state(raw: Any, policy: UiPolicy, log: NoticeLog) -> dict[str, Any] | None:
    """Return the state to store, or None for "unchanged".

    Dropped until the rest fits, with notices: keys whose value is nested too deeply, then the
    largest keys in bytes, then those that hold the most keys; of equal ones the first by name.
    """
    place = Place("Verktygets sparade läge", policy, log, Tally())
    if raw is None:
        return None
    if type(raw) is not dict:
        place.note("state_not_object", "det är inte ett JSON-objekt och ändras därför inte")
        return None
    state: dict[str, Any] = raw
    if set(map(type, raw)) - {str}:
        state = {key: value for key, value in raw.items() if type(key) is str}
        place.tally["value_not_json"] += len(raw) - len(state)
    found = measure(state, policy.max_state_bytes)
    if found.depth > policy.max_json_depth or not found.complete:
        state = _drop_deep(state, found, place)
    if found.oversize:
        # Before cleaning, which takes longer than weighing and would be done in vain.
        state = _fit_bytes(state, place)
    state = clean_value(state, place.tally, exact_integers=True)
    log.report(place.where, place.tally)
    return _fit_keys(_fit_bytes(state, place), place)


def _drop_deep(state: dict[str, Any], found: Measure, place: Place) -> dict[str, Any]:
    cap = place.policy.max_json_depth
    kept = [key for key, value in state.items() if not is_deeper(value, cap - 1)]
    if len(kept) == len(state):
        return state
    least = "" if found.complete else "minst "
    place.note(
        "state_too_deep",
        f"{least}{found.depth} nivåer, högst {cap} sparas: "
        + _list_dropped(state, [0] * len(state), kept),
    )
    return {key: state[key] for key in kept}


def _fit_bytes(state: dict[str, Any], place: Place) -> dict[str, Any]:
    cap = place.policy.max_state_bytes
    sizes = weigh_entries(state)
    total = sum(sizes) + 1  # Braces, less the comma that the last entry has not.
    if total <= cap or not state:
        return state
    kept = _find_smallest(state, sizes, cap - 1)
    place.note(
        "state_too_large", f"{total} byte, högst {cap} sparas: " + _list_dropped(state, sizes, kept)
    )
    return {key: state[key] for key in kept}


def _fit_keys(state: dict[str, Any], place: Place) -> dict[str, Any]:
    cap = place.policy.max_json_keys
    counts = [1 + measure(value, place.policy.max_state_bytes).keys for value in state.values()]
    total = sum(counts)
    if total <= cap:
        return state
    kept = _find_smallest(state, counts, cap)
    place.note(
        "state_too_many_keys",
        f"{total} nycklar, högst {cap} sparas: " + _list_dropped(state, counts, kept),
    )
    return {key: state[key] for key in kept}


def _find_smallest(state: Iterable[str], sizes: list[int], room: int) -> list[str]:
    """Return what is left when the largest keys, ties by name, go until the others find room."""
    by_size: defaultdict[int, list[str]] = defaultdict(list)
    for name, size in zip(state, sizes, strict=True):
        by_size[size].append(name)
    kept: list[str] = []
    for size in sorted(by_size):
        names = by_size[size]
        count = room // size
        if count < len(names):
            return kept + _find_last(names, count)
        kept += names
        room -= size * len(names)
    return kept


def _find_last(names: list[str], count: int) -> list[str]:
    """Return the last names by code points, without sorting many more than are asked for."""
    last: list[str] = []
    step = max(count, 1)
    for start in range(0, len(names) if count else 0, step):
        chunk = names[start : start + step]
        if last:
            chunk = [name for name in chunk if name > last[0]]
        last = sorted(last + chunk)[-count:]
    return last


def _list_dropped(state: dict[str, Any], sizes: list[int], kept: list[str]) -> str:
    count = len(state) - len(kept)
    said = f"{count} av {len(state)} nycklar sparades inte"
    if count > _LISTED_KEYS:
        return said
    dropped = state.keys() - set(kept)
    entries = zip(state, sizes, strict=True)
    largest = sorted((-size, name) for name, size in entries if name in dropped)
    return f"{said} ({', '.join(quote(name) for _, name in largest)})"
