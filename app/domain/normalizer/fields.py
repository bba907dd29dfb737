"""Fields of an action's form, their options, and the values that they are filled with."""

from collections import Counter
from typing import Any

from app.domain.normalizer.canonical import Tally, clean_scalar, clean_text, count_bytes, cut_text
from app.domain.normalizer.notices import NoticeLog, quote
from app.domain.policy import UiPolicy

_MEMBERS = frozenset({"name", "label", "kind", "required"})
_ENUMS = frozenset({"enum", "multi_enum"})


def build_fields(
    raw_fields: list[Any], where: str, policy: UiPolicy, log: NoticeLog, tally: Tally
) -> list[dict[str, Any]]:
    """Return the usable fields in their order; of equal names the first, and the first ones of many."""
    fields: list[dict[str, Any]] = []
    seen: set[str] = set()
    lost = Counter[str]()
    for raw in raw_fields:
        name = _name(raw, policy, tally)
        if name is None or raw.get("kind") not in policy.field_kinds:
            lost["invalid"] += 1
        elif name in seen:
            lost["duplicate"] += 1
        elif len(fields) == policy.max_fields:
            lost["over"] += 1
        elif (field := _build_field(name, raw, where, policy, log, tally)) is None:
            lost["invalid"] += 1
        else:
            seen.add(name)
            fields.append(field)
    if lost["invalid"]:
        log.add(
            "field_invalid",
            f"{where}: {lost['invalid']} av {len(raw_fields)} fält togs bort, för att namn, sort "
            "eller alternativ saknas eller inte går att använda.",
        )
    if lost["duplicate"]:
        log.add(
            "field_duplicate",
            f"{where}: {lost['duplicate']} av {len(raw_fields)} fält togs bort, "
            "för att namnet redan finns.",
        )
    if lost["over"]:
        log.add(
            "too_many_fields",
            f"{where} har {len(raw_fields)} fält, högst {policy.max_fields} visas: "
            f"{lost['over']} togs bort.",
        )
    return fields


def _name(raw: Any, policy: UiPolicy, tally: Tally) -> str | None:
    name = raw.get("name") if type(raw) is dict else None
    if type(name) is not str or len(name) > policy.max_name_bytes:
        return None
    name = clean_text(name, tally)
    # Not shortened: the tool would not find its own field again.
    return name if 0 < count_bytes(name) <= policy.max_name_bytes else None


def _build_field(
    name: str, raw: dict[str, Any], where: str, policy: UiPolicy, log: NoticeLog, tally: Tally
) -> dict[str, Any] | None:
    where = f"{where}, fältet {quote(name)}"
    kind = raw["kind"]
    field: dict[str, Any] = {
        "name": name,
        "label": build_label(raw.get("label"), name, where, policy, log, tally),
        "kind": kind,
    }
    known = len(raw.keys() & _MEMBERS)
    if "required" in raw:
        if type(raw["required"]) is bool:
            field["required"] = raw["required"]
        else:
            log.add("members_unknown", f"{where}: required är inte sant eller falskt.")
    if kind in _ENUMS:
        options = _build_options(raw.get("options"), kind, where, policy, log, tally)
        if not options:
            return None
        field["options"] = options
        known += 1
    if len(raw) > known:
        log.add("members_unknown", f"{where}: {len(raw) - known} okända egenskaper togs bort.")
    return field


def _build_options(
    raw_options: Any, kind: str, where: str, policy: UiPolicy, log: NoticeLog, tally: Tally
) -> list[dict[str, str]]:
    if type(raw_options) is not list:
        return []
    cap = policy.max_enum_options if kind == "enum" else policy.max_multi_enum_options
    options: dict[str, str] = {}
    lost = Counter[str]()
    for raw in raw_options:
        value = raw.get("value") if type(raw) is dict else None
        if type(value) is not str or len(value) > policy.max_option_value_bytes:
            lost["invalid"] += 1
            continue
        value = clean_text(value, tally)
        if count_bytes(value) > policy.max_option_value_bytes:
            lost["invalid"] += 1
        elif value in options:
            lost["duplicate"] += 1
        elif len(options) == cap:
            lost["over"] += 1
        else:
            options[value] = build_label(raw.get("label"), value, where, policy, log, tally)
            if len(raw) > 2:
                lost["unknown"] += 1
    if lost["invalid"] or lost["duplicate"]:
        log.add(
            "option_invalid",
            f"{where}: {lost['invalid'] + lost['duplicate']} av {len(raw_options)} alternativ togs "
            f"bort: {lost['invalid']} utan användbart värde, {lost['duplicate']} dubbletter.",
        )
    if lost["over"]:
        log.add(
            "too_many_options",
            f"{where} har {len(raw_options)} alternativ, högst {cap} visas: "
            f"{lost['over']} togs bort.",
        )
    if lost["unknown"]:
        log.add("members_unknown", f"{where}: {lost['unknown']} alternativ har okända egenskaper.")
    return [{"value": value, "label": label} for value, label in options.items()]


def build_label(
    raw: Any, fallback: str, where: str, policy: UiPolicy, log: NoticeLog, tally: Tally
) -> str:
    """Return the label, shortened to its cap, or the fallback if there is none."""
    if type(raw) is not str:
        log.add(
            "label_missing", f"{where}: {quote(fallback)} saknar etikett och visas med sitt id."
        )
        return cut_text(fallback, policy.max_label_bytes)
    label = clean_text(raw, tally)
    size = count_bytes(label)
    if size > policy.max_label_bytes:
        log.add(
            "label_too_long",
            f"{where}: etiketten är {size} byte och kortades till {policy.max_label_bytes}.",
        )
    return cut_text(label, policy.max_label_bytes)


def build_prefill(
    raw: Any, names: set[str], where: str, policy: UiPolicy, log: NoticeLog, tally: Tally
) -> dict[str, Any]:
    """Return a value for each field of the form that has a usable one.

    A value is a scalar, or a list of scalars no longer than a multi_enum. Text that is too long is
    dropped, not shortened: the user would send it back without seeing that its end is gone.
    """
    if type(raw) is not dict:
        log.add("prefill_invalid", f"{where}: prefill är inte ett objekt och togs bort.")
        return {}
    prefill: dict[str, Any] = {}
    for name in sorted(names):
        if name not in raw:
            continue
        value = raw[name]
        if type(value) is list:
            if len(value) <= policy.max_multi_enum_options:
                items = [_prefill_scalar(item, policy, tally) for item in value]
                if _MISSING not in items:
                    prefill[name] = items
        elif (item := _prefill_scalar(value, policy, tally)) is not _MISSING:
            prefill[name] = item
    lost = len(raw) - len(prefill)
    if lost:
        log.add(
            "prefill_invalid",
            f"{where}: {lost} av {len(raw)} förifyllda värden togs bort, för att fältet saknas "
            "eller värdet är för långt eller av fel sort.",
        )
    return prefill


_MISSING = object()


def _prefill_scalar(value: Any, policy: UiPolicy, tally: Tally) -> Any:
    if type(value) in (list, dict):
        return _MISSING
    cleaned = clean_scalar(value, tally)
    if type(cleaned) is str and count_bytes(cleaned) > policy.max_prefill_text_bytes:
        return _MISSING
    return cleaned
