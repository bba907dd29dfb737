"""What commands that take a while show: a progress bar on a terminal, and their report."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from app.store.sweep_types import SweepReport
from app.usecases.storage_sweep import OnProgress


@contextmanager
def show_sweep(expected_sets: int) -> Iterator[OnProgress | None]:
    """Show how far a sweep has come, on stderr and only where a person looks at it.

    `expected_sets` is what the last sweep saw; 0 is not known.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("sets, {task.fields[found]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("session files", total=expected_sets or None, found="")

        def tell(report: SweepReport) -> None:
            total = max(expected_sets, report.scanned) if expected_sets else None
            found = f"{report.expired} expired, {report.orphans} orphans"
            progress.update(task, completed=report.scanned, total=total, found=found)

        yield tell


def print_report(report: msgspec.Struct, *, as_json: bool) -> None:
    """Print a report: for people a line a figure, for programs one JSON object."""
    values = msgspec.to_builtins(report)
    if as_json:
        print(msgspec.json.encode(values).decode())  # noqa: T201
        return
    for name, value in values.items():
        words = name.removeprefix("is_").replace("_", " ")
        print(f"{words + ':':<20} {_show(value)}")  # noqa: T201
    sys.stdout.flush()


def _show(value: object) -> str:
    match value:
        case None:
            return "-"
        case bool():
            return "yes" if value else "no"
        case dict():
            return ", ".join(f"{count} {name}" for name, count in value.items()) or "-"
        case list():
            return ", ".join(map(str, value)) or "-"
        case int():
            return f"{value:,}".replace(",", " ")
    return str(value)
