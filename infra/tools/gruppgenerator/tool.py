"""Gruppgenerator: a roster in; random groups out, step by step until the teacher is content.

The roster is read again in every step. The state knows pupils by their place in it, beside a
fingerprint of their names: it holds no names but those in the teacher's wishes, and groups are
never shown over another list. All chance comes from the number that is shown with the groups: the
same roster, form and number give the same groups, in whichever process.
"""

import csv
import hashlib
import io
import math
import random
import re
import secrets
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import combinations, islice, zip_longest
from typing import Any

import openpyxl  # type: ignore[import-untyped]
from skriptoteket_toolkit import (
    InputFile,
    ToolUserError,
    action,
    decode_text,
    enum_field,
    get_action_parts,
    integer_field,
    list_input_files,
    multi_enum_field,
    notice,
    output_path,
    string_field,
    table,
    text_field,
    weigh_workbook,
)

JsonObject = dict[str, object]
Grid = list[list[str]]

FILE_MAX_BYTES, UNPACKED_MAX_BYTES = 5_000_000, 10_000_000
ROWS_MAX, COLUMNS_MAX, PUPILS_MAX = 2_000, 60, 300
NAME_MAX_CHARS = 80
# The titles of all groups fill one field of a form, with at most 16 KiB.
GROUPS_MAX, TITLE_MAX_CHARS = 100, 40
WISHES_MAX_BYTES = 6_000
MIX_COLUMNS_MAX, MIX_VALUES_MAX = 8, 20
ENUM_MAX, MULTI_ENUM_MAX = 100, 200  # options that the platform shows
SIDE_BY_SIDE_MAX, CELL_MAX_CHARS = 12, 120
LISTED_MAX, WARNINGS_MAX = 8, 20

SEARCH_STEPS, SEARCH_TRIES = 30_000, 4
# What two pupils in one group weigh. All that mixing can weigh is less than one wish.
TOGETHER, APART = -(10**6), 10**7

HEADERS = {
    "first": "förnamn fornamn tilltalsnamn first_name firstname given_name",
    "last": "efternamn släktnamn last_name lastname surname family_name",
    "full": "namn name elev elever elevnamn elevens_namn student fullständigt_namn full_name "
    "efternamn,_förnamn efternamn_förnamn förnamn_efternamn förnamn_och_efternamn visningsnamn",
}
ROLES = {title.replace("_", " "): role for role, text in HEADERS.items() for title in text.split()}
SUMMARY_ROW = re.compile(r"(antal|summa|totalt?|utskrift|utskriven|sida|källa)\b[\s:]", re.I)
IDENTITY = re.compile(r"@|\d{6}")  # an address or a personal number: nothing to mix by
NO_TABLE = (b"%PDF", b"\x89PNG", b"\xff\xd8\xff", b"<", b"{")
FORMULA_START = tuple("=+-@＝＋－＠")
BY_SIZE, BY_COUNT = "size", "count"
WISHES = {"together": "Håll ihop", "apart": "Håll isär"}
PAGE_STYLE = (
    "body{font:12pt/1.35 sans-serif;margin:1.5em}main{display:grid;gap:1em;"
    "grid-template-columns:repeat(auto-fill,minmax(13em,1fr))}section{border:1px solid #999;"
    "border-radius:6px;padding:.6em 1em;break-inside:avoid}h2{font-size:1.1em;margin:0 0 .3em}"
    "ol{margin:0;padding-left:1.6em}li{overflow-wrap:anywhere}@page{size:A4;margin:15mm}"
)


@dataclass(frozen=True)
class Roster:
    """Unique names in the order of the file, and the columns that groups can be mixed by."""

    names: list[str]
    columns: dict[str, list[str]]
    remarks: list[str]

    @property
    def fingerprint(self) -> str:
        told = "\n".join([*self.names, "", *self.columns])
        return hashlib.sha256(told.encode()).hexdigest()[:16]


@dataclass
class Plan:
    """The state: the present groups, pupils by their place in the roster, and the last form."""

    number: int = 0
    titles: list[str] = field(default_factory=list)
    groups: list[list[int]] = field(default_factory=list)
    is_changed: bool = False  # so that the number alone does not give these groups
    form: dict[str, Any] = field(default_factory=dict)


def run_tool(input_dir: str, output_dir: str) -> JsonObject:
    """Show an uploaded roster, or do one of the steps that are offered with it."""
    action_id, values, state = get_action_parts()
    roster = read_roster(is_step=action_id is not None)
    if action_id is None:
        # No state means "unchanged": earlier groups can be taken up again with their list.
        return {"outputs": show_roster(roster), "next_actions": offer_actions(roster, None)}
    step = STEPS.get(action_id)
    if step is None:
        raise ToolUserError("Verktyget känner inte till det steget.")
    plan = read_plan(state, roster)
    if plan.groups or step is divide:
        outputs = [*step(roster, plan, values), *show_groups(roster, plan)]
    else:
        text = "Det finns inga grupper än. Gör grupper först."
        if state.get("groups"):
            text = (
                "Klasslistan är inte densamma som grupperna gjordes av, så de kan inte visas. Dina "
                "önskemål finns kvar i formuläret: gör nya grupper."
            )
        outputs = [notice(text, "warning"), *show_roster(roster)]
    return {
        "outputs": outputs,
        "next_actions": offer_actions(roster, plan),
        "state": {"version": 1, "roster": roster.fingerprint, **vars(plan)},
    }


def read_plan(state: Mapping[str, Any], roster: Roster) -> Plan:
    """Return the plan that the state holds for this roster; of another one, only the form."""
    if state.get("version") != 1:
        return Plan()
    if state["roster"] != roster.fingerprint:
        return Plan(form={**state["form"], "absent": [], "mix": []})
    return Plan(**{name: state[name] for name in vars(Plan())})


# --- reading the roster ---------------------------------------------------------------------------


def read_roster(*, is_step: bool) -> Roster:
    """Read the one uploaded file.

    Raises:
        ToolUserError: no file, several, too large, of another kind, or without pupils.
    """
    files = list_input_files()
    if len(files) > 1:
        raise ToolUserError("Ladda upp en klasslista i taget.")
    if not files:
        again = "Klasslistan finns inte kvar. Ladda upp den igen och välj ”Fortsätt där du var”."
        raise ToolUserError(again if is_step else "Ladda upp en klasslista först.")
    file = files[0]
    if file.bytes > FILE_MAX_BYTES:
        raise ToolUserError(
            f"{file.name} är för stor för en klasslista (högst {FILE_MAX_BYTES // 10**6} MB). "
            "Spara bara bladet med eleverna i en egen fil."
        )
    data = file.path.read_bytes()
    remarks: list[str] = []
    grid = read_workbook(file, remarks) if data.startswith(b"PK") else read_text(file.name, data)
    if not grid:
        raise ToolUserError(f"{file.name} är tom.")
    roles, start = find_header(grid)
    if not roles and sum(is_name_like(row[0]) for row in grid) >= 0.8 * len(grid):
        roles = {"full": 0}
        remarks.append(
            "Jag hittade inga rubriker, så jag läste den första kolumnen som elevernas namn. "
            "Stämmer det inte: skriv till exempel Förnamn, Efternamn och Klass på första raden."
        )
    names, rows = read_names(grid[start:], roles, remarks)
    if not 2 <= len(names) <= PUPILS_MAX:
        raise ToolUserError(
            f"Jag hittar {len(names) or 'inga'} elever i {file.name}; det ska vara 2 till "
            f"{PUPILS_MAX}. Skriv rubriker på första raden, till exempel Förnamn, Efternamn och "
            "Klass, med en elev på varje rad under."
        )
    return Roster(names, find_mixable(grid[start - 1] if start else [], rows, roles), remarks)


def read_text(name: str, data: bytes) -> Grid:
    """Decode and split a text file, by whichever delimiter makes a roster of it."""
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise ToolUserError(
            f"{name} är skyddad med lösenord eller i det äldre Excel-formatet (.xls). Öppna den i "
            "Excel, välj Spara som och ”Excel-arbetsbok (.xlsx)”, utan lösenord."
        )
    text = decode_text(data)
    if data.lstrip().startswith(NO_TABLE) or "\0" in text:
        raise ToolUserError(f"{name} är ingen tabell. Spara klasslistan som .xlsx eller .csv.")
    hint = re.match(r"sep=(.)\r?\n", text)  # Excel's own way to name the delimiter
    text = text[hint.end() :] if hint else text
    ways = []
    for mark in hint[1] if hint else ";\t,":
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=True)
        try:
            grid = clean_grid(reader)
        except csv.Error:
            raise ToolUserError(
                f"{name} går inte att läsa som tabell. Öppna den i Excel och spara som .xlsx."
            ) from None
        # The comma of ”Berg, Anna” parts no columns, unless the headers say so.
        marks = text.count(mark) - text.count(f"{mark} ")
        ways.append((len(find_header(grid)[0]), marks, grid))
    return max(ways, key=lambda way: way[:2])[2]


def read_workbook(file: InputFile, remarks: list[str]) -> Grid:
    """Read the first visible sheet with a roster's headers, else the first that is not empty."""
    try:
        is_small = weigh_workbook(file.path) <= UNPACKED_MAX_BYTES
        sheets = read_sheets(file) if is_small else {}
    except Exception:
        # A damaged workbook, or a zip file that is none, fails anywhere in zip, XML or openpyxl.
        raise ToolUserError(
            f"{file.name} går inte att öppna som Excel-fil. Öppna den i Excel och spara den på "
            "nytt som ”Excel-arbetsbok (.xlsx)”, eller som CSV."
        ) from None
    if not is_small:
        raise ToolUserError(f"{file.name} är för stor för en klasslista när den packas upp.")
    filled = [title for title, grid in sheets.items() if grid]
    usable = [title for title in filled if find_header(sheets[title])[0]] or filled
    if len(usable) > 1:
        remarks.append(
            f"Filen har flera blad. Jag läste ”{usable[0]}” och inte {join_names(usable[1:])}. "
            "Vill du ha ett annat: lägg det först i filen, eller spara det för sig."
        )
    return sheets[usable[0]] if usable else []


def read_sheets(file: InputFile) -> dict[str, Grid]:
    sheets = {}
    with warnings.catch_warnings(), file.path.open("rb") as stream:
        warnings.simplefilter("ignore")  # of styles and extensions, which hold no names
        book = openpyxl.load_workbook(stream, read_only=True, data_only=True)
        for sheet in book.worksheets:
            # Some programs write a wrong size of the sheet, by which rows would be cut.
            sheet.reset_dimensions()
            if sheet.sheet_state == "visible":
                sheets[sheet.title] = clean_grid(sheet.iter_rows(values_only=True))
    return sheets


def clean_grid(rows: Iterable[Iterable[object]]) -> Grid:
    """Return the rows that hold anything; what is beyond a roster's size is left unread."""
    grid = [list(map(clean_cell, islice(row, COLUMNS_MAX))) for row in islice(rows, ROWS_MAX)]
    return [row for row in grid if any(row)]


def clean_cell(value: object) -> str:
    """Return a cell as one line of text, without invisible characters."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = unicodedata.normalize("NFC", "" if value is None else str(value)[:1000])
    return " ".join("".join(c for c in text if c.isprintable() or c.isspace()).split())


def find_header(grid: Grid) -> tuple[dict[str, int], int]:
    """Return the columns of names by role and the first row under them; titles may stand above."""
    for start, row in enumerate(grid[:20], 1):
        roles: dict[str, int] = {}
        for column, cell in enumerate(row):
            if role := ROLES.get(cell.casefold().strip(" :*")):
                roles.setdefault(role, column)
        if "last" in roles and "first" not in roles and "full" in roles:
            roles["first"] = roles.pop("full")  # ”Namn” beside ”Efternamn” is the first name
        if roles.keys() & {"first", "full"}:
            return roles, start
    return {}, 0


def is_name_like(cell: str) -> bool:
    return 2 <= len(cell) <= 60 and cell[0].isalpha() and not re.search(r"[\d@:?!/=]|\.$", cell)


def read_names(grid: Grid, roles: Mapping[str, int], remarks: list[str]) -> tuple[list[str], Grid]:
    """Return the pupils' names, made unique by a number, with their rows."""
    names: dict[str, str] = {}  # by what they are compared by
    rows, odd, namesakes = [], [], []
    for row in grid if roles else []:
        cells = {role: row[column] if column < len(row) else "" for role, column in roles.items()}
        name = f"{cells.get('first', '')} {cells.get('last', '')}".strip() or cells.get("full", "")
        if name.count(",") == 1:  # ”Berg, Anna”
            name = " ".join(part.strip() for part in reversed(name.split(","))).strip()
        is_name = any(map(str.isalpha, name)) and len(name) <= NAME_MAX_CHARS
        if not is_name or SUMMARY_ROW.match(f"{row[0]} "):
            odd.append(f"”{shorten(' '.join(filter(None, row)))}”")
            continue
        unique, number = name, 1
        while unique.casefold() in names:
            number += 1
            unique = f"{name} ({number})"
        namesakes += [unique] * (number > 1)
        names[unique.casefold()] = unique
        rows.append(row)
    if odd:
        remarks.append(f"Hoppade över rader som inte ser ut som en elev: {join_names(odd)}.")
    if namesakes:
        remarks.append(f"Flera har samma namn, så några fick en siffra: {join_names(namesakes)}.")
    if re.search(r"Ã[¥¤¶…„–©]|\ufffd", " ".join(names.values())):
        remarks.append(
            "Vissa namn har konstiga tecken. Öppna listan i Excel, rätta dem och spara som .xlsx."
        )
    return list(names.values()), rows


def find_mixable(header: list[str], rows: Grid, roles: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the columns whose values several pupils share, by unique titles; no personal data."""
    columns: dict[str, list[str]] = {}
    for column in range(max(map(len, rows))):
        cells = [shorten(row[column]) if column < len(row) else "" for row in rows]
        kinds = set(cells) - {""}
        is_shared = 2 <= len(kinds) <= min(MIX_VALUES_MAX, len(rows) // 2)
        if column not in roles.values() and is_shared and not any(map(IDENTITY.search, kinds)):
            title = shorten(header[column] if column < len(header) else "")
            is_unique = title and title not in columns
            columns[title if is_unique else f"{title} (kolumn {column + 1})".strip()] = cells
    return dict(islice(columns.items(), MIX_COLUMNS_MAX))


# --- wishes and division --------------------------------------------------------------------------


def read_wishes(
    roster: Roster, form: Mapping[str, Any], name: str, warned: list[str]
) -> list[list[int]]:
    """Read a wish from each line, its names parted by commas or ”och”; tell what is unclear."""
    label, text = WISHES[name], form.get(name, "")
    if len(text.encode()) > WISHES_MAX_BYTES:
        raise ToolUserError(f"Önskemålen under ”{label}” är för många. Korta ner texten.")
    wishes = []
    for line in filter(str.strip, text.splitlines()):
        found: dict[int, None] = {}
        names = re.split(r"[,;&+/]|\s(?:och|and|[–-])\s", line)
        for part in filter(None, map(clean_cell, names)):
            places = find_pupils(roster, part)
            if len(places) == 1:
                found[places[0]] = None
            else:
                who = f"kan vara {join_names(roster.names[i] for i in places)}. Skriv hela namnet"
                warned.append(f"{label}: ”{shorten(part)}” {who if places else 'finns inte'}.")
        if len(found) > 1:
            wishes.append(list(found))
        else:
            warned.append(f"{label}: raden ”{shorten(line)}” följdes inte, den behöver två elever.")
    return wishes


def find_pupils(roster: Roster, name: str) -> list[int]:
    """Find who is meant, by the surest way that fits anybody: all of the name, or a part of it."""
    wanted = name.casefold()
    ways: list[Callable[[str], bool]] = [
        lambda other: other == wanted,
        lambda other: other.startswith(f"{wanted} "),
        lambda other: set(wanted.split()) <= set(other.split()),
        lambda other: other.startswith(wanted),
    ]
    found = ([i for i, n in enumerate(roster.names) if way(n.casefold())] for way in ways)
    return next(filter(None, found), [])


def check_wishes(roster: Roster, plan: Plan) -> list[JsonObject]:
    """Tell what was unclear in the wishes, and which of them the groups do not follow."""
    place = {i: g for g, group in enumerate(plan.groups) for i in group}
    warned: list[str] = []
    for name, wanted in (("together", True), ("apart", False)):
        for wish in read_wishes(roster, plan.form, name, warned):
            for i, j in combinations(filter(place.__contains__, wish), 2):
                if (place[i] == place[j]) is not wanted:
                    who = f"{roster.names[i]} och {roster.names[j]}"
                    warned.append(f"{WISHES[name]}: det gick inte med {who}.")
    told = list(dict.fromkeys(warned))
    if len(told) > WARNINGS_MAX:
        told[WARNINGS_MAX:] = [f"Och {len(told) - WARNINGS_MAX} varningar till."]
    return [notice(message, "warning") for message in told]


def make_sizes(count: int, mode: str, number: int) -> list[int]:
    """Return the sizes of the groups: no two differ by more than one."""
    if count < 2:
        raise ToolUserError("Det behövs minst två närvarande elever för att göra grupper.")
    if not 1 <= number <= count:
        raise ToolUserError(f"Antalet ska vara mellan 1 och {count}, som är hur många ni är.")
    # To the nearest; halfway, the smaller groups.
    groups = number if mode == BY_COUNT else max((2 * count + number) // (2 * number), 1)
    if groups > GROUPS_MAX:
        raise ToolUserError(f"Det blir {groups} grupper. Verktyget gör högst {GROUPS_MAX}.")
    small, larger = divmod(count, groups)
    return [small + 1] * larger + [small] * (groups - larger)


def regroup(roster: Roster, plan: Plan, free: list[int]) -> None:
    """Draw anew all who are in the groups `free`, by the plan's number and form."""
    members = sorted(i for g in free for i in plan.groups[g])
    weights = [[0] * len(roster.names) for _ in roster.names]
    for values in (roster.columns[title] for title in plan.form.get("mix", [])):
        for i, j in combinations(members, 2):
            weights[i][j] += values[i] == values[j] != ""
    for name, weight in (("together", TOGETHER), ("apart", APART)):
        for wish in read_wishes(roster, plan.form, name, []):
            for i, j in combinations(sorted(wish), 2):
                weights[i][j] = weight
    for i, j in combinations(range(len(weights)), 2):
        weights[j][i] = weights[i][j]
    drawn = draw_groups(members, [len(plan.groups[g]) for g in free], weights, plan.number)
    for g, group in zip(free, drawn, strict=True):
        plan.groups[g] = group


def draw_groups(
    members: list[int], sizes: list[int], weights: list[list[int]], number: int
) -> list[list[int]]:
    """Divide by chance, so that the pairs in the groups weigh as little as can be found.

    A greedy start, then simulated annealing over swaps of two; over again while wishes are broken.
    """
    rng = random.Random(number)
    goal = sum(min(weights[i][j], 0) for i, j in combinations(members, 2))
    best: list[list[int]] = []
    best_cost = math.inf
    for _ in range(SEARCH_TRIES):
        groups = place_greedily(members, sizes, weights, rng)
        cost = sum(weights[i][j] for group in groups for i, j in combinations(group, 2))
        for step in range(SEARCH_STEPS):
            if cost < best_cost:
                best, best_cost = [sorted(group) for group in groups], cost
            if best_cost == goal or len(groups) < 2:
                return best
            heat = 2.0 * 0.02 ** (step / SEARCH_STEPS)
            a, b = rng.sample(groups, 2)
            m, n = rng.randrange(len(a)), rng.randrange(len(b))
            i, j = weights[a[m]], weights[b[n]]
            change = sum(j[k] - i[k] for k in a) + sum(i[k] - j[k] for k in b) - 2 * i[b[n]]
            if change <= 0 or rng.random() < math.exp(-change / heat):
                a[m], b[n], cost = b[n], a[m], cost + change
        if best_cost - goal < -TOGETHER:
            break
    return best


def place_greedily(
    members: list[int], sizes: list[int], weights: list[list[int]], rng: random.Random
) -> list[list[int]]:
    """Place those with most wishes first, each where they weigh least and most seats are free."""
    groups: list[list[int]] = [[] for _ in sizes]
    order = rng.sample(members, len(members))
    for i in sorted(order, key=lambda i: -sum(map(abs, weights[i]))):
        ranked = [
            (sum(weights[i][k] for k in group), len(group) - size, rng.random(), g)
            for g, (group, size) in enumerate(zip(groups, sizes, strict=True))
            if len(group) < size
        ]
        groups[min(ranked)[-1]].append(i)
    return groups


# --- the steps ------------------------------------------------------------------------------------


def divide(roster: Roster, plan: Plan, values: Mapping[str, Any]) -> list[JsonObject]:
    """”Gör grupper”: of all who are present."""
    absent = values.get("absent", [])
    plan.form = {name: value for name, value in values.items() if name != "draw"}
    plan.form["absent"] = [i for i, name in enumerate(roster.names) if name in absent]
    present = (i for i, name in enumerate(roster.names) if name not in absent)
    sizes = make_sizes(len(roster.names) - len(absent), values["mode"], values["number"])
    plan.groups = [list(islice(present, size)) for size in sizes]
    if len(plan.titles) != len(sizes):
        plan.titles = [f"Grupp {number}" for number in range(1, len(sizes) + 1)]
    plan.number = values.get("draw") or make_number()
    plan.is_changed = False
    regroup(roster, plan, list(range(len(sizes))))
    return []


def draw_again(roster: Roster, plan: Plan, values: Mapping[str, Any]) -> list[JsonObject]:
    """”Slumpa igen”: all groups but those that are locked."""
    locked = values.get("locked", [])
    free = [g for g in range(len(plan.groups)) if str(g) not in locked]
    if len(free) < 2:
        raise ToolUserError("Det behövs minst två grupper att slumpa om. Lås färre grupper.")
    plan.number = make_number()
    plan.is_changed = bool(locked)
    regroup(roster, plan, free)
    return []


def exchange(roster: Roster, plan: Plan, values: Mapping[str, Any]) -> list[JsonObject]:
    """”Byt plats på två elever”."""
    seats = []
    for name in (values["first"], values["second"]):
        found = find_pupils(roster, clean_cell(name))
        seats += [(ids, n) for ids in plan.groups for n, i in enumerate(ids) if [i] == found]
    if len(seats) < 2:
        raise ToolUserError("Hittar inte båda eleverna i grupperna. Skriv hela namnen.")
    (a, m), (b, n) = seats
    if a is b:
        raise ToolUserError("Välj två elever som är i olika grupper.")
    a[m], b[n] = b[n], a[m]
    plan.is_changed = True
    return []


def rename(roster: Roster, plan: Plan, values: Mapping[str, Any]) -> list[JsonObject]:
    """”Döp om grupperna”: a name on each line, in the order of the groups."""
    lines = (clean_cell(line)[:TITLE_MAX_CHARS].strip() for line in values["titles"].splitlines())
    titles = list(filter(None, lines))
    if not len(set(map(str.casefold, titles))) == len(titles) == len(plan.groups):
        raise ToolUserError(f"Skriv {len(plan.groups)} olika namn, ett på varje rad.")
    plan.titles = titles
    return []


def save(roster: Roster, plan: Plan, values: Mapping[str, Any]) -> list[JsonObject]:
    """”Exportera”: a workbook and a CSV file with a pupil on each row, and a page to print."""
    columns = roster.columns.values()
    grid = [["Grupp", "Elev", *roster.columns]]
    for title, ids in zip(plan.titles, plan.groups, strict=True):
        grid += [[title, roster.names[i], *(cells[i] for cells in columns)] for i in ids]
    book = openpyxl.Workbook()
    for row, texts in enumerate(grid, 1):
        for column, text in enumerate(texts, 1):
            cell = book.active.cell(row, column)
            cell.value, cell.data_type = text, "s"  # text, so never a formula
            cell.quotePrefix = text.startswith(FORMULA_START)  # nor when somebody edits it
    book.active.title = "Grupper"
    book.active.column_dimensions["B"].width = 30
    book.active.freeze_panes = "A2"
    book.save(output_path("grupper.xlsx"))
    with output_path("grupper.csv").open("w", encoding="utf-8-sig", newline="") as file:
        # A cell of CSV has no type, so an apostrophe keeps a spreadsheet from computing it.
        csv.writer(file, delimiter=";").writerows(
            [f"'{cell}" if cell.startswith(FORMULA_START) else cell for cell in row] for row in grid
        )
    output_path("grupper.html").write_text(make_page(roster, plan), encoding="utf-8")
    return [
        notice("Klart att ladda ner: grupper.xlsx, grupper.csv och grupper.html (för utskrift).")
    ]


def make_page(roster: Roster, plan: Plan) -> str:
    """Return the groups as a page to print, which needs nothing else."""
    sections = "".join(
        f"<section><h2>{escape(title)}</h2><ol>"
        + "".join(f"<li>{escape(roster.names[i])}</li>" for i in ids)
        + "</ol></section>"
        for title, ids in zip(plan.titles, plan.groups, strict=True)
    )
    return (
        '<!doctype html><html lang="sv"><head><meta charset="utf-8"><title>Grupper</title>'
        f"<style>{PAGE_STYLE}</style></head><body><h1>Grupper</h1><main>{sections}</main></body></html>"
    )


def resume(roster: Roster, plan: Plan, values: Mapping[str, Any]) -> list[JsonObject]:
    """”Fortsätt där du var”, with a roster that was uploaded again."""
    return []


# Shown in the order of their ids. After each, the groups are shown.
STEPS: dict[str, Callable[[Roster, Plan, Mapping[str, Any]], list[JsonObject]]] = {
    "again": draw_again,
    "divide": divide,
    "exchange": exchange,
    "rename": rename,
    "resume": resume,
    "save": save,
}


# --- what is shown and offered --------------------------------------------------------------------


def show_roster(roster: Roster) -> list[JsonObject]:
    """Show what was read, so that the teacher sees at once whether it is right."""
    rows = zip(range(1, PUPILS_MAX + 1), roster.names, *roster.columns.values(), strict=False)
    title = f"Klasslistan: {len(roster.names)} elever"
    remarks = [notice(remark, "warning") for remark in roster.remarks]
    return [*remarks, make_table(["Nr", "Namn", *roster.columns], rows, title)]


def show_groups(roster: Roster, plan: Plan) -> list[JsonObject]:
    """Show the groups, which wishes they do not follow, and how even they are."""
    mixed = {title: roster.columns[title] for title in plan.form.get("mix", [])}
    told = [
        ", ".join(filter(None, cells)) for cells in zip(roster.names, *mixed.values(), strict=True)
    ]
    cells = [[shorten(told[i], CELL_MAX_CHARS) for i in ids] for ids in plan.groups]
    if len(cells) <= SIDE_BY_SIDE_MAX:
        shown = make_table(plan.titles, zip_longest(*cells), "Grupper")
    else:  # of so many groups none has more than 24 pupils
        header = ["Grupp", *(f"Elev {n}" for n in range(1, len(cells[0]) + 1))]
        shown = make_table(header, map(add_title, plan.titles, cells), "Grupper")
    spreads = []
    for title, values in mixed.items():
        kinds = sorted(set(values) - {""})
        counts = ([sum(values[i] == kind for i in ids) for kind in kinds] for ids in plan.groups)
        rows = map(add_title, plan.titles, counts)
        spreads.append(make_table(["Grupp", *kinds], rows, f"Fördelning: {title}"))
    text = f"{sum(map(len, cells))} elever i {len(cells)} grupper. Lottnummer {plan.number}"
    if plan.is_changed:
        text += ", men grupperna är ändrade efter lottningen."
    else:
        text += ": samma lista, val och lottnummer ger samma grupper igen."
    return [*check_wishes(roster, plan), shown, notice(text), *spreads]


def offer_actions(roster: Roster, plan: Plan | None) -> list[JsonObject]:
    """Offer the steps, their forms filled as they were last; no plan is that of a first run."""
    form: dict[str, Any] = {"mode": BY_SIZE, "number": 4} | (plan.form if plan else {})
    form["absent"] = [roster.names[i] for i in form.get("absent", [])]
    modes = [(BY_SIZE, "Elever per grupp"), (BY_COUNT, "Antal grupper")]
    how = "ett önskemål per rad, till exempel: Anna, Bo"
    fields = [
        enum_field("mode", "Dela in efter", modes, required=True),
        integer_field("number", "Antal", required=True),
        *(text_field(name, f"{label} ({how})") for name, label in WISHES.items()),
        integer_field("draw", "Lottnummer (tomt för en ny lottning)"),
    ]
    if roster.columns:
        fields.insert(2, multi_enum_field("mix", "Blanda jämnt efter", list(roster.columns)))
    if len(roster.names) <= MULTI_ENUM_MAX:
        fields.insert(2, multi_enum_field("absent", "Frånvarande", roster.names))
    names = {str(offered["name"]) for offered in fields}
    divide_form = {name: value for name, value in form.items() if name in names}
    offers = [action("divide", "Gör grupper", fields, divide_form)]
    if plan is None:
        return [*offers, action("resume", "Fortsätt där du var")]
    if not plan.groups:
        return offers
    pupils = [roster.names[i] for i in sorted(i for ids in plan.groups for i in ids)]
    swaps = [
        enum_field(name, label, pupils, required=True)
        if len(pupils) <= ENUM_MAX
        else string_field(name, label, required=True)
        for name, label in (("first", "Elev"), ("second", "Byter plats med"))
    ]
    titles = text_field("titles", "Gruppernas namn, ett på varje rad", required=True)
    groups = [(str(g), title) for g, title in enumerate(plan.titles)]
    return [
        action(
            "again", "Slumpa igen", [multi_enum_field("locked", "Lås de här grupperna", groups)]
        ),
        *offers,
        action("exchange", "Byt plats på två elever", swaps),
        action("rename", "Döp om grupperna", [titles], {"titles": "\n".join(plan.titles)}),
        action("save", "Exportera"),
    ]


def make_table(header: Iterable[str], rows: Iterable[Sequence[object]], title: str) -> JsonObject:
    """Make a table by places; its keys are numbers, so that no two columns are ever the same."""
    cells = [{str(n): cell for n, cell in enumerate(row) if cell is not None} for row in rows]
    return table([(str(n), label) for n, label in enumerate(header)], cells, title)


def add_title(title: str, row: Iterable[object]) -> list[object]:
    return [title, *row]


def make_number() -> int:
    return secrets.randbelow(900_000) + 100_000


def shorten(text: str, max_chars: int = 40) -> str:
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"


def join_names(names: Iterable[str]) -> str:
    listed = list(names)
    more = len(listed) - LISTED_MAX
    return ", ".join(listed[:LISTED_MAX]) + (f" och {more} till" if more > 0 else "")
