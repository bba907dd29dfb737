"""Form values against form fields: used for a tool's inputs and for an action's input alike."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from app.domain.tools import Option

MAX_STRING_LENGTH = 1_000
MAX_TEXT_LENGTH = 100_000
# What survives in every JSON reader on the way (RFC 8259 §6): the integers of a double.
MAX_INTEGER = 2**53 - 1


class FormField(Protocol):
    """What both kinds of form say of a field."""

    @property
    def name(self) -> str: ...
    @property
    def label(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def required(self) -> bool: ...
    @property
    def options(self) -> Iterable[Option]: ...


class ValueProblem(Exception):
    """A value does not fit its field; the message is Swedish and complete."""


def coerce_values(
    fields: Iterable[FormField], values: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    """Fit values to their fields: (values by name, problems by name).

    Numbers and booleans may come as the texts a form sends ("3", "true"). Nothing else is bent:
    3.5 is no integer and "ja" no boolean. Missing, null and blank optional values are left out.
    """
    coerced: dict[str, Any] = {}
    problems: dict[str, str] = {}
    known: set[str] = set()
    for field in fields:
        if field.kind == "file":
            continue
        known.add(field.name)
        value = values.get(field.name)
        if value is None or value == "" or value == []:
            if field.required:
                problems[field.name] = f"”{field.label}” måste fyllas i."
            continue
        try:
            coerced[field.name] = _coerce(field, value)
        except ValueProblem as problem:
            problems[field.name] = str(problem)
    for name in values:
        if name not in known:
            problems[str(name)[:100]] = "Fältet finns inte i formuläret."
    return coerced, problems


def _coerce(field: FormField, value: Any) -> Any:
    match field.kind:
        case "string" | "text":
            return _text(field, value)
        case "integer":
            return _integer(field, value)
        case "number":
            return _number(field, value)
        case "boolean":
            return _boolean(field, value)
        case "enum":
            return _choice(field, value)
        case "multi_enum":
            return _choices(field, value)
        case _:
            raise ValueProblem(f"”{field.label}” är av ett okänt slag.")


def _text(field: FormField, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueProblem(f"”{field.label}” ska vara text.")
    limit = MAX_TEXT_LENGTH if field.kind == "text" else MAX_STRING_LENGTH
    if len(value) > limit:
        raise ValueProblem(f"”{field.label}” får ha högst {limit} tecken.")
    if "\0" in value:
        raise ValueProblem(f"”{field.label}” innehåller ett otillåtet tecken.")
    if field.kind == "string" and ("\n" in value or "\r" in value):
        raise ValueProblem(f"”{field.label}” ska vara en enda rad.")
    return value


def _integer(field: FormField, value: Any) -> int:
    if isinstance(value, str) and len(value) <= 20:
        try:
            value = int(value.strip())
        except ValueError:
            value = None
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_INTEGER:
        raise ValueProblem(f"”{field.label}” ska vara ett heltal.")
    return value


def _number(field: FormField, value: Any) -> int | float:
    if isinstance(value, str) and len(value) <= 40:
        try:
            value = float(value.strip().replace(",", "."))
        except ValueError:
            value = None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    # The size first: an integer of hundreds of digits is no float to ask about.
    if not is_number or abs(value) > 1e300 or not math.isfinite(value):
        raise ValueProblem(f"”{field.label}” ska vara ett tal.")
    return value  # type: ignore[no-any-return]


def _boolean(field: FormField, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "false"):
        return bool(value == "true")
    raise ValueProblem(f"”{field.label}” ska vara ja eller nej.")


def _choice(field: FormField, value: Any) -> str:
    if not isinstance(value, str) or all(option.value != value for option in field.options):
        raise ValueProblem(f"”{field.label}” ska vara ett av alternativen.")
    return value


def _choices(field: FormField, value: Any) -> list[str]:
    if not isinstance(value, list):
        raise ValueProblem(f"”{field.label}” ska vara en lista av alternativ.")
    chosen = [_choice(field, item) for item in value]
    if len(set(chosen)) != len(chosen):
        raise ValueProblem(f"”{field.label}” har samma alternativ två gånger.")
    return chosen
