"""html_to_pdf_preview: the preview is safe and fits, the PDF is the page's, nothing else is read.

Every PDF case runs with both engines. Where Pango is not installed the WeasyPrint cases are
skipped, unless SKRIPTOTEKET_REQUIRE_WEASYPRINT=1 says that they may not be.
"""

import base64
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import script_bank
from PIL import Image
from pypdf import PdfReader
from script_bank import Session, check_catalogue_entry, expects_pango, load_tool, read_sample
from skriptoteket_toolkit import ToolUserError

MM = 72 / 25.4

tool = load_tool("html_to_pdf_preview")
SAMPLE = read_sample("html_to_pdf_preview")
needs_pango = pytest.mark.skipif(not expects_pango(), reason="WeasyPrint's Pango is not installed")


@pytest.fixture(params=[pytest.param("WeasyPrint", marks=needs_pango), "xhtml2pdf"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "xhtml2pdf":

        def fail() -> None:
            raise OSError("cannot load library 'libpango-1.0-0'")

        monkeypatch.setattr(tool, "import_weasyprint", fail)
    return str(request.param)


class Result(script_bank.Result):
    """A result with its previews, or with its only PDF."""

    @property
    def previews(self) -> list[str]:
        return [output["html"] for output in self.outputs("html_sandboxed")]

    @property
    def pdf(self) -> PdfReader:
        (data,) = self.files.values()
        return PdfReader(io.BytesIO(data))

    @property
    def text(self) -> str:
        return " ".join(" ".join(page.extract_text() for page in self.pdf.pages).split())

    @property
    def images(self) -> int:
        return sum(len(page.images) for page in self.pdf.pages)

    @property
    def step(self) -> dict[str, Any]:
        """The only action that is offered."""
        (action_id,) = self.offered
        return self.action(action_id)


Files = dict[str, str | bytes]

Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Preview files, or convert them at once where a form is given."""

    def run(files: Files, **form: str) -> Result:
        session = Session(tool, tmp_path, monkeypatch, files=files)
        result = session.send("convert", form) if form else session.start(files)
        return Result(**vars(result))

    return run


A4 = {"page_size": "A4", "orientation": "stående"}


def make_image(side: int = 40, kind: str = "PNG", noise: bool = False) -> bytes:
    out = io.BytesIO()
    if noise:
        image = Image.frombytes("RGB", (side, side), os.urandom(side * side * 3))
    else:
        image = Image.new("RGB", (side, side), "green")
    image.save(out, kind)
    return out.getvalue()


def parse_tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    tags: list[tuple[str, dict[str, str | None]]] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append((tag, dict(attrs)))  # type: ignore
    parser.feed(page)
    return tags


# --- the sample, and what the PDF has to be -------------------------------------------------------


def test_sample_is_previewed_with_its_image_and_can_be_converted(run: Run) -> None:
    result = run(SAMPLE)
    (preview,) = result.previews
    assert "Ängsbackens skola" in preview and "Håkan Öberg" in preview
    assert 'src="data:image/png;base64,' in preview and "border-collapse" in preview
    assert result.notices == ""
    assert result.step["action_id"] == "convert"
    assert result.step["label"] == "Konvertera till PDF"
    assert result.step["prefill"] == A4
    assert result.raw["state"]["pages"] == ["veckobrev.html"]


def test_sample_becomes_one_page_with_its_text_and_image(run: Run, engine: str) -> None:
    result = run(SAMPLE, **A4)
    assert list(result.files) == ["veckobrev.pdf"]
    assert "Hej alla vårdnadshavare och elever!" in result.text
    assert "Åsa Söderström och Håkan Öberg" in result.text
    assert result.images == 1
    assert f"veckobrev.pdf är klar: 1 sida, A4 stående. Gjord med {engine} " in result.notices
    assert result.step["prefill"] == A4


@pytest.mark.parametrize("orientation", ["stående", "liggande"])
@pytest.mark.parametrize(
    ("page_size", "width", "height"),
    [("A4", 210, 297), ("A3", 297, 420), ("A5", 148, 210), ("Letter", 216, 279)],
)
def test_chosen_paper_wins_over_the_page_s_own(
    run: Run, engine: str, page_size: str, width: int, height: int, orientation: str
) -> None:
    page = "<style>@page{size:A6 landscape}@page :first{size:A6}</style><p>å ä ö"
    result = run({"a.html": page}, page_size=page_size, orientation=orientation)
    box = result.pdf.pages[0].mediabox
    expected = (width, height) if orientation == "stående" else (height, width)
    assert (float(box.width) / MM, float(box.height) / MM) == pytest.approx(expected, abs=0.5)


def test_uploaded_style_sheets_and_images_are_found_without_their_folders(
    run: Run, engine: str
) -> None:
    files: Files = {
        "Sida.html": '<link rel="stylesheet" href="Sida_filer/Stil.css">'
        '<img src="Sida_filer\\BILD%201.PNG?v=2"><p class="bort">BORTTAGET</p><p>kvar</p>'
        '<img src="file:///C:/Users/a/bild 2.jpg"><div style="background:url(bild%203.gif)">x</div>',
        "stil.css": '@import "./mer.css";',
        "mer.css": '@import url(stil.css); .bort { display: none } p::before { content: "innan " }',
        "bild 1.png": make_image(),
        "bild 2.jpg": make_image(kind="JPEG"),
        "bild 3.gif": make_image(kind="GIF"),
    }
    result = run(files, **A4)
    assert "kvar" in result.text and "BORTTAGET" not in result.text
    assert result.images >= 2
    assert "Fanns inte" not in result.notices
    (preview,) = run(files).previews
    assert preview.count("data:image/") == 3 and "display: none" in preview


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP"])
def test_all_kinds_of_images_get_into_the_pdf(run: Run, engine: str, kind: str) -> None:
    name = f"bild.{kind.lower()}"
    result = run(
        {"a.html": f"<img src={name} style='width:80%'>", name: make_image(kind=kind)}, **A4
    )
    assert result.images == 1 and "Gick inte" not in result.notices


def test_svg_is_shown_and_drawn(run: Run, engine: str) -> None:
    svg = (
        '<!DOCTYPE svg [<!ENTITY ord "Ägg">]><svg xmlns="http://www.w3.org/2000/svg" width="200" '
        'height="90"><rect width="9" height="9" fill="#aabbcc"/><text y="50">&ord;</text></svg>'
    )
    files: Files = {"a.html": '<p>x<img src="a.svg">', "a.svg": svg}
    result = run(files, **A4)
    assert "Ägg" in result.text and "Gick inte" not in result.notices
    (data,) = re.findall(r"svg\+xml;base64,([^\"]+)", run(files).previews[0])
    assert 'fill="#aabbcc"' in base64.b64decode(data).decode()


def test_an_engine_that_trips_over_the_styles_goes_without(run: Run) -> None:
    page = "<style>p{background:attr(data-u url);color:red}</style><p style='color:red'>åäö"

    def render(uploads: Any, page: Any, size: str, styles: bool) -> Any:
        if styles:
            raise AssertionError("as WeasyPrint 70 does here")
        return b"%PDF", 1, tool.LeftOut()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tool, "find_engine", lambda: ("motor", render))
        assert "stilmallar gick inte att använda" in run({"a.html": page}, **A4).notices


def test_a_page_as_deep_as_allowed_is_converted(run: Run, engine: str) -> None:
    page = "<div>" * 195 + "<p>djupt</p>"
    result = run({"a.html": page}, **A4)
    assert "djupt" in result.text


def test_broken_images_are_left_out_and_named(run: Run, engine: str) -> None:
    files: Files = {
        "a.html": "<p>text<img src=trasig.png><img src=halv.jpg><img src=bomb.png><img src=a.svg><img src=b.svg>",
        "trasig.png": b"\x89PNG\r\n\x1a\nnope",
        "halv.jpg": make_image(300, "JPEG", noise=True)[:20_000],
        "bomb.png": _png_claiming(60_000),
        "a.svg": "<svg><!-- not closed",
        "b.svg": "<svg><rect/></svg>",
    }
    result = run(files, **A4)
    assert "text" in result.text
    assert (
        "Gick inte att läsa som bild eller stilmall: trasig.png, bomb.png, a.svg, b.svg."
        in result.notices
    )
    assert run(files).previews


def _png_claiming(side: int) -> bytes:
    data = bytearray(make_image())
    data[16:24] = side.to_bytes(4, "big") * 2
    return bytes(data)


def test_links_of_a_page_stay_in_the_pdf_and_go_from_the_preview(run: Run, engine: str) -> None:
    page = (
        '<p><a href="https://example.org/a">ut</a> <a href="#x">in</a> <a href="b.html">rel</a>'
        '<a href="javascript:alert(1)">js</a> <a href="file:///etc/passwd">fil</a><p id=x>x'
    )
    result = run({"a.html": page}, **A4)
    targets = [
        annotation.get_object()["/A"]["/URI"]
        for annotation in result.pdf.pages[0].get("/Annots", [])
        if "/URI" in annotation.get_object().get("/A", {})
    ]
    assert targets == ["https://example.org/a"]
    preview = run({"a.html": page}).previews[0]
    assert re.findall(r"href=\S+", preview) == ['href="#x">in</a>']


def test_modern_style_sheets_do_not_stop_the_conversion(run: Run, engine: str) -> None:
    css = """:root{--c:#123;--g:calc(1rem + 2vw)} @layer a,b; @layer a{p{color:var(--c)}}
    @supports (display:grid){main{display:grid;grid-template:auto/1fr 1fr;gap:var(--g)}}
    @media (min-width:40em) and (orientation:landscape){p{color:rgb(0 0 0 / 50%)}}
    @container (width>3em){p{color:red}} p:is(.a,.b):not(:has(> i))::first-line{color:lab(50% 1 1)}
    .x{&:hover{color:red} width:clamp(1rem,2vw,3rem);inset:0;aspect-ratio:1/2} }}} {{ broken
    @keyframes k{from{opacity:0}to{opacity:1}} p{animation:k 1s;font:700 1.2em/1.3 'x',sans-serif"""
    result = run({"a.html": f"<style>{css}</style><main><p class=a>åäö</p></main>"}, **A4)
    assert "åäö" in result.text


def test_images_with_sizes_in_percent_have_a_size(run: Run, engine: str) -> None:
    page = "<style>.a{width:100%}@media print{.a{max-width:90%}}</style><img class=a src=b.png>"
    for markup in (page, "<img style='width:100%;color:red' src=b.png>"):
        result = run({"a.html": f"<p>x{markup}", "b.png": make_image(400)}, **A4)
        drawn = re.findall(rb"([\d.]+) 0 0 -?([\d.]+) \S+ \S+ cm", _content(result))
        assert max(float(width) for width, _ in drawn) > 100


def _content(result: Result) -> bytes:
    contents = result.pdf.pages[0].get_contents()
    assert contents is not None
    return contents.get_data()


def test_letters_beyond_the_fonts_are_named(run: Run, engine: str) -> None:
    result = run({"a.html": "<meta charset=utf-8><p>Łucja och Åsa – 5 € ”ja”"}, **A4)
    missing = "Tecken som typsnittet saknar och som blir rutor: Ł." in result.notices
    assert missing is (engine == "xhtml2pdf")
    assert ("Łucja" in result.text) is not missing


# --- several pages --------------------------------------------------------------------------------


def test_a_name_with_the_narrow_space_of_other_systems_is_no_error(run: Run) -> None:
    result = run({"Sida 9.41\u202fem.html": "<p>Hej"}, **A4)
    assert list(result.files) == ["Sida 9.41 em.pdf"]


def test_several_pages_are_all_shown_and_one_or_all_converted(run: Run, engine: str) -> None:
    files: Files = {"ett.html": "<p>Första", "två.htm": "<p>Andra", "ett.htm": "<p>Tredje"}
    result = run(files)
    assert len(result.previews) == 3
    field, *_ = result.step["fields"]
    assert field["name"] == "page" and result.step["prefill"]["page"] == "*"
    assert [option["value"] for option in field["options"]] == ["*", *files]

    result = run(files, **A4, page="två.htm")
    assert "Andra" in result.text and result.step["prefill"]["page"] == "två.htm"

    result = run(files, **A4, page="*")
    names = ["ett-2.pdf", "ett.pdf", "två.pdf"]
    assert list(result.files) == names
    assert "Tredje" in PdfReader(io.BytesIO(result.files["ett-2.pdf"])).pages[0].extract_text()

    with pytest.raises(ToolUserError, match="finns inte"):
        run(files, **A4, page="fyra.html")


def test_many_large_pages_stay_within_the_payload(run: Run) -> None:
    files: Files = {f"{n}.html": f"<p>Sida {n} " + "<p>text & mer</p>" * 5_000 for n in range(9)}
    result = run(files)
    assert len(result.previews) == 6
    assert "Förhandsvisas inte, men kan konverteras: 6.html, 7.html" in result.notices
    assert len(json.dumps(result.raw, ensure_ascii=False).encode()) < 700 * 1024


def test_one_bad_page_does_not_stop_the_others(run: Run, engine: str) -> None:
    files: Files = {"bra.html": "<p>Bra", "tom.html": "", "word.html": b"PK\x03\x04 docx"}
    for result in (run(files), run(files, **A4, page="*")):
        assert "tom.html är tom" in result.notices
        assert "word.html är ingen webbsida utan en zip-fil" in result.notices
    assert "Bra" in result.text


# --- errors and encodings -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "Det finns ingen webbsida bland filerna"),
        ({"a.png": make_image()}, "Det finns ingen webbsida bland filerna"),
        ({"a.html": b""}, "a.html är tom"),
        (
            {"a.html": "<html><head><title>Titel</title></head><body> <br>\n</body>"},
            "a.html är tom",
        ),
        ({"a.html": "<script>document.write('x')</script>"}, "a.html är tom"),
        ({"a.html": b"%PDF-1.7 ..."}, "redan en PDF"),
        ({"a.html": make_image()}, "utan en bild"),
        ({"a.html": b"MIME-Version: 1.0\nContent-Type: multipart/related;\n"}, "webbarkiv"),
        ({"a.html": "<p>" + "x" * 8_000_001}, "för stor"),
        ({"a.html": "<p>rad</p>" * 100_000}, "för lång"),
        ({"a.html": "<div>" * 5000 + "x"}, "för många element inuti varandra"),
    ],
)
@pytest.mark.parametrize("form", [{}, A4])
def test_what_is_no_page_is_refused_with_swedish_words(
    run: Run, files: Files, message: str, form: dict[str, str]
) -> None:
    with pytest.raises(ToolUserError, match=re.escape(message)):
        run(files, **form)


TEXT = "Räksmörgås – ”åäö” 5 €"


@pytest.mark.parametrize(
    ("data", "remark"),
    [
        (f"<meta charset=utf-8>{TEXT}".encode(), ""),
        (f"<p>{TEXT}".encode(), ""),
        (f"<p>{TEXT}".encode("utf-8-sig"), ""),
        (f"<p>{TEXT}".encode("utf-16"), ""),
        (b"\xfe\xff" + f"<p>{TEXT}".encode("utf-16-be"), ""),
        (f"<p>{TEXT}".encode("utf-16-le"), ""),
        (f"<meta charset='windows-1252'>{TEXT}".encode("cp1252"), ""),
        (f"<meta content='text/html; charset=iso-8859-1'>{TEXT}".encode("cp1252"), ""),
        (f"<?xml version='1.0' encoding='iso-8859-15'?><p>{TEXT}".encode("cp1252"), None),
        (f"<p>{TEXT}".encode("cp1252"), "anger ingen teckenkodning och lästes som windows-1252"),
        (f"<meta charset=utf-8>{TEXT}".encode("cp1252"), "uppger teckenkodningen utf-8"),
        (f"<meta charset=nonsens>{TEXT}".encode("cp1252"), "uppger teckenkodningen nonsens"),
        (f"<meta charset=windows-1252>{TEXT}".encode(), "men är i utf-8"),
    ],
)
def test_encodings_are_found_out(run: Run, data: bytes, remark: str | None) -> None:
    result = run({"a.html": data})
    assert "Räksmörgås" in result.previews[0]
    if remark is not None:
        assert TEXT in result.previews[0]
        assert remark in result.notices and bool(remark) == bool(result.notices)


def test_text_reaches_the_pdf_whatever_its_encoding(run: Run, engine: str) -> None:
    result = run({"a.html": f"<meta charset=utf-8><p>{TEXT}".encode("cp1252")}, **A4)
    assert TEXT in result.text


# --- the preview ----------------------------------------------------------------------------------


def test_preview_holds_no_scripts_no_handlers_and_no_addresses(run: Run) -> None:
    page = """<html onload=a()><head><base href=//evil.example/><meta http-equiv=refresh content="0;
    url=http://evil.example"><script>alert(1)</script><link rel=icon href=http://evil.example/i.ico>
    <style>a{background:url(http://evil.example/1.png)} @import 'http://evil.example/2.css';
    b{content:"<\\/style><script>alert(2)<\\/script>"} @font-face{font-family:x;src:url(//evil.example/f)}
    i{background:image-set("http://evil.example/3.png" 1x)} u{--x:u\\72l(http://evil.example/4)}
    </style></head><body background=http://evil.example/5 onclick='alert(3)'>
    <svg onload=alert(4)><script>alert(5)</script><a xlink:href="javascript:alert(6)"><text>T</text></a>
    <image href="http://evil.example/6"/><use href="http://evil.example/7#a"/>
    <animate attributeName=href to="javascript:alert(7)"/><set attributeName=onload to=alert(8) />
    <foreignObject><iframe src=http://evil.example/8></iframe></foreignObject>
    <rect fill="url(http://evil.example/9#g)"/></svg>
    <math><mtext><table><mglyph><style><img src=x onerror=alert(9)></style></mglyph></table></mtext>
    </math><noscript><p title="</noscript><img src=x onerror=alert(10)>"></noscript>
    <iframe srcdoc="<script>alert(11)</script>"></iframe><object data=http://evil.example/10></object>
    <form action=http://evil.example/11><input type=image src=http://evil.example/12 formaction=//e>
    <button formaction=javascript:alert(12)>Knapp</button></form>
    <img src=x ONERROR=alert(13) srcset="http://evil.example/13 2x"><video poster=//evil.example/14>
    </video><a href=" java&#10;script:alert(14)" ping=http://evil.example/15>länk</a>
    <p style="background:url('http://evil.example/16')" "onmouseover=alert(15)">Text</p>
    <template><img src=http://evil.example/17></template><x-y onfocus=alert(16)>okänt</x-y>"""
    result = run({"a.html": page})
    preview = result.previews[0]
    assert all(word in preview for word in ("Knapp", "länk", "Text", "okänt"))
    assert "<script" not in preview and "javascript:" not in preview
    for address in re.findall(r"(?:https?:)?//[^\s\"'<>]+", preview):
        assert address == "http://www.w3.org/2000/svg", address
    tags = parse_tags(preview)
    assert not [tag for tag in tags if any(name.startswith("on") for name in tag[1])]
    forbidden = {"iframe", "object", "base", "link", "embed", "animate", "set", "template", "video"}
    assert not forbidden & {name for name, _ in tags}
    assert ("p", {"title": "</noscript><img src=x onerror=alert(10)>"}) in tags
    assert "Skript togs bort" in result.notices
    assert "http://evil.example/1.png" in result.notices


def test_uploaded_drawings_are_cleaned_for_the_preview(run: Run) -> None:
    svg = (
        '<svg xmlns="http://www.w3.org/2000/svg" onload="a()"><script>a()</script><rect width="1"/>'
        '<image href="http://evil.example/1.png"/><style>@import "http://evil.example/2.css";'
        "rect{fill:url(http://evil.example/3#a)}</style><foreignObject><p>x</p></foreignObject></svg>"
    )
    uri = "data:image/svg+xml," + svg.replace("#", "%23").replace('"', "'")
    for files in ({"a.html": "<img src=b.svg>", "b.svg": svg}, {"a.html": f'<img src="{uri}">'}):
        result = run(files)
        (data,) = re.findall(r"svg\+xml;base64,([^\"]+)", result.previews[0])
        drawing = base64.b64decode(data).decode()
        assert "evil" not in drawing and "a()" not in drawing and 'width="1"' in drawing
        assert "http://evil.example/1.png, http://evil.example/2.css" in result.notices


def test_large_images_are_made_smaller_for_the_preview_only(run: Run, engine: str) -> None:
    photo = make_image(1200, "JPEG", noise=True)
    assert len(photo) > 500_000
    files: Files = {"a.html": "<p>Text</p>" + "<img src=foto.jpg>", "foto.jpg": photo}
    preview = run(files).previews[0]
    assert len(preview.encode()) <= 96 * 1024
    assert "data:image/svg+xml" in preview and "width='1200'" in preview
    pdf_images = run(files, **A4).pdf.pages[0].images
    assert pdf_images[0].image and pdf_images[0].image.width > 500


def test_images_without_room_become_boxes_and_are_named(run: Run) -> None:
    files: Files = {f"{n}.png": make_image(600 + n, noise=True) for n in range(12)}
    files["a.html"] = "".join(f"<p>{n}<img src={n}.png>" for n in range(12))
    result = run(files)
    assert len(result.previews[0].encode()) <= 96 * 1024
    assert "Visas bara i PDF-filen, för stort för förhandsvisningen" in result.notices
    assert result.previews[0].count("<img") == 12


def test_long_pages_are_cut_with_a_word_about_it(run: Run) -> None:
    page = "<style>" + "p{color:red}" * 9000 + "</style>" + "<ul><li>Rad & å</li></ul>" * 20_000
    result = run({"a.html": page})
    preview = result.previews[0]
    assert len(preview.encode()) <= 96 * 1024
    assert "Förhandsvisningen slutar här" in preview
    assert preview.count("<ul>") == preview.count("</ul>") and preview.endswith("</html>")
    assert "stilmall" in result.notices


def test_prefill_follows_the_page(run: Run) -> None:
    page = "<style>@media print{@page{margin:1cm;size:a3 landscape}}</style>x"
    assert run({"a.html": page}).step["prefill"]["orientation"] == "stående"
    page = "<style>@page{margin:1cm;size:a3 landscape}</style>x"
    assert run({"a.html": page}).step["prefill"] == {
        "page_size": "A3",
        "orientation": "liggande",
    }
    wide = "<table><tr>" + "<td>x" * 12 + "</table>"
    assert run({"a.html": wide}).step["prefill"]["orientation"] == "liggande"


def test_text_that_looks_like_our_own_addresses_stays_text(run: Run, engine: str) -> None:
    files: Files = {"a.html": "<img src=b.png><p>upload:0 upload:a/0", "b.png": make_image()}
    assert "upload:0 upload:a/0" in run(files).previews[0]
    assert "upload:0 upload:a/0" in run(files, **A4).text


# --- nothing outside the uploads is read, and no network is reached -------------------------------

_watched: list[str] | None = None
_forbidden = ""


def _audit(event: str, args: tuple[Any, ...]) -> None:
    if _watched is None:
        return
    if event in {"socket.connect", "socket.getaddrinfo", "urllib.Request", "subprocess.Popen"}:
        _watched.append(f"{event} {args}")
    elif event == "open" and isinstance(args[0], (str, bytes)):
        path = os.fsdecode(args[0])
        if "passwd" in path or (_forbidden and path.startswith(_forbidden)):
            _watched.append(f"open {path}")


sys.addaudithook(_audit)


@pytest.fixture
def accesses(tmp_path: Path) -> Iterator[list[str]]:
    """What the code under test did that it must not: sockets, programs, files outside the uploads."""
    global _watched, _forbidden
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "s.txt").write_text("HEMLIGT")
    (secret / "s.html").write_text("<p>HEMLIGT")
    (secret / "s.css").write_text('p::after{content:"HEMLIGT"}')
    (secret / "s.png").write_bytes(make_image())
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><text id="a" y="20">HEMLIGT</text></svg>'
    (secret / "s.svg").write_text(svg)
    _watched, _forbidden = [], str(secret)
    yield _watched
    _watched = None


def test_the_watch_sees_what_it_should(accesses: list[str], tmp_path: Path) -> None:
    (tmp_path / "secret" / "s.txt").read_text()
    with pytest.raises(OSError, match="refused"):
        __import__("socket").create_connection(("127.0.0.1", 1), 1)
    assert [access.split()[0] for access in accesses] == [
        "open",
        "socket.getaddrinfo",
        "socket.connect",
    ]


# One way a line, whatever its length.
# ruff: noqa: E501
WAYS = {
    "img": '<img src="{u}">',
    "img in picture": '<picture><source srcset="{u}"><img src="{u}" srcset="{u} 2x"></picture>',
    "link": '<link rel="stylesheet" href="{u}">',
    "link alternate": '<link rel="alternate stylesheet attachment" href="{u}">',
    "import": "<style>@import url({u});</style>",
    "import string": "<style>@import '{u}' print;</style>",
    "import in upload": '<link rel=stylesheet href=egen.css>|egen.css|@import "{u}"; p{{background:url({u})}}',
    "font": "<style>@font-face{{font-family:q;src:url('{u}')}} p{{font-family:q}}</style>",
    "pisa font": "<style>@font-face{{font-family:q;src:url({u})}} p{{font-family:q}}</style>"
    '<pdf:font name="q" src="{u}"><pdf:toc /><pdf:barcode value="{u}">',
    "background": '<div style="background:url({u})">x</div>',
    "background attribute": '<table background="{u}"><tr background="{u}"><td background="{u}">x</table>',
    "page background": "<style>@page{{background:url({u});background-image:url({u});"
    "@top-left{{content:url({u})}}}}</style>",
    "pdf watermark": "<style>@page{{-pdf-page-background:url({u});background-object:'{u}'}}</style>",
    "list": "<style>li{{list-style-image:url({u})}}</style><ul><li>x</ul>",
    "content": "<style>p::before{{content:url({u})}}</style>",
    "escaped": "<style>p::before{{content:u\\72l({u})}} div{{background:\\75 rl('{u}')}}</style>",
    "image-set": '<style>p{{background:image-set("{u}" 1x);background:-webkit-image-set(url({u}) 1x)}}</style>',
    "variable": "<style>:root{{--u:url({u})}} p{{background:var(--u)}}</style>",
    "attr": '<style>p{{background:attr(data-u url);content:attr(data-u)}}</style><p data-u="{u}">x',
    "nested media": "<style>@media print{{@supports(color:red){{p{{background:url({u})}}}}}}</style>",
    "object": '<object data="{u}" type="image/png">x</object>',
    "embed": '<embed src="{u}">',
    "iframe": '<iframe src="{u}"></iframe><frameset><frame src="{u}"></frameset>',
    "media": '<video src="{u}" poster="{u}"><track src="{u}"></video><audio src="{u}"></audio>',
    "input": '<input type="image" src="{u}"><button formaction="{u}">x</button>',
    "svg image": '<svg width="9" height="9"><image width="9" height="9" href="{u}" xlink:href="{u}"/></svg>',
    "svg use": '<svg><use href="{u}#a"/><use xlink:href="{u}#a"/><text><tref xlink:href="{u}#a"/></text></svg>',
    "svg paint": '<svg><rect width="9" height="9" fill="url({u}#a)" style="filter:url({u}#a)"/></svg>',
    "svg style": '<svg><style>@import "{u}"; rect{{fill:url({u})}}</style><rect width="9"/></svg>',
    "svg base": '<svg xml:base="{u}"><image href="s.png"/><feImage href="{u}"/></svg>',
    "svg upload": '<img src="egen.svg">|egen.svg|<?xml-stylesheet href="{u}"?>'
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:x="http://www.w3.org/1999/xlink">'
    '<style>@import "{u}";</style><image x:href="{u}" href="{u}" width="9" height="9"/>'
    '<use href="{u}#a"/></svg>',
    "svg entity": '<img src="egen.svg">|egen.svg|<!DOCTYPE svg [<!ENTITY e SYSTEM "{u}">]>'
    '<svg xmlns="http://www.w3.org/2000/svg"><text y="9">&e;</text></svg>',
    "svg dtd": '<img src="egen.svg">|egen.svg|<!DOCTYPE svg SYSTEM "{u}">'
    '<svg xmlns="http://www.w3.org/2000/svg"><text y="9">hej</text></svg>',
    "base": '<base href="{u}"><img src="s.png"><link rel=stylesheet href="s.css">',
    "attachment": '<link rel="attachment" href="{u}"><a rel="attachment" href="{u}">x</a>',
    "meta": '<meta http-equiv="refresh" content="0;url={u}"><meta http-equiv="Link" content="<{u}>">',
    "script": '<script src="{u}"></script>',
}


def _places(tmp_path: Path) -> list[str]:
    secret = tmp_path / "secret"
    local = [f"{secret}/s.{kind}" for kind in ("png", "css", "svg", "txt", "html")]
    return [
        "file:///etc/passwd",
        "/etc/passwd",
        "../../../../../../etc/passwd",
        *local,
        *(f"file://{path}" for path in local),
        f"../../secret/{local[0].rpartition('/')[2]}",
        f"file://localhost{local[1]}",
        f"FILE:{local[2]}",
        "http://169.254.169.254/latest/meta-data/s.png",
        "//169.254.169.254/s.css",
        "https://localhost:1/s.svg",
        "ftp://127.0.0.1:1/s.png",
        "upload:0",
        "data:image/svg+xml;base64,"
        + base64.b64encode(
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:x="http://www.w3.org/1999/xlink">'
            f'<image x:href="{local[0]}" width="9" height="9"/><use x:href="{local[2]}#a"/>'
            f'<image href="file://{local[0]}" width="9" height="9"/></svg>'.encode()
        ).decode(),
        "data:text/css,@import%20%22" + local[1] + "%22;",
    ]


@pytest.mark.parametrize("way", WAYS)
def test_nothing_outside_the_uploads_is_read(
    run: Run, engine: str, accesses: list[str], tmp_path: Path, way: str
) -> None:
    template, *upload = WAYS[way].split("|")
    page, files = "<p>Början</p>", Files()
    for number, place in enumerate(_places(tmp_path)):
        own = f"egen{number}"
        page += template.replace("egen", own).format(u=place)
        if upload:
            files[upload[0].replace("egen", own)] = upload[1].format(u=place)
    files["a.html"] = page + "<p>Slut</p>"
    result = run(files, **A4)
    # An alternative text may name the address; what lies there may not show.
    assert "Början" in result.text and "Slut" in result.text
    assert "HEMLIGT" not in result.text and "root:" not in result.text
    assert result.images == 0 and not result.pdf.attachments
    assert "HEMLIGT" not in run(files).previews[0]
    assert accesses == []


def test_engines_refuse_what_the_rewriting_would_miss(
    run: Run, engine: str, accesses: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second fence alone: pages go to the engine as they came."""
    pages = [
        "<p>Början</p>"
        + "".join(way.split("|")[0].format(u=place) for place in _places(tmp_path))
        + "<p>Slut</p>"
        for name, way in WAYS.items()
        if name not in {"attr", "pisa font"}  # raw, these only make the engines stop
    ]
    for page in pages:
        monkeypatch.setattr(tool.PageWriter, "write_page", lambda *a, page=page, **k: page)
        monkeypatch.setattr(tool, "read_page", lambda file: tool.Page(file, None))
        result = run({"a.html": page}, **A4)
        assert "Början" in result.text and "HEMLIGT" not in result.text
        assert not result.pdf.attachments
    assert accesses == []


@pytest.mark.parametrize("content", ["/etc/passwd", "passwd", "a.html"])
def test_a_page_that_is_the_name_of_a_file_is_a_text(
    run: Run, engine: str, accesses: list[str], content: str
) -> None:
    assert content in run({"a.html": content}, **A4).text
    assert content in run({"a.html": content}).previews[0]
    assert accesses == []


def test_remote_resources_are_listed_by_address(run: Run, engine: str) -> None:
    page = (
        "<p>x<img src=https://example.org/logga.png><link rel=stylesheet href=//cdn.example/a.css>"
    )
    for result in (run({"a.html": page}), run({"a.html": page}, **A4)):
        assert (
            "Hämtades inte, eftersom inget hämtas från nätet: https://example.org/logga.png, "
            "//cdn.example/a.css." in result.notices
        )


def test_missing_files_are_listed_by_name(run: Run, engine: str) -> None:
    result = run({"a.html": "<p>x<img src='bilder/saknas.png'>"}, **A4)
    assert "Fanns inte bland de uppladdade filerna: bilder/saknas.png." in result.notices


def test_meta_describes_a_tool_of_the_contract() -> None:
    meta = check_catalogue_entry("html_to_pdf_preview")
    assert meta.slug == "html_to_pdf_preview" and callable(getattr(tool, meta.entrypoint))
    (field,) = meta.input_schema
    assert field["kind"] == "file" and (field["min"], field["max"]) == (1, 20)
    assert {".html", ".htm", ".css", ".png", ".svg", ".webp"} <= set(field["accept"])
