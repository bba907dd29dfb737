"""Web page in, safe preview, PDF out.

Every page is rewritten before anything renders it, for the preview and for both PDF engines alike:
only known elements and attributes stay, and every reference to a resource becomes either one of the
user's own files or nothing. What an engine then asks for has an address `upload:<number>` that this
process made up itself; any other address is refused. So no page reads a file of the machine or
reaches a network, whatever the engine would do with it.
"""

import base64
import io
import re
import secrets
import sys
import traceback
import unicodedata
import warnings
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import unquote, unquote_to_bytes, urlsplit

import tinycss2  # type: ignore[import-untyped]
import tinyhtml5  # type: ignore[import-untyped]
import webencodings  # type: ignore[import-untyped]
from PIL import Image, ImageFile, ImageOps
from skriptoteket_toolkit import (
    InputFile,
    ToolUserError,
    action,
    enum_field,
    get_action_parts,
    html,
    list_input_files,
    notice,
    output_path,
    progress,
)

# Long lists of words read best as words.
# ruff: noqa: SIM905
PAGE_MAX_BYTES = 8_000_000
# Laying out takes about a minute for this much text; a run has two.
PAGE_TEXT_MAX_BYTES = 800_000
PAGE_MAX_DEPTH = 200
IMAGE_MAX_PIXELS = 80_000_000
# The platform keeps at most 96 KiB of HTML in one output, and 768 KiB of everything.
PREVIEW_MAX_BYTES = 94 * 1024
PREVIEW_TEXT_MAX_BYTES = 64 * 1024
PREVIEW_STYLE_MAX_BYTES = 24 * 1024
PREVIEW_MAX_PAGES = 6
LISTED_MAX = 8

PAGE_SIZES_MM = {"A4": (210, 297), "A3": (297, 420), "A5": (148, 210), "Letter": (216, 279)}
PORTRAIT, LANDSCAPE = "stående", "liggande"
ALL_PAGES = "*"
WIDE_TABLE_COLUMNS = 9

SVG_NS = "{http://www.w3.org/2000/svg}"
XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
VOID = frozenset("area br col hr img input meta wbr".split())
ELEMENTS = VOID | frozenset(
    """html head body title style a abbr acronym address article aside b bdi bdo big blockquote
    button caption center cite code colgroup data dd del details dfn dir div dl dt em fieldset
    figcaption figure font footer form h1 h2 h3 h4 h5 h6 header hgroup i ins kbd label legend li
    main map mark menu meter nav ol optgroup option output p picture pre progress q rp rt ruby s
    samp section select small span strike strong sub summary sup table tbody td textarea tfoot th
    thead time tr tt u ul var""".split()
)
SVG_ELEMENTS = frozenset(
    """svg g path rect circle ellipse line polyline polygon text tspan textPath defs use symbol
    linearGradient radialGradient stop clipPath mask pattern marker title desc style image filter
    feBlend feColorMatrix feComponentTransfer feComposite feDropShadow feFlood feFuncA feFuncB
    feFuncG feFuncR feGaussianBlur feMerge feMergeNode feMorphology feOffset""".split()
)
# Left out with all that is in them; any other unknown element keeps its content.
DROPPED = frozenset("script template applet audio video canvas embed iframe frame frameset".split())
EMBEDDED = DROPPED - {"script", "template"} | {"object"}
ATTRIBUTES = frozenset(
    """abbr align alink alt axis bgcolor border cellpadding cellspacing char checked class clear
    color cols colspan compact datetime dir disabled face frame headers height high hspace id lang
    link low max maxlength min name noshade nowrap open optimum placeholder readonly reversed role
    rows rowspan rules scope selected size span start summary text title type valign value vlink
    vspace width""".split()
)
OWN_ATTRIBUTE = re.compile(r"(data|aria)-[a-z0-9-]+")
SVG_ATTRIBUTE = re.compile(r"[A-Za-z][A-Za-z0-9-]*")  # those with addresses are seen to before
TABLE_SELECTOR = re.compile(r"\b(table|td|th|col)\b")
LINK_SCHEMES = ("http", "https", "mailto", "tel")
MAGIC = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF8", "image/gif"),
    (b"wOFF", "font/woff"),
    (b"wOF2", "font/woff2"),
    (b"\x00\x01\x00\x00", "font/ttf"),
    (b"OTTO", "font/otf"),
)
NOT_PAGES = (
    (b"PK\x03\x04", "en zip-fil eller ett Word-dokument"),
    (b"\xd0\xcf\x11\xe0", "ett äldre Word-dokument"),
    (b"%PDF", "redan en PDF"),
    (b"\x89PNG", "en bild"),
    (b"\xff\xd8\xff", "en bild"),
)
PREVIEW_HEAD = (
    '<meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="default-src '
    "'none'; img-src data:; font-src data:; style-src 'unsafe-inline'\">"
    "<style>html{background:#fff}body{overflow-wrap:break-word}img,svg{max-width:100%}</style>"
)
PREVIEW_END = (
    '<p style="color:#666;font-style:italic">Förhandsvisningen slutar här. '
    "PDF-filen får med hela sidan.</p>"
)

ImageFile.LOAD_TRUNCATED_IMAGES = True  # half a photo is better than none


@dataclass(frozen=True)
class Asset:
    """A resource that a page may show: checked bytes and the media type they really have."""

    name: str
    media_type: str
    data: bytes
    width: int = 0
    height: int = 0

    def data_uri(self) -> str:
        """Return the asset as a `data:` URI."""
        return f"data:{self.media_type};base64,{base64.b64encode(self.data).decode('ascii')}"


@dataclass
class LeftOut:
    """What a page asked for and did not get, in order, each thing once."""

    remote: dict[str, None] = field(default_factory=dict)
    missing: dict[str, None] = field(default_factory=dict)
    unreadable: dict[str, None] = field(default_factory=dict)
    too_large: dict[str, None] = field(default_factory=dict)
    characters: dict[str, None] = field(default_factory=dict)
    scripts: int = 0
    embedded: int = 0

    def describe(self) -> str:
        """Return Swedish sentences, or an empty string when nothing was left out."""
        lists = (
            ("Hämtades inte, eftersom inget hämtas från nätet", self.remote),
            ("Fanns inte bland de uppladdade filerna", self.missing),
            ("Gick inte att läsa som bild eller stilmall", self.unreadable),
            ("Visas bara i PDF-filen, för stort för förhandsvisningen", self.too_large),
            ("Tecken som typsnittet saknar och som blir rutor", self.characters),
        )
        parts = [f"{title}: {_join_names(names)}." for title, names in lists if names]
        if self.scripts:
            parts.append(f"Skript togs bort ({self.scripts} st).")
        if self.embedded:
            parts.append(f"Inbäddade sidor, ljud, filmer och liknande togs bort ({self.embedded}).")
        return " ".join(parts)


@dataclass
class PageSetup:
    """The paper that the page itself asks for, as far as it does."""

    page_size: str | None = None
    landscape: bool | None = None
    columns: int = 0

    def make_prefill(self) -> dict[str, object]:
        """Return the form's values that suit the page: wide tables get wide paper."""
        wide = self.columns >= WIDE_TABLE_COLUMNS if self.landscape is None else self.landscape
        return {
            "page_size": self.page_size or "A4",
            "orientation": LANDSCAPE if wide else PORTRAIT,
        }


class Uploads:
    """The user's files by name. Nothing else can be found here, whatever a reference says."""

    def __init__(self, files: Iterable[InputFile]) -> None:
        self.files = list(files)
        self._by_key = {_name_key(file.name): file for file in self.files}

    def list_pages(self) -> list[InputFile]:
        """Return the web pages among the files."""
        return [file for file in self.files if file.name.lower().endswith((".html", ".htm"))]

    def find(self, path: str) -> InputFile | None:
        """Find the file a path means. Folders do not count: an upload has none."""
        return self._by_key.get(_name_key(path.replace("\\", "/").rpartition("/")[2]))


class Shelf:
    """The assets of one page, each at an address that only this process knows."""

    def __init__(self) -> None:
        self.prefix = f"upload:{secrets.token_hex(8)}/"
        self._assets: list[Asset] = []
        self.pattern = re.compile(rf"{self.prefix}(\d+)")

    def put(self, asset: Asset) -> str:
        """Return the asset's address, the same one for the same asset."""
        if asset not in self._assets:
            self._assets.append(asset)
        return f"{self.prefix}{self._assets.index(asset)}"

    def get(self, address: str) -> Asset:
        """Return the asset at an address. Raises LookupError for any other address."""
        match = self.pattern.fullmatch(address)
        if match is None:
            raise LookupError(f"refused: {address[:200]}")
        return self._assets[int(match[1])]


class PageWriter:
    """Writes a page anew with what is allowed; `place` says at which address an asset will be.

    With `text_max_bytes` the page ends early, at whatever it has come to, all elements closed.
    """

    def __init__(
        self,
        uploads: Uploads,
        place: Callable[[Asset], str | None],
        *,
        keep_links: bool = True,
        keep_styles: bool = True,
        simple_css: bool = False,
        text_max_bytes: int | None = None,
        style_max_bytes: int | None = None,
    ) -> None:
        self.left_out = LeftOut()
        self.setup = PageSetup()
        self.truncated = False
        self.visible = 0  # characters and images that a reader would see
        self._uploads = uploads
        self._place = place
        self._keep_links = keep_links
        self._keep_styles = keep_styles
        self._simple_css = simple_css
        self._text_max_bytes = text_max_bytes
        self._style_max_bytes = style_max_bytes
        self._assets: dict[str, Asset | None] = {}
        self.written_bytes = 0
        self._parts: list[str] = []

    def write_page(self, root: ET.Element, head_start: str = "", head_end: str = "") -> str:
        """Return the page as HTML text, with our own markup first and last in its head."""
        self._parts = []
        head, body = root.find("head"), root.find("body")
        self._emit("<!DOCTYPE html>")
        self._open("html", root.attrib)
        self._emit(f"<head>{head_start}")
        if head is not None:
            self._write_children(head, 1)
        self._emit(f"{head_end}</head>")
        self.visible = 0  # a title is not on the page
        if body is not None:
            self._write(body, 1)
        if self.truncated:
            self._emit(PREVIEW_END)
        self._emit("</html>")
        return "".join(self._parts)

    def write_svg(self, root: ET.Element) -> str:
        """Return an SVG file as XML text."""
        self._parts = []
        self._write(root, 0, xml=True)
        return "".join(self._parts)

    def clean_css(self, css: str, seen: tuple[str, ...] = ()) -> str:
        """Return a style sheet with the user's own imports inlined and references resolved."""
        rules = tinycss2.parse_stylesheet(css, skip_comments=True, skip_whitespace=True)
        return "\n".join(filter(None, (self._clean_rule(rule, seen) for rule in rules)))

    def _clean_rule(self, rule: Any, seen: tuple[str, ...]) -> str:
        if rule.type == "at-rule":
            keyword = rule.lower_at_keyword
            if keyword == "import":
                return self._inline_import(rule.prelude, seen)
            if keyword in {"charset", "namespace"}:
                return ""
            if keyword == "page":
                self._note_page_rule(rule.content or [])
                if self._simple_css:
                    return ""
            if keyword == "media" and self._simple_css:
                inner = tinycss2.parse_rule_list(rule.content or [])
                css = "".join(self._clean_rule(part, seen) for part in inner)
                return f"@media {tinycss2.serialize(rule.prelude)}{{{css}}}"
        elif rule.type != "qualified-rule":
            return ""
        self._clean_tokens(rule.prelude)
        self._clean_tokens(rule.content or [])
        if self._simple_css and not TABLE_SELECTOR.search(tinycss2.serialize(rule.prelude)):
            rule.content = _drop_percent_sizes(rule.content or [])
        return str(rule.serialize())

    def _inline_import(self, prelude: list[Any], seen: tuple[str, ...]) -> str:
        tokens = [token for token in prelude if token.type != "whitespace"]
        address = _css_address(tokens[0]) if tokens else None
        if address is None:
            return ""
        media = tinycss2.serialize(prelude[prelude.index(tokens[0]) + 1 :]).strip()
        css = self._read_style_sheet(address, seen)
        return f"@media {media}{{{css}}}" if css and media else css

    def _read_style_sheet(self, address: str, seen: tuple[str, ...] = ()) -> str:
        """Return the cleaned style sheet at an address, or an empty string."""
        file = self._find_file(address)
        if file is None or file.name in seen:
            return ""
        data = file.path.read_bytes()
        if sniff(data) or len(data) > PAGE_MAX_BYTES or len(seen) > 20:
            self.left_out.unreadable[file.name] = None
            return ""
        return self.clean_css(decode(data)[0], (*seen, file.name))

    def _clean_tokens(self, tokens: list[Any], addresses: bool = False) -> None:
        """Resolve every address in a list of tokens, in place, at any depth.

        With `addresses`, plain strings are addresses too, as in `image-set("a.png" 1x)`.
        """
        for index, token in enumerate(tokens):
            address = _css_address(token) if addresses or token.type != "string" else None
            if address is not None:
                url = address if address.startswith("#") else self._resolve(address)
                tokens[index : index + 1] = tinycss2.parse_component_value_list(
                    f'url("{_css_string(url)}")' if url else "none"
                )
            elif token.type == "function":
                self._clean_tokens(token.arguments, "image" in token.lower_name)
            elif token.type in {"() block", "[] block", "{} block"}:
                self._clean_tokens(token.content, addresses)

    def _note_page_rule(self, content: list[Any]) -> None:
        for item in tinycss2.parse_declaration_list(content, skip_comments=True):
            if item.type != "declaration" or item.lower_name != "size":
                continue
            for token in item.value:
                word = token.lower_value if token.type == "ident" else ""
                if word in {"landscape", "portrait"}:
                    self.setup.landscape = word == "landscape"
                sizes = {name.lower(): name for name in PAGE_SIZES_MM}
                self.setup.page_size = sizes.get(word, self.setup.page_size)

    def _find_file(self, address: str) -> InputFile | None:
        """Find the upload an address means; what cannot be had is noted."""
        try:
            parts = urlsplit(address.strip())
        except ValueError:
            return None
        shown = address.strip()[:120]
        # `file:` is what Word writes; only the name at its end is looked at.
        if parts.scheme.lower() == "file" or (not parts.scheme and not parts.netloc):
            file = self._uploads.find(unquote(parts.path))
            if file is None:
                self.left_out.missing[shown] = None
            return file
        self.left_out.remote[shown] = None
        return None

    def _resolve(self, address: str) -> str | None:
        """Return where the asset at an address is placed, or None."""
        address = address.strip()
        if not address:
            return None
        if address[:5].lower() == "data:":
            name = "inbäddad bild"
            asset = self._make_asset(name, decode_data_uri(address))
        else:
            file = self._find_file(address)
            if file is None:
                return None
            name = file.name
            if name not in self._assets:
                self._assets[name] = self._make_asset(name, file.path.read_bytes())
            asset = self._assets[name]
        url = self._place(asset) if asset else None
        if url is None:
            self.left_out.unreadable[name] = None
        return url

    def _make_asset(self, name: str, data: bytes) -> Asset | None:
        """Check that bytes are an image or a font; None when they are neither."""
        media_type = sniff(data)
        if media_type is None and re.search(rb"<svg[\s>]|<\w+:svg[\s>]", data[:4096]):
            try:
                root = ET.fromstring(data)  # expat reads no external entities
            except (ET.ParseError, ValueError):
                return None
            if root.tag != f"{SVG_NS}svg":
                return None
            writer = PageWriter(Uploads([]), _place_inside_svg)
            writer.left_out = self.left_out
            markup = writer.write_svg(root)
            return Asset(name, "image/svg+xml", markup.encode("utf-8", "replace"))
        if media_type is None or media_type.startswith("font/"):
            return Asset(name, media_type, data) if media_type else None
        try:
            with Image.open(io.BytesIO(data)) as image:
                width, height = image.size
        except Exception:  # Pillow's readers raise a great many things
            return None
        small = width * height <= IMAGE_MAX_PIXELS
        return Asset(name, media_type, data, width, height) if small else None

    def _write_children(self, node: ET.Element, depth: int, xml: bool = False) -> None:
        self._write_text(node.text)
        for child in node:
            self._write(child, depth + 1, xml)
            self._write_text(child.tail)

    def _write(self, node: ET.Element, depth: int, xml: bool = False) -> None:
        if self.truncated or not isinstance(node.tag, str):  # a comment
            return
        if depth > PAGE_MAX_DEPTH:
            raise ToolUserError("Sidan har för många element inuti varandra för att kunna läsas.")
        svg = node.tag.startswith(SVG_NS)
        tag = node.tag.removeprefix(SVG_NS)
        if tag in EMBEDDED:
            self.left_out.embedded += 1
            for name in ("src", "data"):
                if address := node.get(name):
                    self._find_file(address)
        if tag in DROPPED:
            self.left_out.scripts += tag == "script"
        elif tag == "style":
            self._write_style(self.clean_css("".join(node.itertext())), node.get("media"), xml)
        elif tag == "link" and not svg:
            if "stylesheet" in node.get("rel", "").lower().split():
                self._write_style(self._read_style_sheet(node.get("href", "")), node.get("media"))
        elif tag == "meta" and not svg:
            # Only what names the author and the like: no redirects, no policies, no charset.
            if node.get("name") and node.get("content"):
                self._emit(
                    f'<meta name="{escape(node.get("name", ""))}"'
                    f' content="{escape(node.get("content", ""))}">'
                )
        elif tag not in (SVG_ELEMENTS if svg else ELEMENTS):
            self._write_children(node, depth, xml)
        else:
            self.visible += tag in {"img", "svg", "image"}
            self._note_columns(node)
            self._open(tag, node.attrib, svg=svg, xml=xml)
            if svg or tag not in VOID:
                self._write_children(node, depth, xml)
                self._emit(f"</{tag}>")

    def _write_style(self, css: str, media: str | None, xml: bool = False) -> None:
        if not css or not self._keep_styles:
            return
        if self._style_max_bytes is not None:
            self._style_max_bytes -= len(css.encode("utf-8", "replace"))
            if self._style_max_bytes < 0:
                self.left_out.too_large["stilmall"] = None
                return
        if xml:
            css = escape(css, quote=False)
        # What could end the element, or look like another, is written as an escape of CSS.
        css = re.sub(r"<(?=[/!?a-zA-Z])", r"\\3c ", css)
        self._emit(f'<style media="{escape(media)}">' if media else "<style>")
        self._emit(f"{css}</style>")

    def _write_text(self, text: str | None) -> None:
        if not text or self.truncated:
            return
        self.visible += len(text.strip())
        if (
            self._text_max_bytes is not None
            and self.written_bytes + len(text) > self._text_max_bytes
        ):
            text = text[: max(self._text_max_bytes - self.written_bytes, 0)]
            self.truncated = True
        self._emit(escape(text, quote=False))

    def _open(self, tag: str, source: dict[str, str], svg: bool = False, xml: bool = False) -> None:
        attributes: dict[str, str] = {}
        for name, value in source.items():
            if name.lower().startswith("on"):
                self.left_out.scripts += 1
            elif tag == "img" and name == "src":
                attributes |= self._place_image(source, value)
            elif svg and name in {"href", XLINK_HREF}:
                url = self._resolve(value) if tag == "image" else value
                if url and (tag == "image" or url.startswith("#")):
                    attributes["xlink:href"] = url
            elif tag == "a" and name == "href":
                if value.startswith("#") or (self._keep_links and _scheme(value) in LINK_SCHEMES):
                    attributes[name] = value
            elif name == "background" and not svg:
                if url := self._resolve(value):
                    attributes[name] = url
            elif name == "style" and not self._keep_styles:
                continue
            elif name == "style" or (svg and re.search(r"[\\(]", value)):
                tokens = tinycss2.parse_component_value_list(value)
                self._clean_tokens(tokens)
                if self._simple_css and tag == "img":
                    tokens = _drop_percent_sizes(tokens)
                attributes[name] = tinycss2.serialize(tokens)
            elif name in ATTRIBUTES or (SVG_ATTRIBUTE if svg else OWN_ATTRIBUTE).fullmatch(name):
                attributes[name] = value
        if xml and tag == "svg":
            attributes["xmlns"] = SVG_NS[1:-1]
            attributes["xmlns:xlink"] = XLINK_HREF[1:-5]
        written = "".join(f' {name}="{escape(value)}"' for name, value in attributes.items())
        self._emit(f"<{tag}{written}>")

    def _place_image(self, source: dict[str, str], address: str) -> dict[str, str]:
        url = self._resolve(address)
        if url is None:
            return {} if source.get("alt") else {"alt": f"[{_short_name(address)}]"}
        return {"src": url}

    def _note_columns(self, node: ET.Element) -> None:
        if node.tag == "tr":
            cells = sum(child.tag in {"td", "th"} for child in node)
            self.setup.columns = max(self.setup.columns, cells)

    def _emit(self, markup: str) -> None:
        self._parts.append(markup)
        self.written_bytes += len(markup.encode("utf-8", "replace"))
        limit = self._text_max_bytes
        self.truncated = self.truncated or (limit is not None and self.written_bytes > limit)


def run_tool(input_dir: str, output_dir: str) -> dict[str, object]:
    """Show the uploaded pages; in the action `convert`, make PDFs of them."""
    uploads = Uploads(list_input_files())
    files = uploads.list_pages()
    if not files:
        raise ToolUserError(
            "Det finns ingen webbsida bland filerna. Ladda upp en fil som slutar på .html eller "
            ".htm, gärna tillsammans med sidans bilder och stilmallar."
        )
    action_id, form, _ = get_action_parts()
    # Both engines lay out by recursion, several calls for each level of PAGE_MAX_DEPTH.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), 50 * PAGE_MAX_DEPTH))
    with warnings.catch_warnings():
        # What a library plans to remove one day is nothing that this run should end for.
        warnings.simplefilter("ignore")
        if action_id == "convert":
            return convert(uploads, files, form)
        return preview(uploads, files)


@dataclass(frozen=True)
class Page:
    """An uploaded page that could be read."""

    file: InputFile
    root: ET.Element
    remark: str = ""


def preview(uploads: Uploads, files: list[InputFile]) -> dict[str, object]:
    """Show what each page will look like, and offer to convert."""
    pages, outputs = read_pages(files)
    setup: PageSetup | None = None
    for number, page in enumerate(pages[:PREVIEW_MAX_PAGES]):
        progress(number / len(pages), f"Läser {page.file.name}")
        text, writer = make_preview(uploads, page)
        setup = setup or writer.setup
        if len(pages) > 1:
            outputs.append(notice(f"Förhandsvisning av {page.file.name}:"))
        outputs.append(html(text))
        if remarks := " ".join(filter(None, (page.remark, writer.left_out.describe()))):
            outputs.append(notice(f"{page.file.name}: {remarks}", "warning"))
    if rest := pages[PREVIEW_MAX_PAGES:]:
        names = _join_names([page.file.name for page in rest])
        outputs.append(notice(f"Förhandsvisas inte, men kan konverteras: {names}."))
    prefill = (setup or PageSetup()).make_prefill()
    return {
        "outputs": outputs,
        "next_actions": [make_convert_action([page.file.name for page in pages], prefill)],
        "state": {"pages": [page.file.name for page in pages], "choice": prefill},
    }


def convert(uploads: Uploads, files: list[InputFile], form: dict[str, object]) -> dict[str, object]:
    """Make a PDF of the chosen page, or one of each, on the chosen paper."""
    chosen = form.get("page", ALL_PAGES)
    wanted = [file for file in files if chosen in {ALL_PAGES, file.name}]
    if not wanted:
        raise ToolUserError("Sidan som du valde finns inte längre bland filerna.")
    page_size = form.get("page_size")
    if not isinstance(page_size, str) or page_size not in PAGE_SIZES_MM:
        page_size = "A4"
    landscape = form.get("orientation") == LANDSCAPE
    pages, outputs = read_pages(wanted)
    engine_name, render = find_engine()
    names: set[str] = set()
    for number, page in enumerate(pages):
        progress(number / len(pages), f"Gör PDF av {page.file.name}")
        size = page_rule(page_size, landscape)
        plain = ""
        try:
            pdf, count, left_out = render(uploads, page, size, True)
        except Exception:
            # Mostly a style sheet that the engine trips over; the page's editor sees which.
            traceback.print_exc()
            pdf, count, left_out = render(uploads, page, size, False)
            plain = "Sidans stilmallar gick inte att använda, så den är gjord utan dem."
        name = _make_pdf_name(page.file.name, names)
        output_path(name).write_bytes(pdf)
        paper = f"{page_size} {LANDSCAPE if landscape else PORTRAIT}"
        sheets = "1 sida" if count == 1 else f"{count} sidor"
        outputs.append(notice(f"{name} är klar: {sheets}, {paper}. Gjord med {engine_name}."))
        if remarks := " ".join(filter(None, (plain, page.remark, left_out.describe()))):
            outputs.append(notice(f"{name}: {remarks}", "warning"))
    progress(1, "Klart")
    choice: dict[str, object] = {
        "page_size": page_size,
        "orientation": LANDSCAPE if landscape else PORTRAIT,
    }
    if len(files) > 1:
        choice["page"] = str(chosen)
    all_names = [file.name for file in files]
    # Offered again, so that another paper can be tried on the same files.
    return {
        "outputs": outputs,
        "next_actions": [make_convert_action(all_names, choice)],
        "state": {"pages": all_names, "choice": choice},
    }


def make_convert_action(names: list[str], prefill: dict[str, object]) -> dict[str, object]:
    """Offer the conversion; with several pages, also the choice of page."""
    fields = [
        enum_field("page_size", "Pappersstorlek", list(PAGE_SIZES_MM), required=True),
        enum_field(
            "orientation",
            "Riktning",
            {PORTRAIT: PORTRAIT.capitalize(), LANDSCAPE: LANDSCAPE.capitalize()},
            required=True,
        ),
    ]
    if len(names) > 1:
        options = {ALL_PAGES: f"Alla {len(names)} sidor, en PDF av varje"}
        options |= {name: name for name in names}
        fields.insert(0, enum_field("page", "Sida", options, required=True))
        prefill = {"page": ALL_PAGES} | prefill
    return action("convert", "Konvertera till PDF", fields, prefill)


def read_pages(files: list[InputFile]) -> tuple[list[Page], list[dict[str, object]]]:
    """Read pages; those that cannot be read become notices, unless that is all of them.

    Raises:
        ToolUserError: no page could be read.
    """
    pages: list[Page] = []
    problems: list[str] = []
    for file in files:
        try:
            pages.append(read_page(file))
        except ToolUserError as error:
            problems.append(error.message)
    if not pages:
        raise ToolUserError("\n".join(problems))
    return pages, [notice(problem, "error") for problem in problems]


def read_page(file: InputFile) -> Page:
    """Read and parse one page. Raises ToolUserError when it is none, or is empty."""
    if file.bytes > PAGE_MAX_BYTES:
        raise ToolUserError(
            f"{file.name} är för stor ({file.bytes // 1_000_000} MB). En webbsida får vara högst "
            f"{PAGE_MAX_BYTES // 1_000_000} MB; lägg bilderna i egna filer bredvid."
        )
    data = file.path.read_bytes()
    for magic, what in NOT_PAGES:
        if data.startswith(magic):
            raise ToolUserError(f"{file.name} är ingen webbsida utan {what}.")
    if re.match(rb"(?s)(From: |MIME-Version: |Content-Type: ).{0,4000}multipart/related", data):
        raise ToolUserError(
            f"{file.name} är ett webbarkiv (MHTML). Spara om sidan som "
            "”Webbsida, fullständig” och ladda upp .html-filen med bilderna."
        )
    text, remark = decode(data)
    # Never as a plain string: the parser takes a short one that names a file for that file.
    root = tinyhtml5.parse(io.StringIO(text), namespace_html_elements=False)
    writer = PageWriter(Uploads([]), lambda asset: None)
    writer.write_page(root)
    if writer.written_bytes > PAGE_TEXT_MAX_BYTES:
        raise ToolUserError(
            f"{file.name} är för lång för att bli en PDF ({writer.written_bytes // 1000} kB text, "
            f"högst {PAGE_TEXT_MAX_BYTES // 1000} går bra). Dela upp den i flera filer."
        )
    if not writer.visible:
        raise ToolUserError(f"{file.name} är tom: det finns varken text eller bilder på sidan.")
    return Page(file, root, remark)


def decode(data: bytes) -> tuple[str, str]:
    """Return the text, and a remark in Swedish when it is not in the encoding it claims.

    A byte order mark decides, then what is declared. Text that is valid UTF-8 beyond ASCII is
    UTF-8 whatever it says: hardly any text in another encoding is that by chance.
    """
    for mark, encoding in ((b"\xef\xbb\xbf", "utf-8"), (b"\xff\xfe", "utf-16-le")):
        if data.startswith(mark):
            return data[len(mark) :].decode(encoding, "replace"), ""
    if data.startswith(b"\xfe\xff"):
        return data[2:].decode("utf-16-be", "replace"), ""
    if data[1:8:2].count(0) > 2:
        return data.decode("utf-16-le", "replace"), ""
    declared = re.search(rb"(?i)(?:charset|encoding)\s*=?\s*[\"']?\s*([\w-]+)", data[:4096])
    name = declared[1].decode("ascii", "replace").lower() if declared else ""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError:
        pass
    else:
        odd = name and not text.isascii() and not name.startswith("utf")
        return text, f"Filen uppger teckenkodningen {name} men är i utf-8." if odd else ""
    lookup = webencodings.lookup(name)
    if lookup is None or lookup.name.startswith("utf"):
        # What Swedish files that are not UTF-8 are, as browsers also assume.
        text = data.decode("windows-1252", "replace")
        claim = (
            f"Filen uppger teckenkodningen {name}" if name else "Filen anger ingen teckenkodning"
        )
        return text, f"{claim} och lästes som windows-1252."
    return data.decode(lookup.codec_info.name, "replace"), ""


def make_preview(uploads: Uploads, page: Page) -> tuple[str, PageWriter]:
    """Return the page as one HTML text of at most PREVIEW_MAX_BYTES, and the writer's findings.

    Images go in, made smaller where need be, as long as there is room, in the page's order.
    """
    shelf = Shelf()
    writer = PageWriter(
        uploads,
        shelf.put,
        keep_links=False,
        text_max_bytes=PREVIEW_TEXT_MAX_BYTES,
        style_max_bytes=PREVIEW_STYLE_MAX_BYTES,
    )
    text = writer.write_page(page.root, head_start=PREVIEW_HEAD)
    uses = Counter(shelf.pattern.findall(text))
    room = PREVIEW_MAX_BYTES - len(text.encode("utf-8", "replace")) - 300 * len(uses)
    uris: dict[str, str] = {}
    for number, times in uses.items():
        asset = shelf.get(f"{shelf.prefix}{number}")
        uri = shrink(asset, room // times)
        if uri is None:
            writer.left_out.too_large[asset.name] = None
            uri = placeholder(asset)
        else:
            room -= len(uri) * times
        uris[number] = uri
    return shelf.pattern.sub(lambda match: uris[match[1]], text), writer


def shrink(asset: Asset, room: int) -> str | None:
    """Return an asset as a `data:` URI of at most `room` bytes, or None."""
    if len(asset.data) * 4 // 3 + 64 <= min(room, 32 * 1024):
        return asset.data_uri()
    if not asset.width:
        return asset.data_uri() if len(asset.data) * 4 // 3 + 64 <= room else None
    for side, quality in ((900, 75), (600, 65), (320, 55)):
        try:
            with Image.open(io.BytesIO(asset.data)) as image:
                image.draft("RGB", (side, side))
                image.thumbnail((side, side))
                upright = ImageOps.exif_transpose(image)
                out = io.BytesIO()
                upright.convert("RGBA").save(out, "WEBP", quality=quality)
        except Exception:  # Pillow's readers raise a great many things
            return None
        small = Asset(asset.name, "image/webp", out.getvalue())
        width, height = asset.width, asset.height
        if (upright.width > upright.height) != (width > height):
            width, height = height, width
        # An image in an image keeps the size that the page's layout reckons with.
        uri = _svg_uri(
            f'<image href="{small.data_uri()}" width="100%" height="100%"/>', width, height
        )
        if len(uri) <= min(room, max(room // 2, 24 * 1024)):
            return uri
    return None


def placeholder(asset: Asset) -> str:
    """Return a grey box of the asset's size, as a `data:` URI of less than 300 bytes."""
    box = '<rect width="100%" height="100%" fill="#ddd"/>'
    return _svg_uri(box, asset.width or 160, asset.height or 120)


def page_rule(page_size: str, landscape: bool) -> str:
    """Return the CSS declaration of a paper."""
    short, long = PAGE_SIZES_MM[page_size]
    return f"size:{long}mm {short}mm" if landscape else f"size:{short}mm {long}mm"


# Of the uploads, a page, its paper, and whether to keep its styles.
Render = Callable[[Uploads, Page, str, bool], tuple[bytes, int, LeftOut]]


def find_engine() -> tuple[str, Render]:
    """Return the engine that works here, with the name to tell the user."""
    try:
        weasyprint = import_weasyprint()
    except (ImportError, OSError):  # OSError: Pango's libraries are not on this machine
        import xhtml2pdf

        return f"xhtml2pdf {xhtml2pdf.__version__}", render_with_xhtml2pdf
    return f"WeasyPrint {weasyprint.__version__}", partial(render_with_weasyprint, weasyprint)


def import_weasyprint() -> Any:
    """Import WeasyPrint. Raises OSError where its native libraries are missing."""
    import weasyprint

    return weasyprint


def render_with_weasyprint(
    weasyprint: Any, uploads: Uploads, page: Page, size: str, styles: bool
) -> tuple[bytes, int, LeftOut]:
    """Return the PDF, its number of pages, and what was left out."""
    from weasyprint.urls import URLFetcher, URLFetcherResponse

    shelf = Shelf()

    class ShelfFetcher(URLFetcher):  # type: ignore[misc]
        """Serves what lies on the shelf; the inherited ways to fetch are never called."""

        def fetch(self, url: str, headers: object = None) -> Any:
            asset = shelf.get(url)
            return URLFetcherResponse(url, asset.data, {"Content-Type": asset.media_type})

        def open(self, url: Any, data: object = None, timeout: object = None) -> Any:
            return self.fetch(url if isinstance(url, str) else url.full_url)

    writer = PageWriter(uploads, shelf.put, keep_styles=styles)
    text = writer.write_page(
        page.root,
        head_start="<style>img,svg{max-width:100%}</style>",
        head_end=f"<style>@page{{{size} !important}}</style>",
    )
    document = weasyprint.HTML(string=text, base_url="upload:", url_fetcher=ShelfFetcher()).render(
        presentational_hints=True, optimize_images=True, dpi=300, jpeg_quality=90
    )
    return document.write_pdf(), len(document.pages), writer.left_out


def render_with_xhtml2pdf(
    uploads: Uploads, page: Page, size: str, styles: bool
) -> tuple[bytes, int, LeftOut]:
    """Return the PDF, its number of pages, and what was left out."""
    from pypdf import PdfReader
    from xhtml2pdf import pisa
    from xhtml2pdf.config.resources import ResourceAccessPolicy

    shelf = Shelf()

    def link(address: str, base: str | None) -> str:
        try:
            return shelf.get(address).data_uri()
        except LookupError:
            return "data:,"

    writer = PageWriter(uploads, shelf.put, keep_styles=styles, simple_css=True)
    text = writer.write_page(
        page.root,
        head_start="<style>figure,figcaption,main,details,summary{display:block}</style>",
        head_end=f"<style>@page{{{size};margin:15mm 18mm}}</style>",
    )
    # Its own fonts hold the letters of western Europe; embedded ones cannot be told apart here.
    odd = sorted(c for c in set(text) if c > "\x7f" and not c.encode("cp1252", "ignore"))
    writer.left_out.characters = dict.fromkeys(odd)
    out = io.BytesIO()
    pisa.CreatePDF(
        io.BytesIO(text.encode("utf-8", "replace")),
        out,
        encoding="utf-8",
        link_callback=link,
        # The second fence: no directory and no network at all, also where it asks no callback.
        resource_policy=ResourceAccessPolicy(allow_remote=False, base_dir=None),
    )
    pdf = out.getvalue()
    return pdf, len(PdfReader(io.BytesIO(pdf)).pages), writer.left_out


def sniff(data: bytes) -> str | None:
    """Return the media type that bytes really have, of those a page may show, SVG apart."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((media_type for magic, media_type in MAGIC if data.startswith(magic)), None)


def decode_data_uri(uri: str) -> bytes:
    """Return the bytes in a `data:` URI, empty when it is malformed."""
    head, _, body = uri.partition(",")
    data = unquote_to_bytes(body)
    if not head.rstrip().lower().endswith(";base64"):
        return data
    try:
        return base64.b64decode(re.sub(rb"\s", b"", data) + b"==")
    except ValueError:
        return b""


def _place_inside_svg(asset: Asset) -> str | None:
    return asset.data_uri() if asset.media_type in {"image/png", "image/jpeg"} else None


def _svg_uri(content: str, width: int, height: int) -> str:
    svg = f'<svg xmlns="{SVG_NS[1:-1]}" width="{width}" height="{height}">{content}</svg>'
    return "data:image/svg+xml," + svg.replace('"', "'").translate(
        {ord("<"): "%3C", ord(">"): "%3E", ord("#"): "%23", ord("%"): "%25"}
    )


def _css_address(token: Any) -> str | None:
    """Return the address that a token of CSS names, if it does."""
    if token.type in {"url", "string"}:
        return str(token.value)
    if token.type == "function" and token.lower_name in {"url", "src"}:
        return next((str(part.value) for part in token.arguments if part.type == "string"), "")
    return None


def _css_string(text: str) -> str:
    return re.sub(r'[\\"\n\r\f<]', lambda match: f"\\{ord(match[0]):x} ", text)


def _drop_percent_sizes(content: list[Any]) -> list[Any]:
    """Leave out `width: 100%` and the like, from which xhtml2pdf makes images of no size."""
    return [
        item
        for item in tinycss2.parse_declaration_list(content, skip_comments=True)
        if item.type == "declaration"
        and not (
            item.lower_name in {"width", "height", "max-width", "max-height"}
            and any(token.type == "percentage" for token in item.value)
        )
    ]


def _scheme(address: str) -> str:
    match = re.match(r"\s*([a-zA-Z][a-zA-Z0-9+.-]*):", address)
    return match[1].lower() if match else ""


def _name_key(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _short_name(address: str) -> str:
    name = re.split(r"[?#]", address.replace("\\", "/"))[0].rpartition("/")[2]
    return "bild" if address[:5].lower() == "data:" else unquote(name)[:60] or "bild"


def _join_names(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - LISTED_MAX
    return ", ".join(listed[:LISTED_MAX]) + (f" och {more} till" if more > 0 else "")


def _make_pdf_name(page_name: str, taken: set[str]) -> str:
    # Names from other systems hold spaces and marks that are not printable.
    stem = "".join(letter if letter.isprintable() else " " for letter in Path(page_name).stem)
    stem = stem.strip().encode()[:200].decode("utf-8", "ignore") or "sida"
    name, number = f"{stem}.pdf", 1
    while name.casefold() in taken:
        number += 1
        name = f"{stem}-{number}.pdf"
    taken.add(name.casefold())
    return name
