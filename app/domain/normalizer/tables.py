"""Tables: columns with unique keys, rows that hold one scalar for each column they fill."""

from collections import Counter
from typing import Any, NamedTuple

from app.domain.normalizer.canonical import clean_scalar, count_bytes, cut_text
from app.domain.normalizer.notices import Place


class _Column(NamedTuple):
    raw_key: str
    key: str
    label: str


def build_table(raw: dict[str, Any], place: Place) -> dict[str, Any]:
    """Return columns and rows within the caps; the first rows and columns are the ones kept.

    Raises:
        Rejected: columns or rows are no lists, or no column of several is usable.
    """
    raw_columns, raw_rows = raw.get("columns"), raw.get("rows")
    if type(raw_columns) is not list or type(raw_rows) is not list:
        raise place.reject("output_invalid", "kolumner och rader måste vara listor")
    columns = _build_columns(raw_columns, place)
    if raw_columns and not columns:
        raise place.reject("output_invalid", "ingen kolumn går att använda")
    return {
        "kind": "table",
        "columns": [{"key": column.key, "label": column.label} for column in columns],
        "rows": _build_rows(raw_rows, columns, len(raw_columns), place),
    }


def _build_columns(raw_columns: list[Any], place: Place) -> list[_Column]:
    policy = place.policy
    columns: dict[str, _Column] = {}
    objects = [raw for raw in raw_columns if type(raw) is dict]
    lost = Counter(invalid=len(raw_columns) - len(objects))
    for raw in objects:
        key = place.name(raw, "key", policy.max_key_bytes)
        if key is None:
            lost["invalid"] += 1
        elif key in columns:
            lost["duplicate"] += 1
        elif len(columns) == policy.max_table_columns:
            lost["over"] += 1
        else:
            columns[key] = _Column(raw["key"], key, place.label(raw, key))
            lost["unknown"] += len(raw.keys() - {"key", "label"})
    given = len(raw_columns)
    if lost["invalid"]:
        place.note(
            "table_columns_invalid",
            f"{lost['invalid']} av {given} kolumner togs bort, för att nyckeln saknas, är tom "
            f"eller är längre än {policy.max_key_bytes} byte",
        )
    if lost["duplicate"]:
        place.note(
            "table_columns_duplicate",
            f"{lost['duplicate']} av {given} kolumner togs bort, för att nyckeln redan finns",
        )
    if lost["over"]:
        place.note(
            "table_too_many_columns",
            f"{given} kolumner, högst {policy.max_table_columns} visas: {lost['over']} togs bort",
        )
    place.note_unknown(lost["unknown"])
    return list(columns.values())


def _build_rows(
    raw_rows: list[Any], columns: list[_Column], column_count: int, place: Place
) -> list[dict[str, Any]]:
    cap = place.policy.max_table_rows
    rows: list[dict[str, Any]] = []
    lost = Counter[str]()
    for raw in raw_rows[:cap]:
        if type(raw) is dict:
            row = _build_row(raw, columns, place, lost)
            lost["unknown"] += len(raw) - len(row)
            rows.append(row)
        else:
            lost["invalid"] += 1
    if len(raw_rows) > cap:
        place.note("table_too_many_rows", f"{len(raw_rows)} rader, de första {cap} visas")
    if lost["invalid"]:
        place.note("table_rows_invalid", f"{lost['invalid']} rader är inte objekt och togs bort")
    if lost["nested"]:
        place.note(
            "table_cells_invalid",
            f"{lost['nested']} celler är listor eller objekt och visas som tomma",
        )
    if lost["long"]:
        place.note(
            "table_cells_too_long",
            f"{lost['long']} celler är längre än {place.policy.max_cell_bytes} byte och kortades, "
            f"den längsta är {lost['longest']} byte",
        )
    # Where columns were dropped their cells went with them, and that has been said.
    if lost["unknown"] and len(columns) == column_count:
        place.note(
            "table_cells_unknown",
            f"{lost['unknown']} celler hör inte till någon kolumn och visas inte",
        )
    return rows


def _build_row(
    raw: dict[str, Any], columns: list[_Column], place: Place, lost: Counter[str]
) -> dict[str, Any]:
    max_bytes = place.policy.max_cell_bytes
    row: dict[str, Any] = {}
    for raw_key, key, _ in columns:
        if raw_key not in raw:
            continue
        cell = raw[raw_key]
        kind = type(cell)
        if kind is list or kind is dict:
            lost["nested"] += 1
            cell = None
        else:
            cell = clean_scalar(cell, place.tally)
            # A character has at most four bytes, so most cells need no counting.
            if type(cell) is str and len(cell) * 4 > max_bytes:
                size = count_bytes(cell)
                if size > max_bytes:
                    lost["long"] += 1
                    lost["longest"] = max(lost["longest"], size)
                    cell = cut_text(cell, max_bytes)
        row[key] = cell
    return row
