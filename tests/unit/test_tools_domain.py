"""Forms and code of tools."""

from typing import Any

import pytest

from app.domain.tools import (
    MAX_FIELDS,
    MAX_SOURCE_BYTES,
    InputField,
    check_source,
    file_field,
    is_slug,
    parse_input_schema,
)
from app.errors import InvalidInputSchema, InvalidSource

TEXT: dict[str, Any] = {"kind": "string", "name": "a", "label": "A"}
FILE: dict[str, Any] = {"kind": "file", "name": "files", "label": "Filer"}
CHOICE: dict[str, Any] = TEXT | {"kind": "enum", "options": [{"value": "x", "label": "X"}]}


@pytest.mark.parametrize(
    "raw",
    [
        [],
        [TEXT],
        [TEXT | {"required": True}],
        [FILE | {"accept": [".html", ".tar.gz"], "min": 1, "max": 1}],
        [FILE | {"min": 2}],
        [FILE | {"required": False}],
        [CHOICE, CHOICE | {"name": "b", "kind": "multi_enum"}],
        [TEXT | {"name": str(number)} for number in range(MAX_FIELDS)],
    ],
)
def test_a_form_that_can_be_is_kept(raw: list[dict[str, Any]]) -> None:
    assert [field.name for field in parse_input_schema(raw)] == [field["name"] for field in raw]


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ([TEXT, TEXT], "samma namn"),
        ([FILE, FILE | {"name": "b"}], "högst ett filfält"),
        ([TEXT | {"name": " "}], "namn och en etikett"),
        ([TEXT | {"label": ""}], "namn och en etikett"),
        ([TEXT | {"options": CHOICE["options"]}], "alternativ"),
        ([TEXT | {"kind": "enum"}], "alternativ"),
        ([CHOICE | {"options": CHOICE["options"] * 2}], "två alternativ"),
        ([TEXT | {"min": 1}], "hör till filfältet"),
        ([TEXT | {"max": 0}], "hör till filfältet"),
        ([TEXT | {"accept": [".html"]}], "hör till filfältet"),
        ([FILE | {"min": -1}], "min och max"),
        ([FILE | {"max": 0}], "min och max"),
        ([FILE | {"min": 3, "max": 2}], "min och max"),
        ([FILE | {"required": True}], "använd min"),
        ([FILE | {"required": True, "min": 1}], "använd min"),
        ([FILE | {"accept": ["html"]}], "filändelser"),
        ([FILE | {"accept": [".HTML"]}], "filändelser"),
        ([FILE | {"accept": ["."]}], "filändelser"),
        ([TEXT | {"name": str(number)} for number in range(MAX_FIELDS + 1)], "högst 60 fält"),
        ([TEXT | {"kind": "color"}], "inte rätt beskrivet"),
        ([TEXT | {"extra": 1}], "inte rätt beskrivet"),
        ([{"kind": "string"}], "inte rätt beskrivet"),
        ("text", "inte rätt beskrivet"),
        ([1], "inte rätt beskrivet"),
    ],
)
def test_a_form_that_cannot_be_is_refused_in_swedish(raw: Any, words: str) -> None:
    with pytest.raises(InvalidInputSchema) as refused:
        parse_input_schema(raw)
    assert words in refused.value.detail
    assert "Expected" not in str(refused.value.details)


def test_the_place_of_a_wrong_description_is_told() -> None:
    with pytest.raises(InvalidInputSchema) as refused:
        parse_input_schema([TEXT, TEXT | {"name": 1}])
    assert refused.value.details == {"place": "$[1].name"}


def test_the_file_field_is_found_wherever_it_stands() -> None:
    assert file_field(parse_input_schema([TEXT])) is None
    found = file_field(parse_input_schema([TEXT, FILE]))
    assert isinstance(found, InputField) and found.name == "files"


@pytest.mark.parametrize(
    "source",
    [
        "def run_tool(a, b): pass",
        "async def run_tool(a, b): pass",
        "run_tool = print",
        "from x import y as run_tool",
        "if True:\n    def run_tool(a, b): pass",
        "class run_tool: pass",
    ],
)
def test_code_that_may_start_is_accepted(source: str) -> None:
    check_source(source, "run_tool")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("", "saknar funktionen run_tool"),
        ("def other(): pass", "saknar funktionen run_tool"),
        ("# run_tool", "saknar funktionen run_tool"),
        ("x = 1\ndef run_tool(:", "syntaxfel på rad 2"),
        ("\0", "går inte att tolka"),
        ("(" * 10_000, ""),
        ("#" * (MAX_SOURCE_BYTES + 1), "högst 1000000 byte"),
        ("\ud800", "går inte att tolka"),
    ],
)
def test_code_that_cannot_start_is_refused(source: str, words: str) -> None:
    with pytest.raises(InvalidSource) as refused:
        check_source(source, "run_tool")
    assert words in refused.value.detail


@pytest.mark.parametrize("entrypoint", ["", "run tool", "a.b", "1a", "print()"])
def test_an_entrypoint_is_the_name_of_a_function(entrypoint: str) -> None:
    with pytest.raises(InvalidSource):
        check_source("def run_tool(a, b): pass", entrypoint)


def test_a_syntax_error_says_where_and_what_python_says() -> None:
    with pytest.raises(InvalidSource) as refused:
        check_source("def run_tool(a, b):\n    return (", "run_tool")
    assert refused.value.details["line"] == 2
    assert "never closed" in refused.value.details["python_message"]


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ("html_to_pdf_preview", True),
        ("a", True),
        ("åäö-1", True),
        ("0" * 80, True),
        ("0" * 81, False),
        ("", False),
        ("-a", False),
        ("_a", False),
        ("Stor", False),
        ("a b", False),
        ("a/b", False),
        ("a\n", False),
        ("é", False),
    ],
)
def test_a_slug_goes_into_an_address_as_it_is(text: str, is_one: bool) -> None:
    assert is_slug(text) is is_one
