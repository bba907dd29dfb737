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
        ("string", " ", " "),
        ("string", "e\u0301 – \u00a0\u200d😀", "e\u0301 – \u00a0\u200d😀"),
        ("text", "a\tb\r\nc\u2028d", "a\tb\r\nc\u2028d"),
        ("integer", " -3 ", -3),
        ("integer", "\t+007\n", 7),
        ("integer", str(-MAX_INTEGER), -MAX_INTEGER),
        ("integer", 0, 0),
        ("integer", MAX_INTEGER, MAX_INTEGER),
        ("number", 3, 3),
        ("number", 0.5, 0.5),
        ("number", "0,5", 0.5),
        ("number", "1e3", 1000.0),
        ("number", " -,5E-1 ", -0.05),
        ("number", "3.", 3.0),
        ("number", "3", 3.0),
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
        ("string", "a\u2028b", "en enda rad"),
        ("string", "a\u2029", "en enda rad"),
        ("string", "a\x85b", "en enda rad"),
        ("string", "a\x0bb", "en enda rad"),
        ("string", "\x1b[31m", "otillåtet tecken (U+001B)"),
        ("string", "a\tb", "otillåtet tecken (en tabb)"),
        ("string", "\x7f", "otillåtet tecken (U+007F)"),
        ("string", "\ud800", "otillåtet tecken (U+D800)"),
        ("text", "a\0", "otillåtet tecken (U+0000)"),
        ("text", "a\x0cb", "otillåtet tecken (U+000C)"),
        ("text", "a\x1f", "otillåtet tecken (U+001F)"),
        ("text", "a\x9f", "otillåtet tecken (U+009F)"),
        ("text", "x" * (MAX_TEXT_LENGTH + 1), "högst 100000 tecken"),
        ("text", ["a"], "text"),
        ("integer", 3.5, "heltal"),
        ("integer", 3.0, "heltal"),
        ("integer", "3.0", "heltal"),
        ("integer", True, "heltal"),
        ("integer", "tre", "heltal"),
        ("integer", MAX_INTEGER + 1, "heltal"),
        ("integer", "9" * 5000, "heltal"),
        ("integer", "1_000", "heltal"),
        ("integer", "٣", "heltal"),
        ("integer", "３", "heltal"),
        ("integer", "--3", "heltal"),
        ("integer", "1e3", "heltal"),
        ("integer", " ", "heltal"),
        ("integer", str(MAX_INTEGER + 1), "heltal"),
        ("number", "1_0", "tal"),
        ("number", "٣,٥", "tal"),
        ("number", "1,5,0", "tal"),
        ("number", ",", "tal"),
        ("number", "1e", "tal"),
        ("number", "1e999", "tal"),
        ("number", "infinity", "tal"),
        ("number", "0" * 41, "tal"),
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


@pytest.mark.parametrize("kind", ["string", "text", "integer", "number"])
@pytest.mark.parametrize("given", [" ", "   ", "\t\n", "\u00a0"])
def test_white_space_fills_in_nothing_that_is_required(kind: str, given: str) -> None:
    _, problems = coerce_values([field(kind, required=True)], {"x": given})
    assert problems == {"x": "”Fältet” måste fyllas i."}


@pytest.mark.parametrize("required", [True, False])
def test_an_empty_option_can_be_chosen(required: bool) -> None:
    options = (Option("", "Ingen"), Option(" ", "Mellanslag"), *OPTIONS)
    one = InputField(name="x", label="X", kind="enum", required=required, options=options)
    many = InputField(name="y", label="Y", kind="multi_enum", required=required, options=options)
    given = {"x": "", "y": [""]}
    assert coerce_values([one, many], given) == (given, {})
    assert coerce_values([one], {"x": " "}) == ({"x": " "}, {})
    assert ("x" in coerce_values([one], {"x": None})[1]) is required
    assert ("y" in coerce_values([many], {"y": []})[1]) is required


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
