"""The tool's state: a JSON object within its caps, less the top-level keys that do not fit.

A key is kept whole or dropped whole: half a value would be a value that the tool never wrote.
"""

from typing import Any

from app.domain.normalizer.canonical import Tally, canonical_json, clean_value
from app.domain.normalizer.measure import Measure, encode_raw, measure
from app.domain.normalizer.notices import NoticeLog, quote
from app.domain.policy import UiPolicy

_WHERE = "Verktygets sparade läge"


def normalize_state(raw: Any, policy: UiPolicy, log: NoticeLog) -> dict[str, Any] | None:
    """Return the state to store, or None for "unchanged".

    Dropped until the rest fits, each with its notice: keys whose value is nested too deeply, then
    the largest keys in bytes, then those that hold the most keys; of equal ones the first by name.
    """
    if raw is None:
        return None
    if type(raw) is not dict:
        log.add("state_not_object", f"{_WHERE} är inte ett JSON-objekt och ändrades därför inte.")
        return None
    found = measure(raw, policy.max_state_bytes)
    data = encode_raw(raw, found)
    state = _clean_entries(raw, found, policy, log)
    state = _fit_bytes(state, None if data is None else len(data), policy, log)
    return _fit_keys(state, policy, log)


def _clean_entries(
    raw: dict[str, Any], found: Measure, policy: UiPolicy, log: NoticeLog
) -> dict[str, Any]:
    """Drop the entries that are too deep or certainly too large; clean the others."""
    max_depth = policy.max_json_depth
    if found.depth <= max_depth and not found.oversize:
        return _cleaned(raw, log)
    kept: dict[str, Any] = {}
    too_deep: list[tuple[str, int]] = []
    too_large: list[str] = []
    for key, value in raw.items():
        if type(value) is list or type(value) is dict:
            entry = measure(value, policy.max_state_bytes)
            if entry.oversize:
                too_large.append(key)
                continue
            if entry.depth >= max_depth:
                too_deep.append((key, entry.depth + 1))
                continue
        kept[key] = value
    for key, depth in sorted(too_deep):
        log.add(
            "state_too_deep",
            f"{_WHERE}: {quote(key)} är nästlad i {depth} nivåer (högst {max_depth}) "
            "och sparades inte.",
        )
    for key in sorted(too_large):
        log.add(
            "state_too_large",
            f"{_WHERE}: {quote(key)} är ensam större än {policy.max_state_bytes} byte "
            "och sparades inte.",
        )
    return _cleaned(kept, log)


def _cleaned(entries: dict[str, Any], log: NoticeLog) -> dict[str, Any]:
    tally = Tally()
    state: dict[str, Any] = clean_value(entries, tally, exact_integers=True)
    log.report(_WHERE, tally)
    return state


def _fit_bytes(
    state: dict[str, Any], raw_bytes: int | None, policy: UiPolicy, log: NoticeLog
) -> dict[str, Any]:
    total = len(canonical_json(state))
    if total <= policy.max_state_bytes:
        return state
    sizes = {key: len(canonical_json({key: value})) - 1 for key, value in state.items()}
    dropped = _largest_until(sizes, total - policy.max_state_bytes)
    before = total if raw_bytes is None else raw_bytes
    log.add(
        "state_too_large",
        f"{_WHERE} är {before} byte, högst {policy.max_state_bytes} sparas: "
        + _describe(dropped, sizes, "byte"),
    )
    return {key: value for key, value in state.items() if key not in dropped}


def _fit_keys(state: dict[str, Any], policy: UiPolicy, log: NoticeLog) -> dict[str, Any]:
    total = measure(state, policy.max_state_bytes).keys
    if total <= policy.max_json_keys:
        return state
    counts = {key: 1 + measure(value, policy.max_state_bytes).keys for key, value in state.items()}
    dropped = _largest_until(counts, total - policy.max_json_keys)
    log.add(
        "state_too_many_keys",
        f"{_WHERE} har {total} nycklar, högst {policy.max_json_keys} sparas: "
        + _describe(dropped, counts, "nycklar"),
    )
    return {key: value for key, value in state.items() if key not in dropped}


def _largest_until(sizes: dict[str, int], excess: int) -> dict[str, None]:
    """Return the largest keys, ties by name, that together take away at least `excess`."""
    names = sorted(sizes)
    names.sort(key=sizes.__getitem__, reverse=True)  # stable: equal sizes stay ordered by name
    dropped: dict[str, None] = {}
    for name in names:
        if excess <= 0:
            break
        dropped[name] = None
        excess -= sizes[name]
    return dropped


def _describe(dropped: dict[str, None], sizes: dict[str, int], unit: str) -> str:
    shown = [f"{quote(key)} ({sizes[key]} {unit})" for key in list(dropped)[:10]]
    more = f" och {len(dropped) - 10} till" if len(dropped) > 10 else ""
    return f"{len(dropped)} nycklar sparades inte: {', '.join(shown)}{more}."
