"""Workbooks for tests, and the zip files that they are."""

import io
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any

import openpyxl

Rows = Sequence[Sequence[Any]]


def make_xlsx(sheets: Mapping[str, Rows], hidden: str = "") -> bytes:
    """Make a workbook of rows by sheet, of which one may be hidden."""
    book = openpyxl.Workbook()
    book.remove(book.active)
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
        if title == hidden:
            sheet.sheet_state = "hidden"
    out = io.BytesIO()
    book.save(out)
    return out.getvalue()


def make_zip(entries: Mapping[str, bytes]) -> bytes:
    """Pack files by name, so that zeros take next to no room."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return out.getvalue()


def read_zip(data: bytes) -> dict[str, bytes]:
    """Unpack what is in a zip file, by name and in its order."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}
