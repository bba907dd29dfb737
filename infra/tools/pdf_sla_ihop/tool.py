"""PDFs put together, taken apart and turned, page by page, without being drawn anew.

A page is copied as it is; what is compressed stays so, and files are read and written in pieces.
The files are numbered in the order of upload, and forms speak of them by these numbers. Pages count
from 1 in everything a user sees and from 0 in the code.
"""

import logging
import re
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pypdf import PageObject, PdfReader, PdfWriter, apply_configuration
from pypdf.errors import DependencyError
from skriptoteket_toolkit import (
    InputFile,
    ToolUserError,
    action,
    enum_field,
    get_action_parts,
    integer_field,
    list_input_files,
    notice,
    output_path,
    progress,
    string_field,
    table,
)

PAGES_MAX = 10_000
# The platform's own: files of a run, bytes of each and of all.
RESULTS_MAX = 50
RESULT_MAX_BYTES = 50_000_000
RESULTS_MAX_BYTES = 190_000_000
# Only what says where things lie is unpacked, and an honest file needs little of it.
UNPACKED_MAX_BYTES = 30_000_000
PAGES_LOOKED_AT = 200
NAME_MAX_CHARS = 60

PAPERS_MM = {"A3": (297, 420), "A4": (210, 297), "A5": (148, 210), "Letter": (216, 279)}
ORDERS = {"uppladdad": "Som de laddades upp", "namn": "Efter namn", "egen": "Egen ordning (nedan)"}
SPLITS = {
    "varje": "Varje sida för sig",
    "antal": "Ett visst antal sidor per fil",
    "vid": "Före vissa sidor",
}
TURNS = {
    "90": "Ett kvarts varv åt höger",
    "180": "Ett halvt varv",
    "270": "Ett kvarts varv åt vänster",
}
NOT_PDFS = (
    (b"PK\x03\x04", "ett Word-dokument eller en zip-fil"),
    (b"\xd0\xcf\x11\xe0", "ett äldre Word-dokument"),
    (b"\x89PNG", "en bild"),
    (b"\xff\xd8\xff", "en bild"),
    (b"<", "en webbsida"),
    (b"{\\rtf", "ett RTF-dokument"),
)


@dataclass
class Document:
    """An uploaded file: open with its reader, or locked, or with a problem to tell in Swedish."""

    number: int
    file: InputFile
    reader: PdfReader | None = None
    pages: int = 0
    state: str = "Öppen"
    paper: str = ""
    problem: str = ""
    needs_password: bool = False
    is_signed: bool = False
    has_form: bool = False

    @property
    def stem(self) -> str:
        """The name without its ending."""
        return Path(self.file.name).stem


class Results:
    """The files that this run makes, and what they were made of."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.sources: dict[int, Document] = {}
        self._bytes = 0

    def copy(
        self, writer: PdfWriter, document: Document, pages: list[int] | None, bookmark: str = ""
    ) -> None:
        """Copy pages, all if None, with the bookmarks that lead to them. Raises ToolUserError."""
        reader = require_reader(document)
        self.sources[document.number] = document
        try:
            writer.append(reader, outline_item=bookmark or None, pages=pages)
        except Exception:  # a damaged file makes pypdf stumble in every way there is
            raise _damaged(document) from None

    def save(self, writer: PdfWriter, stem: str) -> str:
        """Write a file under a name of its own. Returns "name, size" to tell the user.

        Raises:
            ToolUserError: it is larger than a result may be, alone or with the others.
        """
        name = make_name(stem, self.names)
        path = output_path(name)
        if writer.metadata is None or "/Title" not in writer.metadata:
            writer.add_metadata({"/Title": Path(name).stem})
        try:
            with path.open("wb") as stream:
                writer.write(stream)
        except OSError:
            raise
        except Exception:  # some damage shows only now
            raise _damaged(*self.sources.values()) from None
        size = path.stat().st_size
        self._bytes += size
        self.names.append(name)
        for count, limit in ((size, RESULT_MAX_BYTES), (self._bytes, RESULTS_MAX_BYTES)):
            if count > limit:
                raise ToolUserError(
                    f"Resultatet blir för stort: {_describe_bytes(count)}, men högst "
                    f"{_describe_bytes(limit)} går bra. Ta färre sidor åt gången."
                )
        return f"{name} ({_describe_bytes(size)})"

    def describe_losses(self) -> str:
        """Return what does not survive in a new file, in Swedish, or nothing."""
        sources = self.sources.values()
        said = []
        if signed := [document.file.name for document in sources if document.is_signed]:
            names = ", ".join(signed)
            said.append(f"Den digitala underskriften i {names} gäller inte i den nya filen.")
        if any(document.reader and document.reader.is_encrypted for document in sources):
            said.append("Den nya filen är inte låst.")
        if sum(document.has_form for document in sources) > 1:
            said.append("Formulärfält som heter lika i flera filer delar nu innehåll.")
        return " ".join(said)


def run_tool(input_dir: str, output_dir: str) -> dict[str, object]:
    """Show the uploaded PDFs; in an action, make new ones of them."""
    logging.getLogger("pypdf").setLevel(logging.CRITICAL)  # of damage we tell in our own words
    action_id, form, _ = get_action_parts()
    outputs: list[dict[str, object]] = []
    with (
        ExitStack() as stack,
        apply_configuration(
            zlib_maximum_output_length=UNPACKED_MAX_BYTES,
            lzw_maximum_output_length=UNPACKED_MAX_BYTES,
        ),
    ):
        password = str(form.get("password") or "")
        every = [
            open_document(number, file, password, stack)
            for number, file in enumerate(list_input_files(), start=1)
        ]
        documents = [document for document in every if not document.problem]
        if not documents:
            problems = "\n".join(document.problem for document in every)
            raise ToolUserError(problems or "Ladda upp minst en PDF.")
        if sum(document.pages for document in documents) > PAGES_MAX:
            raise ToolUserError(f"Det är för många sidor: högst {PAGES_MAX} tillsammans går bra.")
        if action_id is not None:
            outputs, form = act(action_id, documents, form)
    outputs += show(every)
    actions = make_actions(documents, action_id, form)
    return {"outputs": outputs, "next_actions": actions, "state": {}}


# --- reading --------------------------------------------------------------------------------------


def open_document(number: int, file: InputFile, password: str, stack: ExitStack) -> Document:
    """Open a file, which stays open as long as `stack`; what is wrong with it is in `problem`."""
    document = Document(number, file)
    stream = stack.enter_context(file.path.open("rb"))
    start = stream.read(1024)
    if not start.strip():
        document.problem = f"{file.name} är tom."
    elif b"%PDF-" not in start:
        what = next((what for magic, what in NOT_PDFS if start.startswith(magic)), "")
        document.problem = f"{file.name} är ingen PDF{f' utan {what}' if what else ''}."
    else:
        try:
            _look_into(document, PdfReader(stream), password)
        except DependencyError:
            document.problem = f"{file.name} är låst på ett sätt som inte går att öppna här."
        except Exception:  # a damaged file makes pypdf stumble in every way there is
            document.problem = _damaged(document).message
    if document.problem:
        document.state = "Går inte att läsa"
    return document


def _look_into(document: Document, reader: PdfReader, password: str) -> None:
    if reader.is_encrypted:
        document.state = "Låst, men går att läsa"
        document.needs_password = not reader.decrypt("")
        if document.needs_password and not (password and reader.decrypt(password)):
            document.state = "Låst, kräver lösenord"
            return
    document.pages = len(reader.pages)
    if not document.pages:
        document.problem = f"{document.file.name} har inga sidor."
        return
    papers = dict.fromkeys(_name_paper(page) for page in reader.pages[:PAGES_LOOKED_AT])
    document.paper = " och ".join(papers) if len(papers) < 3 else "olika"
    document.reader = reader
    with suppress(Exception):  # a form that cannot be read is none
        form: Any = reader.root_object["/AcroForm"]
        document.has_form = bool(form.get("/Fields"))
        document.is_signed = bool(form.get("/SigFlags", 0) & 1)


def _name_paper(page: PageObject) -> str:
    try:
        box = page.cropbox
        width, height = (round(float(side) / 72 * 25.4) for side in (box.width, box.height))
        if page.rotation % 180:
            width, height = height, width
    except Exception:
        return "okänt"
    for name, (short, long) in PAPERS_MM.items():
        if abs(min(width, height) - short) < 3 and abs(max(width, height) - long) < 3:
            return f"{name} {'liggande' if width > height else 'stående'}"
    return f"{width} × {height} mm"


def require_reader(document: Document) -> PdfReader:
    """Return the reader. Raises ToolUserError where the password is missing or wrong."""
    if document.reader is None:
        raise ToolUserError(
            f"{document.file.name} är låst. Skriv rätt lösenord i fältet för lösenord."
        )
    return document.reader


def _damaged(*documents: Document) -> ToolUserError:
    names = ", ".join(document.file.name for document in documents)
    return ToolUserError(f"Det gick inte att läsa sidorna: {names} är skadad.")


def show(documents: Sequence[Document]) -> list[dict[str, object]]:
    """Return a table of the files, and a word about those that are locked or damaged."""
    columns = [("number", "Nr"), ("name", "Fil"), ("pages", "Sidor"), ("size", "Storlek")]
    columns += [("state", "Läge"), ("paper", "Papper")]
    rows = [
        {
            "number": document.number,
            "name": document.file.name,
            "pages": document.pages or None,
            "size": _describe_bytes(document.file.bytes),
            "state": document.state,
            "paper": document.paper,
        }
        for document in documents
    ]
    outputs = [table(columns, rows, "Dina PDF-filer")]
    outputs += [notice(document.problem, "error") for document in documents if document.problem]
    locked = [d.file.name for d in documents if d.reader is None and not d.problem]
    if locked:
        said = f"Låst med lösenord: {', '.join(locked)}. Skriv lösenordet när du väljer vad du vill"
        outputs.append(notice(f"{said} göra.", "warning"))
    return outputs


# --- the actions ----------------------------------------------------------------------------------


def act(
    action_id: str, documents: list[Document], form: dict[str, Any]
) -> tuple[list[dict[str, object]], dict[str, Any]]:
    """Do what was asked for. Returns the outputs, and the form's values to offer next time."""
    results = Results()
    if action_id == "merge":
        said = merge(documents, form, results)
    else:
        wanted = str(form.get("file") or documents[0].number)
        document = next((d for d in documents if str(d.number) == wanted), None)
        if document is None:
            raise ToolUserError("Den valda filen går inte att läsa.")
        require_reader(document)
        if action_id == "split":
            said, form = split(document, form, results)
        else:
            said = (pick if action_id == "pick" else rotate)(document, form, results)
    outputs = [notice(said, "info" if results.names else "error")]
    if results.names and (losses := results.describe_losses()):
        outputs.append(notice(losses, "warning"))
    return outputs, form


def merge(documents: list[Document], form: dict[str, Any], results: Results) -> str:
    """Put files together, with a bookmark at the beginning of each."""
    chosen = list(documents)
    if form.get("order") == "namn":
        chosen.sort(key=lambda document: _sort_key(document.file.name))
    elif form.get("order") == "egen":
        by_number = {document.number: document for document in documents}
        wanted = parse_ranges(str(form.get("own_order") or ""), max(by_number), "Fil")
        if missing := [str(index + 1) for index in wanted if index + 1 not in by_number]:
            raise ToolUserError(f"Fil {', '.join(missing)} går inte att läsa.")
        chosen = [by_number[index + 1] for index in wanted]
    if sum(document.pages for document in chosen) > PAGES_MAX:
        raise ToolUserError(f"Det blir för många sidor: högst {PAGES_MAX} går bra.")
    writer = PdfWriter()
    for done, document in enumerate(chosen):
        progress(done / len(chosen), f"Lägger till {document.file.name}")
        results.copy(writer, document, None, document.stem or "dokument")
    wished = str(form.get("name") or "").strip().removesuffix(".pdf")
    made = results.save(writer, wished or "sammanslagen")
    said = f"{made} är klar: {len(writer.pages)} sidor ur {len(chosen)} filer."
    left_out = [document.file.name for document in documents if document not in chosen]
    return f"{said} Inte med: {', '.join(left_out)}." if left_out else said


def pick(document: Document, form: dict[str, Any], results: Results) -> str:
    """Make a file of some pages of one, in the order that was written."""
    pages = parse_ranges(str(form.get("pages") or ""), document.pages)
    writer = PdfWriter()
    results.copy(writer, document, pages)
    made = results.save(writer, f"{document.stem} {describe_pages(pages)}")
    return f"{made} är klar: {len(pages)} sidor ur {document.file.name}."


def split(document: Document, form: dict[str, Any], results: Results) -> tuple[str, dict[str, Any]]:
    """Take a file apart; where that gives too many files, propose how it would not."""
    count = document.pages
    if form.get("how") == "vid":
        starts = sorted({0, *parse_ranges(str(form.get("at") or ""), count)})
    else:
        each = int(form.get("each") or 0) if form.get("how") == "antal" else 1
        if each < 1:
            raise ToolUserError("Skriv hur många sidor varje fil ska ha, minst 1.")
        starts = list(range(0, count, each))
    if len(starts) > RESULTS_MAX:
        each = -(-count // RESULTS_MAX)
        said = (
            f"Inget gjordes: det skulle bli {len(starts)} filer, men högst {RESULTS_MAX} går bra. "
            f"Med {each} sidor per fil blir det {-(-count // each)} filer; det är ifyllt nu. Eller "
            "plocka ut sidor till en fil i taget."
        )
        return said, {**form, "how": "antal", "each": each}
    digits = len(str(count))
    for done, (start, end) in enumerate(zip(starts, [*starts[1:], count], strict=True)):
        progress(done / len(starts), f"Fil {done + 1} av {len(starts)}")
        writer = PdfWriter()
        results.copy(writer, document, list(range(start, end)))
        last = f"-{end:0{digits}}" if end > start + 1 else ""
        results.save(writer, f"{document.stem} sida {start + 1:0{digits}}{last}")
    names = results.names
    said = f"{names[0]} till {names[-1]}" if len(names) > 1 else names[0]
    return f"{document.file.name} delades i {len(names)} filer: {said}.", form


def rotate(document: Document, form: dict[str, Any], results: Results) -> str:
    """Turn pages of a file, all of them unless some are written."""
    written = str(form.get("pages") or "").strip()
    pages = set(parse_ranges(written, document.pages) if written else range(document.pages))
    results.sources[document.number] = document
    try:
        writer = PdfWriter(clone_from=require_reader(document))  # with all that is in the file
        for index in pages:
            writer.pages[index].rotate(int(form.get("degrees") or 90))
    except Exception:  # a damaged file makes pypdf stumble in every way there is
        raise _damaged(document) from None
    made = results.save(writer, f"{document.stem} vriden")
    return f"{made} är klar: {len(pages)} av {document.pages} sidor vreds."


def make_actions(
    documents: list[Document], last: str | None, form: dict[str, Any]
) -> list[dict[str, object]]:
    """Offer what can be done; the action just taken keeps its values, except the password."""
    is_many = len(documents) > 1
    labels = {str(d.number): f"{d.number}. {d.file.name} ({d.pages or '?'} s.)" for d in documents}
    files = [enum_field("file", "Fil", labels, required=True)] if is_many else []
    first = {"file": str(documents[0].number)} if is_many else {}
    pages = "Sidor, till exempel 1-3, 5, 8-"
    merging = [
        enum_field("order", "Ordning", ORDERS, required=True),
        string_field("own_order", "Egen ordning med filernas nummer, till exempel 3, 1, 2"),
        string_field("name", "Namn på den nya filen"),
    ]
    picking = [*files, string_field("pages", pages, required=True)]
    splitting = [
        *files,
        enum_field("how", "Hur", SPLITS, required=True),
        integer_field("each", "Antal sidor per fil"),
        string_field("at", "Dela före sida, till exempel 4, 9"),
    ]
    turning = [
        *files,
        enum_field("degrees", "Hur mycket", TURNS, required=True),
        string_field("pages", f"{pages} (tomt: alla)"),
    ]
    offers: list[tuple[str, str, list[dict[str, object]], dict[str, object]]] = [
        ("merge", "Slå ihop", merging, {"order": "uppladdad"}),
        ("pick", "Plocka ut sidor", picking, {**first}),
        ("split", "Dela upp", splitting, {**first, "how": "varje"}),
        ("rotate", "Vrid sidor", turning, {**first, "degrees": "90"}),
    ]
    password = string_field("password", "Lösenord till låsta filer (sparas med körningen)")
    locks = [password] if any(document.needs_password for document in documents) else []
    actions = []
    for action_id, label, fields, prefill in offers if is_many else offers[1:]:
        if action_id == last:
            names = {field["name"] for field in fields}
            prefill |= {name: value for name, value in form.items() if name in names}
        actions.append(action(action_id, label, [*fields, *locks], prefill))
    return actions


# --- pages and files ------------------------------------------------------------------------------


def parse_ranges(text: str, count: int, what: str = "Sida") -> list[int]:
    """Return what `1-3, 5, 8-` means, counted from 0 and in the order written; 5-3 goes backwards.

    Raises:
        ToolUserError: it cannot be understood, or names what does not exist.
    """
    found: list[int] = []
    for part in filter(None, re.split(r"[,;\s]+", re.sub(r"\s*[-–—]\s*", "-", text.strip()))):
        match = re.fullmatch(r"(\d{0,9})(?:(-)(\d{0,9}))?", part)
        if match is None or not (match[1] or match[3]):
            raise ToolUserError(
                f"”{part[:40]}” går inte att förstå. Skriv till exempel 1-3, 5, 8-."
            )
        first = int(match[1] or 1)
        last = int(match[3] or count) if match[2] else first
        for number in (first, last):
            if not 1 <= number <= count:
                raise ToolUserError(f"{what} {number} finns inte: den sista är {count}.")
        found += range(first - 1, last) if first <= last else range(first - 1, last - 2, -1)
        if len(found) > PAGES_MAX:
            raise ToolUserError(f"Det blir för många sidor: högst {PAGES_MAX} går bra.")
    if not found:
        raise ToolUserError("Skriv vilka det gäller, till exempel 1-3, 5, 8-.")
    return found


def describe_pages(pages: list[int]) -> str:
    """Return pages for a file's name: `sida 4`, `sidor 1-3, 5`."""
    runs: list[list[int]] = []
    for page in pages:
        if runs and page == runs[-1][-1] + 1:
            runs[-1].append(page)
        else:
            runs.append([page])
    parts = (f"{r[0] + 1}-{r[-1] + 1}" if len(r) > 1 else str(r[0] + 1) for r in runs)
    text = ("sida " if len(pages) == 1 else "sidor ") + ", ".join(parts)
    return text if len(text) <= NAME_MAX_CHARS else "urval"


def make_name(stem: str, taken: list[str]) -> str:
    """Return a file name that can be used and is not taken."""
    letters = (c if c.isprintable() and c not in '/\\:*?"<>|' else " " for c in stem)
    stem = " ".join("".join(letters).split()).strip(". ").encode()[:200].decode("utf-8", "ignore")
    stem = stem or "dokument"
    name, number = f"{stem}.pdf", 1
    while name.casefold() in {other.casefold() for other in taken}:
        number += 1
        name = f"{stem}-{number}.pdf"
    return name


def _sort_key(name: str) -> list[tuple[int, str]]:
    """Sort `del 2` before `del 10`, and å, ä and ö after z."""
    parts = re.split(r"(\d+)", name.casefold().translate(str.maketrans("åäö", "{|}")))
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in parts]


def _describe_bytes(count: int) -> str:
    if count < 1_000_000:
        return f"{max(count // 1000, 1)} kB"
    return f"{count / 1_000_000:.1f} MB".replace(".", ",")
