"""markdown_to_docx: what a text says is in its Word document, as Word's own things, and no more."""

import io
import re
from pathlib import Path
from typing import Any

import docx
import pytest
from docx.document import Document
from docx.oxml.ns import qn
from docx.shared import Mm
from docx.text.paragraph import Paragraph
from PIL import Image
from script_bank import Result, Session, check_catalogue_entry, load_tool, read_sample
from skriptoteket_toolkit import ToolUserError
from workbooks import make_zip, read_zip

tool = load_tool("markdown_to_docx")


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    return Session(tool, tmp_path, monkeypatch)


def convert(session: Session, files: dict[str, Any], **form: object) -> Result:
    session.start(files)
    return session.act("convert", **form)


def read(result: Result, name: str = "") -> Document:
    data = result.files[name] if name else next(iter(result.files.values()))
    return docx.Document(io.BytesIO(data))


def write(session: Session, text: str, **form: object) -> Document:
    return read(convert(session, {"a.md": text}, **form))


def texts(document: Document) -> list[tuple[str, str]]:
    return [(p.style.name, p.text) for p in document.paragraphs if p.style and p.text]


def numbers(document: Document) -> list[tuple[str, int, int]]:
    """The text, numId and level of each numbered paragraph."""
    found = []
    for paragraph in document.paragraphs:
        number = paragraph._p.pPr.numPr if paragraph._p.pPr is not None else None
        if number is not None:
            found.append((paragraph.text, number.numId.val, number.ilvl.val))
    return found


def find_start(document: Document, number: int, level: int) -> int:
    """The number that a list begins with."""
    root = document.part.numbering_part.element
    (start,) = root.xpath(
        f"w:num[@w:numId='{number}']/w:lvlOverride[@w:ilvl='{level}']/w:startOverride/@w:val"
    )
    return int(start)


def make_image(size: tuple[int, int] = (40, 30), kind: str = "PNG", **how: Any) -> bytes:
    out = io.BytesIO()
    mode = how.pop("mode", "RGB")
    Image.new(mode, size, 120 if mode == "P" else "green").save(out, kind, **how)
    return out.getvalue()


def make_template(change: Any = None, without: str = "") -> bytes:
    """A Word document with a text and a header of its own, as Word saves it."""
    document = docx.Document()
    document.add_paragraph("MALLENS TEXT")
    document.sections[0].header.paragraphs[0].text = "Ängsbackens skola"
    document.sections[0].page_width = Mm(200)
    document.styles["Heading 1"].font.name = "Garamond"
    if change:
        change(document)
    out = io.BytesIO()
    document.save(out)
    if not without:
        return out.getvalue()
    smaller = {}
    for name, data in read_zip(out.getvalue()).items():
        if name.endswith(("document.xml.rels", "[Content_Types].xml")):
            data = re.sub(rf"<(Relationship|Override) [^>]*{without}[^>]*>".encode(), b"", data)
        if without not in name:
            smaller[name] = data
    return make_zip(smaller)


# The order that the schema of WordprocessingML prescribes; Word refuses files that break it.
ORDERS = {
    "pPr": "pStyle keepNext keepLines pageBreakBefore widowControl numPr pBdr shd tabs spacing ind "
    "contextualSpacing jc outlineLvl rPr sectPr",
    "rPr": "rStyle rFonts b bCs i iCs caps smallCaps strike noProof vanish color spacing kern sz "
    "szCs highlight u shd vertAlign lang",
    "tblPr": "tblStyle tblW jc tblInd tblBorders shd tblLayout tblCellMar tblLook",
    "tbl": "tblPr tblGrid tr",
    "tc": "tcPr p",
    "lvl": "start numFmt pStyle suff lvlText lvlJc pPr rPr",
    "numbering": "abstractNum num",
    "num": "abstractNumId lvlOverride",
    "numPr": "ilvl numId",
    "style": "name basedOn next link uiPriority semiHidden unhideWhenUsed qFormat rsid pPr rPr "
    "tblPr tcPr tblStylePr",
}


def check_order(data: bytes) -> None:
    document = docx.Document(io.BytesIO(data))
    roots = (document.element, document.styles.element, document.part.numbering_part.element)
    for root in roots:
        for name, order in ORDERS.items():
            ranks = {qn(f"w:{tag}"): rank for rank, tag in enumerate(order.split())}
            for element in root.iter(qn(f"w:{name}")):
                found = [ranks[child.tag] for child in element if child.tag in ranks]
                assert found == sorted(found), (name, [child.tag for child in element])
    ids = [int(i) for i in document.element.xpath("//w:bookmarkStart/@w:id")]
    assert len(ids) == len(set(ids))
    styles = {style.style_id for style in document.styles}
    assert set(document.element.xpath("//w:pStyle/@w:val | //w:rStyle/@w:val")) <= styles


# --- the sample -----------------------------------------------------------------------------------


def test_it_can_be_seeded() -> None:
    assert check_catalogue_entry("markdown_to_docx").slug == "markdown_to_docx"


def test_sample_is_previewed_and_can_be_converted(session: Session) -> None:
    result = session.start(read_sample("markdown_to_docx"))
    (preview,) = result.outputs("markdown")
    assert preview["markdown"].startswith("# Vattnets kretslopp")
    assert "*[bild: Teckning av kretsloppet" in preview["markdown"]
    assert result.notices == "" and result.files == {}
    assert result.action("convert")["prefill"]["paper"] == "A4"


def test_sample_becomes_a_word_document(session: Session) -> None:
    result = convert(session, read_sample("markdown_to_docx"), contents=True, numbering=True)
    assert "Klart att ladda ned: lektionsplanering.docx." in result.notices
    data = result.files["lektionsplanering.docx"]
    check_order(data)
    document = read(result)
    section = document.sections[0]
    assert (round(section.page_width.mm), round(section.page_height.mm)) == (210, 297)
    assert document.styles.element.xpath("w:docDefaults//w:lang/@w:val") == ["sv-SE"]
    assert document.core_properties.title == "Vattnets kretslopp"
    assert document.core_properties.language == "sv-SE"
    assert document.core_properties.author == ""
    headings = [text for style, text in texts(document) if style.startswith("Heading")]
    assert headings[:2] == ["Vattnets kretslopp", "Det här ska vi kunna"]
    assert len(document.inline_shapes) == 1 and len(document.tables) == 1
    assert document.inline_shapes[0].width <= section.page_width - 2 * section.left_margin
    descriptions = document.element.xpath("//wp:docPr/@descr")
    assert descriptions == ["Teckning av kretsloppet: avdunstning, moln, nederbörd"]
    assert ("List Paragraph", "☒ Blanketten till vårdnadshavarna") in texts(document)


def test_it_can_be_repeated_with_other_choices(session: Session) -> None:
    first = convert(session, {"a.md": "text"}, paper="A5", font="Georgia")
    assert read(first).styles["Normal"].font.name == "Georgia"
    # Where a theme's font is named too, Word takes that.
    (fonts,) = read(first).styles["Heading 1"].element.xpath("w:rPr/w:rFonts")
    assert set(fonts.attrib.values()) == {"Georgia"}
    second = session.act("convert", paper="A4 liggande")
    assert second.action("convert")["prefill"]["font"] == "Georgia"
    section = read(second).sections[0]
    assert (round(section.page_width.mm), round(section.page_height.mm)) == (297, 210)
    assert read(second).styles["Normal"].font.name == "Georgia"


# --- what the text says ---------------------------------------------------------------------------


def test_looks_of_words_are_kept(session: Session) -> None:
    document = write(session, "a **b *c*** ~~d~~ `e f` H<sub>2</sub>O x<sup>3</sup> <u>g</u>")
    runs = document.paragraphs[0].runs
    found = {run.text: run for run in runs}
    assert found["b "].bold and not found["b "].italic
    assert found["c"].bold and found["c"].italic
    assert found["d"].font.strike and found["g"].underline
    assert found["e f"].style.name == "Kod"
    assert found["2"].font.subscript and found["3"].font.superscript
    assert document.paragraphs[0].text == "a b c d e f H2O x3 g"


def test_each_ordered_list_counts_for_itself(session: Session) -> None:
    text = "1. a\n2. b\n   1. c\n   2. d\n3. e\n   1. f\n\nmellan\n\n1. g\n\nx\n\n7) h\n8) i"
    document = write(session, text)
    items = {text: (number, level) for text, number, level in numbers(document)}
    assert items["a"] == items["b"] == items["e"] and items["a"][1] == 0
    assert items["c"] == items["d"] and items["c"][1] == 1
    lists = [items[first] for first in "acfgh"]
    assert len(set(lists)) == 5
    assert [find_start(document, *place) for place in lists] == [1, 1, 1, 1, 7]


def test_bullets_and_numbers_nest_in_each_other(session: Session) -> None:
    text = "- a\n  1. b\n     - c\n\n       fortsättning\n- d\n  > citat\n\n      kod\n"
    document = write(session, text)
    items = {text: (number, level) for text, number, level in numbers(document)}
    assert items["a"] == items["d"] and items["c"] == (items["a"][0], 2)
    assert items["b"][0] != items["a"][0] and items["b"][1] == 1
    indents = {p.text: p.paragraph_format.left_indent for p in document.paragraphs}
    assert indents["fortsättning"] == indents["c"] > indents["b"] > indents["a"]
    assert indents["citat"] > indents["d"]


def test_list_items_without_text_keep_their_number(session: Session) -> None:
    document = write(session, "1.\n2. ```\n   kod\n   ```\n3. c")
    assert [text for text, _, _ in numbers(document)] == ["", "", "c"]
    assert ("Kodblock", "kod") in texts(document)


def test_very_deep_lists_stay_within_words_nine_levels(session: Session) -> None:
    text = "".join(f"{'  ' * depth}- nivå {depth}\n" for depth in range(20))
    levels = [level for _, _, level in numbers(write(session, text))]
    assert levels == [*range(9), *[8] * 11]


def test_tables_keep_their_alignment_and_looks(session: Session) -> None:
    text = (
        "| V | H | M | U |\n|:--|--:|:-:|---|\n| *a*<br>b | 2 | `c` | d \\| e |\n| f |\n\n"
        "|x|\n|-|\n"
    )
    document = write(session, text)
    table, other = document.tables
    cells = [[cell.text for cell in row.cells] for row in table.rows]
    assert cells == [["V", "H", "M", "U"], ["a\nb", "2", "c", "d | e"], ["f", "", "", ""]]
    sides = [cell.paragraphs[0].alignment for cell in table.rows[1].cells]
    assert [int(side) for side in sides if side is not None] == [0, 2, 1, 0]
    assert table.rows[0]._tr.xpath("w:trPr/w:tblHeader")
    assert table.rows[0].cells[0].paragraphs[0].runs[0].bold
    assert other.rows[0].cells[0].text == "x"
    # Tables that touch would be one to Word.
    assert table._tbl.getnext().tag == qn("w:p")


def test_tables_wider_than_word_can_show_are_cut_and_told_of(session: Session) -> None:
    row = "|a" * 70 + "|\n"
    result = convert(session, {"a.md": row + "|-" * 70 + "|\n" + row})
    assert "70 kolumner, varav Word klarar 63" in result.notices
    assert len(read(result).tables[0].columns) == 63


def test_code_keeps_its_lines_and_quotes_their_depth(session: Session) -> None:
    document = write(session, "```py\na\n\tb <x> & y\n\n  c\n```\n\n> en\n>\n> > två\n\n---\n")
    assert ("Kodblock", "a\n\tb <x> & y\n\n  c") in texts(document)
    quotes = [p for p in document.paragraphs if p.style and p.style.name == "Quote"]
    assert [p.text for p in quotes] == ["en", "två"]
    assert quotes[1].paragraph_format.left_indent == 2 * quotes[0].paragraph_format.left_indent
    assert document.paragraphs[-1].style.name == "Vågrät linje"


def test_links_lead_where_they_say(session: Session) -> None:
    text = (
        "# Ett & två\n\n# Mål\n\n# Mål\n\n[ut **fet**](https://example.org/a?b=1&c=å) "
        "[hit](#mål-1) [post](mailto:a@b.se) <https://b.se> [fil](annan.md) [js](javascript:a) "
        "[ingenstans](#finns-inte) [tom](http:)"
    )
    result = convert(session, {"a.md": text})
    paragraph = read(result).paragraphs[-1]
    links = {link.text: link for link in paragraph.hyperlinks}
    assert list(links) == ["ut fet", "hit", "post", "https://b.se"]
    assert links["ut fet"].address == "https://example.org/a?b=1&c=%C3%A5"
    assert links["post"].address == "mailto:a@b.se"
    headings = [p for p in read(result).paragraphs if p.text == "Mål"]
    (name,) = headings[1]._p.xpath("w:bookmarkStart/@w:name")
    assert links["hit"].fragment == name
    assert "blev vanlig text" in result.notices
    assert "annan.md, #finns-inte, http:." in result.notices
    assert "javascript" not in "".join(map(str, read(result).part.rels.values()))


def test_headings_are_numbered_below_a_single_title(session: Session) -> None:
    document = write(session, "# Titel\n\n## A\n\n### B\n", numbering=True)
    root = document.part.numbering_part.element
    (number,) = document.styles["Heading 2"].element.xpath("w:pPr/w:numPr/w:numId/@w:val")
    (definition,) = root.xpath(f"w:num[@w:numId='{number}']/w:abstractNumId/@w:val")
    levels = root.xpath(f"w:abstractNum[@w:abstractNumId='{definition}']/w:lvl")
    ties = [
        tuple(level.find(qn(f"w:{tag}")).get(qn("w:val")) for tag in ("pStyle", "lvlText"))
        for level in levels
    ]
    assert ties[:2] == [("Heading2", "%1"), ("Heading3", "%1.%2")]
    assert not document.styles["Heading 1"].element.xpath("w:pPr/w:numPr")
    document = write(session, "# A\n\n# B\n", numbering=True)
    assert document.styles["Heading 1"].element.xpath("w:pPr/w:numPr")


def test_contents_are_a_field_that_already_lists_the_headings(session: Session) -> None:
    result = convert(session, {"a.md": "# Titel\n\n## Å *b*\n\n#### Djup\n"}, contents=True)
    document = read(result)
    (code,) = document.element.xpath("//w:instrText/text()")
    assert code.split() == ["TOC", "\\o", '"1-3"', "\\h", "\\z", "\\u"]
    kinds = document.element.xpath("//w:fldChar/@w:fldCharType")
    assert kinds == ["begin", "separate", "end"]
    assert ("toc 2", "Å b") in texts(document)
    assert texts(document)[0] == ("Heading 1", "Titel")
    assert "Svara ja, så får innehållsförteckningen sina sidnummer" in result.notices
    assert "inga rubriker" in convert(session, {"a.md": "text"}, contents=True).notices


def test_line_breaks_are_kept_in_plain_text_files(session: Session) -> None:
    result = convert(session, {"a.txt": "en\ntvå\n\ntre", "b.md": "en\ntvå  \ntre"})
    assert [p.text for p in read(result, "a.docx").paragraphs] == ["en\ntvå", "tre"]
    assert [p.text for p in read(result, "b.docx").paragraphs] == ["en två\ntre"]


@pytest.mark.parametrize(
    ("text", "title"),
    [
        ("---\ntitle: 'Från huvudet'\nauthor: x\ntags:\n  - a\n---\n# Rubrik\n", "Från huvudet"),
        ("text\n\n## Rubrik *ett*\ntext", "Rubrik ett"),
        ("bara text", "a"),
        ("---\n\nbara text\n\n---\n", "a"),
    ],
)
def test_the_title_is_what_the_text_calls_itself(session: Session, text: str, title: str) -> None:
    document = write(session, text)
    assert document.core_properties.title == title
    assert "author" not in "".join(p.text for p in document.paragraphs)


def test_several_texts_become_one_document_each_or_one_together(session: Session) -> None:
    files = {"ett.md": "# Ett\n\n[dit](#ett)", "två.txt": "Två", "ett.txt": "# Ett\n\n[dit](#ett)"}
    start = session.start(files)
    assert start.action("convert")["prefill"]["many"] == "varje"
    assert [o["markdown"].split("\n")[0] for o in start.outputs("markdown")] == [
        "*ett.md*",
        "*två.txt*",
        "*ett.txt*",
    ]
    result = session.act("convert")
    assert list(result.files) == ["ett-2.docx", "ett.docx", "två.docx"]
    result = session.act("convert", many="samlat")
    assert list(result.files) == ["samlat dokument.docx"]
    check_order(result.files["samlat dokument.docx"])
    document = read(result)
    assert len(document.element.xpath("//w:br[@w:type='page']")) == 2
    # Each link leads to the heading in its own text.
    names = document.element.xpath("//w:bookmarkStart/@w:name")
    assert document.element.xpath("//w:hyperlink/@w:anchor") == names


def test_what_xml_cannot_hold_is_left_out(session: Session) -> None:
    document = write(session, "a\x0bb\x1bc &#12;d <&> \"'\n\n# r\x08s\n\n    k\x0cd\ufffe")
    paragraphs = [text for _, text in texts(document)]
    assert paragraphs == ["abc d <&> \"'", "rs", "kd"]


# --- images ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.png", make_image((3000, 100))),
        ("a.png", make_image((100, 3000), mode="P", transparency=3)),
        ("a.png", make_image(mode="RGBA")),
        ("a.png", make_image(mode="I;16")),
        ("A.JPG", make_image((2000, 2000), "JPEG")),
        ("a.jpeg", make_image((500, 50), "JPEG", mode="CMYK")),
        ("a.png", make_image(kind="JPEG")),
    ],
)
def test_images_of_all_kinds_fit_the_page(session: Session, name: str, data: bytes) -> None:
    result = convert(session, {"a.md": f"x ![alt](Mapp/{name.lower()})", name: data}, paper="A5")
    (shape,) = read(result).inline_shapes
    with Image.open(io.BytesIO(data)) as image:
        assert shape.width / shape.height == pytest.approx(image.width / image.height, rel=0.02)
    assert shape.width <= Mm(118.1) and shape.height <= Mm(180.1 * 267 / 180)
    assert result.notices == "Klart att ladda ned: a.docx."


def test_photos_stand_upright_and_tell_nothing_of_the_camera(session: Session) -> None:
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "KAMERAN"  # to be turned a quarter; the maker
    photo = make_image((400, 100), "JPEG", exif=exif)
    result = convert(session, {"a.md": "![](f.jpg)", "f.jpg": photo})
    (shape,) = read(result).inline_shapes
    assert shape.height == 4 * shape.width
    entries = read_zip(result.files["a.docx"]).items()
    (media,) = (data for name, data in entries if name.startswith("word/media/"))
    assert b"KAMERAN" not in media


def test_images_that_cannot_be_had_are_named_in_their_place(session: Session) -> None:
    text = (
        "![nät](https://evil.example/a.png) ![också](//evil.example/b.png) ![borta](borta.png)\n"
        "![](trasig.png) ![stor](bomb.png) ![](data:image/png;base64,AAAA)"
    )
    bomb = bytearray(make_image())
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    files = {"a.md": text, "trasig.png": b"\x89PNG nej", "bomb.png": bytes(bomb), "x.jpg": b""}
    for result in (session.start(files), convert(session, files)):
        assert (
            "hämtas inte; ladda upp dem som filer i stället: https://evil.example" in result.notices
        )
        assert "inte fanns bland de uppladdade filerna: borta.png." in result.notices
        assert "inte gick att läsa: trasig.png, bomb.png" in result.notices
        assert "Bilder som ingen text visar: x.jpg." in result.notices
    document = read(result)
    assert "[bild: nät]" in document.paragraphs[0].text and len(document.inline_shapes) == 0
    assert not [rel for rel in document.part.rels.values() if rel.is_external]


def test_html_is_left_out_and_named(session: Session) -> None:
    text = (
        "före\n\n<div onclick='x()'>\n<b>BORTA</b>\n</div>\n\n"
        "en <span class=x>kvar</span> <!-- k -->"
    )
    result = convert(session, {"a.md": text})
    assert "lämnades ute: <div>, <span>." in result.notices
    assert [text for _, text in texts(read(result))] == ["före", "en kvar "]


# --- the template ---------------------------------------------------------------------------------


def test_a_template_gives_its_styles_page_and_header_but_not_its_text(session: Session) -> None:
    files = {"a.md": "# R\n\n- a\n\n> c\n\n`k`", "mall.docx": make_template()}
    start = session.start(files)
    assert start.action("convert")["prefill"] == {
        "paper": "mall",
        "font": "mall",
        "numbering": False,
        "contents": False,
    }
    result = session.act("convert")
    assert "Stilarna kommer från mall.docx" in result.notices
    document = read(result)
    assert document.sections[0].header.paragraphs[0].text == "Ängsbackens skola"
    assert round(document.sections[0].page_width.mm) == 200
    assert document.styles["Heading 1"].font.name == "Garamond"
    assert "MALLENS TEXT" not in "".join(p.text for p in document.paragraphs)
    assert list(result.files) == ["a.docx"]
    document = read(session.act("convert", font="Arial", paper="A4"))
    assert document.styles["Heading 1"].font.name == "Arial"
    assert round(document.sections[0].page_width.mm) == 210


def test_styles_that_a_template_lacks_are_added(session: Session) -> None:
    def strip(document: Document) -> None:
        for style in list(document.styles):
            if style.name not in {"Normal", "Heading 1"}:
                style.element.getparent().remove(style.element)
        for old in document.styles.element.xpath("w:docDefaults"):
            old.getparent().remove(old)
        document.styles["Heading 1"].element.set(qn("w:styleId"), "Rubrik1")

    template = make_template(strip, without="numbering")
    text = "# A\n\n## B\n\n1. a\n\n> c\n\n```\nk\n```\n\n|x|\n|-|\n\n---\n\n[l](http://a.se) `k`"
    result = convert(session, {"a.md": text, "m.docx": template}, numbering=True, contents=True)
    check_order(result.files["a.docx"])
    document = read(result)
    assert document.paragraphs[0]._p.style == "Rubrik1"
    assert {"Heading 2", "Quote", "List Paragraph", "Kodblock"} <= {s for s, _ in texts(document)}
    assert document.styles.element.xpath("//w:lang/@w:val") == ["sv-SE"]
    assert numbers(document) == [("a", numbers(document)[0][1], 0)]


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ({"m.docx": b""}, "Mallen m.docx går inte att läsa som Word-dokument"),
        ({"m.docx": b"PK\x03\x04 trasig"}, "Mallen m.docx går inte att läsa"),
        ({"m.docx": make_template(without="word/document")}, "Mallen m.docx går inte att läsa"),
        ({"m.docx": make_template()[:20_000]}, "Mallen m.docx går inte att läsa"),
        ({"m.docx": b"\xd0\xcf\x11\xe0\xa1\xb1"}, "låst med lösenord"),
        ({"m.docx": make_template(), "n.docx": make_template()}, "högst en Word-mall"),
    ],
)
def test_unusable_templates_are_refused(
    session: Session, templates: dict[str, bytes], message: str
) -> None:
    with pytest.raises(ToolUserError, match=re.escape(message)):
        session.start({"a.md": "x", **templates})


def test_a_template_that_unpacks_to_too_much_is_refused(session: Session) -> None:
    entries = read_zip(make_template()) | {"word/media/bomb.bin": bytes(41_000_000)}
    with pytest.raises(ToolUserError, match="för stor: högst 40 MB"):
        session.start({"a.md": "x", "m.docx": make_zip(entries)})


# --- files that are none --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "Det finns ingen text bland filerna"),
        ({"a.png": make_image()}, "Det finns ingen text bland filerna"),
        ({"a.md": b""}, "a.md är tom"),
        ({"a.md": b"\xef\xbb\xbf \n\n\t\n"}, "a.md är tom"),
        ({"a.md": "---\ntitle: x\n---\n"}, "a.md är tom"),
        ({"a.md": make_template()}, "ingen text utan ett Word-dokument"),
        ({"a.txt": b"%PDF-1.7"}, "ingen text utan en PDF"),
        ({"a.md": make_image()}, "ingen text utan en bild"),
        ({"a.md": b"%PDF" + bytes(500_000)}, "ingen text utan en PDF"),
        ({"a.md": b"\0\1\2\3" * 20}, "går inte att läsa som text"),
        ({"a.md": bytes(range(128, 160)) * 9}, "går inte att läsa som text"),
        ({"a.md": "x" * 400_001}, "för mycket text: högst 400 kB"),
        ({"a.md": ">" * 200 + "x"}, "för många listor eller citat inuti varandra"),
    ],
)
def test_what_is_no_text_is_refused_with_swedish_words(
    session: Session, files: dict[str, Any], message: str
) -> None:
    with pytest.raises(ToolUserError, match=re.escape(message)):
        session.start(files)


def test_one_bad_text_does_not_stop_the_others(session: Session) -> None:
    files = {"bra.md": "Bra", "tom.md": "", "bild.md": make_image(), "x.pdf": b"%PDF"}
    for result in (session.start(files), convert(session, files)):
        assert "tom.md är tom" in result.notices and "Används inte: x.pdf" in result.notices
        assert "bild.md är ingen text utan en bild" in result.notices
    assert list(result.files) == ["bra.docx"]


TEXT = "Räksmörgås – ”åäö” 5 €"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_encodings_and_line_ends_are_found_out(session: Session, encoding: str) -> None:
    result = convert(session, {"a.md": f"{TEXT}\r\n\r\n- två\r\rtre".encode(encoding)})
    assert [text for _, text in texts(read(result))] == [TEXT, "två", "tre"]
    assert ("windows-1252" in result.notices) is (encoding == "cp1252")


@pytest.mark.parametrize(
    "name", ["Skärmbild 10.30\u202ffm.md", "å" * 126 + ".md", "a'b\"c.md", "-rf.md", ".md"]
)
def test_odd_file_names_give_usable_ones(session: Session, name: str) -> None:
    (made,) = convert(session, {name: "x"}).files
    assert made.endswith(".docx") and made.isprintable() and len(made.encode()) <= 255


def test_footnotes_are_told_of(session: Session) -> None:
    result = session.start({"a.md": "text[^1]\n\n[^1]: noten"})
    assert "Fotnoterna i a.md står kvar som vanlig text" in result.notices


# --- size -----------------------------------------------------------------------------------------


def test_many_long_texts_stay_within_what_the_page_can_show(session: Session) -> None:
    files = {f"{n}.md": f"# {n}\n\n" + "å är en bokstav. " * 2_800 for n in range(7)}
    result = session.start(files)
    assert len(result.outputs("markdown")) == 6
    assert "Visas inte, men kan konverteras: 6.md." in result.notices
    long = session.start({"a.md": "åäö " * 40_000}).outputs("markdown")[0]["markdown"]
    assert long.endswith("*Förhandsvisningen slutar här.*")


SLOW = [
    "[x" * 4_000,
    "1. a\n\nx\n\n" * 800,
    "".join(f"[a](http://a.se/{n}) " for n in range(1_000)),
    "# a\n\n" * 1_500,
    "![x](b.png)" * 600,
    "*a **b _c " * 3_000,
    "|a" * 300 + "\n" + "|-" * 300 + "\n" + "x\n" * 50,
]


@pytest.mark.timeout(15)
@pytest.mark.parametrize("text", SLOW, ids=range(len(SLOW)))
def test_texts_made_to_be_slow_are_not(session: Session, text: str) -> None:
    files = {"a.md": text, "b.png": make_image()}
    result = convert(session, files, contents=True, numbering=True)
    assert isinstance(read(result).paragraphs[0], Paragraph)
    if "b.png" in text:
        assert "högst 500 bilder" in result.notices
        assert len(read(result).inline_shapes) == 500
