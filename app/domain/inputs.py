"""Form values against form fields: used for a tool's inputs and for an action's input alike."""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from app.domain.tools import Option

MAX_STRING_LENGTH = 1_000
MAX_TEXT_LENGTH = 100_000
# What survives in every JSON reader on the way (RFC 8259 §6): the integers of a double.
MAX_INTEGER = 2**53 - 1

# What Python reads besides, "1_000" and the digits of other scripts, would be another's number.
_INTEGER = re.compile(r"\s*[+-]?\d{1,20}\s*", re.ASCII)
_NUMBER = re.compile(r"\s*[+-]?(\d+[.,]?\d*|[.,]\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_LINE_BREAK = re.compile("[\n\v\f\r\x85\u2028\u2029]")
# Controls, and lone surrogates, which no encoder takes. A text may have tabs and lines.
_UNUSABLE = {
    "string": re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]"),
    "text": re.compile("[\x00-\x08\v\f\x0e-\x1f\x7f-\x9f\ud800-\udfff]"),
}


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

    Numbers and booleans may come as the texts a form sends ("3", "0,5", "true"). Nothing else is
    bent: 3.5 is no integer and "ja" no boolean. Missing, null and empty optional values are left
    out, unless empty is one of the options; what is required is more than white space.
    """
    coerced: dict[str, Any] = {}
    problems: dict[str, str] = {}
    known: set[str] = set()
    for field in fields:
        if field.kind == "file":
            continue
        known.add(field.name)
        value = values.get(field.name)
        if _is_blank(field, value):
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


def _is_blank(field: FormField, value: Any) -> bool:
    if not isinstance(value, str):
        return value is None or value == []
    if any(option.value == value for option in field.options):
        return False
    return not (value.strip() if field.required else value)


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
    if field.kind == "string" and _LINE_BREAK.search(value):
        raise ValueProblem(f"”{field.label}” ska vara en enda rad.")
    unusable = _UNUSABLE[field.kind].search(value)
    if unusable:
        name = "en tabb" if unusable[0] == "\t" else f"U+{ord(unusable[0]):04X}"
        raise ValueProblem(f"”{field.label}” innehåller ett otillåtet tecken ({name}).")
    return value


def _integer(field: FormField, value: Any) -> int:
    if isinstance(value, str) and _INTEGER.fullmatch(value):
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > MAX_INTEGER:
        raise ValueProblem(f"”{field.label}” ska vara ett heltal.")
    return value


def _number(field: FormField, value: Any) -> int | float:
    if isinstance(value, str) and len(value) <= 40 and _NUMBER.fullmatch(value):
        value = float(value.replace(",", "."))
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
