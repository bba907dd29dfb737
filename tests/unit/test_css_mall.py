"""css_mall: the standard style unless the user's own holds, and no style loads or breaks out."""

import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pypdf import PdfReader
from script_bank import (
    Result,
    Session,
    check_catalogue_entry,
    expects_pango,
    get_script,
    load_tool,
    read_sample,
)
from skriptoteket_toolkit import ToolUserError

tool = load_tool("css_mall")
SAMPLE_INPUTS = json.loads((get_script("css_mall").parent / "sample/inputs.json").read_bytes())
needs_pango = pytest.mark.skipif(not expects_pango(), reason="WeasyPrint's Pango is not installed")


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session where no PDF is made, which is what takes time."""

    def fail() -> None:
        raise OSError("cannot load library 'libpango-1.0-0'")

    monkeypatch.setattr(tool, "import_weasyprint", fail)
    return Session(tool, tmp_path, monkeypatch)


@pytest.fixture
def pdf_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    return Session(tool, tmp_path, monkeypatch)


def write(session: Session, css: str | bytes | None = None, **inputs: str) -> Result:
    files = {} if css is None else {"min.css": css}
    return session.start(files, **{"heading": "Rubrik", "text": "Text", **inputs})


def style_of(page: str) -> str:
    """What a browser takes for the style of a page, which must be its one style element."""
    found: list[tuple[str, str]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: found.append((tag, ""))  # type: ignore
    parser.handle_data = lambda data: found.append(("", data))  # type: ignore
    parser.feed(page)
    tags = [tag for tag, _ in found if tag]
    assert tags.count("style") == 1
    assert not {"script", "img", "link", "iframe", "base"} & set(tags)
    return found[found.index(("style", "")) + 1][1]


def page_of(result: Result) -> str:
    (page,) = (data for name, data in result.files.items() if name.endswith(".html"))
    return page.decode()


def pdf_of(result: Result) -> PdfReader:
    (pdf,) = (data for name, data in result.files.items() if name.endswith(".pdf"))
    return PdfReader(io.BytesIO(pdf))


# --- whose style ----------------------------------------------------------------------------------


def test_it_can_be_seeded_and_asks_for_at_most_one_style_sheet() -> None:
    meta = check_catalogue_entry("css_mall")
    (field,) = (field for field in meta.input_schema if field["kind"] == "file")
    assert (meta.slug, field["min"], field["max"]) == ("css_mall", 0, 1)


@needs_pango
def test_sample_becomes_a_page_and_a_pdf_in_the_school_s_style(pdf_session: Session) -> None:
    result = pdf_session.start(read_sample("css_mall"), **SAMPLE_INPUTS)
    name = "Läsläxa Bröderna Lejonhjärta"
    assert list(result.files) == [f"{name}.html", f"{name}.pdf"]
    text = " ".join(pdf_of(result).pages[0].extract_text().split())
    assert "✎ Frågor att svara på" in text and "Åsa Söderström" in text
    assert "Ängsbackens skola – sida 1" in text
    assert "Stil: skolan.css." in result.notices and f"{name}.pdf är klar." in result.notices
    (preview,) = result.outputs("html_sandboxed")
    assert preview["html"] == page_of(result)


@needs_pango
def test_without_a_style_sheet_the_standard_one_is_used(pdf_session: Session) -> None:
    result = pdf_session.start({}, **SAMPLE_INPUTS)
    text = " ".join(pdf_of(result).pages[0].extract_text().split())
    assert text.endswith("1 (1)") or "1 (1)" in text
    assert "✎" not in text
    assert result.notices.startswith("Stil: Standardmall.")


def test_own_style_holds_as_long_as_its_file_is_there(session: Session) -> None:
    for _ in range(2):  # the upload, then a run that uses the saved file again
        result = write(session, "h1{color:#abcdef}")
        assert style_of(page_of(result)).strip() == "h1{color:#abcdef}"
        assert "Stil: min.css." in result.notices
        assert "Återanvänd tidigare filer" in result.notices
        assert "Rensa sparade filer" in result.notices
    result = write(session)
    assert "#abcdef" not in page_of(result)
    assert style_of(page_of(result)).strip() == tool.STANDARD_CSS.strip()
    assert "Stil: Standardmall." in result.notices and "ladda upp en .css-fil" in result.notices


def test_the_standard_style_needs_no_cleaning() -> None:
    css, removed = tool.clean_css(tool.STANDARD_CSS)
    assert removed == [] and "bottom-right" in css


# --- a style sheet loads nothing and stays where it is --------------------------------------------

U = "http://evil.example/x"
WAYS = [
    f"@import url({U}); h1{{color:red}}",
    f"@import '{U}' print; h1{{color:red}}",
    f'@IMPORT\t"{U}"; h1{{color:red}}',
    f"h1{{color:red}} @im\\70 ort url({U});",
    f"h1{{color:red;background:url({U})}}",
    f"h1{{color:red;background:url( '{U}' )}}",
    f'h1{{color:red;background:URL("{U}")}}',
    f"h1{{color:red;background:u\\72l({U})}}",
    f"h1{{color:red;background:\\75 rl('{U}')}}",
    f'h1{{color:red;background:src("{U}")}}',
    f"h1{{color:red;background:image-set('{U}' 1x)}}",
    f"h1{{color:red;background:-webkit-image-set(url({U}) 1x)}}",
    f"h1{{color:red;background:cross-fade('{U}','{U}')}}",
    f"h1{{color:red;--x:url({U});background:var(--x)}}",
    f"h1{{color:red;cursor:url({U}),auto;filter:url({U}#a);list-style:url({U})}}",
    f"@media print{{@supports(color:red){{h1{{color:red;content:url({U})}}}}}}",
    f"@page{{color:red;background:url({U});@top-left{{content:url({U})}}}}",
    f"@font-face{{font-family:x;src:url({U})}} h1{{color:red}}",
    f"@media all{{@font-face{{font-family:x;src:url({U})}} h1{{color:red}}}}",
    f"@namespace url({U}); h1{{color:red}}",
    f"h1{{color:red;&:hover{{background:url({U})}}}}",
    f"h1{{color:red}} a[href=url({U})]{{color:blue}}",
    f"@property --x{{syntax:'<url>';initial-value:url({U});inherits:false}} h1{{color:red}}",
    f"@unknown url({U}) {{ x: y }} h1{{color:red}}",
    f"h1{{color:red;behavior:url({U});-moz-binding:url({U})}}",
    "h1{color:red;background:url(data:image/png;base64,AAAA)}",
    "h1{color:red;background:url(//evil.example/x)}",
    "h1{color:red;background:url(file:///etc/passwd)}",
    "h1{color:red;background:url(x\\\ny)}",
]


@pytest.mark.parametrize("css", WAYS)
def test_a_style_sheet_loads_nothing(session: Session, css: str) -> None:
    result = write(session, css)
    style = style_of(page_of(result))
    assert "red" in style
    for word in ("evil", "url(", "@import", "@font-face", "src(", "passwd", "base64"):
        assert word not in style.lower()
    # What no browser would take for an address goes without a word.
    told = "@namespace" not in css and "\n" not in css
    assert ("detta togs bort: " in result.notices) is told


@needs_pango
@pytest.mark.parametrize("cleaned", [True, False], ids=["cleaned", "second fence alone"])
def test_no_engine_reads_what_a_style_sheet_names(
    pdf_session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cleaned: bool
) -> None:
    picture = tmp_path / "hemlig.png"
    Image.new("RGB", (9, 9)).save(picture)
    (tmp_path / "hemlig.css").write_text('p::after{content:"HEMLIGT"}')
    css = f"@import '{tmp_path}/hemlig.css'; @import 'file://{tmp_path}/hemlig.css';"
    css += f"p::before{{content:url(file://{picture})}} p::after{{content:url({picture})}}"
    css += f"h1::before{{content:url({U})}} h1::after{{background:url(file://{picture})}}"
    if not cleaned:
        monkeypatch.setattr(tool, "clean_css", lambda css: (css, []))
    reader = pdf_of(write(pdf_session, css))
    assert len(reader.pages[0].images) == 0
    assert "Text" in reader.pages[0].extract_text()
    assert "HEMLIGT" not in reader.pages[0].extract_text()


@pytest.mark.parametrize(
    "css",
    [
        'h1{content:"</style><script>alert(1)</script>"}',
        "h1{color:red}</style><script>alert(1)</script><style>p{color:red}",
        "h1{color:red}</STYLE\n><img src=x onerror=alert(1)>",
        'h1{content:"\\3c/style><script>"}',
        "h1{color:red} <!-- p{color:blue} --> <!--</style><script>",
        "@media </style><script>{h1{color:red}}",
        "a[x='</style ><svg onload=alert(1)>']{color:red}",
        "h1{color:red} @charset '</style><script>';",
        "/*</style><script>alert(1)</script>*/h1{color:red}",
        "@layer \\3c \\2f style\\3e \\3c script\\3e ; h1{color:red}",
        "h1{--x:</style><script>1</script>}",
    ],
)
def test_a_style_sheet_cannot_leave_its_element(session: Session, css: str) -> None:
    result = write(session, css)
    page = page_of(result)
    style = style_of(page)
    assert not re.search(r"<[/!a-zA-Z]", style)
    assert page.count("<script") == 0
    # Nothing of the style sheet lies in the body either.
    assert "alert" not in page.partition("<body>")[2]


def test_modern_style_sheets_stay_what_they_are(session: Session) -> None:
    css = """:root{--c:#123;--g:calc(1rem + 2vw)} @layer a,b; @layer a{p{color:var(--c)}}
    @supports (display:grid){main{display:grid;grid-template:auto/1fr 1fr;gap:var(--g)}}
    @media (width > 40em) and (orientation:landscape){p{color:rgb(0 0 0 / 50%)}}
    p:is(.a,.b):not(:has(> i))::first-line{color:lab(50% 1 1)}
    .x{&:hover{color:red} width:clamp(1rem,2vw,3rem);content:"å ✓" attr(title)}
    @keyframes k{from{opacity:0}to{opacity:1}}"""
    result = write(session, css)
    squeezed = re.sub(r"\s+", "", style_of(page_of(result)))
    assert squeezed == re.sub(r"\s+", "", css)
    assert "togs bort" not in result.notices


# --- files that are no style sheets ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"min.css": b""}, "min.css innehåller inga stilregler"),
        ({"min.css": "/* bara en kommentar */\n"}, "min.css innehåller inga stilregler"),
        ({"min.css": "@import 'annan.css';"}, "min.css innehåller inga stilregler"),
        ({"min.css": "vad som helst"}, "min.css innehåller inga stilregler"),
        ({"min.css": b"PK\x03\x04"}, "ingen stilmall utan en zip-fil"),
        ({"min.css": b"%PDF-1.7"}, "ingen stilmall utan en PDF"),
        ({"min.css": b"\x89PNG\r\n"}, "ingen stilmall utan en bild"),
        ({"min.css": "\n <!DOCTYPE html><p>"}, "ingen stilmall utan en webbsida"),
        ({"min.css": "<style>h1{color:red}</style>"}, "ingen stilmall utan en webbsida"),
        ({"min.css": b"h1{\0}" * 9}, "går inte att läsa som text"),
        ({"min.css": "h1{color:red}" * 5_000}, "min.css är för stor (65 kB): högst 48 kB"),
        ({"min.css": "a{" * 15_000}, "för många block inuti varandra"),
        ({"min.css": "a{b:" + "(" * 20_000}, "för många block inuti varandra"),
        ({"stil.txt": "h1{color:red}"}, "stil.txt är ingen stilmall: namnet ska sluta på .css"),
        ({"a.css": "p{}", "b.css": "p{}"}, "Bara en stilmall"),
    ],
)
def test_what_is_no_style_sheet_is_refused_with_swedish_words(
    session: Session, files: dict[str, Any], message: str
) -> None:
    with pytest.raises(ToolUserError, match=re.escape(message)) as error:
        session.start(files, heading="R", text="T")
    # The file is saved all the same, and would stop every run that uses it again.
    assert "tryck på ”Rensa sparade filer”" in error.value.message


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_of_style_sheets_are_found_out(session: Session, encoding: str) -> None:
    result = write(session, 'h1::before{content:"åäö"}'.encode(encoding))
    assert "åäö" in style_of(page_of(result))


@pytest.mark.parametrize("inputs", [{"heading": " "}, {"text": "\n"}])
def test_heading_and_text_are_needed(session: Session, inputs: dict[str, str]) -> None:
    with pytest.raises(ToolUserError, match="både en rubrik och en text"):
        write(session, **inputs)


def test_too_long_texts_are_refused(session: Session) -> None:
    with pytest.raises(ToolUserError, match="högst 100000 tecken"):
        write(session, text="x" * 100_001)


# --- the page -------------------------------------------------------------------------------------


def test_text_is_markdown_and_its_html_is_shown_as_written(session: Session) -> None:
    text = (
        "**fet** <script>alert(1)</script> <b>x</b>\nrad\n\n| a |\n|---|\n| ~~b~~ |\n\n"
        "[ut](https://a.se) [js](javascript:alert(1)) [fil](file:///x) [d](data:image/png;base64,x)"
        " ![bild](http://evil.example/a.png) ![egen](b.png)"
    )
    result = write(session, heading="A < B & <i>", text=text, footer="<u>")
    page = page_of(result)
    style_of(page)
    assert "<h1>A &lt; B &amp; &lt;i&gt;</h1>" in page and "<footer>&lt;u&gt;</footer>" in page
    assert "&lt;script&gt;" in page and "<strong>fet</strong>" in page and "<br />\nrad" in page
    assert "<s>b</s>" in page
    assert re.findall(r'href="([^"]*)"', page) == ["https://a.se"]
    assert "evil" not in page and "[bild: bild] [bild: egen]" in page
    assert "lämnades ute (2)" in result.notices
    assert "default-src 'none'; style-src 'unsafe-inline'" in page


def test_long_texts_are_previewed_in_part_and_written_in_full(session: Session) -> None:
    css = "p{color:red}" * 3_500
    result = write(session, css, text="å & ä <stycke>\n\n" * 5_500)
    (preview,) = (o["html"] for o in result.outputs("html_sandboxed"))
    assert 90_000 < len(preview.encode()) <= 96 * 1024
    assert "Förhandsvisningen slutar här" in preview and preview.endswith("</html>\n")
    assert page_of(result).count("<p>") == 5_500


@pytest.mark.parametrize(
    ("heading", "name"),
    [
        ("Prov: 3/4 \\ <x> ?", "Prov 3 4 x"),
        ("...", "arbetsblad"),
        ("../../etc", "etc"),
        ("å" * 500, "å" * 60),
        ("a\u202fb\u200bc", "a b c"),
    ],
)
def test_files_are_named_after_the_heading(session: Session, heading: str, name: str) -> None:
    assert list(write(session, heading=heading).files) == [f"{name}.html"]


# --- the PDF --------------------------------------------------------------------------------------


def test_without_weasyprint_there_is_the_page_and_a_word_about_it(session: Session) -> None:
    result = write(session)
    assert list(result.files) == ["Rubrik.html"]
    assert "PDF kan inte göras här just nu" in result.notices


class Endless:
    """An engine that never comes to an end, and drops what stops it so many times first."""

    def __init__(self, drops: int) -> None:
        self._drops = drops

    def HTML(self, **page: object) -> "Endless":
        return self

    def write_pdf(self) -> bytes:
        while True:
            try:
                while True:
                    sum(range(1_000))
            except Exception as error:
                raise AssertionError("taken for an error of the engine's own") from error
            except BaseException:
                self._drops -= 1
                if self._drops < 0:
                    raise


@pytest.mark.timeout(30)
@pytest.mark.parametrize("drops", [0, 1])
def test_a_style_that_takes_too_long_costs_only_the_pdf(
    session: Session, monkeypatch: pytest.MonkeyPatch, drops: int
) -> None:
    monkeypatch.setattr(tool, "import_weasyprint", lambda: (Endless(drops), None))
    monkeypatch.setattr(tool, "PDF_MAX_SECONDS", 0.05)
    result = write(session)
    assert list(result.files) == ["Rubrik.html"]
    assert "Det tog för lång tid att göra en PDF med den här stilmallen" in result.notices


@needs_pango
def test_a_style_that_no_engine_can_lay_out_costs_only_the_pdf(pdf_session: Session) -> None:
    result = write(pdf_session, "td{width:1e300px} table{border-spacing:1e300px}", text="|a|\n|-|")
    assert list(result.files) == ["Rubrik.html"]
    assert "Det gick inte att göra en PDF med den här stilmallen" in result.notices
