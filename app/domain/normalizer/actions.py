"""Next actions: the forms that a result offers, merged with those of the backend."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from app.domain.contract import ContractViolation
from app.domain.normalizer.canonical import Tally, clean_text, count_bytes
from app.domain.normalizer.fields import build_fields, build_label, build_prefill
from app.domain.normalizer.notices import NoticeLog, quote
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
    tally = Tally()
    theirs = _identify(list(backend), policy, log, tally)
    candidates = _identify(raw, policy, log, tally)
    log.report("Nästa steg", tally)
    _check_unique([name for name, _ in theirs + candidates])
    cap = policy.max_next_actions
    from_backend = _build_all(theirs, cap, policy, log)
    from_tool = _build_all(candidates, cap - len(from_backend), policy, log)
    return from_tool, from_backend


def _identify(raw: list[Any], policy: UiPolicy, log: NoticeLog, tally: Tally) -> list[Candidate]:
    """Return what has an id, and count what has none."""
    found: list[Candidate] = []
    for item in raw:
        name = item.get("action_id") if type(item) is dict else None
        if type(name) is str and 0 < len(name) <= policy.max_name_bytes:
            name = clean_text(name, tally)
            if 0 < count_bytes(name) <= policy.max_name_bytes:
                found.append((name, item))
    lost = len(raw) - len(found)
    if lost:
        log.add(
            "action_invalid",
            f"{lost} av {len(raw)} nästa steg togs bort, för att action_id saknas, är tomt "
            f"eller är längre än {policy.max_name_bytes} byte.",
        )
    return found


def _check_unique(names: list[str]) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise ContractViolation(
            "duplicate_action_id",
            f"Verktyget erbjuder flera nästa steg med samma action_id: {quote(min(repeated))}.",
        )


def _build_all(
    candidates: list[Candidate], cap: int, policy: UiPolicy, log: NoticeLog
) -> list[dict[str, Any]]:
    usable: list[Candidate] = []
    for name, raw in candidates:
        if raw.get("kind") == "form" and type(raw.get("fields", [])) in (list, type(None)):
            usable.append((name, raw))
        else:
            log.add(
                "action_invalid",
                f"Nästa steg {quote(name)} togs bort: det är inte ett formulär med fält.",
            )
    if len(usable) > cap:
        log.add(
            "too_many_actions",
            f"Verktyget erbjuder {len(usable)} nästa steg, högst {cap} visas: "
            f"{len(usable) - cap} togs bort.",
        )
    built = [_build(name, raw, policy, log) for name, raw in usable[: max(cap, 0)]]
    return sorted(built, key=lambda action: str(action["action_id"]))


def _build(name: str, raw: dict[str, Any], policy: UiPolicy, log: NoticeLog) -> dict[str, Any]:
    where = f"Nästa steg {quote(name)}"
    tally = Tally()
    fields = build_fields(raw.get("fields") or [], where, policy, log, tally)
    action: dict[str, Any] = {
        "action_id": name,
        "label": build_label(raw.get("label"), name, where, policy, log, tally),
        "kind": "form",
        "fields": fields,
    }
    if raw.get("prefill") is not None:
        names = {str(field["name"]) for field in fields}
        action["prefill"] = build_prefill(raw["prefill"], names, where, policy, log, tally)
    unknown = sum(1 for key in raw if key not in _MEMBERS)
    if unknown:
        log.add("members_unknown", f"{where}: {unknown} okända egenskaper togs bort.")
    log.report(where, tally)
    return action
