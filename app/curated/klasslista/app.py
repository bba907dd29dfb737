"""Klasslista: a class roster in; groups, seating, fair draws and exports out.

The roster is a session file and is read again in every run. The state remembers only names of
pupils: who has been together, who sat beside whom, whose turn it was, and the teacher's rules. A
new roster leaves the state as it is (a first run answers without one), so the memory outlives
the day after which unused files are deleted. A pupil is known by the name shown, which is unique
in a roster.

All chance comes from the state's seed and its turn: the same state, roster and form give the same
answer, in whichever process.
"""

import csv
import io
import json
import math
import random
import re
import secrets
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import combinations, islice
from pathlib import Path
from typing import Any

from skriptoteket_toolkit import (
    InputFile,
    ToolUserError,
    action,
    boolean_field,
    decode_text,
    enum_field,
    get_action_parts,
    integer_field,
    list_input_files,
    markdown,
    multi_enum_field,
    notice,
    output_path,
    table,
    text_field,
    weigh_workbook,
)

JsonObject = dict[str, object]
Grid = list[list[str]]
Pair = tuple[str, str]
Weights = list[list[int]]
Block = list[int]  # pupils that stay together

PUPILS_MAX = 300
NAME_MAX_CHARS = 80
CLASS_MAX_CHARS = 20
CLASSES_MAX = 50
FILE_MAX_BYTES = 5_000_000
UNPACKED_MAX_BYTES = 50_000_000
ROWS_MAX = 2_000
COLUMNS_MAX = 60
HEADER_ROWS_MAX = 20
LISTED_MAX = 8
WARNINGS_MAX = 20
ROOM_MAX = 30

# The curated policy keeps 256 KiB of state; two groupings a school day are about 360 a year.
STATE_MAX_BYTES = 200 * 1024
DIVISIONS_MAX = 400
SEATINGS_MAX = 40
RULES_MAX_BYTES = 6_000
DRAWN_MAX = 2 * PUPILS_MAX

SEARCH_STEPS = 30_000
SEARCH_TRIES = 4
# Above what all repeated pairs of a division can weigh together: a wish is never traded for them.
PENALTY = 10**12
REPEAT_WEIGHT = 1000
BESIDE, BEHIND = 3, 1

HEADERS = {
    "first": "förnamn fornamn tilltalsnamn first_name firstname given_name givenname",
    "last": "efternamn släktnamn last_name lastname surname family_name familyname",
    "full": "namn name elev elevnamn elevens_namn elever student elevens_fullständiga_namn "
    "fullständigt_namn för-_och_efternamn efternamn,_förnamn efternamn_förnamn visningsnamn "
    "förnamn_efternamn förnamn_och_efternamn namn_(efternamn,_förnamn) full_name display_name",
    "klass": "klass class klassbeteckning undervisningsgrupp mentorsgrupp grupp",
}
ROLES = {title.replace("_", " "): role for role, text in HEADERS.items() for title in text.split()}
DELIMITERS = ";\t,"
NOT_ROSTERS = (
    (b"%PDF", "en PDF"),
    (b"\x89PNG", "en bild"),
    (b"\xff\xd8\xff", "en bild"),
    (b"<", "en webbsida"),
    (b"{", "en JSON-fil"),
)
SUMMARY_ROW = re.compile(r"(antal|summa|totalt?|utskrift|utskriven|sida|källa)\b[\s:]", re.I)
IDENTITY = re.compile(r"@|\d{6}")  # an address or a personal number: tells two namesakes apart
FORMULA_START = ("=", "+", "-", "@", "\t", "\r")
SWEDISH_LETTERS = str.maketrans("åäæöøıłđ", "{||}}ild")

BY_SIZE, BY_COUNT = "size", "count"
RANDOM, BY_FIRST, BY_LAST = "random", "first", "last"
ALL_CLASSES = "*"
RULE_LABELS = {"together": "Håll ihop", "apart": "Håll isär"}
START_OVER = "Klasslistan finns inte kvar. Ladda upp den igen, så fortsätter vi där vi var."


@dataclass(frozen=True)
class Pupil:
    """A pupil; `name` is what is shown, and unique in the roster."""

    name: str
    first: str
    last: str
    klass: str


@dataclass(frozen=True)
class Roster:
    """The pupils in the order of the file, and what the teacher should know about its rows."""

    file_name: str
    pupils: tuple[Pupil, ...]
    remarks: tuple[str, ...]

    @property
    def classes(self) -> list[str]:
        found = dict.fromkeys(pupil.klass for pupil in self.pupils if pupil.klass)
        return sorted(found, key=sort_key) if 1 < len(found) <= CLASSES_MAX else []


@dataclass(frozen=True)
class Seating:
    """Seats by rows from the front, `""` for an empty one; a turn order is one row as a `line`."""

    columns: int
    is_line: bool
    seats: list[str]


@dataclass
class Memory:
    """The state: groupings and seatings with the newest last, draws, rules, the seed of chance."""

    seed: int
    turn: int = 0
    divisions: list[list[list[str]]] = field(default_factory=list)
    seatings: list[Seating] = field(default_factory=list)
    drawn: dict[str, int] = field(default_factory=dict)  # the round of each pupil's latest draw
    absent: list[str] = field(default_factory=list)
    absent_on: str = ""
    form: dict[str, Any] = field(default_factory=dict)  # what to fill the forms with

    def begin_turn(self) -> random.Random:
        """Return this turn's chance."""
        self.turn += 1
        return random.Random(f"{self.seed}:{self.turn}")


def run_tool(input_dir: str, output_dir: str) -> JsonObject:
    """Show an uploaded roster, or do one of the steps that are offered with it."""
    action_id, values, state = get_action_parts()
    roster = read_roster(missing_is_expired=action_id is not None)
    if action_id is None:
        # No state: "unchanged". What earlier runs remember is not known here, but it is kept.
        return {"outputs": show_roster(roster), "next_actions": offer_actions(roster, None)}
    memory = read_memory(state)
    step = STEPS.get(action_id)
    if step is None:
        raise ToolUserError("Klasslistan känner inte till det steget.")
    outputs = step(roster, memory, values)
    return {
        "outputs": outputs,
        "next_actions": offer_actions(roster, memory),
        "state": write_memory(memory),
    }


# --- reading the roster ---------------------------------------------------------------------------


def read_roster(*, missing_is_expired: bool) -> Roster:
    """Read the one uploaded file.

    Raises:
        ToolUserError: no file, several, too large, of another kind, or without pupils.
    """
    files = list_input_files()
    if not files:
        raise ToolUserError(START_OVER if missing_is_expired else "Ladda upp en klasslista först.")
    if len(files) > 1:
        raise ToolUserError("Ladda upp en klasslista i taget.")
    file = files[0]
    if file.bytes > FILE_MAX_BYTES:
        raise ToolUserError(
            f"{file.name} är för stor för en klasslista (högst {FILE_MAX_BYTES // 10**6} MB). "
            "Spara bara bladet med eleverna i en egen fil."
        )
    data = file.path.read_bytes()
    if not data.strip():
        raise ToolUserError(f"{file.name} är tom.")
    grid, remarks = read_xlsx(file) if data.startswith(b"PK") else (read_csv(file.name, data), [])
    if not any(map(any, grid)):
        raise ToolUserError(f"{file.name} är tom.")
    columns = find_columns(grid)
    if columns is None:
        raise ToolUserError(
            f"Jag hittar inga elever i {file.name}. Ge kolumnerna rubriker på första raden, till "
            "exempel Förnamn, Efternamn och Klass, med en elev på varje rad under."
        )
    pupils, row_remarks = read_pupils(grid, columns)
    remarks += columns.remarks + row_remarks
    if not pupils:
        raise ToolUserError(f"Rubrikerna finns i {file.name}, men inga elever under dem.")
    if len(pupils) > PUPILS_MAX:
        raise ToolUserError(
            f"Listan har {len(pupils)} elever och jag klarar högst {PUPILS_MAX}. "
            "Dela den till exempel per klass."
        )
    return Roster(file.name, tuple(pupils), tuple(remarks))


def read_csv(name: str, data: bytes) -> Grid:
    """Decode and split a text file, by whichever delimiter makes a roster of it."""
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise ToolUserError(
            f"{name} är i det äldre Excel-formatet (.xls) eller skyddad med lösenord. Öppna den i "
            "Excel, välj Spara som och ”Excel-arbetsbok (.xlsx)”, utan lösenord."
        )
    kind = next((words for magic, words in NOT_ROSTERS if data.lstrip().startswith(magic)), None)
    text = decode_text(data)
    if kind is not None or "\0" in text:
        raise ToolUserError(
            f"{name} är {kind or 'ingen textfil'}, ingen klasslista. "
            "Spara listan som .xlsx eller .csv och ladda upp den."
        )
    hint = re.match(r"sep=(.)\r?\n", text)  # Excel's own way to name the delimiter
    if hint:
        return split_text(name, text[hint.end() :], hint[1])
    grids = [split_text(name, text, delimiter) for delimiter in DELIMITERS]
    scores = [score_grid(grid) for grid in grids]
    # ”Berg, Anna” without quotes and headers is one column that holds a comma.
    if text.count(", ") >= 0.8 * text.count(","):
        scores[-1] = (scores[-1][0], 0.0)
    return grids[scores.index(max(scores))]


def split_text(name: str, text: str, delimiter: str) -> Grid:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    try:
        return [[clean_cell(cell) for cell in row[:COLUMNS_MAX]] for row in read_rows(reader)]
    except csv.Error:
        raise ToolUserError(
            f"{name} går inte att läsa som tabell. Öppna den i Excel och spara som .xlsx."
        ) from None


def score_grid(grid: Grid) -> tuple[int, float]:
    """Rank a way of splitting: known headers whose rows fit under them, then even rows."""
    columns = find_header(grid)
    rows = [len(trim(row)) for row in grid if any(row)]
    known = 0
    if columns is not None:
        below = [len(trim(row)) for row in grid[columns.first_row :] if any(row)]
        if sum(width <= columns.width for width in below) >= 0.8 * len(below):
            known = len(columns.roles)
    width, count = Counter(rows).most_common(1)[0] if rows else (0, 0)
    return known, count / len(rows) if width > 1 else 0.0


def read_xlsx(file: InputFile) -> tuple[Grid, list[str]]:
    """Read the first visible sheet with a roster's headers, else the first that is not empty."""
    broken = ToolUserError(
        f"{file.name} går inte att öppna som Excel-fil. Öppna den i Excel och spara den på nytt "
        "som ”Excel-arbetsbok (.xlsx)”, eller som CSV."
    )
    try:
        if weigh_workbook(file.path) > UNPACKED_MAX_BYTES:
            raise ToolUserError(f"{file.name} är för stor för en klasslista.")
        sheets = read_sheets(file.path)
    except ToolUserError:
        raise
    except Exception:
        # A damaged workbook, or a zip file that is none, fails anywhere in zip, XML or openpyxl.
        raise broken from None
    filled = {title: grid for title, grid in sheets.items() if any(map(any, grid))}
    with_header = [title for title, grid in filled.items() if find_header(grid) is not None]
    if not filled:
        return [], []
    title = with_header[0] if with_header else next(iter(filled))
    remarks = []
    others = [other for other in (with_header or list(filled)) if other != title]
    if others:
        remarks.append(
            f"Filen har flera blad. Jag läste ”{title}” och inte {join_names(others)}. Vill du ha "
            "ett annat: lägg det först i filen, eller spara det för sig."
        )
    return filled[title], remarks


def read_sheets(path: Path) -> dict[str, Grid]:
    # Imported only where it is used: most runs need no workbook, and would wait for nothing.
    import openpyxl  # type: ignore[import-untyped]

    with warnings.catch_warnings():
        # openpyxl tells of styles and extensions that it does not know; none of them hold names.
        warnings.simplefilter("ignore")
        book = openpyxl.load_workbook(path, read_only=True, data_only=True)
        try:
            sheets = {}
            for sheet in book.worksheets:
                if sheet.sheet_state == "visible":
                    # Some programs write a wrong size of the sheet, by which rows would be cut.
                    sheet.reset_dimensions()
                    rows = sheet.iter_rows(max_col=COLUMNS_MAX, values_only=True)
                    sheets[sheet.title] = [list(map(clean_cell, row)) for row in read_rows(rows)]
            return sheets
        finally:
            book.close()


def read_rows(rows: Iterable[Sequence[Any]]) -> list[Sequence[Any]]:
    """Take as many rows as a roster can have; the rest of a huge file is left unread."""
    return list(islice(rows, ROWS_MAX))


def clean_cell(value: object) -> str:
    """Return a cell as one line of text, without invisible characters."""
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = unicodedata.normalize("NFC", str(value))
    lined = (" " if unicodedata.category(c) in {"Cc", "Zl", "Zp"} else c for c in text)
    return " ".join("".join(c for c in lined if unicodedata.category(c)[0] != "C").split())


@dataclass(frozen=True)
class Columns:
    """Where the names are: column by role, the first row of pupils, and the width of the table."""

    roles: Mapping[str, int]
    first_row: int
    width: int
    remarks: list[str] = field(default_factory=list)

    @property
    def is_guess(self) -> bool:
        return self.first_row == 0


def find_columns(grid: Grid) -> Columns | None:
    return find_header(grid) or guess_columns(grid)


def find_header(grid: Grid) -> Columns | None:
    """Find the row of headers; titles and blank rows may stand above it."""
    for number, row in enumerate(grid[:HEADER_ROWS_MAX]):
        roles: dict[str, int] = {}
        for column, cell in enumerate(row):
            role = ROLES.get(cell.casefold().strip(" :*"))
            if role is not None:
                roles.setdefault(role, column)
        if roles.keys() & {"first", "last", "full"}:
            if "last" in roles and "first" not in roles and "full" in roles:
                roles["first"] = roles.pop("full")  # ”Namn” beside ”Efternamn” is the first name
            return Columns(roles, number + 1, len(trim(row)))
    return None


def guess_columns(grid: Grid) -> Columns | None:
    """Guess the names in a small table without headers: one or two columns of names."""
    rows = [row for row in grid if any(row)]
    width = max((len(trim(row)) for row in rows), default=0)
    if width > 3 or len(rows) < 2:
        return None
    found = []
    for column in range(width):
        cells = [row[column] for row in rows if column < len(row) and row[column]]
        alike = sum(map(is_name_like, cells))
        varied = len(cells) < 6 or len(set(cells)) >= 0.5 * len(cells)
        if varied and alike >= 0.7 * len(cells) and len(cells) >= 0.5 * len(rows):
            found.append(column)
    if not found:
        return None
    start = "Jag hittade inga rubriker i filen, så jag tog"
    whole = sum(len(re.findall(r"[ ,]", row[found[0]])) > 0 for row in rows if len(row) > found[0])
    if len(found) == 1 or whole > 0.5 * len(rows):
        remark = f"{start} kolumn {found[0] + 1} som elevernas namn. Titta att det stämmer."
        return Columns({"full": found[0]}, 0, width, [remark])
    remark = (
        f"{start} kolumn {found[0] + 1} som förnamn och kolumn {found[1] + 1} som efternamn. "
        "Är det tvärtom: skriv rubrikerna Förnamn och Efternamn på första raden."
    )
    return Columns({"first": found[0], "last": found[1]}, 0, width, [remark])


def is_name_like(cell: str) -> bool:
    return (
        2 <= len(cell) <= 60
        and len(cell.split()) <= 6
        and any(c.isalpha() for c in cell)
        and not re.search(r"[\d@:?!/=]|\.$", cell)
    )


def read_pupils(grid: Grid, columns: Columns) -> tuple[list[Pupil], list[str]]:
    """Read the rows into pupils with unique names, and tell which rows were odd."""
    rows: list[tuple[str, str, str]] = []
    odd: list[str] = []
    wide: list[str] = []
    copies: list[str] = []
    seen: set[tuple[str, ...]] = set()
    for number, row in enumerate(grid[columns.first_row :], columns.first_row + 1):
        if not any(row):
            continue
        first, last, klass = read_row(row, columns.roles)
        name = f"{first} {last}".strip()
        is_name = any(map(str.isalpha, name)) and len(name) <= NAME_MAX_CHARS
        if columns.is_guess:
            is_name = is_name_like(name)
        if not is_name or SUMMARY_ROW.match(f"{row[0]} "):
            odd.append(f"{number} (”{shorten(' '.join(filter(None, row)))}”)")
            continue
        if len(trim(row)) > columns.width:
            wide.append(str(number))
        content = tuple(cell.casefold() for cell in trim(row))
        if content in seen and any(map(IDENTITY.search, content)):
            copies.append(name)
            continue
        seen.add(content)
        rows.append((first, last, klass))
    pupils, namesakes = name_pupils(rows)
    return pupils, make_row_remarks(pupils, odd, wide, copies, namesakes)


def read_row(row: list[str], roles: Mapping[str, int]) -> tuple[str, str, str]:
    """Return first name, last name and class; a full name is parted at its comma or last space."""
    cells = {role: row[column] if column < len(row) else "" for role, column in roles.items()}
    klass = cells.get("klass", "")[:CLASS_MAX_CHARS].strip()
    if "full" not in cells or cells.get("first"):
        first, last = cells.get("first", ""), cells.get("last", "")
        # A column called ”Namn” beside the last names may hold the whole name.
        if last and first.casefold().endswith(f" {last.casefold()}"):
            first = first[: -len(last)].strip()
        return first, last, klass
    full = cells["full"]
    if full.count(",") == 1:
        last, first = (part.strip() for part in full.split(","))
        return first, last, klass
    first, _, last = full.rpartition(" ")
    return (first, last, klass) if first else (last, "", klass)


def name_pupils(rows: list[tuple[str, str, str]]) -> tuple[list[Pupil], list[str]]:
    """Give each pupil a name of their own: with the class, or else a number, after namesakes."""
    bare = [f"{first} {last}".strip() for first, last, _ in rows]
    with_class = [
        f"{name} ({klass})" if klass else name
        for name, (_, _, klass) in zip(bare, rows, strict=True)
    ]
    bare_counts = Counter(map(str.casefold, bare))
    class_counts = Counter(map(str.casefold, with_class))
    taken = set(bare_counts) | set(class_counts)
    numbers: Counter[str] = Counter()
    pupils = []
    namesakes: dict[str, None] = {}
    for name, named, (first, last, klass) in zip(bare, with_class, rows, strict=True):
        shown = name
        if bare_counts[name.casefold()] > 1:
            namesakes[name] = None
            shown = named
            while class_counts[named.casefold()] > 1 and shown.casefold() in taken:
                numbers[named.casefold()] += 1
                shown = f"{named} ({numbers[named.casefold()]})"
            taken.add(shown.casefold())
        pupils.append(Pupil(shown, first, last, klass))
    return pupils, list(namesakes)


def make_row_remarks(
    pupils: list[Pupil], odd: list[str], wide: list[str], copies: list[str], namesakes: list[str]
) -> list[str]:
    remarks = []
    if odd:
        remarks.append(f"Hoppade över rader som inte ser ut som en elev: {join_names(odd)}.")
    if wide:
        remarks.append(
            f"Dessa rader har fler kolumner än rubrikraden, så namnen kan ha hamnat fel: "
            f"{join_names(wide)}."
        )
    if copies:
        remarks.append(
            f"Står med flera gånger på helt lika rader, räknas en gång: {join_names(copies)}."
        )
    if namesakes:
        remarks.append(
            f"Flera rader har samma namn: {join_names(namesakes)}. Jag räknar dem som olika elever "
            "och skriver klass eller siffra efter namnet. Är det samma elev: ta bort den ena raden."
        )
    lastless = [pupil.name for pupil in pupils if not pupil.last]
    if 0 < len(lastless) <= 0.3 * len(pupils):
        remarks.append(f"Saknar efternamn: {join_names(lastless)}.")
    if any(re.search(r"Ã[¥¤¶…„–©]|\ufffd", pupil.name) for pupil in pupils):
        remarks.append(
            "Vissa namn har konstiga tecken. Öppna listan i Excel, rätta dem och spara som .xlsx."
        )
    return remarks


# --- memory ---------------------------------------------------------------------------------------


def read_memory(state: Mapping[str, Any]) -> Memory:
    """Unpack the state; an empty one, or one of another version, is a new memory."""
    if state.get("version") != 1:
        return Memory(seed=secrets.randbits(32))
    names = state["names"]
    return Memory(
        seed=state["seed"],
        turn=state["turn"],
        divisions=[
            [[names[i] for i in group] for group in groups] for groups in state["divisions"]
        ],
        seatings=[
            Seating(columns, is_line, ["" if i < 0 else names[i] for i in seats])
            for columns, is_line, seats in state["seatings"]
        ],
        drawn={names[i]: round_ for i, round_ in state["drawn"]},
        absent=[names[i] for i in state["absent"]],
        absent_on=state["absent_on"],
        form=state["form"],
    )


def write_memory(memory: Memory) -> JsonObject:
    """Pack the memory within its bounds; the oldest groupings are forgotten first."""
    memory.divisions = memory.divisions[-DIVISIONS_MAX:]
    memory.seatings = memory.seatings[-SEATINGS_MAX:]
    memory.drawn = dict(list(memory.drawn.items())[-DRAWN_MAX:])
    while True:
        state = pack_memory(memory)
        size = len(json.dumps(state, ensure_ascii=False, separators=(",", ":")).encode())
        if size <= STATE_MAX_BYTES:
            return state
        if len(memory.divisions) > 1:
            del memory.divisions[: max(len(memory.divisions) // 10, 1)]
        elif len(memory.seatings) > 1:
            del memory.seatings[0]
        else:
            memory.drawn.clear()


def pack_memory(memory: Memory) -> JsonObject:
    """Write every name once and numbers for it elsewhere: a year of groups is a few dozen KiB."""
    numbers: dict[str, int] = {}

    def number(name: str) -> int:
        return numbers.setdefault(name, len(numbers))

    packed: JsonObject = {
        "version": 1,
        "seed": memory.seed,
        "turn": memory.turn,
        "divisions": [
            [list(map(number, group)) for group in groups] for groups in memory.divisions
        ],
        "seatings": [
            [seating.columns, seating.is_line, [number(n) if n else -1 for n in seating.seats]]
            for seating in memory.seatings
        ],
        "drawn": [[number(name), round_] for name, round_ in memory.drawn.items()],
        "absent": list(map(number, memory.absent)),
        "absent_on": memory.absent_on,
        "form": memory.form,
    }
    return {**packed, "names": list(numbers)}


def weigh_age(age: int) -> int:
    """Weigh a meeting by how many divisions ago it was: recent ones most, none ever for nothing."""
    return int(REPEAT_WEIGHT * (0.2 + 0.8 * 0.85**age))


def weigh_divisions(pupils: list[Pupil], divisions: list[list[list[str]]]) -> Weights:
    """Sum the weights of all earlier meetings for each pair of pupils."""
    numbers = {pupil.name: i for i, pupil in enumerate(pupils)}
    weights = [[0] * len(pupils) for _ in pupils]
    for age, groups in enumerate(reversed(divisions)):
        weight = weigh_age(age)
        for group in groups:
            present = [numbers[name] for name in group if name in numbers]
            for i, j in combinations(present, 2):
                weights[i][j] += weight
                weights[j][i] += weight
    return weights


def weigh_seatings(pupils: list[Pupil], seatings: list[Seating]) -> Weights:
    """Sum the weights of all earlier neighbours; beside counts more than in front or behind."""
    numbers = {pupil.name: i for i, pupil in enumerate(pupils)}
    weights = [[0] * len(pupils) for _ in pupils]
    for age, seating in enumerate(reversed(seatings)):
        for seat, other, closeness in list_neighbours(len(seating.seats), seating.columns):
            i, j = numbers.get(seating.seats[seat]), numbers.get(seating.seats[other])
            if i is not None and j is not None:
                weights[i][j] += closeness * weigh_age(age)
                weights[j][i] = weights[i][j]
    return weights


# --- rules: together and apart --------------------------------------------------------------------


def read_rules(
    text: str, roster: Roster, what: str, warn: Callable[[str], None]
) -> list[list[Pupil]]:
    """Read a line for each wish, its names parted by commas or ”och”; tell what was not understood.

    Raises:
        ToolUserError: more text than the state can keep.
    """
    if len(text.encode()) > RULES_MAX_BYTES:
        raise ToolUserError(f"Önskemålen under ”{what}” är för många. Korta ner texten.")
    ways = {pupil: list_ways(pupil) for pupil in roster.pupils}
    rules = []
    for line in filter(str.strip, text.splitlines()):
        names = re.split(r"[,;&+/]|\s(?:och|and|[–-])\s", clean_cell(line))
        found: dict[Pupil, None] = {}
        for name in filter(None, map(str.strip, names)):
            matches = find_pupils(name, ways)
            if len(matches) == 1:
                found[matches[0]] = None
            elif matches:
                examples = join_names(pupil.name for pupil in matches)
                warn(f"{what}: ”{shorten(name)}” kan vara flera: {examples}. Skriv hela namnet.")
            else:
                warn(f"{what}: hittar ingen elev som heter ”{shorten(name)}”.")
        if len(found) > 1:
            rules.append(list(found))
        else:
            warn(f"{what}: raden ”{shorten(line)}” följdes inte, den behöver minst två elever.")
    return rules


def list_ways(pupil: Pupil) -> list[str]:
    """List what a pupil may be called in a wish, the surest first."""
    first, last = pupil.first, pupil.last
    return list(map(sort_key, (pupil.name, f"{first} {last}", f"{last} {first}", first, last)))


def find_pupils(name: str, ways: Mapping[Pupil, list[str]]) -> list[Pupil]:
    """Find who is meant: all whom the surest way fits, or whose name begins so."""
    wanted = sort_key(name)
    for way in range(5):
        found = [pupil for pupil, keys in ways.items() if keys[way] == wanted]
        if found:
            return found
    return [pupil for pupil, keys in ways.items() if keys[0].startswith(wanted)]


def join_blocks(
    rules: list[list[int]],
    apart: set[tuple[int, int]],
    sizes: list[int],
    count: int,
    rng: random.Random,
) -> tuple[list[Block], list[tuple[list[int], str]]]:
    """Make blocks of those who stay together; a rule that does not fit is left out, with why.

    Rules count in their order, so the first ones are followed. Apart goes before together: who
    asked for it had a reason.
    """
    blocks: list[Block] = [[i] for i in range(count)]
    refused = []
    for rule in rules:
        merged = sorted({i for block in blocks if not set(block).isdisjoint(rule) for i in block})
        rest = [block for block in blocks if set(block).isdisjoint(rule)]
        if any(pair in apart for pair in combinations(merged, 2)):
            refused.append((rule, "några av dem ska hållas isär"))
        elif len(merged) > max(sizes):
            refused.append((rule, f"de är {len(merged)} och grupperna har högst {max(sizes)}"))
        elif pack_blocks([*rest, merged], sizes, rng) is None:
            refused.append((rule, "det går inte ihop med gruppernas storlek"))
        else:
            blocks = [*rest, merged]
    return blocks, refused


# --- grouping -------------------------------------------------------------------------------------


def make_sizes(count: int, mode: str, number: int) -> list[int]:
    """Return the sizes of the groups: no two differ by more than one.

    Raises:
        ToolUserError: fewer than two pupils, or a number that gives no groups.
    """
    if count < 2:
        raise ToolUserError("Det behövs minst två närvarande elever för att göra grupper.")
    if number < 1:
        raise ToolUserError("Antalet ska vara minst 1.")
    if mode == BY_COUNT and number > count:
        raise ToolUserError(f"Det går inte att göra {number} grupper av {count} elever.")
    # To the nearest; halfway, the smaller groups.
    groups = number if mode == BY_COUNT else max((2 * count + number) // (2 * number), 1)
    small, larger = divmod(count, groups)
    return [small + 1] * larger + [small] * (groups - larger)


def divide(
    blocks: list[Block], sizes: list[int], weights: Weights, rng: random.Random
) -> list[list[int]]:
    """Divide pupils into groups so that the pairs in them weigh as little as can be found.

    Simulated annealing over swaps of whole blocks, so sizes and blocks hold throughout. Only where
    a wish stays broken it starts over.
    """
    best, best_cost = None, math.inf
    for _ in range(SEARCH_TRIES):
        start = pack_blocks(blocks, sizes, rng)
        assert start is not None, "join_blocks lets only such blocks through that fit"
        groups, cost = anneal_groups(start, weights, rng)
        if cost < best_cost:
            best, best_cost = groups, cost
        if best_cost < PENALTY:
            break
    assert best is not None
    return best


def pack_blocks(
    blocks: list[Block], sizes: list[int], rng: random.Random
) -> list[list[Block]] | None:
    """Put blocks into groups by chance, the largest first; None when they do not fit."""
    for _ in range(50):
        order = sorted(rng.sample(blocks, len(blocks)), key=len, reverse=True)
        room = list(sizes)
        groups: list[list[Block]] = [[] for _ in sizes]
        for block in order:
            fitting = [g for g, left in enumerate(room) if left >= len(block)]
            if not fitting:
                break
            # Singles fill what is left, so only blocks need luck, and the tightest group is best.
            tight = [g for g in fitting if room[g] == len(block)] if len(block) > 1 else []
            group = rng.choice(tight or fitting)
            groups[group].append(block)
            room[group] -= len(block)
        else:
            return groups
    return None


def anneal_groups(
    groups: list[list[Block]], weights: Weights, rng: random.Random
) -> tuple[list[list[int]], int]:
    """Swap blocks between groups, at first also for the worse; return the best and its cost.

    `sums[g][i]` is what pupil i would weigh in group g, so that a swap is judged by a few sums.
    """
    count = len(weights)
    sums = [
        [sum(weights[i][j] for b in group for j in b) for i in range(count)] for group in groups
    ]
    cost = sum(sums[g][i] for g, group in enumerate(groups) for b in group for i in b) // 2
    best, best_cost = flatten(groups), cost
    if len(groups) < 2:
        return best, cost
    cooling = (REPEAT_WEIGHT / 40 / (2 * REPEAT_WEIGHT)) ** (1 / SEARCH_STEPS)
    heat = 2.0 * REPEAT_WEIGHT
    for _ in range(SEARCH_STEPS):
        if best_cost == 0:
            break
        heat *= cooling
        a, b = choose_two(len(groups), rng)
        swap = choose_swap(groups[a], groups[b], rng)
        if swap is None:
            continue
        mine, theirs = flat(swap[0]), flat(swap[1])
        change = weigh_swap(mine, theirs, sums[a], sums[b], weights)
        if change > 0 and rng.random() >= math.exp(-change / heat):
            continue
        groups[a] = [block for block in groups[a] if block not in swap[0]] + swap[1]
        groups[b] = [block for block in groups[b] if block not in swap[1]] + swap[0]
        sums[a] = move_sums(sums[a], mine, theirs, weights)
        sums[b] = move_sums(sums[b], theirs, mine, weights)
        cost += change
        if cost < best_cost:
            best, best_cost = flatten(groups), cost
    return best, best_cost


def choose_swap(
    ours: list[Block], theirs: list[Block], rng: random.Random
) -> tuple[list[Block], list[Block]] | None:
    """Choose a block and, of the other group, blocks with as many pupils together."""
    block, other = ours[choose_one(len(ours), rng)], theirs[choose_one(len(theirs), rng)]
    if len(block) == len(other):
        return [block], [other]
    if len(block) < len(other):
        return None  # comes up the other way round
    taken: list[Block] = []
    for candidate in rng.sample(theirs, len(theirs)):
        if sum(map(len, taken)) + len(candidate) <= len(block):
            taken.append(candidate)
    return ([block], taken) if sum(map(len, taken)) == len(block) else None


def weigh_swap(
    mine: list[int], theirs: list[int], ours: list[int], others: list[int], weights: Weights
) -> int:
    """Return what the cost changes by when `mine` and `theirs` change places."""
    if len(mine) == len(theirs) == 1:  # by far the most common, so without the sums
        i, j = mine[0], theirs[0]
        return others[i] - ours[i] + ours[j] - others[j] - 2 * weights[i][j]
    change = sum(others[i] - ours[i] for i in mine) + sum(ours[j] - others[j] for j in theirs)
    # They would meet the ones who leave, and count themselves twice.
    change -= 2 * sum(weights[i][j] for i in mine for j in theirs)
    change += 2 * sum(weights[i][j] for i, j in combinations(mine, 2))
    return change + 2 * sum(weights[i][j] for i, j in combinations(theirs, 2))


def move_sums(sums: list[int], leave: list[int], join: list[int], weights: Weights) -> list[int]:
    """Return what everybody would weigh in a group after some have left and some have joined."""
    for out, into in zip(leave, join, strict=True):
        changes = zip(sums, weights[out], weights[into], strict=True)
        sums = [weight - less + more for weight, less, more in changes]
    return sums


def choose_one(count: int, rng: random.Random) -> int:
    # Several times faster than randrange, which matters here; the bias is 1 in 2**53.
    return int(rng.random() * count)


def choose_two(count: int, rng: random.Random) -> tuple[int, int]:
    """Return two different numbers below `count`."""
    a, b = choose_one(count, rng), choose_one(count - 1, rng)
    return a, b + (b >= a)


def flat(blocks: list[Block]) -> list[int]:
    return [i for block in blocks for i in block]


def flatten(groups: list[list[Block]]) -> list[list[int]]:
    return [flat(group) for group in groups]


# --- seating --------------------------------------------------------------------------------------


def list_neighbours(seats: int, columns: int) -> list[tuple[int, int, int]]:
    """List the neighbours among seats in rows: (seat, seat, closeness)."""
    beside = [(s, s + 1, BESIDE) for s in range(seats - 1) if (s + 1) % columns]
    behind = [(s, s + columns, BEHIND) for s in range(seats - columns)]
    return beside + behind


def seat(count: int, columns: int, weights: Weights, rng: random.Random) -> list[int]:
    """Place pupils on the first seats so that neighbours weigh as little as can be found."""
    near: list[list[tuple[int, int]]] = [[] for _ in range(count)]
    for a, b, closeness in list_neighbours(count, columns):
        near[a].append((b, closeness))
        near[b].append((a, closeness))
    best, best_cost = [], math.inf
    for _ in range(SEARCH_TRIES):
        start = rng.sample(range(count), count)
        seats, cost = anneal_seats(start, near, weights, rng)
        if cost < best_cost:
            best, best_cost = seats, cost
        if best_cost < PENALTY:
            break
    return best


def anneal_seats(
    seats: list[int], near: list[list[tuple[int, int]]], weights: Weights, rng: random.Random
) -> tuple[list[int], int]:
    def weigh(*changed: int) -> int:
        return sum(
            closeness * weights[seats[s]][seats[t]] for s in changed for t, closeness in near[s]
        )

    count = len(seats)
    cost = weigh(*range(count)) // 2
    best, best_cost = seats.copy(), cost
    heat = 6.0 * REPEAT_WEIGHT
    cooling = (1 / 200) ** (1 / SEARCH_STEPS)
    for _ in range(SEARCH_STEPS if count > 1 else 0):
        if best_cost == 0:
            break
        heat *= cooling
        a, b = choose_two(count, rng)
        before = weigh(a, b)
        seats[a], seats[b] = seats[b], seats[a]
        # Two neighbours count their own pair twice before and after, which cancels out.
        change = weigh(a, b) - before
        if change > 0 and rng.random() >= math.exp(-change / heat):
            seats[a], seats[b] = seats[b], seats[a]
            continue
        cost += change
        if cost < best_cost:
            best, best_cost = seats.copy(), cost
    return best, best_cost


# --- the steps ------------------------------------------------------------------------------------


def assign_groups(roster: Roster, memory: Memory, values: dict[str, Any]) -> list[JsonObject]:
    """”Gör grupper”."""
    remember_form(memory, values, ("mode", "number", "klass", "together", "apart"))
    present = choose_present(roster, memory, values)
    rng = memory.begin_turn()
    if values.get("redo") and memory.divisions:
        memory.divisions.pop()
    warned: list[str] = []
    sizes = make_sizes(len(present), values["mode"], values["number"])
    apart = index_rules(memory.form, "apart", roster, present, warned)
    together = index_rules(memory.form, "together", roster, present, warned)
    apart_pairs = {pair for rule in apart for pair in combinations(sorted(rule), 2)}
    blocks, refused = join_blocks(together, apart_pairs, sizes, len(present), rng)
    weights = weigh_divisions(present, memory.divisions)
    met = {(i, j) for i, j in combinations(range(len(present)), 2) if weights[i][j]}
    add_penalties(weights, apart_pairs)
    found = divide(blocks, sizes, weights, rng)
    found = [sorted(group) for group in rng.sample(found, len(found))]
    for rule, reason in refused:
        warned.append(f"{name_all(present, rule)} kunde inte vara ihop: {reason}.")
    pairs = [pair for group in found for pair in combinations(group, 2)]
    warned += [
        f"{name_all(present, rule)} ska hållas isär, men de är {len(rule)} och grupperna bara "
        f"{len(sizes)}."
        for rule in apart
        if len(rule) > len(sizes)
    ]
    warn_about_apart(present, [pair for pair in pairs if pair in apart_pairs], warned)
    groups = [[present[i].name for i in group] for group in found]
    memory.divisions.append(groups)
    summary = describe_division(groups, sum(pair in met for pair in pairs), len(pairs), memory)
    return [
        *show_warnings(warned),
        show_groups(groups),
        markdown(summary),
        *show_absent(memory),
    ]


def assign_seats(roster: Roster, memory: Memory, values: dict[str, Any]) -> list[JsonObject]:
    """”Placering”: in rows and columns, or in a line when both are left out."""
    remember_form(memory, values, ("order", "rows", "columns", "klass", "apart"))
    present = choose_present(roster, memory, values)
    rng = memory.begin_turn()
    if values.get("redo") and memory.seatings:
        memory.seatings.pop()
    rows, columns = choose_room(len(present), values.get("rows"), values.get("columns"))
    is_line = values.get("rows") is None and values.get("columns") is None
    warned: list[str] = []
    order = values["order"]
    if order == RANDOM:
        weights = weigh_seatings(present, memory.seatings)
        apart = index_rules(memory.form, "apart", roster, present, warned)
        apart_pairs = {pair for rule in apart for pair in combinations(sorted(rule), 2)}
        earlier = [row.copy() for row in weights]
        add_penalties(weights, apart_pairs)
        places = seat(len(present), columns, weights, rng)
        sides = [(places[a], places[b]) for a, b, _ in list_neighbours(len(places), columns)]
        near = [(min(pair), max(pair)) for pair in sides]
        warn_about_apart(present, [pair for pair in near if pair in apart_pairs], warned)
        repeated = sum(earlier[i][j] > 0 for i, j in near)
        summary = tell_repeats(repeated, len(near), "suttit intill varandra")
    else:
        last_first = order == BY_LAST
        by_name = sorted(present, key=lambda p: name_key(p, last_first=last_first))
        places = [present.index(pupil) for pupil in by_name]
        summary = f"I bokstavsordning på {'efternamn' if last_first else 'förnamn'}."
        if memory.form.get("apart"):
            summary += " Önskemålen om isär gäller bara när du slumpar."
    names = [present[i].name for i in places]
    seating = Seating(columns, is_line, names + [""] * (rows * columns - len(names)))
    memory.seatings.append(seating)
    return [
        *show_warnings(warned),
        show_seating(seating),
        markdown(summary),
        *show_absent(memory),
    ]


def draw_pupil(roster: Roster, memory: Memory, values: dict[str, Any]) -> list[JsonObject]:
    """”Slumpa en elev”: of those whose turn it has not been in this round."""
    remember_form(memory, values, ("klass",))
    present = choose_present(roster, memory, values)
    rng = memory.begin_turn()
    if not present:
        raise ToolUserError("Ingen elev är närvarande.")
    klass = values.get("klass", ALL_CLASSES)
    pool = [pupil.name for pupil in roster.pupils if klass in (ALL_CLASSES, pupil.klass)]
    # Rounds and not counts: who was away for a month is not drawn four times in a row.
    round_ = max(max(memory.drawn.get(name, 0) for name in pool), 1)
    waiting = [pupil.name for pupil in present if memory.drawn.get(pupil.name, 0) < round_]
    is_new_round = not waiting
    if is_new_round:
        round_ += 1
        latest = next(reversed(memory.drawn), None)
        waiting = [p.name for p in present if p.name != latest] or [present[0].name]
    name = rng.choice(waiting)
    memory.drawn.pop(name, None)
    memory.drawn[name] = round_
    done = sum(memory.drawn.get(other, 0) == round_ for other in pool)
    text = f"# {escape_markdown(name)}\n\n{done} av {len(pool)} elever har fått frågan i omgången."
    if is_new_round:
        text += " Alla närvarande hade fått den, så en ny omgång börjar."
    return [markdown(text), *show_absent(memory)]


def export(roster: Roster, memory: Memory, values: dict[str, Any]) -> list[JsonObject]:
    """”Exportera”: the latest groups and seating, as one workbook and as CSV files."""
    sheets: dict[str, Grid] = {}
    classes = {pupil.name: pupil.klass for pupil in roster.pupils}
    if memory.divisions:
        sheets["Grupper"] = [["Grupp", "Elev", "Klass"]] + [
            [f"Grupp {number}", name, classes.get(name, "")]
            for number, group in enumerate(memory.divisions[-1], 1)
            for name in group
        ]
    if memory.seatings:
        sheets["Placering"] = make_seating_grid(memory.seatings[-1])
    if not sheets:
        raise ToolUserError(
            "Det finns inget att exportera än. Gör grupper eller en placering först."
        )
    names = [write_xlsx(sheets)]
    names += [write_csv(title, grid) for title, grid in sheets.items()]
    message = f"Klart att ladda ner: {', '.join(names)}."
    outputs = [notice(message)]
    used = [name for groups in memory.divisions[-1:] for group in groups for name in group]
    used += [name for seating in memory.seatings[-1:] for name in seating.seats if name]
    gone = [name for name in dict.fromkeys(used) if name not in classes]
    if gone:
        outputs.append(
            notice(f"Gjort med en tidigare lista, med elever utanför den här: {join_names(gone)}.")
        )
    return outputs


def forget(roster: Roster, memory: Memory, values: dict[str, Any]) -> list[JsonObject]:
    """”Glöm tidigare grupper”: everything but the rules and the settings of the forms."""
    count = len(memory.divisions)
    memory.divisions, memory.seatings, memory.drawn = [], [], {}
    told = f"{count} {'indelning' if count == 1 else 'indelningar'} i grupper"
    return [
        notice(
            f"Nu är {told} glömda, liksom tidigare placeringar och vilka som har fått frågan. "
            "Dina önskemål om ihop och isär finns kvar."
        )
    ]


Step = Callable[[Roster, Memory, dict[str, Any]], list[JsonObject]]
# Shown in the order of their ids.
STEPS: dict[str, Step] = {
    "assign_groups": assign_groups,
    "assign_seats": assign_seats,
    "draw_pupil": draw_pupil,
    "export": export,
    "forget": forget,
}


# --- what the steps share -------------------------------------------------------------------------


def choose_present(roster: Roster, memory: Memory, values: Mapping[str, Any]) -> list[Pupil]:
    """Return the pupils of the chosen class who are not absent; remember who is, for today."""
    memory.absent = values.get("absent", [])
    memory.absent_on = today() if memory.absent else ""
    klass = values.get("klass", ALL_CLASSES)
    return [
        pupil
        for pupil in roster.pupils
        if klass in (ALL_CLASSES, pupil.klass) and pupil.name not in memory.absent
    ]


def remember_form(memory: Memory, values: Mapping[str, Any], names: Iterable[str]) -> None:
    """Keep what the form said for the next one; what was left blank is blank there too.

    The first form after an upload cannot show the rules: there, blank means the remembered ones.
    """
    for name in names:
        is_kept = values.get("saved_rules") and name in {"together", "apart"}
        if name in values:
            memory.form[name] = values[name]
        elif not is_kept:
            memory.form.pop(name, None)


def index_rules(
    form: Mapping[str, Any], name: str, roster: Roster, present: list[Pupil], warned: list[str]
) -> list[list[int]]:
    """Read one field of rules as places in `present`; the absent are left out of their rules."""
    places = {pupil: i for i, pupil in enumerate(present)}
    rules = read_rules(form.get(name, ""), roster, RULE_LABELS[name], warned.append)
    found = [[places[pupil] for pupil in rule if pupil in places] for rule in rules]
    return [rule for rule in found if len(rule) > 1]


def add_penalties(weights: Weights, pairs: Iterable[tuple[int, int]]) -> None:
    for i, j in pairs:
        weights[i][j] += PENALTY
        weights[j][i] += PENALTY


def warn_about_apart(
    present: list[Pupil], broken: list[tuple[int, int]], warned: list[str]
) -> None:
    if broken:
        pairs = join_names(name_all(present, pair) for pair in broken)
        warned.append(
            f"Allt gick inte ihop, så några som ska hållas isär hamnade intill varandra: {pairs}."
        )


def choose_room(count: int, rows: int | None, columns: int | None) -> tuple[int, int]:
    """Return rows and columns with a seat for each; without any, one row as a turn order.

    Raises:
        ToolUserError: nobody to seat, too few seats, or a figure that is no room.
    """
    if count < 1:
        raise ToolUserError("Ingen elev är närvarande.")
    if rows is None and columns is None:
        return 1, count
    given = [number for number in (rows, columns) if number is not None]
    if any(not 1 <= number <= ROOM_MAX for number in given):
        raise ToolUserError(f"Rader och platser ska vara mellan 1 och {ROOM_MAX}.")
    rows = rows or math.ceil(count / given[0])
    columns = columns or math.ceil(count / given[0])
    if columns > ROOM_MAX:
        raise ToolUserError(f"Det blir {columns} platser i varje rad. Välj fler rader.")
    if rows * columns < count:
        raise ToolUserError(
            f"{rows} rader med {columns} platser räcker inte: {rows * columns} platser, men "
            f"{count} elever."
        )
    return rows, columns


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def sort_key(text: str) -> str:
    """Sort as in Swedish: å, ä and ö after z, other accents as without."""
    plain = unicodedata.normalize("NFC", text).casefold().translate(SWEDISH_LETTERS)
    return "".join(c for c in unicodedata.normalize("NFD", plain) if not unicodedata.combining(c))


def name_key(pupil: Pupil, *, last_first: bool) -> tuple[str, ...]:
    names = (pupil.last or pupil.first, pupil.first) if last_first else (pupil.first, pupil.last)
    return (*map(sort_key, names), pupil.name)


def trim(row: list[str]) -> list[str]:
    """Return a row without the empty cells at its end."""
    width = max((i for i, cell in enumerate(row, 1) if cell), default=0)
    return row[:width]


def shorten(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:39]}…"


def join_names(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - LISTED_MAX
    return ", ".join(listed[:LISTED_MAX]) + (f" och {more} till" if more > 0 else "")


def name_all(present: list[Pupil], places: Sequence[int]) -> str:
    *names, last = (present[i].name for i in places)
    return f"{', '.join(names)} och {last}"


def escape_markdown(text: str) -> str:
    return re.sub(r"([\\`*_{}\[\]<>()#+.!|~&-])", r"\\\1", text)


# --- what is shown --------------------------------------------------------------------------------


def show_roster(roster: Roster) -> list[JsonObject]:
    """Show what was read, so that the teacher sees at once whether it is right."""
    count = len(roster.pupils)
    words = "1 elev" if count == 1 else f"{count} elever"
    text = f"**{words}** i {escape_markdown(roster.file_name)}."
    if roster.classes:
        text += f" Klasser: {escape_markdown(', '.join(roster.classes))}. Välj klass i varje steg."
    columns = [("number", "Nr"), ("name", "Namn"), ("klass", "Klass")]
    if not any(pupil.klass for pupil in roster.pupils):
        columns.pop()
    rows = [
        {"number": number, "name": pupil.name, "klass": pupil.klass}
        for number, pupil in enumerate(roster.pupils, 1)
    ]
    shown = {key for key, _ in columns}
    return [
        *(notice(remark, "warning") for remark in roster.remarks),
        markdown(f"{text}\n\nVad vill du göra?"),
        table(columns, [{k: row[k] for k in row.keys() & shown} for row in rows], "Klasslistan"),
    ]


def show_groups(groups: list[list[str]]) -> JsonObject:
    """Make a table, a group to a row or to a column: whichever gives the fewer columns."""
    longest = max(map(len, groups))
    titles = [f"Grupp {number}" for number in range(1, len(groups) + 1)]
    if len(groups) < longest:
        columns = [(title, title) for title in titles]
        rows = [
            {title: group[i] for title, group in zip(titles, groups, strict=True) if i < len(group)}
            for i in range(longest)
        ]
        return table(columns, rows, "Grupper")
    columns = [("group", "Grupp"), *((str(i), f"Elev {i}") for i in range(1, longest + 1))]
    rows = [
        {"group": title, **{str(i): name for i, name in enumerate(group, 1)}}
        for title, group in zip(titles, groups, strict=True)
    ]
    return table(columns, rows, "Grupper")


def make_seating_grid(seating: Seating) -> Grid:
    """Write a seating with its headings: by rows from the front, or as a numbered list."""
    if seating.is_line:
        return [["Nr", "Elev"], *([str(i), name] for i, name in enumerate(seating.seats, 1))]
    starts = range(0, len(seating.seats), seating.columns)
    rows = [seating.seats[start : start + seating.columns] for start in starts]
    header = ["Rad", *(f"Plats {number}" for number in range(1, seating.columns + 1))]
    return [header, *([f"Rad {number}", *row] for number, row in enumerate(rows, 1))]


def show_seating(seating: Seating) -> JsonObject:
    header, *rows = make_seating_grid(seating)
    title = "Turordning" if seating.is_line else "Placering (rad 1 är närmast tavlan)"
    return table(
        [(str(i), label) for i, label in enumerate(header)],
        [{str(i): cell for i, cell in enumerate(row)} for row in rows],
        title,
    )


def describe_division(groups: list[list[str]], repeated: int, total: int, memory: Memory) -> str:
    count = sum(map(len, groups))
    words = "1 grupp" if len(groups) == 1 else f"{len(groups)} grupper"
    sizes = sorted({len(group) for group in groups})
    text = f"{count} elever i {words} med {' eller '.join(map(str, sizes))} i varje. "
    if len(memory.divisions) == 1:
        return text + "Nästa gång ser jag till att de helst får nya kamrater."
    return text + tell_repeats(repeated, total, "varit i samma grupp")


def tell_repeats(repeated: int, total: int, what: str) -> str:
    if repeated == 0:
        return f"Inga har {what} tidigare."
    return f"{repeated} av {total} par har {what} tidigare; färre än så hittade jag inte."


def show_warnings(warned: list[str]) -> list[JsonObject]:
    """Show each warning once, and of very many the first."""
    unique = list(dict.fromkeys(warned))
    more = len(unique) - WARNINGS_MAX
    shown = unique[:WARNINGS_MAX] + ([f"Och {more} varningar till."] if more > 0 else [])
    return [notice(message, "warning") for message in shown]


def show_absent(memory: Memory) -> list[JsonObject]:
    if not memory.absent:
        return []
    return [notice(f"Frånvarande ({len(memory.absent)}): {join_names(memory.absent)}.")]


# --- what is offered ------------------------------------------------------------------------------


def offer_actions(roster: Roster, memory: Memory | None) -> list[JsonObject]:
    """Offer all steps, their forms filled as they were last; no memory is that of a first run."""
    form = {} if memory is None else dict(memory.form)
    names = {pupil.name for pupil in roster.pupils}
    form.setdefault("mode", BY_SIZE)
    form.setdefault("number", 4)
    form.setdefault("order", RANDOM)
    if form.get("klass") not in roster.classes:
        form["klass"] = ALL_CLASSES
    if memory is not None and memory.absent_on == today():
        form["absent"] = [name for name in memory.absent if name in names]
    if memory is None:
        form["saved_rules"] = True

    absent = multi_enum_field(
        "absent", "Frånvarande i dag", [pupil.name for pupil in roster.pupils]
    )
    whom = [absent]
    if roster.classes:
        options = [(ALL_CLASSES, "Alla"), *((klass, klass) for klass in roster.classes)]
        whom.insert(0, enum_field("klass", "Klass", options))
    together = text_field("together", f"{RULE_LABELS['together']} (ett önskemål per rad: Anna, Bo)")
    apart = text_field("apart", f"{RULE_LABELS['apart']} (ett önskemål per rad: Anna, Bo)")
    saved = boolean_field("saved_rules", "Använd mina önskemål från förra gången där det är tomt")
    saved_rules = [saved] if memory is None else []
    modes = [(BY_SIZE, "Elever per grupp"), (BY_COUNT, "Antal grupper")]
    orders = [
        (RANDOM, "Slumpa, med nya grannar"),
        (BY_FIRST, "Bokstavsordning på förnamn"),
        (BY_LAST, "Bokstavsordning på efternamn"),
    ]
    groups = [
        enum_field("mode", "Dela in efter", modes, required=True),
        integer_field("number", "Antal", required=True),
        *whom,
        together,
        apart,
        *saved_rules,
    ]
    seats = [
        enum_field("order", "Ordning", orders, required=True),
        integer_field("rows", "Rader (tomt för en enkel turordning)"),
        integer_field("columns", "Platser i varje rad"),
        *whom,
        apart,
        *saved_rules,
    ]
    if memory is None or memory.divisions:
        groups.append(boolean_field("redo", "Gör om de senaste grupperna (de räknas då inte)"))
    if memory is None or memory.seatings:
        seats.append(boolean_field("redo", "Gör om den senaste placeringen (den räknas då inte)"))
    return [
        offer("assign_groups", "Gör grupper", groups, form),
        offer("assign_seats", "Placering", seats, form),
        offer("draw_pupil", "Slumpa en elev", whom, form),
        offer("export", "Exportera", [], form),
        offer("forget", "Glöm tidigare grupper", [], form),
    ]


def offer(
    action_id: str, label: str, fields: list[JsonObject], form: Mapping[str, Any]
) -> JsonObject:
    names = [str(field["name"]) for field in fields]
    return action(action_id, label, fields, {name: form[name] for name in names if name in form})


# --- export ---------------------------------------------------------------------------------------


def write_xlsx(sheets: Mapping[str, Grid]) -> str:
    """Write a workbook with a sheet each; every cell is text, so none is ever a formula."""
    import openpyxl
    from openpyxl.styles import Font  # type: ignore[import-untyped]
    from openpyxl.utils import get_column_letter  # type: ignore[import-untyped]

    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, grid in sheets.items():
        sheet = book.create_sheet(title)
        for row_number, row in enumerate(grid, 1):
            for column, text in enumerate(row, 1):
                cell = sheet.cell(row_number, column)
                cell.value, cell.data_type = text, "s"
                cell.font = Font(bold=row_number == 1)
        for number in range(1, len(grid[0]) + 1):
            width = max(len(row[number - 1]) for row in grid if number <= len(row))
            sheet.column_dimensions[get_column_letter(number)].width = min(width + 3, 60)
        sheet.freeze_panes = "A2"
    name = "klasslista.xlsx"
    book.save(output_path(name))
    return name


def write_csv(title: str, grid: Grid) -> str:
    """Write a file that Excel opens rightly in Sweden: semicolons, and UTF-8 with its mark."""
    name = f"{title.casefold()}.csv"
    with output_path(name).open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.writer(file, delimiter=";")
        # A cell of CSV has no type, so an apostrophe keeps a spreadsheet from computing it.
        writer.writerows(
            [f"'{cell}" if cell.startswith(FORMULA_START) else cell for cell in row] for row in grid
        )
    return name
