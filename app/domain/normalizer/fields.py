"""Fields of an action's form, their options, and the values that they are filled with."""

from collections import Counter
from typing import Any

from app.domain.normalizer.canonical import clean_scalar, count_bytes
from app.domain.normalizer.notices import Place, quote

_MEMBERS = frozenset({"name", "label", "kind", "required"})
_ENUMS = frozenset({"enum", "multi_enum"})
_UNUSABLE = object()
# So many times the cap are looked at: a form has hundreds of thousands of useless ones only to
# take time. The others are counted as too many.
_LOOKED_AT = 10


def build_fields(raw_fields: list[Any], place: Place) -> list[dict[str, Any]]:
    """Return the usable fields in their order: of equal names the first, of too many the first."""
    policy = place.policy
    fields: dict[str, dict[str, Any]] = {}
    objects = [raw for raw in raw_fields if type(raw) is dict]
    looked_at = objects[: policy.max_fields * _LOOKED_AT]
    lost = Counter(invalid=len(raw_fields) - len(objects), over=len(objects) - len(looked_at))
    for raw in looked_at:
        name = place.name(raw, "name", policy.max_name_bytes)
        kind = raw.get("kind")
        if name is None or type(kind) is not str or kind not in policy.field_kinds:
            lost["invalid"] += 1
        elif name in fields:
            lost["duplicate"] += 1
        elif len(fields) == policy.max_fields:
            lost["over"] += 1
        elif (field := _build_field(name, kind, raw, place)) is None:
            lost["invalid"] += 1
        else:
            fields[name] = field
    given = len(raw_fields)
    if lost["invalid"]:
        place.note(
            "field_invalid",
            f"{lost['invalid']} av {given} fält togs bort, för att namn, sort eller alternativ "
            f"saknas eller inte går att använda (namn: högst {policy.max_name_bytes} byte)",
        )
    if lost["duplicate"]:
        place.note(
            "field_duplicate",
            f"{lost['duplicate']} av {given} fält togs bort, för att namnet redan finns",
        )
    if lost["over"]:
        place.note(
            "too_many_fields",
            f"{given} fält, högst {policy.max_fields} visas: {lost['over']} togs bort",
        )
    return list(fields.values())


def _build_field(name: str, kind: str, raw: dict[str, Any], parent: Place) -> dict[str, Any] | None:
    known = _MEMBERS
    options: list[dict[str, str]] = []
    if kind in _ENUMS:
        known = _MEMBERS | {"options"}
        if type(raw.get("options")) is not list:
            return None
        options = _build_options(raw["options"], kind, parent.inside(f"fältet {quote(name)}"))
        if not options:
            return None
    place = parent.inside(f"fältet {quote(name)}")
    field: dict[str, Any] = {"name": name, "label": place.label(raw, name), "kind": kind}
    if type(raw.get("required")) is bool:
        field["required"] = raw["required"]
    elif raw.get("required") is not None:
        place.note("field_required_invalid", "required är inte sant eller falskt och togs bort")
    if options:
        field["options"] = options
    place.note_unknown(len(raw.keys() - known))
    return field


def _build_options(raw_options: list[Any], kind: str, place: Place) -> list[dict[str, str]]:
    policy = place.policy
    cap = policy.max_enum_options if kind == "enum" else policy.max_multi_enum_options
    options: dict[str, str] = {}
    objects = [raw for raw in raw_options if type(raw) is dict]
    looked_at = objects[: cap * _LOOKED_AT]
    lost = Counter(invalid=len(raw_options) - len(objects), over=len(objects) - len(looked_at))
    for raw in looked_at:
        value = place.name(raw, "value", policy.max_option_value_bytes, min_bytes=0)
        if value is None:
            lost["invalid"] += 1
        elif value in options:
            lost["duplicate"] += 1
        elif len(options) == cap:
            lost["over"] += 1
        else:
            options[value] = place.label(raw, value)
            lost["unknown"] += len(raw.keys() - {"value", "label"})
    given = len(raw_options)
    if lost["invalid"]:
        place.note(
            "option_invalid",
            f"{lost['invalid']} av {given} alternativ togs bort, för att värdet inte är text "
            f"eller är längre än {policy.max_option_value_bytes} byte",
        )
    if lost["duplicate"]:
        place.note(
            "option_duplicate",
            f"{lost['duplicate']} av {given} alternativ togs bort, för att värdet redan finns",
        )
    if lost["over"]:
        place.note(
            "too_many_options",
            f"{given} alternativ, högst {cap} visas: {lost['over']} togs bort",
        )
    place.note_unknown(lost["unknown"])
    return [{"value": value, "label": label} for value, label in options.items()]


def build_prefill(raw: Any, names: set[str], place: Place) -> dict[str, Any]:
    """Return a value for each field of the form that has a usable one.

    A value is a scalar, or a list of scalars no longer than a multi_enum. Text that is too long is
    dropped, not shortened: the user would send it back without seeing that its end is gone.
    """
    if type(raw) is not dict:
        place.note("prefill_invalid", "prefill är inte ett objekt och togs bort")
        return {}
    prefill = {}
    for name in names & raw.keys():
        value = _prefill_value(raw[name], place)
        if value is not _UNUSABLE:
            prefill[name] = value
    lost = len(raw) - len(prefill)
    if lost:
        place.note(
            "prefill_invalid",
            f"{lost} av {len(raw)} förifyllda värden togs bort, för att fältet saknas eller värdet "
            f"är av fel sort eller längre än {place.policy.max_prefill_text_bytes} byte",
        )
    return prefill


def _prefill_value(value: Any, place: Place) -> Any:
    if type(value) is list:
        if len(value) > place.policy.max_multi_enum_options:
            return _UNUSABLE
        items = [_prefill_scalar(item, place) for item in value]
        return _UNUSABLE if _UNUSABLE in items else items
    return _prefill_scalar(value, place)


def _prefill_scalar(value: Any, place: Place) -> Any:
    if type(value) is list or type(value) is dict:
        return _UNUSABLE
    cleaned = clean_scalar(value, place.tally)
    if type(cleaned) is str and count_bytes(cleaned) > place.policy.max_prefill_text_bytes:
        return _UNUSABLE
    return cleaned
