"""Markdown in, Word document out.

Each block of the text becomes what Word itself has for it: styles, numbering, tables, fields,
hyperlinks. A style template brings its own styles, page and headers; only styles it lacks are
added. Images come from the uploads alone, drawn anew by Pillow. Nothing is fetched, and what Word
has no counterpart for is named in a notice instead of vanishing.
"""

import io
import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit
from xml.sax.saxutils import escape, quoteattr

import docx
from docx.enum.section import WD_ORIENT
from docx.enum.style import WD_STYLE_TYPE
from docx.opc.constants import CONTENT_TYPE, RELATIONSHIP_TYPE
from docx.opc.packuri import PackURI
from docx.oxml import OxmlElement, parse_xml
from docx.oxml.ns import nsdecls, qn
from docx.parts.numbering import NumberingPart
from docx.shared import Emu, Mm, Pt, Twips
from docx.text.paragraph import Paragraph
from docx.text.run import Run
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markdown_it.tree import SyntaxTreeNode
from PIL import Image, ImageOps
from skriptoteket_toolkit import (
    InputFile,
    ToolUserError,
    action,
    boolean_field,
    enum_field,
    get_action_parts,
    list_input_files,
    markdown,
    notice,
    output_path,
    progress,
)

# Text of this size takes a quarter of a minute at the worst, and half of the memory of a run.
TEXT_MAX_BYTES = 400_000
MAX_NESTING = 100
TEMPLATE_MAX_UNPACKED_BYTES = 40_000_000
IMAGE_MAX_PIXELS = 50_000_000
IMAGE_MAX_SIDE = 2400  # some 370 dots an inch over the width of an A4's text
PICTURES_MAX = 500  # in a document, where one image may be shown many times
WORD_MAX_COLUMNS = 63
WORD_MAX_NUMBER = 32_767
LINK_MAX_CHARS = 2000
PREVIEW_MAX_FILES = 6
PREVIEW_MAX_BYTES = 60 * 1024
LISTED_MAX = 8

TEXTS, IMAGES, TEMPLATES = (".md", ".markdown", ".txt"), (".png", ".jpg", ".jpeg"), (".docx",)
FROM_TEMPLATE = "mall"
PAPERS_MM = {"A4": (210, 297), "A4 liggande": (297, 210), "A5": (148, 210), "A3": (297, 420)}
FONTS = ("Calibri", "Arial", "Times New Roman", "Georgia", "Verdana")
EACH, TOGETHER = "varje", "samlat"
CONTENTS_LEVELS = 3
INDENT = 425  # twips, of which a point has 20: 7.5 mm for each level of a list or quote
NOT_TEXTS = (
    (b"PK\x03\x04", "ett Word-dokument eller en zip-fil"),
    (b"\xd0\xcf\x11\xe0", "ett äldre Word-dokument"),
    (b"%PDF", "en PDF"),
    (b"{\\rtf", "ett RTF-dokument"),
    (b"\x89PNG", "en bild"),
    (b"\xff\xd8\xff", "en bild"),
)
XMLNS = nsdecls("w")
MONOSPACE = '<w:rFonts w:ascii="Consolas" w:hAnsi="Consolas" w:cs="Consolas"/><w:noProof/>'
# The styles we use by their names in a file, which are English in every language of Word: the
# paragraph's and the characters' properties, for where a document has none of that name.
STYLES = {
    **{
        f"heading {level}": (
            f'<w:keepNext/><w:keepLines/><w:spacing w:before="{360 - 30 * level}" w:after="80"/>'
            f'<w:outlineLvl w:val="{level - 1}"/>',
            f'<w:b/><w:sz w:val="{max(36 - 4 * level, 22)}"/>',
        )
        for level in range(1, 7)
    },
    **{
        f"toc {level}": (f'<w:spacing w:after="60"/><w:ind w:left="{220 * (level - 1)}"/>', "")
        for level in range(1, CONTENTS_LEVELS + 1)
    },
    "Quote": ('<w:spacing w:before="80" w:after="80"/>', '<w:i/><w:color w:val="404040"/>'),
    "List Paragraph": ("<w:contextualSpacing/>", ""),
    "Kodblock": (
        '<w:shd w:val="clear" w:color="auto" w:fill="F2F2F2"/>'
        '<w:spacing w:before="80" w:after="120" w:line="240" w:lineRule="auto"/>',
        MONOSPACE + '<w:sz w:val="19"/>',
    ),
    "Tabelltext": ('<w:spacing w:before="40" w:after="40" w:line="240" w:lineRule="auto"/>', ""),
    "Vågrät linje": (
        '<w:pBdr><w:bottom w:val="single" w:sz="6" w:space="1" w:color="808080"/></w:pBdr>',
        "",
    ),
    "Hyperlink": (None, '<w:color w:val="0563C1"/><w:u w:val="single"/>'),
    "Kod": (None, MONOSPACE),
}
PAGE_BREAK = f'<w:p {XMLNS}><w:r><w:br w:type="page"/></w:r></w:p>'
BORDERS = "".join(
    f'<w:{side} w:val="single" w:sz="4" w:space="0" w:color="808080"/>'
    for side in ("top", "left", "bottom", "right", "insideH", "insideV")
)
LOOKS = {"strong": "bold", "em": "italic", "s": "strike"}
# Of HTML inside a line, what Word has a look for; other elements lose their tags only.
HTML_LOOKS = {"sub": "subscript", "sup": "superscript", "u": "underline"}

# Kinds of things that cannot be taken over; a notice names them.
REMOTE = "Bilder på nätet hämtas inte; ladda upp dem som filer i stället"
MISSING = "Bilder som inte fanns bland de uppladdade filerna"
UNREADABLE = "Bilder som inte gick att läsa"
HTML = "HTML kan inte bli Word och lämnades ute"
LINKS = "Länkar som blev vanlig text, eftersom de inte leder till en webbadress"


@dataclass(frozen=True)
class Source:
    """An uploaded text, parsed; `keep_lines` says that its line breaks are meant."""

    name: str
    text: str
    title: str
    blocks: list[SyntaxTreeNode]
    keep_lines: bool
    remark: str

    def list_headings(self) -> list[tuple[int, str]]:
        """Return the level and text of each heading, in their order, at any depth."""
        found = (node for block in self.blocks for node in block.walk() if node.type == "heading")
        return [(int(node.tag[1:]), _plain_text(node)) for node in found]


@dataclass(frozen=True)
class Uploads:
    """The user's files by what they are for; images by their names without regard to case."""

    texts: list[InputFile]
    images: dict[str, InputFile]
    template: InputFile | None
    others: list[str]


@dataclass(frozen=True)
class Choices:
    """How the user wants the document, as in the form."""

    paper: str
    font: str
    numbering: bool = False
    contents: bool = False


@dataclass(frozen=True)
class Place:
    """Where a block stands: its indent in twips, its depth in lists, and its item's number."""

    indent: int = 0
    level: int = 0
    quoted: bool = False
    number: tuple[int, int] | None = None  # numId and level, for an item's first paragraph


class Numbering:
    """The document's numbering definitions: one for bullets, one for each ordered list."""

    def __init__(self, document: Any) -> None:
        try:
            part = document.part.part_related_by(RELATIONSHIP_TYPE.NUMBERING)
        except KeyError:
            root = parse_xml(f"<w:numbering {XMLNS}/>")
            name, package = PackURI("/word/numbering.xml"), document.part.package
            part = NumberingPart(name, CONTENT_TYPE.WML_NUMBERING, root, package)
            document.part.relate_to(part, RELATIONSHIP_TYPE.NUMBERING)
        self._root = part.element
        self._last_id = max(
            map(int, self._root.xpath("//@w:abstractNumId | //@w:numId")), default=0
        )
        bullets = [("•–▪"[min(level, 2)], "bullet") for level in range(9)]
        self.bullets = self._add_list(self._add_definition(bullets))
        formats = ("decimal", "lowerLetter", "lowerRoman")
        ordered = [(f"%{level + 1}.", formats[level % 3]) for level in range(9)]
        self._ordered = self._add_definition(ordered)

    def add_ordered(self, level: int, start: int) -> int:
        """Return the numId of a new list that counts from `start` at `level`."""
        override = f'<w:startOverride w:val="{min(start, WORD_MAX_NUMBER)}"/>'
        return self._add_list(
            self._ordered, f'<w:lvlOverride w:ilvl="{level}">{override}</w:lvlOverride>'
        )

    def add_headings(self, style_ids: Sequence[str]) -> int:
        """Return the numId of a numbering that is tied to heading styles: 1, 1.1, 1.1.1."""
        depths = range(1, len(style_ids) + 1)
        levels = [(".".join(f"%{n}" for n in range(1, depth + 1)), "decimal") for depth in depths]
        return self._add_list(self._add_definition(levels, style_ids))

    def _add_definition(
        self, levels: Iterable[tuple[str, str]], style_ids: Sequence[str] = ()
    ) -> int:
        self._last_id += 1
        number, xml = self._last_id, '<w:multiLevelType w:val="multilevel"/>'
        for level, (text, kind) in enumerate(levels):
            # The paragraphs of lists say their indents themselves, since a list may be in a quote.
            style = f"<w:pStyle w:val={quoteattr(style_ids[level])}/>" if style_ids else ""
            xml += (
                f'<w:lvl w:ilvl="{level}"><w:start w:val="1"/><w:numFmt w:val="{kind}"/>{style}'
                f'<w:suff w:val="{"space" if style else "tab"}"/><w:lvlText w:val="{text}"/>'
                '<w:lvlJc w:val="left"/></w:lvl>'
            )
        element = parse_xml(
            f'<w:abstractNum {XMLNS} w:abstractNumId="{number}">{xml}</w:abstractNum>'
        )
        # Every definition has to stand before the first list.
        first = self._root.find(qn("w:num"))
        if first is None:
            self._root.append(element)
        else:
            first.addprevious(element)
        return number

    def _add_list(self, definition: int, overrides: str = "") -> int:
        self._last_id += 1
        number = self._last_id
        xml = f'<w:abstractNumId w:val="{definition}"/>{overrides}'
        self._root.append(parse_xml(f'<w:num {XMLNS} w:numId="{number}">{xml}</w:num>'))
        return number


class DocumentWriter:
    """Writes texts into one Word document, and tells afterwards what is not in it."""

    def __init__(self, choices: Choices, uploads: Uploads) -> None:
        self._left_out: dict[str, dict[str, None]] = {}
        self._remarks: dict[str, None] = {}
        self._choices = choices
        self._uploads = uploads
        self._images: dict[str, bytes | None] = {}
        self._pictures = 0
        template = uploads.template
        self._document = open_template(template) if template else docx.Document()
        self._numbering = Numbering(self._document)
        self._style_ids: dict[str, str] = {}
        self._links: dict[str, str] = {}
        self._anchors: dict[str, str] = {}  # of the text being written, by what its links say
        self._bookmarks: Iterator[str] = iter(())
        self._keep_lines = False
        self._document._body.clear_content()
        # Blocks go in before it: to look for the end each time would take the square of the time.
        self._end = self._document.element.body.get_or_add_sectPr()
        self._set_page()
        self._set_language()
        if choices.font != FROM_TEMPLATE:
            self._set_font(choices.font)
        if template is None:
            normal = self._document.styles["Normal"].paragraph_format
            normal.space_after, normal.line_spacing = Pt(6), 1.15

    def write(self, sources: Sequence[Source]) -> bytes:
        """Return the document with all texts in it, each beginning on a page of its own."""
        headings = [source.list_headings() for source in sources]
        together = [heading for found in headings for heading in found]
        if self._choices.numbering:
            self._number_headings([level for level, _ in together])
        self._bookmarks = (_name_bookmark(number) for number in range(len(together)))
        first_bookmark = 0
        for source, found in zip(sources, headings, strict=True):
            if source is not sources[0]:
                self._end.addprevious(parse_xml(PAGE_BREAK))
            self._keep_lines = source.keep_lines
            self._anchors = _name_anchors(found, first_bookmark)
            first_bookmark += len(found)
            # A single text's title stays above the contents.
            lead = 1 if source.blocks[0].type == "heading" and len(sources) == 1 else 0
            self._write_blocks(source.blocks[:lead], Place())
            if source is sources[0] and self._choices.contents:
                self._write_contents(together)
            self._write_blocks(source.blocks[lead:], Place())
        properties = self._document.core_properties
        properties.title, properties.language = sources[0].title, "sv-SE"
        properties.author = properties.comments = properties.last_modified_by = ""
        properties.created = properties.modified = datetime.now(UTC)
        out = io.BytesIO()
        self._document.save(out)
        return out.getvalue()

    def list_remarks(self) -> list[str]:
        """Return Swedish sentences about what could not be taken over, each thing named once."""
        lists = self._left_out.items()
        return [*(f"{kind}: {_join_names(names)}." for kind, names in lists), *self._remarks]

    def list_unused_images(self) -> set[str]:
        """Return the names of the uploaded images that no text shows."""
        images = self._uploads.images.items()
        return {file.name for key, file in images if key not in self._images}

    def _leave_out(self, kind: str, name: str) -> None:
        self._left_out.setdefault(kind, {})[clean(name)[:80]] = None

    # --- the page and the styles

    def _set_page(self) -> None:
        section = self._document.sections[-1]
        if self._choices.paper in PAPERS_MM:
            width, height = PAPERS_MM[self._choices.paper]
            section.page_width, section.page_height = Mm(width), Mm(height)
            section.orientation = WD_ORIENT.LANDSCAPE if width > height else WD_ORIENT.PORTRAIT
            margin = Mm(15 if width < 200 else 25)
            section.left_margin = section.right_margin = margin
            section.top_margin = section.bottom_margin = margin
        width = (section.page_width or Mm(210)) - (section.left_margin or 0)
        height = (section.page_height or Mm(297)) - (section.top_margin or 0)
        self._width = max(width - (section.right_margin or 0), Mm(30))
        # With room for a line or two below the largest image.
        self._height = max((height - (section.bottom_margin or 0)) * 0.9, Mm(30))

    def _set_language(self) -> None:
        styles = self._document.styles
        languages = styles.element.xpath("w:docDefaults//w:lang")
        default = styles.default(WD_STYLE_TYPE.PARAGRAPH)
        if not languages and default is not None:
            languages = [OxmlElement("w:lang")]
            default.element.get_or_add_rPr().append(languages[0])
        for language in languages:
            language.set(qn("w:val"), "sv-SE")

    def _set_font(self, font: str) -> None:
        for name in ("Normal", "Title", *(f"heading {level}" for level in range(1, 7))):
            if style := self._find_style(name, WD_STYLE_TYPE.PARAGRAPH):
                properties = style.element.get_or_add_rPr()
                for old in properties.findall(qn("w:rFonts")):  # a theme's font would win
                    properties.remove(old)
                style.font.name = font
                properties.rFonts.set(qn("w:cs"), font)

    def _find_style(self, name: str, kind: WD_STYLE_TYPE) -> Any:
        for style in self._document.styles:
            if style.type == kind and (style.element.name_val or "").lower() == name.lower():
                return style
        return None

    def _style_id(self, name: str) -> str:
        """Return the id of one of STYLES, which is added if the document has none of that name."""
        if name not in self._style_ids:
            is_character = STYLES[name][0] is None
            kind = WD_STYLE_TYPE.CHARACTER if is_character else WD_STYLE_TYPE.PARAGRAPH
            style = self._find_style(name, kind)
            self._style_ids[name] = style.style_id if style else self._add_style(name)
        return self._style_ids[name]

    def _add_style(self, name: str) -> str:
        paragraph, characters = STYLES[name]
        ascii_name = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
        style_id = "Md" + ascii_name.title().replace(" ", "")
        styles, kind, based = self._document.styles, "character", ""
        if paragraph is not None:
            default = styles.default(WD_STYLE_TYPE.PARAGRAPH)
            based = f"<w:basedOn w:val={quoteattr(default.style_id)}/>" if default else ""
            kind, paragraph = "paragraph", f"<w:pPr>{paragraph}</w:pPr>"
        styles.element.append(
            parse_xml(
                f'<w:style {XMLNS} w:type="{kind}" w:styleId="{style_id}"><w:name w:val="{name}"/>'
                f"{based}<w:qFormat/>{paragraph or ''}<w:rPr>{characters}</w:rPr></w:style>"
            )
        )
        return style_id

    def _number_headings(self, levels: Sequence[int]) -> None:
        # A single top heading is the title of the whole, and gets no number.
        first = 2 if levels.count(1) == 1 and len(levels) > 1 else 1
        names = [f"heading {level}" for level in range(first, 7)]
        number = self._numbering.add_headings([self._style_id(name) for name in names])
        for level, name in enumerate(names):
            style = self._find_style(name, WD_STYLE_TYPE.PARAGRAPH)
            _set_number(style.element, number, level)

    # --- blocks

    def _write_blocks(self, nodes: Iterable[SyntaxTreeNode], place: Place) -> None:
        for node in nodes:
            self._write_block(node, place)
            place = replace(place, number=None)

    def _write_block(self, node: SyntaxTreeNode, place: Place) -> None:
        match node.type:
            case "heading":
                self._write_heading(node, place)
            case "paragraph":
                self._write_line(self._add_paragraph(place), node, place.indent)
            case "bullet_list" | "ordered_list":
                self._write_list(node, place)
            case "blockquote":
                inner = replace(place, indent=place.indent + INDENT, quoted=True)
                self._write_blocks(node.children, inner)
            case "fence" | "code_block":
                run = self._add_run(self._add_paragraph(place, "Kodblock"))
                run.text = clean(node.content.rstrip("\n"))
            case "hr":
                self._add_paragraph(place, "Vågrät linje")
            case "table":
                self._write_table(node, place)
            case "html_block":
                self._note_html(node.content)

    def _write_heading(self, node: SyntaxTreeNode, place: Place) -> None:
        paragraph = self._add_paragraph(place, f"heading {node.tag[1:]}")
        name = next(self._bookmarks)
        start = parse_xml(f'<w:bookmarkStart {XMLNS} w:id="{name[3:]}" w:name="{name}"/>')
        paragraph.append(start)
        self._write_line(paragraph, node, place.indent)
        paragraph.append(parse_xml(f'<w:bookmarkEnd {XMLNS} w:id="{name[3:]}"/>'))

    def _write_list(self, node: SyntaxTreeNode, place: Place) -> None:
        level, number = min(place.level, 8), self._numbering.bullets
        if node.type == "ordered_list":
            number = self._numbering.add_ordered(level, int(node.attrs.get("start", 1)))
        inner = replace(place, indent=place.indent + INDENT, level=place.level + 1)
        for item in node.children:
            first = replace(inner, number=(number, level))
            if not item.children or item.children[0].type != "paragraph":
                self._add_paragraph(first)
                first = inner
            self._write_blocks(item.children, first)

    def _write_table(self, node: SyntaxTreeNode, place: Place) -> None:
        rows = [row.children for part in node.children for row in part.children]
        columns = min(len(rows[0]), WORD_MAX_COLUMNS)
        if columns < len(rows[0]):
            remark = f"En tabell har {len(rows[0])} kolumner, varav Word klarar {columns}."
            self._remarks[remark] = None
        width = max(int(self._width / Twips(1)) - place.indent, 1000) // columns
        table = parse_xml(
            f'<w:tbl {XMLNS}><w:tblPr><w:tblW w:w="{width * columns}" w:type="dxa"/>'
            f'<w:tblInd w:w="{place.indent}" w:type="dxa"/><w:tblBorders>{BORDERS}</w:tblBorders>'
            '<w:tblLook w:val="0020"/></w:tblPr><w:tblGrid>'
            + f'<w:gridCol w:w="{width}"/>' * columns
            + "</w:tblGrid></w:tbl>"
        )
        self._end.addprevious(table)
        style = quoteattr(self._style_id("Tabelltext"))
        for row in rows:
            is_head = row[0].type == "th"
            shade = '<w:shd w:val="clear" w:color="auto" w:fill="EDEDED"/>' if is_head else ""
            head = "<w:tblHeader/>" if is_head else ""
            line = parse_xml(f"<w:tr {XMLNS}><w:trPr><w:cantSplit/>{head}</w:trPr></w:tr>")
            table.append(line)
            for cell in row[:columns]:
                side = str(cell.attrs.get("style", "")).removeprefix("text-align:") or "left"
                box = parse_xml(
                    f"<w:tc {XMLNS}><w:tcPr>{shade}</w:tcPr><w:p><w:pPr><w:pStyle w:val={style}/>"
                    f'<w:jc w:val="{side}"/></w:pPr></w:p></w:tc>'
                )
                line.append(box)
                share = self._width - width * Twips(1)  # an image is no wider than its cell
                self._write_line(box[-1], cell, int(share / Twips(1)), bold=is_head)
        self._add_paragraph(None)  # or Word would join it with a table that follows

    def _write_contents(self, headings: Sequence[tuple[int, str]]) -> None:
        """Write a table of contents, as a field that Word fills and with what it would find now."""
        begin = (
            '<w:r><w:fldChar w:fldCharType="begin" w:dirty="true"/></w:r><w:r>'
            f'<w:instrText xml:space="preserve"> TOC \\o "1-{CONTENTS_LEVELS}" \\h \\z \\u '
            "</w:instrText></w:r>"
            '<w:r><w:fldChar w:fldCharType="separate"/></w:r>'
        )
        for number, (level, text) in enumerate(headings):
            if level <= CONTENTS_LEVELS:
                style = quoteattr(self._style_id(f"toc {level}"))
                entry = f'<w:r><w:t xml:space="preserve">{escape(text)}</w:t></w:r>'
                link = f'<w:hyperlink w:anchor="{_name_bookmark(number)}">{entry}</w:hyperlink>'
                look = f"<w:pPr><w:pStyle w:val={style}/></w:pPr>"
                self._end.addprevious(parse_xml(f"<w:p {XMLNS}>{look}{begin}{link}</w:p>"))
                begin = ""
        if begin:
            self._remarks["Det finns inga rubriker att göra en innehållsförteckning av."] = None
            return
        end = '<w:r><w:fldChar w:fldCharType="end"/></w:r>'
        self._end.addprevious(parse_xml(f"<w:p {XMLNS}>{end}</w:p>"))

    def _add_paragraph(self, place: Place | None, style: str = "") -> Any:
        """Return a new `w:p` at the end; without a place it is a plain one."""
        element = OxmlElement("w:p")
        self._end.addprevious(element)
        if place is None:
            return element
        style = style or ("List Paragraph" if place.level else "Quote" if place.quoted else "")
        if style:
            element.style = self._style_id(style)
        if place.number:
            _set_number(element, *place.number)
        if place.indent:
            layout = Paragraph(element, self._document._body).paragraph_format
            layout.left_indent = Twips(place.indent)
            layout.first_line_indent = Twips(-INDENT) if place.number else None
        return element

    # --- what is inside a line

    def _write_line(
        self, paragraph: Any, node: SyntaxTreeNode, indent: int, bold: bool = False
    ) -> None:
        looks = {"bold"} if bold else set()
        parent = paragraph
        for token in _inline_tokens(node):
            match token.type.removesuffix("_open").removesuffix("_close"):
                case "link":
                    parent = self._open_link(paragraph, token) if token.nesting > 0 else paragraph
                case "strong" | "em" | "s" as kind:
                    (looks.add if token.nesting > 0 else looks.discard)(LOOKS[kind])
                case "html_inline":
                    self._read_tag(token.content, looks, parent)
                case "image":
                    self._write_image(parent, token, indent)
                case "hardbreak":
                    self._add_run(parent).add_br()
                case "softbreak" if self._keep_lines:
                    self._add_run(parent).add_br()
                case "softbreak":
                    self._add_run(parent).text = " "
                case kind if token.content:
                    run = self._add_run(parent, looks)
                    run.text = clean(token.content)
                    if kind == "code_inline":
                        run.style = self._style_id("Kod")

    def _add_run(self, parent: Any, looks: Iterable[str] = ()) -> Any:
        """Return a new `w:r` at the end of a paragraph or hyperlink."""
        element = OxmlElement("w:r")
        parent.append(element)
        if parent.tag == qn("w:hyperlink"):
            element.style = self._style_id("Hyperlink")
        for look in looks:
            setattr(Run(element, self._document._body).font, look, True)
        return element

    def _read_tag(self, tag: str, looks: set[str], parent: Any) -> None:
        found = re.match(r"<(/?)([a-zA-Z][a-zA-Z0-9]*)", tag)
        name = found[2].lower() if found else ""
        if name == "br":
            self._add_run(parent).add_br()
        elif found and name in HTML_LOOKS:
            (looks.discard if found[1] else looks.add)(HTML_LOOKS[name])
        else:
            self._note_html(tag)

    def _note_html(self, content: str) -> None:
        # Comments and ends of elements are no loss.
        if found := re.search(r"<([a-zA-Z][a-zA-Z0-9-]*)", content):
            self._leave_out(HTML, f"<{found[1].lower()}>")

    def _open_link(self, paragraph: Any, token: Token) -> Any:
        """Return a new `w:hyperlink`, or the paragraph itself if the address leads nowhere."""
        address = str(token.attrs.get("href", ""))
        link = OxmlElement("w:hyperlink")
        if anchor := self._anchors.get(unquote(address.removeprefix("#")).lower()):
            link.set(qn("w:anchor"), anchor)
        elif _is_web_address(address):
            if address not in self._links:
                # With an id of our own: to find a free one takes a search through all of them.
                self._links[address] = name = f"rIdMd{len(self._links)}"
                self._document.part.rels.add_relationship(
                    RELATIONSHIP_TYPE.HYPERLINK, address, name, is_external=True
                )
            link.set(qn("r:id"), self._links[address])
        else:
            self._leave_out(LINKS, unquote(address) or "tom länk")
            return paragraph
        paragraph.append(link)
        return link

    def _write_image(self, parent: Any, token: Token, indent: int) -> None:
        address, alt = str(token.attrs.get("src", "")), clean(token.content)
        self._pictures += 1
        data = self._find_image(address)
        if self._pictures > PICTURES_MAX:
            self._remarks[f"Ett dokument får högst {PICTURES_MAX} bilder."] = None
            data = None
        if data is None:
            self._add_run(
                parent, ["italic"]
            ).text = f"[bild: {alt or clean(unquote(address))[:80]}]"
            return
        with Image.open(io.BytesIO(data)) as image:
            width, height = (side * 9525 for side in image.size)  # 96 dots an inch, as on a page
        room = max(self._width - indent * Twips(1), Mm(10))
        scale = min(1, room / width, self._height / height)
        run = Run(self._add_run(parent), self._document._body)
        size = (Emu(max(int(side * scale), 1)) for side in (width, height))
        run.add_picture(io.BytesIO(data), *size)._inline.docPr.set("descr", alt)

    def _find_image(self, address: str) -> bytes | None:
        """Find the image that an address means; what cannot be had is noted."""
        name, _, _ = unquote(address).partition("?")
        if re.match(r"//|[a-zA-Z][a-zA-Z0-9+.-]+:", address):
            self._leave_out(REMOTE, name)
            return None
        # Folders do not count: an upload has none.
        key = _name_key(name.replace("\\", "/").rpartition("/")[2])
        file = self._uploads.images.get(key)
        if file is None:
            self._leave_out(MISSING, name)
            return None
        if key not in self._images:
            self._images[key] = load_image(file)
        if self._images[key] is None:
            self._leave_out(UNREADABLE, file.name)
        return self._images[key]


def run_tool(input_dir: str, output_dir: str) -> dict[str, object]:
    """Show the uploaded texts; in the action `convert`, make Word documents of them."""
    uploads = sort_uploads(list_input_files())
    action_id, form, _ = get_action_parts()
    sources, problems = read_sources(uploads.texts)
    outputs = [notice(problem, "error") for problem in problems]
    outputs += [notice(source.remark, "warning") for source in sources if source.remark]
    if uploads.others:
        outputs.append(notice(f"Används inte: {_join_names(uploads.others)}.", "warning"))
    given = FROM_TEMPLATE if uploads.template else ""
    choices = Choices(
        paper=str(form.get("paper") or given or "A4"),
        font=str(form.get("font") or given or FONTS[0]),
        numbering=form.get("numbering") is True,
        contents=form.get("contents") is True,
    )
    many = str(form.get("many") or EACH)
    is_together = many == TOGETHER and len(sources) > 1
    batches = [sources] if is_together else [[source] for source in sources]
    if action_id == "convert":
        outputs = convert(batches, choices, uploads) + outputs
    else:
        outputs += preview(sources, batches, choices, uploads)
    return {
        "outputs": outputs,
        "next_actions": [make_convert_action(len(sources), choices, many, bool(uploads.template))],
        "state": {"texts": [source.name for source in sources]},
    }


def preview(
    sources: list[Source], batches: list[list[Source]], choices: Choices, uploads: Uploads
) -> list[dict[str, object]]:
    """Show the texts, and say beforehand what the documents will lack."""
    writers = [DocumentWriter(choices, uploads) for _ in batches]
    for writer, batch in zip(writers, batches, strict=True):
        writer.write(batch)
    outputs = make_remarks(writers)
    for source in sources[:PREVIEW_MAX_FILES]:
        text = re.sub(r"!\[([^\]\n]*)\]\([^)\n]*\)", r"*[bild: \1]*", source.text)
        cut = text.encode()[:PREVIEW_MAX_BYTES].decode("utf-8", "ignore")
        if len(cut) < len(text):
            cut = cut.rpartition("\n")[0] + "\n\n*Förhandsvisningen slutar här.*"
        outputs.append(markdown(f"*{source.name}*\n\n---\n\n{cut}" if len(sources) > 1 else cut))
    if hidden := [source.name for source in sources[PREVIEW_MAX_FILES:]]:
        outputs.append(notice(f"Visas inte, men kan konverteras: {_join_names(hidden)}."))
    return outputs


def convert(
    batches: list[list[Source]], choices: Choices, uploads: Uploads
) -> list[dict[str, object]]:
    """Write the documents; the same file name never twice."""
    writers: list[DocumentWriter] = []
    names: list[str] = []
    taken: set[str] = set()
    for number, batch in enumerate(batches):
        progress(number / len(batches), f"Skriver {batch[0].name}")
        writers.append(DocumentWriter(choices, uploads))
        data = writers[-1].write(batch)
        stem = "samlat dokument" if len(batch) > 1 else Path(batch[0].name).stem
        names.append(_make_name(stem, taken))
        output_path(names[-1]).write_bytes(data)
    progress(1, "Klart")
    look = f" Stilarna kommer från {uploads.template.name}." if uploads.template else ""
    if choices.contents:
        look += (
            " När du öppnar dokumentet frågar Word om fälten ska uppdateras. Svara ja, så får "
            "innehållsförteckningen sina sidnummer."
        )
    done = notice(f"Klart att ladda ned: {_join_names(names)}.{look}")
    return [done, *make_remarks(writers)]


def make_remarks(writers: list[DocumentWriter]) -> list[dict[str, object]]:
    """Return notices about what documents lack, each sentence once."""
    sentences = dict.fromkeys(line for writer in writers for line in writer.list_remarks())
    unused = set.intersection(*(writer.list_unused_images() for writer in writers))
    notices = [notice(sentence, "warning") for sentence in sentences]
    if unused:
        notices.append(notice(f"Bilder som ingen text visar: {_join_names(sorted(unused))}."))
    return notices


def make_convert_action(
    texts: int, choices: Choices, many: str, has_template: bool
) -> dict[str, object]:
    """Offer the conversion; again after it, so that other choices can be tried."""
    given = {FROM_TEMPLATE: "Som i mallen"} if has_template else {}
    fields = [
        enum_field("paper", "Papper", given | {p: p for p in PAPERS_MM}, required=True),
        enum_field("font", "Typsnitt", given | {f: f for f in FONTS}, required=True),
        boolean_field("numbering", "Numrera rubrikerna (1, 1.1, 1.2 …)"),
        boolean_field("contents", "Innehållsförteckning"),
    ]
    prefill: dict[str, object] = {
        "paper": choices.paper,
        "font": choices.font,
        "numbering": choices.numbering,
        "contents": choices.contents,
    }
    if texts > 1:
        options = {EACH: f"{texts} dokument, ett av varje text", TOGETHER: "Allt i ett dokument"}
        fields.insert(0, enum_field("many", "Antal dokument", options, required=True))
        prefill["many"] = many
    return action("convert", "Gör Word-dokument", fields, prefill)


def sort_uploads(files: list[InputFile]) -> Uploads:
    """Sort the uploads. Raises ToolUserError where there is no text, or more than one template."""

    def choose(endings: tuple[str, ...]) -> list[InputFile]:
        return [file for file in files if file.name.lower().endswith(endings)]

    texts, images, templates = choose(TEXTS), choose(IMAGES), choose(TEMPLATES)
    if not texts:
        raise ToolUserError(
            "Det finns ingen text bland filerna. Ladda upp en fil som slutar på .md eller .txt, "
            "gärna tillsammans med textens bilder och en Word-mall."
        )
    if len(templates) > 1:
        raise ToolUserError("Ladda upp högst en Word-mall (.docx) åt gången.")
    return Uploads(
        texts=texts,
        images={_name_key(file.name): file for file in images},
        template=templates[0] if templates else None,
        others=[file.name for file in files if file not in texts + images + templates],
    )


def read_sources(files: list[InputFile]) -> tuple[list[Source], list[str]]:
    """Read the texts; those that cannot be read become problems, unless that is all of them.

    Raises:
        ToolUserError: no text could be read, or they are too much together.
    """
    sources: list[Source] = []
    problems: list[str] = []
    room = TEXT_MAX_BYTES
    for file in files:
        try:
            check_is_text(file)
            room -= file.bytes
            if room < 0:
                raise ToolUserError(
                    f"Det är för mycket text: högst {TEXT_MAX_BYTES // 1000} kB på en gång går, "
                    f"och {file.name} fick inte plats. Bilder ska ligga i egna filer."
                )
            sources.append(read_source(file))
        except ToolUserError as error:
            problems.append(error.message)
    if not sources:
        raise ToolUserError("\n".join(problems))
    return sources, problems


def check_is_text(file: InputFile) -> None:
    """Raise ToolUserError when a file is something else, whatever its name says."""
    with file.path.open("rb") as stream:
        start = stream.read(8)
    for magic, what in NOT_TEXTS:
        if start.startswith(magic):
            raise ToolUserError(f"{file.name} är ingen text utan {what}.")


def read_source(file: InputFile) -> Source:
    """Read and parse one text. Raises ToolUserError when it is none, or is empty."""
    text, remark = decode(file)
    # What other programs put first to say a text's title; it is no part of the text.
    head = re.match(r"---\n((?=[\w-]+:)(?:[\w-]+:.*\n|[ \t#-].*\n|\n)*?)(?:---|\.{3}) *\n", text)
    text = text[head.end() :].lstrip("\n") if head else text
    parser = MarkdownIt("commonmark", {"maxNesting": MAX_NESTING})
    tokens = parser.enable(["table", "strikethrough"]).parse(text)
    if max((token.level for token in tokens), default=0) >= MAX_NESTING - 2:
        raise ToolUserError(f"{file.name} har för många listor eller citat inuti varandra.")
    blocks = SyntaxTreeNode(tokens).children
    if not blocks:
        raise ToolUserError(f"{file.name} är tom.")
    if re.search(r"(?m)^\[\^[^\]\n]+\]:", text):
        remark = f"{remark} Fotnoterna i {file.name} står kvar som vanlig text.".strip()
    named = re.search(r"(?mi)^(?:title|titel|rubrik):[ \t]*(.+)$", head[1]) if head else None
    title = named[1].strip().strip("\"'") if named else ""
    title = title or next((_plain_text(node) for node in blocks if node.type == "heading"), "")
    is_plain = file.name.lower().endswith(".txt")
    return Source(file.name, text, (title or Path(file.name).stem)[:255], blocks, is_plain, remark)


def decode(file: InputFile) -> tuple[str, str]:
    """Return a file's text, and a remark in Swedish when its encoding had to be guessed.

    Raises:
        ToolUserError: it is no text in any encoding.
    """
    data, remark = file.path.read_bytes(), ""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        text = data.decode("utf-16", "replace")
    else:
        try:
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError:
            remark = f"{file.name} är inte sparad som UTF-8 och lästes som windows-1252."
            text = data.decode("windows-1252", "replace")
    if "\0" in text or text.count("�") > len(text) / 50:
        raise ToolUserError(f"{file.name} går inte att läsa som text.")
    return clean(text.replace("\r\n", "\n").replace("\r", "\n")), remark


def open_template(file: InputFile) -> Any:
    """Open a style template. Raises ToolUserError when it is no usable Word document."""
    with file.path.open("rb") as stream:
        if stream.read(4) == b"\xd0\xcf\x11\xe0":
            raise ToolUserError(
                f"Mallen {file.name} är låst med lösenord eller sparad av ett äldre Word. "
                "Spara den som .docx utan lösenord."
            )
    try:
        with zipfile.ZipFile(file.path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
        if unpacked <= TEMPLATE_MAX_UNPACKED_BYTES:
            return docx.Document(str(file.path))
    except Exception:  # python-docx passes on whatever a broken package makes its parts raise
        raise ToolUserError(f"Mallen {file.name} går inte att läsa som Word-dokument.") from None
    limit = TEMPLATE_MAX_UNPACKED_BYTES // 1_000_000
    raise ToolUserError(f"Mallen {file.name} är för stor: högst {limit} MB uppackad går bra.")


def load_image(file: InputFile) -> bytes | None:
    """Return an image drawn anew, upright and of a sensible size, or None when it is none.

    Drawn anew it holds no place or camera, and is in a form that Word reads for certain.
    """
    try:
        with Image.open(file.path, formats=("PNG", "JPEG")) as image:
            if image.width * image.height > IMAGE_MAX_PIXELS:
                return None
            image.draft("RGB", (IMAGE_MAX_SIDE, IMAGE_MAX_SIDE))
            upright = ImageOps.exif_transpose(image)
            upright.thumbnail((IMAGE_MAX_SIDE, IMAGE_MAX_SIDE))
            out = io.BytesIO()
            if image.format == "JPEG":
                upright.convert("RGB").save(out, "JPEG", quality=88)
            else:
                upright.info = {}
                upright.save(out, "PNG")
            return out.getvalue()
    except Exception:  # Pillow's readers raise a great many things
        return None


def clean(text: str) -> str:
    """Leave out what XML cannot hold: control characters, lone surrogates, noncharacters."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]", "", text)


def _set_number(element: Any, number: int, level: int) -> None:
    """Tie a paragraph or a style to a numbering."""
    properties = element.get_or_add_pPr().get_or_add_numPr()
    properties.get_or_add_ilvl().val, properties.get_or_add_numId().val = level, number


def _inline_tokens(node: SyntaxTreeNode) -> list[Token]:
    """Return what is in the line of a paragraph, heading or cell, with check boxes drawn."""
    tokens = [
        token for child in node.children for token in (child.token and child.token.children) or []
    ]
    in_item = node.parent is not None and node.parent.type == "list_item"
    if in_item and tokens and re.match(r"\[[ xX]\] ", tokens[0].content):
        box = "☐" if tokens[0].content[1] == " " else "☒"
        return [tokens[0].copy(content=box + tokens[0].content[3:]), *tokens[1:]]
    return tokens


def _plain_text(node: SyntaxTreeNode) -> str:
    texts = (
        " " if token.type in {"softbreak", "hardbreak"} else token.content
        for token in _inline_tokens(node)
        if token.type != "html_inline"
    )
    return " ".join(clean("".join(texts)).split())


def _name_bookmark(number: int) -> str:
    return f"_Md{1000 + number}"


def _name_anchors(headings: Sequence[tuple[int, str]], first: int) -> dict[str, str]:
    """Return the bookmark of each heading by the name that links use, as GitHub forms it."""
    anchors: dict[str, str] = {}
    seen = Counter[str]()
    for number, (_, text) in enumerate(headings, start=first):
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        name = f"{slug}-{seen[slug]}" if seen[slug] else slug
        seen[slug] += 1
        anchors.setdefault(name, _name_bookmark(number))
    return anchors


def _is_web_address(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    complete = parts.netloc if parts.scheme in {"http", "https"} else parts.path
    known = parts.scheme in {"http", "https", "mailto", "tel"}
    return bool(known and complete and len(address) <= LINK_MAX_CHARS)


def _name_key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _join_names(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - LISTED_MAX
    return ", ".join(listed[:LISTED_MAX]) + (f" och {more} till" if more > 0 else "")


def _make_name(stem: str, taken: set[str]) -> str:
    # Names from other systems hold spaces and marks that are not printable.
    stem = "".join(letter if letter.isprintable() else " " for letter in stem).strip()
    stem = stem.encode()[:200].decode("utf-8", "ignore") or "dokument"
    name, number = f"{stem}.docx", 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}.docx"
    taken.add(name.casefold())
    return name
