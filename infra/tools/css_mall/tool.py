"""A handout from a form, in the standard style or in the user's own style sheet.

The style sheet is the one file of the tool's session: uploaded once it is used again by every run
with `session_files_mode=reuse`, and without it the standard style holds. It is rewritten before
anything reads it, so that no rule loads anything and none ends the element it stands in. The page
holds everything itself; nothing is fetched, neither for the preview nor for the PDF.
"""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

import tinycss2  # type: ignore[import-untyped]
from markdown_it import MarkdownIt
from markdown_it.token import Token
from skriptoteket_toolkit import (
    InputFile,
    ToolUserError,
    decode_text,
    html,
    list_input_files,
    notice,
    output_path,
    progress,
    read_inputs,
)

STYLE_MAX_BYTES = 48_000
TEXT_MAX_CHARS = 100_000
# The platform keeps at most 96 KiB of HTML in one output.
PREVIEW_MAX_BYTES = 94 * 1024
# Of computing: a run may take two minutes by the clock.
PDF_MAX_SECONDS = 45
LISTED_MAX = 5

STANDARD = "Standardmall"
STANDARD_CSS = """\
@page { size: A4; margin: 22mm 22mm 20mm; @bottom-right { content: counter(page) " (" counter(pages)
  ")"; font: 9pt "Liberation Sans", Arial, sans-serif; color: #555 } }
body { font: 11.5pt/1.5 "Liberation Sans", Arial, sans-serif; color: #1b1b1b; max-width: 46em;
  margin: 0 auto; padding: 1em }
@media print { body { padding: 0; max-width: none } }
h1 { font-size: 1.9em; line-height: 1.2; color: #1d4f7c; border-bottom: 2px solid #1d4f7c;
  padding-bottom: 0.2em; margin: 0 0 0.8em }
h2 { font-size: 1.35em; color: #1d4f7c; margin: 1.4em 0 0.4em; break-after: avoid }
h3 { font-size: 1.1em; margin: 1.2em 0 0.3em; break-after: avoid }
p, ul, ol { margin: 0 0 0.8em }
table { border-collapse: collapse; margin: 0 0 1em; break-inside: avoid }
th, td { border: 1px solid #999; padding: 0.3em 0.7em; text-align: left }
th { background: #e8eff5 }
blockquote { margin: 0 0 0.8em; padding: 0.4em 1em; border-left: 4px solid #1d4f7c;
  background: #f3f6f9 }
blockquote > :last-child { margin-bottom: 0 }
code, pre { font-family: "Liberation Mono", monospace; background: #f3f3f3 }
pre { padding: 0.6em; white-space: pre-wrap }
hr { border: 0; border-top: 1px solid #999; margin: 1.5em 0 }
footer { margin-top: 2em; padding-top: 0.5em; border-top: 1px solid #999; font-size: 0.85em;
  color: #555 }
"""
# Both the sandboxed frame and who opens the file load nothing: styles stand in the page itself.
HEAD = (
    '<!DOCTYPE html>\n<html lang="sv">\n<head>\n<meta charset="utf-8">\n<meta http-equiv="Content-'
    "Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
    '<meta name="viewport" content="width=device-width">\n'
)
CUT = "<p><em>Förhandsvisningen slutar här. Filerna innehåller hela texten.</em></p>\n"
LINK = re.compile(r"(https?://|mailto:|tel:|#)", re.IGNORECASE)
NOT_STYLES = (
    (b"PK\x03\x04", "en zip-fil eller ett Word-dokument"),
    (b"%PDF", "en PDF"),
    (b"\x89PNG", "en bild"),
    (b"\xff\xd8\xff", "en bild"),
    (b"\xd0\xcf\x11\xe0", "ett äldre Word-dokument"),
)


class OutOfTime(BaseException):
    """Laying out takes too long. No library may take it for an error of its own and go on."""


def run_tool(input_dir: str, output_dir: str) -> dict[str, object]:
    """Make the handout: shown, and as files to download."""
    inputs = read_inputs()
    heading = " ".join(str(inputs.get("heading") or "").split())
    text, footer = str(inputs.get("text") or ""), str(inputs.get("footer") or "").strip()
    if not heading or not text.strip():
        raise ToolUserError("Skriv både en rubrik och en text.")
    if len(text) > TEXT_MAX_CHARS:
        raise ToolUserError(f"Texten är för lång: högst {TEXT_MAX_CHARS} tecken går bra.")
    css, outputs = choose_style(list_input_files())
    blocks, images = render_text(text)
    if images:
        outputs.append(notice(f"Bilder kan inte vara med och lämnades ute ({images}).", "warning"))
    page = make_page(heading, blocks, footer, css)
    stem = make_stem(heading)
    output_path(f"{stem}.html").write_text(page, "utf-8")
    progress(0.3, "Gör en PDF")
    pdf, problem = make_pdf(page)
    if pdf is not None:
        output_path(f"{stem}.pdf").write_bytes(pdf)
    outputs.append(notice(problem, "warning") if problem else notice(f"{stem}.pdf är klar."))
    outputs.append(html(make_preview(heading, blocks, footer, css)))
    return {"outputs": outputs}


def choose_style(files: list[InputFile]) -> tuple[str, list[dict[str, object]]]:
    """Return the style sheet to use, and notices that say whose it is and how to change that.

    Raises:
        ToolUserError: there is a file that is no usable style sheet.
    """
    if not files:
        said = (
            f"Stil: {STANDARD}. Vill du ha en egen stil, ladda upp en .css-fil. Har du redan gjort "
            "det, kryssa i ”Återanvänd tidigare filer” så används den."
        )
        return STANDARD_CSS, [notice(said)]
    try:
        if len(files) > 1:
            raise ToolUserError("Bara en stilmall kan användas åt gången.")
        css, removed = clean_css(read_style(files[0]))
        if not css:
            raise ToolUserError(f"{files[0].name} innehåller inga stilregler.")
    except ToolUserError as error:
        raise ToolUserError(
            f"{error.message} Ladda upp en annan stilmall, eller tryck på ”Rensa sparade filer” "
            "för att använda standardmallen."
        ) from None
    said = (
        f"Stil: {files[0].name}. Den är sparad till nästa gång: kryssa i ”Återanvänd tidigare "
        "filer” för att behålla den, ladda upp en annan .css-fil för att byta, eller tryck på "
        "”Rensa sparade filer” för att gå tillbaka till standardmallen."
    )
    outputs = [notice(said)]
    if removed:
        more = f" och {len(removed) - LISTED_MAX} till" if len(removed) > LISTED_MAX else ""
        listed = ", ".join(removed[:LISTED_MAX])
        lost = f"Stilmallen får inte hämta något, så detta togs bort: {listed}{more}."
        outputs.append(notice(lost, "warning"))
    return css, outputs


def read_style(file: InputFile) -> str:
    """Return a style sheet's text. Raises ToolUserError when it cannot be one."""
    if not file.name.lower().endswith(".css"):
        raise ToolUserError(f"{file.name} är ingen stilmall: namnet ska sluta på .css.")
    with file.path.open("rb") as stream:
        data = stream.read(STYLE_MAX_BYTES + 1)
    what = next((what for magic, what in NOT_STYLES if data.startswith(magic)), "")
    if re.match(rb"(?i)\s*(<!doctype|<html|<\?xml|<style)", data):
        what = "en webbsida"
    if what:
        raise ToolUserError(f"{file.name} är ingen stilmall utan {what}.")
    if len(data) > STYLE_MAX_BYTES:
        raise ToolUserError(
            f"{file.name} är för stor ({file.bytes // 1000} kB): högst "
            f"{STYLE_MAX_BYTES // 1000} kB går bra."
        )
    text = decode_text(data)
    if "\0" in text:
        raise ToolUserError(f"{file.name} går inte att läsa som text.")
    return text


def clean_css(css: str) -> tuple[str, list[str]]:
    """Return a style sheet that loads nothing and can stand in a `<style>`, and what was taken out.

    Raises:
        ToolUserError: its blocks are nested too deeply to be read.
    """
    removed: dict[str, None] = {}
    kept: list[str] = []
    try:
        for rule in tinycss2.parse_stylesheet(css, skip_comments=True, skip_whitespace=True):
            name = rule.lower_at_keyword if rule.type == "at-rule" else ""
            if name in {"import", "font-face"}:
                removed[f"@{name}"] = None
            elif rule.type == "qualified-rule" or (name and name not in {"charset", "namespace"}):
                _clean_tokens(rule.prelude, removed)
                _clean_tokens(rule.content or [], removed)
                kept.append(rule.serialize())
    except RecursionError:
        raise ToolUserError("Stilmallen har för många block inuti varandra.") from None
    # What could end the element, or begin another, is written as an escape of CSS.
    return re.sub(r"<(?=[/!?a-zA-Z])", r"\\3c ", "\n".join(kept)), list(removed)


def _clean_tokens(tokens: list[Any], removed: dict[str, None], strings: bool = False) -> None:
    """Put `none` in the place of every address, at any depth; `strings` says that they are some."""
    tokens[:] = [token for token in tokens if token.type != "error"]
    for index, token in enumerate(tokens):
        address = None
        if token.type == "url" or (token.type == "string" and strings):
            address = token.value
        elif token.type == "function" and token.lower_name in {"url", "src"}:
            address = tinycss2.serialize(token.arguments)
        elif token.type == "function":
            # image(), image-set(), -webkit-image-set(), cross-fade(): plain strings are addresses.
            inner = strings or "image" in token.lower_name or "fade" in token.lower_name
            _clean_tokens(token.arguments, removed, inner)
        elif token.type == "at-keyword" and token.lower_value in {"import", "font-face"}:
            removed[f"@{token.lower_value}"] = None
            tokens[index] = tinycss2.ast.WhitespaceToken(
                token.source_line, token.source_column, " "
            )
        elif token.type in {"() block", "[] block", "{} block"}:
            _clean_tokens(token.content, removed, strings)
        if address is not None:
            removed[f"url({address.strip()[:60]})"] = None
            tokens[index] = tinycss2.ast.IdentToken(token.source_line, token.source_column, "none")


def render_text(text: str) -> tuple[list[str], int]:
    """Return the text's blocks as HTML, and the number of images that were left out.

    HTML in the text is shown as it is written. Links lead to web and mail addresses only.
    """
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True, "maxNesting": 40})
    images = 0
    blocks: list[str] = []
    block: list[Token] = []
    for token in parser.enable(["table", "strikethrough"]).parse(text):
        for part in token.children or []:
            if part.type == "image":
                images += 1
                part.type, part.content = "text", f"[bild: {part.content}]"
            elif part.type == "link_open" and not LINK.match(str(part.attrs.get("href", ""))):
                part.attrs = {}
        block.append(token)
        if token.level == 0 and token.nesting <= 0:
            blocks.append(parser.renderer.render(block, parser.options, {}))
            block = []
    return blocks, images


def make_page(heading: str, blocks: list[str], footer: str, css: str) -> str:
    """Return the whole page, with its style inside it."""
    foot = f"<footer>{escape(footer)}</footer>\n" if footer else ""
    return (
        f"{HEAD}<title>{escape(heading)}</title>\n<style>\n{css}\n</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(heading)}</h1></header>\n<main>\n{''.join(blocks)}</main>\n{foot}"
        "</body>\n</html>\n"
    )


def make_preview(heading: str, blocks: list[str], footer: str, css: str) -> str:
    """Return the page, with as many blocks as there is room for."""
    room = PREVIEW_MAX_BYTES - len(make_page(heading, [CUT], footer, css).encode())
    shown: list[str] = []
    for block in blocks:
        room -= len(block.encode())
        if room < 0:
            return make_page(heading, [*shown, CUT], footer, css)
        shown.append(block)
    return make_page(heading, shown, footer, css)


def make_pdf(page: str) -> tuple[bytes | None, str]:
    """Return the page as a PDF, or None and why there is none, in Swedish."""
    try:
        weasyprint, fetcher = import_weasyprint()
    except (ImportError, OSError):  # OSError: Pango's libraries are not on this machine
        return None, "PDF kan inte göras här just nu. Webbsidan går att ladda ned och skriva ut."
    try:
        with limited_time(PDF_MAX_SECONDS):
            document = weasyprint.HTML(string=page, base_url=None, url_fetcher=fetcher)
            return document.write_pdf(), ""
    except OutOfTime:
        problem = "Det tog för lång tid att göra en PDF med den här stilmallen"
    except Exception:  # what a style sheet can make an engine stumble over has no end
        problem = "Det gick inte att göra en PDF med den här stilmallen"
    return None, f"{problem}. Webbsidan går att ladda ned ändå."


def import_weasyprint() -> tuple[Any, Any]:
    """Return WeasyPrint, and a fetcher that refuses every address.

    Raises OSError where its native libraries are missing.
    """
    import weasyprint
    from weasyprint.urls import URLFetcher

    class Refusal(URLFetcher):  # type: ignore[misc]
        """The second fence: nothing that the page names is fetched."""

        def fetch(self, url: str, headers: object = None) -> Any:
            raise ValueError("refused")

        def open(self, url: Any, data: object = None, timeout: object = None) -> Any:
            raise ValueError("refused")

    return weasyprint, Refusal()


@contextmanager
def limited_time(seconds: int) -> Iterator[None]:
    """Raise OutOfTime in the block after so many seconds of computing."""

    def stop(number: int, frame: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGVTALRM, stop)
    # Again every second: where an object is being deleted, an exception is dropped by Python.
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def make_stem(heading: str) -> str:
    """Return a name for the files: the heading, as far as file names can hold it."""
    letters = (
        letter if letter.isprintable() and letter not in '/\\:*?"<>|' else " " for letter in heading
    )
    stem = " ".join("".join(letters).split()).strip(". ")
    return stem.encode()[:120].decode("utf-8", "ignore").strip() or "arbetsblad"
