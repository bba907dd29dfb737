"""Tabellsammanfattning: a table in; what its columns hold out, in figures, tables and charts.

The file is read again in every step; the state knows only which sheet, header row and filter were
chosen and how the rows were grouped last. A chart gets nothing but what pandas has counted, under
keys of our own: what a column is called enters a specification only as the text of a title.
"""

import csv
import io
import math
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from typing import Any

import numpy as np
import openpyxl  # type: ignore[import-untyped]
import pandas as pd  # type: ignore[import-untyped]
from skriptoteket_toolkit import (
    InputFile,
    ToolUserError,
    action,
    decode_text,
    enum_field,
    get_action_parts,
    integer_field,
    list_input_files,
    notice,
    output_path,
    progress,
    string_field,
    table,
    vega_lite,
    weigh_workbook,
)

# Long lists of words read best as words.
# ruff: noqa: SIM905
JsonObject = dict[str, object]
Grid = list[list[str]]
Row = dict[str, Any]

FILE_MAX_BYTES, UNPACKED_MAX_BYTES = 20_000_000, 150_000_000
ROWS_MAX, COLUMNS_MAX, CELLS_MAX = 200_000, 200, 4_000_000
TITLE_MAX_CHARS, CELL_MAX_CHARS = 60, 80
FIRST_ROWS, FIRST_COLUMNS = 15, 25
CHARTS_MAX, BARS_MAX, BINS, POINTS_MAX, COLOURS_MAX = 8, 20, 15, 1_500, 10
GROUPS_MAX, ENUM_MAX, WHOLE_BINS_MAX, BOOLEAN_KINDS = 500, 100, 40, 12
KIND_SHARE, SAMPLE = 0.9, 200  # of a column's values, for it to be numbers or dates

# Neither ”NA”, which is a programme of the upper secondary school, nor words: they may be answers.
MISSING = frozenset(
    "|-|–|—|.|..|…|n/a|#n/a|null|none|nan|#saknas!|#värdefel!|#division/0!|#referens!|#namn?|"
    "#ogiltigt!|#div/0!|#ref!|#value!|#name?|#num!|#null!".split("|")
)
BOOLEANS = dict.fromkeys(["ja", "j", "sant", "true", "yes"], "Ja")
BOOLEANS |= dict.fromkeys(["nej", "n", "falskt", "false", "no"], "Nej")
UNIT = r"(?: ?(%|procent|kr|kronor|sek|:-|€|eur))?"
# What parts thousands → numbers written so. The first is the usual one, with either decimal mark.
STYLES = {
    " ": re.compile(r"([+-]?(?:\d{1,3}(?: \d{3})+|\d+)(?:[.,]\d+)?(?:e[+-]?\d+)?)" + UNIT, re.I),
    ".": re.compile(r"([+-]?(?:\d{1,3}(?:\.\d{3})+|\d+)(?:,\d+)?)" + UNIT, re.I),
    ",": re.compile(r"([+-]?(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?)" + UNIT, re.I),
}
# Told by a look, so that no text is tried against all the formats below.
DATE_HINT = re.compile(
    r"\d{4}-\d\d|\d{1,4}[-/.]\d{1,2}[-/. ]|(19|20)\d{6}$|(den )?\d{1,2}\.? [a-z]{3}|"
    r"[a-z]{3,9} \d{4}$",
    re.I,
)
STAMP = re.compile(r"(19|20)\d\d|\d{4}-\d\d-\d\d.*|\d{1,2}/\d{1,2}.*")
ISO_DATE = re.compile(r"\d{4}-\d\d(-\d\d([ T]\d\d:\d\d.*)?)?")
DATE_FORMATS = (
    "%Y%m%d|%d/%m/%Y|%d/%m %Y|%d.%m.%Y|%d-%m-%Y|%d %m %Y|%Y/%m/%d|%Y.%m.%d|%m %Y|%d/%m-%y|"
    "%d/%m/%y|%d/%m/%Y %H:%M|%d.%m.%Y %H:%M|%Y/%m/%d %H:%M"
).split("|")
MONTH_NAMES = (
    "januari februari mars april maj juni juli augusti september oktober november december"
)
MONTHS = {name[:n]: f" {i} " for i, name in enumerate(MONTH_NAMES.split(), 1) for n in (3, 4, 9)}
DAY_NAMES = "söndag måndag tisdag onsdag torsdag fredag lördag"
LOCALE = {
    "number": {"decimal": ",", "thousands": "\u00a0", "grouping": [3], "currency": ["", " kr"]},
    "time": {
        "dateTime": "%Y-%m-%d %H:%M",
        "date": "%Y-%m-%d",
        "time": "%H:%M",
        "periods": ["fm", "em"],
        "days": DAY_NAMES.split(),
        "shortDays": [name[:3] for name in DAY_NAMES.split()],
        "months": MONTH_NAMES.split(),
        "shortMonths": [name[:3] for name in MONTH_NAMES.split()],
    },
}
# Of pandas' periods: the longest span in days, and how one is told.
PERIODS = {"D": (62, "%Y-%m-%d"), "W": (400, "%G v. %V"), "M": (4_000, "%Y-%m"), "Y": (10**6, "%Y")}
KINDS = {"number": "tal", "integer": "heltal", "date": "datum", "boolean": "ja/nej"}
KINDS |= {"text": "text", "empty": "tom"}
STATISTICS = (
    "Kolumn|Typ|Värden|Tomma|Ej tolkade|Olika|Minst|Störst|Medel|Median|Standardavvikelse|"
    "Undre kvartil|Övre kvartil|Vanligast"
).split("|")
HOW = {
    "count": "Antal",
    "sum": "Summa",
    "mean": "Medelvärde",
    "median": "Median",
    "min": "Minsta",
    "max": "Största",
}
NO_TABLE = (b"%PDF", b"\x89PNG", b"\xff\xd8\xff", b"<", b"{")
FORMULA_START = tuple("=+-@＝＋－＠")
TESTS = {
    "is": "är",
    "not": "är inte",
    "contains": "innehåller",
    "over": "är större än (eller senare än)",
    "under": "är mindre än (eller tidigare än)",
}


@dataclass(frozen=True)
class Column:
    """A column: its cells as text, and as what they are, with gaps where they are not that."""

    key: str
    title: str
    kind: str
    texts: Any  # an array of str
    values: Any  # a Series of float, datetime64 or str
    unit: str = ""

    @property
    def is_number(self) -> bool:
        return self.kind in ("number", "integer")

    @property
    def label(self) -> str:
        return f"{self.title} ({self.unit})" if self.unit else self.title


@dataclass(frozen=True)
class Source:
    """The table of the file as it was read, and what the user should know about that."""

    file_name: str
    columns: list[Column]
    header: int  # the row of titles as the file counts its rows; 0 for none
    sheet: str
    sheets: list[str]
    remarks: list[str]

    def find(self, key: object) -> Column:
        for column in self.columns:
            if column.key == key:
                return column
        raise ToolUserError("Kolumnen finns inte längre. Visa översikten och välj igen.")


def run_tool(input_dir: str, output_dir: str) -> JsonObject:
    """Sum up an uploaded table, or do one of the steps that are offered with it."""
    action_id, values, state = get_action_parts()
    step = STEPS.get(action_id or "overview")
    if step is None:
        raise ToolUserError("Verktyget känner inte till det steget.")
    # A first run is that of a new file: what was chosen for the last one is forgotten.
    choices: Row = {"sheet": "", "header": None, "filter": {}, "group": {}}
    choices |= values if action_id == "read" else state
    if action_id == "filter":
        choices["filter"] = values if values.get("column") else {}
    elif action_id == "aggregate":
        choices["group"] = values
    source = read_source(choices["sheet"], choices["header"], is_step=action_id is not None)
    progress(0.6, "Räknar")
    shown = filter_rows(source, choices["filter"])
    outputs = step(shown, choices["group"] if action_id == "save" else values)
    return {
        "outputs": [*(notice(remark, "warning") for remark in shown.remarks), *outputs],
        "next_actions": offer_actions(source, choices),
        "state": choices,
    }


# --- reading the file -----------------------------------------------------------------------------


def read_source(sheet: str, header: int | None, *, is_step: bool) -> Source:
    """Read the one uploaded file; `header` None finds the row of titles.

    Raises:
        ToolUserError: no file, several, too large, of another kind, or without rows.
    """
    files = list_input_files()
    if len(files) > 1:
        raise ToolUserError("Ladda upp en tabell i taget.")
    if not files:
        gone = "Filen finns inte kvar. Ladda upp den igen, så börjar vi om."
        raise ToolUserError(gone if is_step else "Ladda upp en tabell först (.csv eller .xlsx).")
    file = files[0]
    if file.bytes > FILE_MAX_BYTES:
        raise ToolUserError(
            f"{file.name} är för stor (högst {FILE_MAX_BYTES // 10**6} MB). Ta bort kolumner som "
            "inte behövs, eller dela upp filen."
        )
    progress(0.1, f"Läser {file.name}")
    remarks: list[str] = []
    data = file.path.read_bytes()
    if data.startswith(b"PK"):
        sheet, sheets, grid = read_workbook(file, sheet, remarks)
    else:
        sheet, sheets, grid = "", [], read_text(file.name, data, remarks)
    if not any(map(any, grid)):
        raise ToolUserError(f"{f'Bladet ”{sheet}” i ' if sheet else ''}{file.name} är tomt.")
    if header is None:
        header = find_header(grid)
    if not 0 <= header <= len(grid):
        raise ToolUserError(f"Rubrikraden ska vara mellan 1 och {len(grid)}, eller 0 för ingen.")
    rows = [row for row in grid[header:] if any(row)]
    if not rows:
        raise ToolUserError(f"{file.name} har rubriker men inga rader under dem.")
    columns = make_columns(grid[header - 1] if header else [], rows)
    return Source(file.name, columns, header, sheet, sheets, remarks)


def read_text(name: str, data: bytes, remarks: list[str]) -> Grid:
    """Decode and split a text file, by the delimiter that gives the most even rows."""
    if data.startswith(b"\xd0\xcf\x11\xe0"):
        raise ToolUserError(
            f"{name} är skyddad med lösenord eller i det äldre Excel-formatet (.xls). Öppna den i "
            "Excel, välj Spara som och ”Excel-arbetsbok (.xlsx)”, utan lösenord."
        )
    text = decode_text(data)
    if data.lstrip().startswith(NO_TABLE) or "\0" in text:
        raise ToolUserError(f"{name} är ingen tabell. Spara den som .xlsx eller .csv.")
    if not re.search(r"[^;,|\s\"]", text):
        return []
    hint = re.match(r"sep=(.)\r?\n", text)  # Excel's own way to name the delimiter
    text = text[hint.end() :] if hint else text

    def split(mark: str) -> Iterable[list[str]]:
        return csv.reader(io.StringIO(text, newline=""), delimiter=mark, skipinitialspace=True)

    try:
        mark = hint[1] if hint else max(";\t|,", key=lambda m: rate_head(m, islice(split(m), 50)))
        return read_rows(split(mark), remarks)
    except csv.Error:
        raise ToolUserError(
            f"{name} går inte att läsa som tabell. Öppna den i Excel och spara som .xlsx."
        ) from None


def rate_head(mark: str, rows: Iterable[list[str]]) -> float:
    """Rate a way of splitting by the first rows: how many of them are alike.

    A comma that parts no titles may be one of a sentence, or the decimal mark of a single column.
    """
    grid = [row for row in read_rows(rows, []) if any(row)]
    header = find_header(grid)
    widths = Counter(map(len, grid[max(header - 1, 0) :]))
    width, count = widths.most_common(1)[0] if widths else (0, 0)
    evenness = count / widths.total() if width > 1 else 0.4
    is_sure = mark != "," or header == 1 or (header and evenness >= 0.8)
    return evenness if is_sure else evenness / 3


def read_workbook(file: InputFile, wanted: str, remarks: list[str]) -> tuple[str, list[str], Grid]:
    """Read the wanted sheet, else the first that is not empty: its title, all titles, its rows."""
    try:
        if weigh_workbook(file.path) > UNPACKED_MAX_BYTES:
            raise ToolUserError(
                f"{file.name} är för stor när den packas upp. Spara bladet som ”CSV UTF-8 (.csv)”."
            )
        with warnings.catch_warnings(), file.path.open("rb") as stream:
            warnings.simplefilter("ignore")  # of styles and extensions, which hold no values
            return read_sheets(stream, wanted, remarks)
    except ToolUserError:
        raise
    except Exception:
        # A damaged workbook, or a zip file that is none, fails anywhere in zip, XML or openpyxl.
        raise ToolUserError(
            f"{file.name} går inte att öppna som Excel-fil. Öppna den i Excel och spara den på "
            "nytt som ”Excel-arbetsbok (.xlsx)”, eller som CSV."
        ) from None


def read_sheets(stream: Any, wanted: str, remarks: list[str]) -> tuple[str, list[str], Grid]:
    book = openpyxl.load_workbook(stream, read_only=True, data_only=True)
    sheets = {sheet.title: sheet for sheet in book.worksheets if sheet.sheet_state == "visible"}
    title, grid = "", []
    for title in [wanted] if wanted in sheets else sheets:
        # Some programs write a wrong size of the sheet, by which rows would be cut.
        sheets[title].reset_dimensions()
        grid = read_rows(sheets[title].iter_rows(values_only=True), remarks)
        if any(map(any, grid)):
            break
    return title, list(sheets), grid


def read_rows(rows: Iterable[Sequence[object]], remarks: list[str]) -> Grid:
    """Clean as many rows and columns as there is memory and time for."""
    grid: Grid = []
    cells = beyond = 0
    for row in rows:
        cells += min(len(row), COLUMNS_MAX)
        if len(grid) == ROWS_MAX or cells > CELLS_MAX:
            remarks.append(f"Tabellen är för stor: bara de första {len(grid)} raderna är med.")
            break
        grid.append([clean_cell(cell) for cell in row[:COLUMNS_MAX]])
        beyond += any(row[COLUMNS_MAX:])
    if beyond:
        remarks.append(f"Tabellen är för bred: bara de första {COLUMNS_MAX} kolumnerna är med.")
    return grid


def clean_cell(value: object) -> str:
    """Return a cell as one line of text without invisible characters, as one writes in Swedish."""
    if isinstance(value, str):
        if value.isascii() and value.isprintable():
            return value.strip()
        text = unicodedata.normalize("NFC", value[:2000])
        return " ".join("".join(c for c in text if c.isprintable() or c.isspace()).split())
    if value is None:
        return ""
    if isinstance(value, bool):
        return "Ja" if value else "Nej"
    if isinstance(value, float):
        return f"{value:.15g}".replace(".", ",")
    return str(value).removesuffix(" 00:00:00")


def find_header(grid: Grid) -> int:
    """Return the row of titles, counted from 1 as the file does; 0 if there is none.

    Titles are text, or years and dates over something else; a heading above them is narrower.
    """
    filled = [(number, row) for number, row in enumerate(islice(grid, 100), 1) if any(row)]
    widths = Counter(sum(map(bool, row)) for _, row in filled)
    width = max(widths, key=lambda n: n * widths[n], default=0)
    for place, (number, row) in enumerate(filled[:20], 1):
        if sum(map(bool, row)) < 0.6 * width:
            continue
        figures = [column for column, cell in enumerate(row) if is_figure(cell)]
        below = filled[place][1] if place < len(filled) else []
        stamps = [
            STAMP.fullmatch(row[n]) and not (n < len(below) and STAMP.fullmatch(below[n]))
            for n in figures
        ]
        return number if all(stamps) and len(figures) < sum(map(bool, row)) else 0
    return 0


def is_figure(cell: str) -> bool:
    return bool(STAMP.fullmatch(cell) or STYLES[" "].fullmatch(cell.replace("−", "-")))


# --- columns --------------------------------------------------------------------------------------


def make_columns(titles: list[str], rows: Grid) -> list[Column]:
    """Make a column of each that has a title or a value; titles become unique."""
    parted = enumerate(zip_longest(titles, *rows, fillvalue=""))
    found = [(place, title, cells) for place, (title, *cells) in parted if title or any(cells)]
    names = make_unique(
        shorten(title or f"Kolumn {place + 1}", TITLE_MAX_CHARS) for place, title, _ in found
    )
    return [
        make_column(f"c{place}", name, np.array(cells, dtype=object))
        for name, (place, _, cells) in zip(names, found, strict=True)
    ]


def make_column(key: str, title: str, texts: Any) -> Column:
    """Find out what a column holds: what nine of ten values are. Each value is read only once."""
    codes, kinds = pd.factorize(texts)
    present = [n for n, text in enumerate(kinds) if text.casefold() not in MISSING]
    words = [kinds[n] for n in present]
    counts = np.bincount(codes)[present]
    kind, unit, parsed = "text" if words else "empty", "", pd.Series(words, dtype=object)
    if words and all(word.casefold() in BOOLEANS for word in words):
        kind, parsed = "boolean", parsed.map(lambda word: BOOLEANS[word.casefold()])
    elif words:
        enough = KIND_SHARE * counts.sum()
        dates, (numbers, found_unit) = parse_dates(words), parse_numbers(words)
        if counts[dates.notna()].sum() >= enough:
            kind, parsed = "date", dates
        elif counts[numbers.notna()].sum() >= enough and not is_code(words, counts):
            kind = "integer" if (numbers.dropna() % 1 == 0).all() else "number"
            unit, parsed = found_unit, numbers
    values = parsed.set_axis(present).reindex(range(len(kinds))).take(codes).reset_index(drop=True)
    return Column(key, title, kind, texts, values, unit)


def is_code(words: list[str], counts: Any) -> bool:
    """Tell numbers that name something, as phones and accounts do, from those that count."""
    is_long = counts.max() == 1 and all(len(word) >= 8 and word.isdigit() for word in words)
    return is_long or any(re.fullmatch(r"0\d+", word) for word in words)


def parse_numbers(words: list[str]) -> tuple[Any, str]:
    """Return a float or a gap for each text, and the unit that all numbers have, if they do."""
    words = [word.replace("−", "-") for word in words]
    sample = words[:SAMPLE]
    parts = max(STYLES, key=lambda mark: sum(map(bool, map(STYLES[mark].fullmatch, sample))))
    matches = list(map(STYLES[parts].fullmatch, words))
    numbers = pd.Series(
        [float(m[1].replace(parts, "").replace(",", ".")) if m else np.nan for m in matches]
    )
    units = {(match[2] or "").lower() for match in matches if match}
    return numbers.where(numbers.abs() < 1e100), units.pop() if len(units) == 1 else ""


def parse_dates(words: list[str]) -> Any:
    """Return a moment or a gap for each text; day before month, whatever the order of the year."""
    dates = pd.Series(pd.NaT, index=range(len(words)), dtype="datetime64[us]")
    sample = words[:SAMPLE]
    if sum(map(bool, map(DATE_HINT.match, sample))) < 0.6 * len(sample):
        return dates
    texts = pd.Series([spell_month(word) for word in words], dtype=object)
    is_iso = texts.map(lambda text: ISO_DATE.fullmatch(text) is not None).astype(bool)
    for way in ("ISO8601", *DATE_FORMATS):
        left = texts[dates.isna() & (is_iso if way == "ISO8601" else ~is_iso)]
        if len(left):
            found = pd.to_datetime(left, format=way, errors="coerce", utc=True)
            dates = dates.fillna(found.dt.tz_localize(None).astype("datetime64[us]"))
    return dates.where(dates.dt.year.between(1800, 2200))


def spell_month(text: str) -> str:
    """Write ”den 3 mars 2024” as ”3 3 2024”."""
    if text.isascii() and not re.search("[a-z]{3}", text, re.I):
        return text
    text = text.casefold().removeprefix("den ")
    return " ".join(re.sub(r"([a-zåäö]+)\.?", lambda m: MONTHS.get(m[1], m[0]), text).split())


def filter_rows(source: Source, wish: Mapping[str, Any]) -> Source:
    """Return the rows that pass the filter, with a remark on it; all rows if there is none."""
    if not wish:
        return source
    column, test, wanted = source.find(wish["column"]), wish["test"], clean_cell(wish.get("value"))
    limit: Any = np.nan
    if column.is_number:
        limit = parse_numbers([wanted])[0][0]
    elif column.kind == "date":
        limit = parse_dates([wanted])[0]
    if test in ("over", "under") and pd.isna(limit):
        raise ToolUserError(
            "Större och mindre än kräver en kolumn med tal eller datum, och ett sådant värde."
        )
    texts = pd.Series(column.texts, dtype=object).map(str.casefold)
    same = (texts == wanted.casefold()) | (column.values == limit)
    passes: dict[str, Callable[[], Any]] = {
        "is": lambda: same,
        "not": lambda: ~same,
        "contains": lambda: texts.str.contains(wanted.casefold(), regex=False),
        "over": lambda: column.values > limit,
        "under": lambda: column.values < limit,
    }
    kept = passes[test]().to_numpy(dtype=bool)
    if not kept.any():
        raise ToolUserError(f"Inga rader passar: {column.title} {TESTS[test]} ”{shorten(wanted)}”.")
    remark = (
        f"Filtrerat: bara de {kept.sum()} av {len(kept)} rader där {column.title} {TESTS[test]} "
        f"”{shorten(wanted)}” är med."
    )
    columns = [
        replace(c, texts=c.texts[kept], values=c.values[kept].reset_index(drop=True))
        for c in source.columns
    ]
    return replace(source, columns=columns, remarks=[*source.remarks, remark])


# --- counting and drawing -------------------------------------------------------------------------


def describe(column: Column) -> list[Any]:
    """Return a column's statistics in the order of STATISTICS, as numbers, dates and text."""
    values = column.values.dropna()
    gaps = column.texts[column.values.isna()]
    odd = sum(text.casefold() not in MISSING for text in gaps)
    kind = KINDS[column.kind] + (f" ({column.unit})" if column.unit else "")
    row = [column.title, kind, len(values), len(gaps) - odd, odd, values.nunique()]
    if column.is_number:
        low, lower, median, upper, high = values.quantile([0, 0.25, 0.5, 0.75, 1])
        return [*row, low, high, values.mean(), median, values.std(), lower, upper, ""]
    common = ""
    if column.kind in ("text", "boolean"):
        most = values.value_counts().head(3)
        if most.max() > 1:  # else all of them differ
            common = ", ".join(f"{shorten(value, 25)} ({count})" for value, count in most.items())
    ends = [values.min(), values.max()] if column.kind == "date" else ["", ""]
    return [*row, *ends, "", "", "", "", "", common]


def group_rows(column: Column, value: Column | None, how: str) -> list[Row]:
    """Count the rows of each value, period or interval of a column, or sum up `value` in them.

    The answer has a `label` and a `value` for each, and a `start` where they have an order, which
    they then come in; intervals also have an `end`. Categories come with the largest value first.
    """
    keys, tell = make_keys(column)
    numbers = pd.Series(1.0, index=keys.index) if value is None else value.values
    grouped = numbers.groupby(keys)
    found = (grouped.sum(min_count=1) if how == "sum" else grouped.agg(how)).dropna()
    if column.kind == "date" and how in ("count", "sum") and len(found):
        # A day on which nothing happened is a zero of the line, not a part of a slope.
        first, last = found.index.min(), found.index.max()
        found = found.reindex(pd.period_range(first, last), fill_value=0)
    if column.kind in ("text", "boolean"):
        found = found.sort_values(ascending=False, kind="stable")
    return [{**tell(key), "value": float(figure)} for key, figure in found.items()]


def make_keys(column: Column) -> tuple[Any, Callable[[Any], Row]]:
    """Return what to group a column by, and how to tell a key of that."""
    values = column.values
    if column.kind == "date":
        span = (values.max() - values.min()).days
        name, style = next((n, s) for n, (days, s) in PERIODS.items() if span <= days)
        return values.dt.to_period(name), lambda period: {
            "label": period.start_time.strftime(style),
            "start": period.start_time.isoformat(),
        }
    if column.is_number:
        span = values.max() - values.min()
        if column.kind == "integer" and span <= WHOLE_BINS_MAX:
            return values, lambda n: {"label": format_number(n), "start": n - 0.5, "end": n + 0.5}
        step = find_step(span)

        def tell(place: float) -> Row:
            start, end = round(place * step, 9), round((place + 1) * step, 9)
            last = end - 1 if column.kind == "integer" else end
            label = f"{format_number(start)} till {format_number(last)}"
            return {"label": label, "start": start, "end": end}

        return np.floor(values / step + 1e-9), tell
    return values.fillna("(tomt)"), lambda text: {"label": shorten(text)}


def find_step(span: float) -> float:
    """Return the width of about BINS intervals: 1, 2 or 5 times a power of ten."""
    if not span > 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(span / BINS))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= span / BINS)


def draw_groups(rows: list[Row], name: str, figure: str, title: str) -> JsonObject:
    """Draw a line over time, intervals side by side, or bars of the largest categories."""
    value = {"field": "value", "type": "quantitative", "title": plain(figure)}
    told = {"field": "label", "type": "nominal", "title": plain(name)}
    mark: Row = {"type": "bar"}
    height: object = 260
    if "end" in rows[0]:
        # Years and the like are whole, and written without a space between thousands.
        is_whole = rows[0]["end"] - rows[0]["start"] >= 1 and abs(rows[-1]["end"]) < 10_000
        axis = {"format": "d", "tickMinStep": 1} if is_whole else {}
        x = {"field": "start", "bin": {"binned": True}, "type": "quantitative", "axis": axis}
        encoding: Row = {"x": {**x, "title": plain(name)}, "x2": {"field": "end"}, "y": value}
    elif "start" in rows[0]:
        mark = {"type": "line", "point": True}
        encoding = {"x": {"field": "start", "type": "temporal", "title": plain(name)}, "y": value}
    else:
        if len(rows) > BARS_MAX:
            title += f" (de {BARS_MAX} största av {len(rows)})"
        labels = make_unique(row["label"] for row in rows[:BARS_MAX])
        rows = [{**row, "label": label} for row, label in zip(rows, labels, strict=False)]
        encoding = {"y": {**told, "sort": None, "axis": {"labelLimit": 220}}, "x": value}
        height = {"step": 20}
    encoding["tooltip"] = [told, {**value, "format": ",.2~f"}]
    return make_chart(title, rows, mark, encoding, height)


def make_chart(title: str, rows: list[Row], mark: Row, encoding: Row, height: object) -> JsonObject:
    return vega_lite(
        {
            "title": {"text": plain(title), "anchor": "start"},
            "data": {"values": rows},
            "mark": mark,
            "encoding": encoding,
            "width": "container",
            "height": height,
            "config": {"locale": LOCALE},
        }
    )


def plain(text: str) -> str:
    """Return text for a title; `url(` anywhere in a specification is taken for an address."""
    return re.sub(r"(?i)url\(", "url (", text)


# --- the steps ------------------------------------------------------------------------------------


def show_overview(source: Source, form: Mapping[str, Any]) -> list[JsonObject]:
    """”Visa översikten”: what the table holds, column by column."""
    columns = source.columns
    facts = [describe(column) for column in columns]
    count = len(columns[0].texts)
    empty = sum(row[3] for row in facts)
    copies = count - len(set(zip(*(column.texts for column in columns), strict=True)))
    where = f"{source.file_name}, ”{source.sheet}”" if source.sheet else source.file_name
    titles = f"rubriker på rad {source.header}" if source.header else "utan rubriker"
    share = format_number(round(100 * empty / (count * len(columns)), 1))
    told = [
        f"{where}: {format_number(count)} rader och {len(columns)} kolumner, {titles}. "
        f"{format_number(empty)} tomma celler ({share} %), {format_number(copies)} dubblettrader."
    ]
    charted = [column for column in columns if is_chartable(column)]
    if len(charted) > CHARTS_MAX:
        told.append(
            f"De första {CHARTS_MAX} av {len(charted)} kolumner som passar visas som diagram."
        )
    if len(columns) > FIRST_COLUMNS:
        told.append(f"Av raderna visas de första {FIRST_COLUMNS} kolumnerna.")
    if len(columns) > ENUM_MAX:
        told.append(f"I formulären går de första {ENUM_MAX} kolumnerna av varje slag att välja.")
    shown = columns[:FIRST_COLUMNS]
    first = list(zip(*(column.texts[:FIRST_ROWS] for column in shown), strict=True))
    return [
        notice(" ".join(told)),
        make_table(STATISTICS, facts, "Kolumner"),
        make_table([column.title for column in shown], first, f"De första {len(first)} raderna"),
        *(
            draw_groups(group_rows(c, None, "count"), c.label, "Antal rader", c.title)
            for c in charted[:CHARTS_MAX]
        ),
    ]


def is_chartable(column: Column) -> bool:
    """Tell whether counting a column shows anything: not if all its values differ, as names do."""
    kinds, count = column.values.nunique(), column.values.count()
    if column.kind == "integer" and column.values.is_unique:
        return bool(column.values.max() - column.values.min() + 1 > count)  # else row numbers
    is_category = column.kind in ("text", "boolean")
    return bool(kinds > 1 and (not is_category or kinds <= max(count / 2, BOOLEAN_KINDS)))


def aggregate(source: Source, form: Mapping[str, Any]) -> list[JsonObject]:
    """”Gruppera”: the rows of each value of a column, counted or summed up."""
    rows, name, figure = group_by_form(source, form)
    title = f"{figure} per {name}"
    told = f"{title}: {len(rows)} grupper."
    gaps = source.find(form["value"]).values.isna() if form.get("value") else pd.Series([False])
    if "start" in rows[0]:
        gaps = source.find(form["column"]).values.isna() | gaps
    if gaps.any():
        told += f" {format_number(gaps.sum())} rader utan värde är inte med."
    if len(rows) > GROUPS_MAX:
        told += f" Tabellen visar de första {GROUPS_MAX}; exportera för att få alla."
    cells = [[row["label"], row["value"]] for row in rows[:GROUPS_MAX]]
    return [
        notice(told),
        draw_groups(rows, name, figure, title),
        make_table([name, figure], cells, title),
    ]


def group_by_form(source: Source, form: Mapping[str, Any]) -> tuple[list[Row], str, str]:
    """Return the groups, what they are grouped by and what the figure is."""
    column, how = source.find(form["column"]), form["how"]
    value = source.find(form["value"]) if form.get("value") else None
    if value is None and how != "count":
        raise ToolUserError(f"Välj vilken kolumn med tal som {HOW[how].lower()} ska räknas av.")
    rows = group_rows(column, value, how) if column.values.notna().any() else []
    if not rows:
        raise ToolUserError("Det finns inga värden att räkna på i de kolumnerna.")
    return rows, column.label, f"{HOW[how]} av {value.label}" if value else "Antal rader"


def compare(source: Source, form: Mapping[str, Any]) -> list[JsonObject]:
    """”Samband”: a point for each row that has both numbers."""
    x, y = source.find(form["x"]), source.find(form["y"])
    colour = source.find(form["colour"]) if form.get("colour") else None
    frame = pd.DataFrame({"x": x.values, "y": y.values}).dropna()
    if x.key == y.key or len(frame) < 2:
        raise ToolUserError("Välj två olika kolumner, där minst två rader har tal i båda.")
    told = [f"{format_number(len(frame))} rader har tal i båda kolumnerna."]
    if frame["x"].nunique() > 1 and frame["y"].nunique() > 1:
        told.append(f"Korrelationen är {format_number(round(frame['x'].corr(frame['y']), 2))}.")
    if len(frame) > POINTS_MAX:
        frame = frame.sample(POINTS_MAX, random_state=1).sort_index()
        told.append(f"Diagrammet visar {POINTS_MAX} av dem, valda på måfå.")
    encoding: Row = {
        axis: {
            "field": axis,
            "type": "quantitative",
            "title": plain(c.label),
            "scale": {"zero": False},
        }
        for axis, c in (("x", x), ("y", y))
    }
    if colour is not None:
        kinds = colour.values.fillna("(tomt)").map(shorten)
        largest = kinds.value_counts().index[:COLOURS_MAX]
        frame["colour"] = kinds.where(kinds.isin(largest), "(övriga)")
        encoding["color"] = {"field": "colour", "type": "nominal", "title": plain(colour.title)}
    title = f"{y.title} mot {x.title}"
    mark = {"type": "point", "filled": True, "opacity": 0.6, "tooltip": True}
    return [
        notice(" ".join(told)),
        make_chart(title, frame.to_dict("records"), mark, encoding, 360),
    ]


def save(source: Source, form: Mapping[str, Any]) -> list[JsonObject]:
    """”Exportera”: the statistics, and the latest grouping if there is one, as a workbook."""
    sheets: dict[str, list[list[Any]]] = {"Kolumner": [STATISTICS, *map(describe, source.columns)]}
    if form:
        rows, name, figure = group_by_form(source, form)
        sheets["Gruppering"] = [[name, figure], *([row["label"], row["value"]] for row in rows)]
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, cells in sheets.items():
        sheet = book.create_sheet(title)
        for place, row in enumerate(cells, 1):
            for number, value in enumerate(row, 1):
                cell = sheet.cell(place, number)
                if isinstance(value, float | int):
                    cell.value = None if pd.isna(value) else value
                else:  # as text, so never a formula, nor when somebody edits it
                    cell.value, cell.data_type = show_value(value), "s"
                    cell.quotePrefix = show_value(value).startswith(FORMULA_START)
        sheet.column_dimensions["A"].width = 30
        sheet.freeze_panes = "B2"
    name = "tabellsammanfattning.xlsx"
    book.save(output_path(name))
    return [notice(f"Klart att ladda ner: {name}, med bladen {' och '.join(sheets)}.")]


Step = Callable[[Source, Mapping[str, Any]], list[JsonObject]]
# Shown in the order of their ids. Reading another way and filtering show the overview anew.
STEPS: dict[str, Step] = {
    "aggregate": aggregate,
    "compare": compare,
    "filter": show_overview,
    "overview": show_overview,
    "read": show_overview,
    "save": save,
}


def offer_actions(source: Source, state: Mapping[str, Any]) -> list[JsonObject]:
    """Offer the steps, their forms filled as they were last."""
    columns = [column for column in source.columns if column.kind != "empty"]
    every = [(column.key, column.title) for column in columns][:ENUM_MAX]
    numbers = [(column.key, column.title) for column in columns if column.is_number][:ENUM_MAX]
    texts = [(c.key, c.title) for c in columns if c.kind in ("text", "boolean")][:ENUM_MAX]
    group = [
        enum_field("column", "Gruppera efter", every, required=True),
        enum_field("how", "Räkna", HOW if numbers else {"count": HOW["count"]}, required=True),
    ]
    if numbers:
        group.append(enum_field("value", "Av kolumnen (tomt för att räkna rader)", numbers))
    narrow = [
        enum_field("column", "Kolumn (tomt för att visa alla rader igen)", every),
        enum_field("test", "Villkor", TESTS, required=True),
        string_field("value", "Värde"),
    ]
    row = f"Rubrikrad (nu {source.header}; 0 för ingen, tomt för att jag ska hitta den)"
    reading, chosen = [integer_field("header", row)], {}
    if len(source.sheets) > 1:
        reading.insert(0, enum_field("sheet", "Blad", source.sheets[:ENUM_MAX]))
        chosen = {"sheet": source.sheet}
    offers = [
        action("aggregate", "Gruppera", group, state["group"] or {"how": "count"}),
        action("filter", "Filtrera", narrow, state["filter"] or {"test": "is"}),
        action("overview", "Visa översikten"),
        action("read", "Byt blad eller rubrikrad", reading, chosen),
        action("save", "Exportera till Excel"),
    ]
    if len(numbers) > 1:
        pair = [enum_field(axis, f"{axis.upper()}-axel", numbers, required=True) for axis in "xy"]
        if texts:
            pair.append(enum_field("colour", "Färg efter", texts))
        offers.append(
            action(
                "compare",
                "Samband mellan två kolumner",
                pair,
                {"x": numbers[0][0], "y": numbers[1][0]},
            )
        )
    return offers


# --- text -----------------------------------------------------------------------------------------


def make_table(titles: Sequence[str], rows: Iterable[Iterable[Any]], title: str) -> JsonObject:
    """Make a table by places; its keys are numbers, so that no two columns are ever the same."""
    cells = [
        {str(n): shorten(show_value(v), CELL_MAX_CHARS) for n, v in enumerate(row)} for row in rows
    ]
    return table([(str(n), label) for n, label in enumerate(titles)], cells, title)


def show_value(value: Any) -> str:
    """Write a number or date as one does in Swedish."""
    if isinstance(value, str):
        return value
    if pd.isna(value):
        return ""
    return (
        format_number(value)
        if isinstance(value, float | int)
        else str(value).removesuffix(" 00:00:00")
    )


def format_number(number: float) -> str:
    """Write a number with at most four decimals, and thousands parted from 10 000 on."""
    size = abs(number)
    if size >= 1e15 or 0 < size < 1e-4:
        return f"{number:.4g}".replace(".", ",")
    text = f"{number:,.{2 if size >= 1 else 4}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace(",", "\u00a0" if size >= 10_000 else "").replace(".", ",")


def make_unique(labels: Iterable[str]) -> list[str]:
    """Return labels with a number after those that have been before."""
    unique: dict[str, str] = {}
    for label in labels:
        name, number = label, 1
        while name.casefold() in unique:
            number += 1
            name = f"{label} ({number})"
        unique[name.casefold()] = name
    return list(unique.values())


def shorten(text: str, max_chars: int = 40) -> str:
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"
