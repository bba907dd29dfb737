"""Form values against form fields."""

from typing import Any

import pytest

from app.domain.inputs import MAX_INTEGER, MAX_STRING_LENGTH, MAX_TEXT_LENGTH, coerce_values
from app.domain.tools import InputField, Option

OPTIONS = (Option("a", "Alfa"), Option("b", "Beta"))


def field(kind: Any, *, required: bool = False) -> InputField:
    options = OPTIONS if kind in {"enum", "multi_enum"} else ()
    return InputField(name="x", label="Fältet", kind=kind, required=required, options=options)


@pytest.mark.parametrize(
    ("kind", "given", "kept"),
    [
        ("string", "  åäö ", "  åäö "),
        ("string", "x" * MAX_STRING_LENGTH, "x" * MAX_STRING_LENGTH),
        ("text", "två\nrader", "två\nrader"),
        ("text", "x" * MAX_TEXT_LENGTH, "x" * MAX_TEXT_LENGTH),
        ("integer", 3, 3),
        ("integer", " -3 ", -3),
        ("integer", 0, 0),
        ("integer", MAX_INTEGER, MAX_INTEGER),
        ("number", 3, 3),
        ("number", 0.5, 0.5),
        ("number", "0,5", 0.5),
        ("number", "1e3", 1000.0),
        ("boolean", False, False),
        ("boolean", True, True),
        ("boolean", "false", False),
        ("boolean", "true", True),
        ("enum", "b", "b"),
        ("multi_enum", ["b", "a"], ["b", "a"]),
    ],
)
def test_a_value_that_fits_is_kept(kind: str, given: Any, kept: Any) -> None:
    values, problems = coerce_values([field(kind)], {"x": given})
    assert problems == {}
    assert values == {"x": kept}
    assert type(values["x"]) is type(kept)


@pytest.mark.parametrize(
    ("kind", "given", "words"),
    [
        ("string", 1, "text"),
        ("string", "två\nrader", "en enda rad"),
        ("string", "a\rb", "en enda rad"),
        ("string", "a\0", "otillåtet"),
        ("string", "x" * (MAX_STRING_LENGTH + 1), "högst 1000 tecken"),
        ("text", "x" * (MAX_TEXT_LENGTH + 1), "högst 100000 tecken"),
        ("text", ["a"], "text"),
        ("integer", 3.5, "heltal"),
        ("integer", 3.0, "heltal"),
        ("integer", "3.0", "heltal"),
        ("integer", True, "heltal"),
        ("integer", "tre", "heltal"),
        ("integer", MAX_INTEGER + 1, "heltal"),
        ("integer", "9" * 5000, "heltal"),
        ("number", "nan", "tal"),
        ("number", "inf", "tal"),
        ("number", 1e301, "tal"),
        pytest.param("number", 10**400, "tal", id="number-huge"),
        ("number", True, "tal"),
        ("number", "1 000", "tal"),
        ("boolean", "ja", "ja eller nej"),
        ("boolean", 1, "ja eller nej"),
        ("boolean", "True", "ja eller nej"),
        ("enum", "c", "alternativen"),
        ("enum", ["a"], "alternativen"),
        ("enum", "Alfa", "alternativen"),
        ("multi_enum", "a", "lista"),
        ("multi_enum", ["a", "c"], "alternativen"),
        ("multi_enum", ["a", "a"], "två gånger"),
        ("multi_enum", [["a"]], "alternativen"),
    ],
)
def test_a_value_that_does_not_fit_is_told_in_swedish(kind: str, given: Any, words: str) -> None:
    values, problems = coerce_values([field(kind)], {"x": given})
    assert values == {}
    assert "”Fältet”" in problems["x"] and words in problems["x"]


@pytest.mark.parametrize("kind", ["string", "text", "integer", "number", "boolean", "enum"])
@pytest.mark.parametrize("given", [{}, {"x": None}, {"x": ""}, {"x": []}])
def test_nothing_is_left_out_unless_it_is_required(kind: str, given: dict[str, Any]) -> None:
    assert coerce_values([field(kind)], given) == ({}, {})
    values, problems = coerce_values([field(kind, required=True)], given)
    assert (values, problems) == ({}, {"x": "”Fältet” måste fyllas i."})


@pytest.mark.parametrize(("kind", "given"), [("integer", 0), ("boolean", False), ("number", 0.0)])
def test_zero_and_false_are_values(kind: str, given: Any) -> None:
    assert coerce_values([field(kind, required=True)], {"x": given}) == ({"x": given}, {})


def test_fields_that_the_form_does_not_have_are_refused() -> None:
    long = "y" * 300
    _, problems = coerce_values([field("string")], {"x": "a", long: 1})
    assert problems == {"y" * 100: "Fältet finns inte i formuläret."}


def test_files_are_no_inputs() -> None:
    file = InputField(name="files", label="Filer", kind="file", min=1, required=True)
    assert coerce_values([file], {}) == ({}, {})
    assert list(coerce_values([file], {"files": "a.txt"})[1]) == ["files"]


def test_every_problem_of_a_form_is_told_at_once() -> None:
    fields = [
        InputField(name=name, label=name, kind="integer", required=True) for name in ("a", "b", "c")
    ]
    values, problems = coerce_values(fields, {"a": 1, "b": "x"})
    assert values == {"a": 1}
    assert list(problems) == ["b", "c"]
