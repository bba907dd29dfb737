"""Next actions: the forms that a result offers, merged with those of the backend."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from app.domain.contract import ContractViolation
from app.domain.normalizer.canonical import Tally
from app.domain.normalizer.fields import build_fields, build_prefill
from app.domain.normalizer.notices import NoticeLog, Place, quote
from app.domain.policy import UiPolicy

_MEMBERS = frozenset({"action_id", "label", "kind", "fields", "prefill"})

Candidate = tuple[str, dict[str, Any]]


def normalize_actions(
    raw: list[Any], backend: Iterable[Any], policy: UiPolicy, log: NoticeLog
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the tool's actions and the backend's, each sorted by `action_id`.

    Over the cap the backend's stay, and of the tool's the first in its own order.

    Raises:
        ContractViolation: `duplicate_action_id`, within a result or with a backend action
            (ADR-0024, algorithm, step 4).
    """
    place = Place("Nästa steg", policy, log, Tally())
    theirs = _identify(list(backend), place)
    candidates = _identify(raw, place)
    log.report(place.where, place.tally)
    _check_unique([name for name, _ in theirs + candidates])
    cap = policy.max_next_actions
    from_backend = _build_all(theirs, cap, place)
    from_tool = _build_all(candidates, cap - len(from_backend), place)
    return from_tool, from_backend


def _identify(raw: list[Any], place: Place) -> list[Candidate]:
    max_bytes = place.policy.max_name_bytes
    found: list[Candidate] = []
    for item in [item for item in raw if type(item) is dict]:
        name = place.name(item, "action_id", max_bytes)
        if name is not None:
            found.append((name, item))
    lost = len(raw) - len(found)
    if lost:
        place.note(
            "action_invalid",
            f"{lost} av {len(raw)} togs bort, för att action_id saknas, är tomt eller är längre än "
            f"{max_bytes} byte",
        )
    return found


def _check_unique(names: list[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ContractViolation(
            "duplicate_action_id",
            f"Verktyget erbjuder flera nästa steg med samma action_id: {quote(min(repeated))}.",
        )


def _build_all(candidates: list[Candidate], cap: int, place: Place) -> list[dict[str, Any]]:
    usable = [
        (name, raw)
        for name, raw in candidates
        if raw.get("kind") == "form" and type(raw.get("fields")) in (list, type(None))
    ]
    lost = len(candidates) - len(usable)
    if lost:
        place.note(
            "action_invalid",
            f"{lost} av {len(candidates)} togs bort, för att de inte är formulär med fält",
        )
    if len(usable) > cap:
        place.note(
            "too_many_actions",
            f"{len(usable)} erbjuds, högst {cap} av verktyget visas: {len(usable) - cap} togs bort",
        )
    built = [_build(name, raw, place) for name, raw in usable[: max(cap, 0)]]
    return sorted(built, key=lambda action: str(action["action_id"]))


def _build(name: str, raw: dict[str, Any], parent: Place) -> dict[str, Any]:
    place = Place(f"Nästa steg {quote(name)}", parent.policy, parent.log, Tally())
    action: dict[str, Any] = {
        "action_id": name,
        "label": place.label(raw, name),
        "kind": "form",
        "fields": build_fields(raw.get("fields") or [], place),
    }
    if raw.get("prefill") is not None:
        names = {str(field["name"]) for field in action["fields"]}
        action["prefill"] = build_prefill(raw["prefill"], names, place)
    place.note_unknown(len(raw.keys() - _MEMBERS))
    place.log.report(place.where, place.tally)
    return action
