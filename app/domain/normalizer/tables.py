"""Tables: columns with unique keys, rows that hold one scalar for each column they fill."""

from collections import Counter
from typing import Any

from app.domain.normalizer.canonical import Tally, clean_scalar, clean_text, count_bytes, cut_text
from app.domain.normalizer.notices import NoticeLog, Rejected
from app.domain.policy import UiPolicy


def build_table(
    raw: dict[str, Any], where: str, policy: UiPolicy, log: NoticeLog, tally: Tally
) -> dict[str, Any]:
    """Return columns and rows within the caps; the first rows and columns are the ones kept."""
    raw_columns, raw_rows = raw.get("columns"), raw.get("rows")
    if type(raw_columns) is not list or type(raw_rows) is not list:
        raise Rejected(
            "output_invalid", f"{where} visas inte: kolumner och rader måste vara listor."
        )
    columns = _build_columns(raw_columns, where, policy, log, tally)
    if raw_columns and not columns:
        raise Rejected("output_invalid", f"{where} visas inte: ingen kolumn går att använda.")
    rows = _build_rows(raw_rows, columns, where, policy, log, tally)
    return {
        "kind": "table",
        "columns": [{"key": key, "label": label} for _, key, label in columns],
        "rows": rows,
    }


def _build_columns(
    raw_columns: list[Any], where: str, policy: UiPolicy, log: NoticeLog, tally: Tally
) -> list[tuple[str, str, str]]:
    """Return (key in the raw rows, key, label) of each column that can be shown."""
    columns: list[tuple[str, str, str]] = []
    seen: set[str] = set()
    lost = Counter[str]()
    for raw in raw_columns:
        raw_key = raw.get("key") if type(raw) is dict else None
        if type(raw_key) is not str or len(raw_key) > policy.max_key_bytes:
            lost["invalid"] += 1
            continue
        key = clean_text(raw_key, tally)
        if not key or count_bytes(key) > policy.max_key_bytes:
            lost["invalid"] += 1
        elif key in seen:
            lost["duplicate"] += 1
        elif len(columns) == policy.max_table_columns:
            lost["over"] += 1
        else:
            seen.add(key)
            label = raw.get("label")
            if type(label) is not str:
                lost["unlabelled"] += 1
                label = key
            text = clean_text(label, tally)
            if (shorter := cut_text(text, policy.max_label_bytes)) != text:
                lost["long_label"] += 1
            columns.append((raw_key, key, shorter))
            if len(raw) > 2:
                lost["unknown"] += 1
    given = len(raw_columns)
    if lost["invalid"]:
        log.add(
            "table_columns_invalid",
            f"{where}: {lost['invalid']} av {given} kolumner togs bort, för att nyckeln saknas, "
            f"är tom eller är längre än {policy.max_key_bytes} byte.",
        )
    if lost["duplicate"]:
        log.add(
            "table_columns_duplicate",
            f"{where}: {lost['duplicate']} av {given} kolumner togs bort, "
            "för att nyckeln redan finns.",
        )
    if lost["over"]:
        log.add(
            "table_too_many_columns",
            f"{where} har {given} kolumner, högst {policy.max_table_columns} visas: "
            f"{lost['over']} togs bort.",
        )
    if lost["unlabelled"]:
        log.add(
            "label_missing",
            f"{where}: {lost['unlabelled']} kolumner saknar rubrik och visas med sin nyckel.",
        )
    if lost["long_label"]:
        log.add(
            "label_too_long",
            f"{where}: {lost['long_label']} kolumnrubriker är längre än "
            f"{policy.max_label_bytes} byte och kortades.",
        )
    if lost["unknown"]:
        log.add("members_unknown", f"{where}: {lost['unknown']} kolumner har okända egenskaper.")
    return columns


def _build_rows(
    raw_rows: list[Any],
    columns: list[tuple[str, str, str]],
    where: str,
    policy: UiPolicy,
    log: NoticeLog,
    tally: Tally,
) -> list[dict[str, Any]]:
    max_bytes = policy.max_cell_bytes
    rows: list[dict[str, Any]] = []
    lost = Counter[str]()
    for raw in raw_rows[: policy.max_table_rows]:
        if type(raw) is not dict:
            lost["invalid"] += 1
            continue
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
                cell = clean_scalar(cell, tally)
                # A character has at least one byte and at most four.
                if type(cell) is str and len(cell) * 4 > max_bytes:
                    size = count_bytes(cell)
                    if size > max_bytes:
                        lost["long"] += 1
                        lost["longest"] = max(lost["longest"], size)
                        cell = cut_text(cell, max_bytes)
            row[key] = cell
        lost["unknown"] += len(raw) - len(row)
        rows.append(row)
    if len(raw_rows) > policy.max_table_rows:
        log.add(
            "table_too_many_rows",
            f"{where} har {len(raw_rows)} rader; de första {policy.max_table_rows} visas.",
        )
    if lost["invalid"]:
        log.add(
            "table_rows_invalid",
            f"{where}: {lost['invalid']} rader är inte objekt och togs bort.",
        )
    if lost["nested"]:
        log.add(
            "table_cells_invalid",
            f"{where}: {lost['nested']} celler är listor eller objekt och visas som tomma.",
        )
    if lost["long"]:
        log.add(
            "table_cells_too_long",
            f"{where}: {lost['long']} celler är längre än {max_bytes} byte och kortades; "
            f"den längsta är {lost['longest']} byte.",
        )
    if lost["unknown"]:
        log.add(
            "table_cells_unknown",
            f"{where}: {lost['unknown']} celler hör inte till någon kolumn och visas inte.",
        )
    return rows
