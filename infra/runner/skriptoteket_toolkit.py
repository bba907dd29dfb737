"""What a tool may import: its inputs, its action, its output directory, progress and answers.

Tools run anywhere the runner contract holds, also with nothing set: what is missing or unreadable
reads as empty, never as an exception. Only the standard library is needed.

A tool in full::

    from skriptoteket_toolkit import ToolUserError, list_input_files, markdown

    def run_tool(input_dir: str, output_dir: str) -> dict[str, object]:
        files = list_input_files()
        if not files:
            raise ToolUserError("Ladda upp minst en fil.")
        return {"outputs": [markdown(f"Du skickade **{files[0].name}**.")]}
"""

import json
import os
import select
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

__all__ = [
    "InputFile",
    "ToolUserError",
    "action",
    "boolean_field",
    "decode_text",
    "enum_field",
    "get_action_parts",
    "html",
    "integer_field",
    "json_output",
    "list_input_files",
    "markdown",
    "multi_enum_field",
    "notice",
    "number_field",
    "output_path",
    "progress",
    "read_action",
    "read_inputs",
    "string_field",
    "table",
    "text_field",
    "vega_lite",
    "weigh_workbook",
]

JsonObject = dict[str, object]
Level = Literal["info", "warning", "error"]
Options = Mapping[str, str] | Iterable[str | tuple[str, str]]

NAME_MAX_BYTES = 255
PROGRESS_TEXT_MAX_CHARS = 500


class ToolUserError(Exception):
    """Say what the user did wrong or can do better. The message is shown as it is: in Swedish."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True)
class InputFile:
    """A file that the user uploaded: its name, where it lies, and its size in bytes."""

    name: str
    path: Path
    bytes: int


def read_inputs() -> JsonObject:
    """Return the form's values by field name; empty in action runs and without a form."""
    return _read_json_object("SKRIPTOTEKET_INPUTS")


def list_input_files() -> list[InputFile]:
    """List the user's files in the order of upload, only those that are there.

    The manifest decides. Without one, the input directory is listed, by name.
    """
    entries = _read_json_object("SKRIPTOTEKET_INPUT_MANIFEST").get("files")
    if isinstance(entries, list):
        found = (_find_manifest_file(entry) for entry in entries)
        return [file for file in found if file is not None]
    try:
        paths = sorted(_directory("SKRIPTOTEKET_INPUT_DIR", "input").iterdir())
    except OSError:
        return []
    return [InputFile(path.name, path, path.stat().st_size) for path in paths if path.is_file()]


def decode_text(data: bytes) -> str:
    """Decode a text file by its byte order mark, else as UTF-8, else as Windows-1252.

    UTF-16 without a mark is known by its NULs. Never raises: what does not fit reads as U+FFFD.
    """
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # as Excel's "Unicode-text" begins
        return data.decode("utf-16", "replace")
    if data[1:8:2].count(0) > 2:
        return data.decode("utf-16-le", "replace")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("cp1252", "replace")


def weigh_workbook(path: Path) -> int:
    """Return how many bytes an .xlsx file takes to read, roughly: look before openpyxl unpacks it.

    A byte of styles becomes a hundred in memory, ten times what others do. What an archive claims
    of its sizes is also all that is read of it later.

    Raises:
        zipfile.BadZipFile: it is no archive.
    """
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
    return sum(sizes.values()) + 9 * sizes.get("xl/styles.xml", 0)


def read_action() -> JsonObject | None:
    """Return `{"action_id","input","state"}`, or None in an initial run."""
    return _read_json_object("SKRIPTOTEKET_ACTION") or None


def get_action_parts() -> tuple[str | None, JsonObject, JsonObject]:
    """Return the action's id, its input and the state; `(None, {}, {})` in an initial run."""
    payload = read_action() or {}
    action_id = payload.get("action_id")
    return (
        action_id if isinstance(action_id, str) else None,
        _as_object(payload.get("input")),
        _as_object(payload.get("state")),
    )


def output_path(name: str) -> Path:
    """Return where to write the artifact `name`; folders in the name are created.

    A name is refused, not rewritten: two names that become one would overwrite each other unseen.

    Raises:
        ToolUserError: the name is empty, absolute or too long, holds `..`, a backslash or control
            characters, or leads out of the output directory.
    """
    root = _directory("SKRIPTOTEKET_OUTPUT_DIR", "output")
    parts = PurePosixPath(name).parts
    usable = (
        parts
        and not name.startswith("/")
        and ".." not in parts
        and "\\" not in name
        and name.isprintable()
        and all(len(part.encode("utf-8", "replace")) <= NAME_MAX_BYTES for part in parts)
    )
    if not usable:
        raise ToolUserError(f"Filnamnet kan inte användas: {name[:100]!r}")
    path = root.joinpath(*parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    # A link that the tool made itself could still lead out, and would then not be collected.
    if not path.resolve().is_relative_to(root.resolve()):
        raise ToolUserError(f"Filnamnet leder ut ur utdatamappen: {name[:100]!r}")
    return path


def progress(fraction: float, text: str) -> None:
    """Show the user how far the tool has come: 0 to 1, and a few words.

    Never raises and never waits: when nobody reads fast enough the message is dropped.
    """
    try:
        fd = int(os.environ["SKRIPTOTEKET_PROGRESS_FD"])
        done = float(fraction)
        payload = {
            "fraction": min(max(done, 0.0), 1.0) if done == done else 0.0,
            "text": " ".join(str(text).split())[:PROGRESS_TEXT_MAX_CHARS],
        }
        line = json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace") + b"\n"
        # A pipe that polls as writable takes PIPE_BUF bytes (4096) whole and at once, and a line
        # is shorter than that: so a reader never sees half of one.
        poll = select.poll()
        poll.register(fd, select.POLLOUT)
        if any(events & select.POLLOUT for _, events in poll.poll(0)):
            os.write(fd, line)
    except (KeyError, ValueError, TypeError, OverflowError, OSError):
        return


def notice(message: str, level: Level = "info") -> JsonObject:
    """Make a short message to the user, up to 8 KiB."""
    return {"kind": "notice", "level": level, "message": message}


def markdown(text: str) -> JsonObject:
    """Make a text in Markdown."""
    return {"kind": "markdown", "markdown": text}


def table(
    columns: Iterable[str | tuple[str, str]],
    rows: Iterable[Mapping[str, object]],
    title: str | None = None,
) -> JsonObject:
    """Make a table. A column is a key, or a key with its label; a row maps keys to scalars."""
    pairs = [(column, column) if isinstance(column, str) else column for column in columns]
    output: JsonObject = {
        "kind": "table",
        "columns": [{"key": key, "label": label} for key, label in pairs],
        "rows": [dict(row) for row in rows],
    }
    return output if title is None else {**output, "title": title}


def json_output(value: object, title: str | None = None) -> JsonObject:
    """Make a view of any JSON value."""
    output: JsonObject = {"kind": "json", "value": value}
    return output if title is None else {**output, "title": title}


def html(text: str) -> JsonObject:
    """Make an HTML view; it is shown in a frame that runs no scripts."""
    return {"kind": "html_sandboxed", "html": text}


def vega_lite(spec: Mapping[str, object]) -> JsonObject:
    """Make a chart from a Vega-Lite specification with inline `data.values`."""
    return {"kind": "vega_lite", "spec": dict(spec)}


def action(
    action_id: str,
    label: str,
    fields: Sequence[Mapping[str, object]] = (),
    prefill: Mapping[str, object] | None = None,
) -> JsonObject:
    """Offer a next step: a button `label` with a form of `fields`, prefilled by field name."""
    offer: JsonObject = {
        "action_id": action_id,
        "label": label,
        "kind": "form",
        "fields": [dict(field) for field in fields],
    }
    return offer if prefill is None else {**offer, "prefill": dict(prefill)}


def string_field(name: str, label: str, *, required: bool = False) -> JsonObject:
    """Make a field for one line of text."""
    return _field("string", name, label, required)


def text_field(name: str, label: str, *, required: bool = False) -> JsonObject:
    """Make a field for several lines of text."""
    return _field("text", name, label, required)


def integer_field(name: str, label: str, *, required: bool = False) -> JsonObject:
    """Make a field for a whole number."""
    return _field("integer", name, label, required)


def number_field(name: str, label: str, *, required: bool = False) -> JsonObject:
    """Make a field for a number."""
    return _field("number", name, label, required)


def boolean_field(name: str, label: str, *, required: bool = False) -> JsonObject:
    """Make a check box."""
    return _field("boolean", name, label, required)


def enum_field(name: str, label: str, options: Options, *, required: bool = False) -> JsonObject:
    """Make a choice of one. Options: value → label, pairs of those, or values that say it all."""
    return {**_field("enum", name, label, required), "options": _make_options(options)}


def multi_enum_field(
    name: str, label: str, options: Options, *, required: bool = False
) -> JsonObject:
    """Make a choice of several; options as in `enum_field`."""
    return {**_field("multi_enum", name, label, required), "options": _make_options(options)}


def _field(kind: str, name: str, label: str, required: bool) -> JsonObject:
    return {"kind": kind, "name": name, "label": label, "required": required}


def _make_options(options: Options) -> list[JsonObject]:
    items = options.items() if isinstance(options, Mapping) else options
    pairs = [(item, item) if isinstance(item, str) else item for item in items]
    return [{"value": value, "label": label} for value, label in pairs]


def _read_json_object(variable: str) -> JsonObject:
    try:
        return _as_object(json.loads(os.environ.get(variable, "")))
    except (ValueError, RecursionError):
        return {}


def _as_object(value: object) -> JsonObject:
    return value if isinstance(value, dict) else {}


def _directory(variable: str, default: str) -> Path:
    # The runner starts in /work, where the contract has these folders.
    return Path(os.environ.get(variable) or default)


def _find_manifest_file(entry: object) -> InputFile | None:
    match entry:
        case {"name": str(name), "path": str(location)}:
            path = Path(location)
            try:
                return InputFile(name, path, path.stat().st_size) if path.is_file() else None
            except (OSError, ValueError):
                return None
    return None
