"""The commands that an operator sees session files by."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

from service import Service
from steps import Way, log_in, publish
from tiny_tools import FILE_FIELD, REPORTER

ROOT = Path(__file__).parents[2]


def run(service: Service, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *arguments],
        env=service.running.environment | options.pop("env", {}),
        cwd=ROOT,
        text=True,
        check=True,
        timeout=60,
        stdout=subprocess.PIPE,
        **options,
    )


def test_usage_counts_what_is_stored_and_changes_nothing(service: Service) -> None:
    version = publish(service, REPORTER, [FILE_FIELD])
    before = json.loads(run(service, "session_files_usage", "--json").stdout)
    with log_in(service, "bo") as client:
        way = Way(client, version["tool_id"], version["id"], version["slug"], is_sandbox=False)
        way.run(files=[("a.txt", b"12"), ("b.txt", b"345")])
        after = json.loads(run(service, "session_files_usage", "--json").stdout)
        assert {name: after[name] - before[name] for name in ("scanned", "files", "bytes")} == {
            "scanned": 1,
            "files": 2,
            "bytes": 5,
        }
        assert (after["dry_run"], after["deleted_sets"], after["unreadable"]) == (True, 0, 0)
        assert "put_object" not in after["requests"]
        assert way.files() == ["a.txt", "b.txt"]


def test_a_report_for_people_is_a_line_a_figure(service: Service) -> None:
    told = run(service, "cleanup_expired_session_files", "--dry-run", stderr=subprocess.PIPE)
    lines = dict(line.split(":", 1) for line in told.stdout.splitlines())
    assert lines["dry run"].strip() == "yes"
    assert {"scanned", "expired", "deleted sets", "deleted files", "deleted bytes"} <= lines.keys()
    assert {"orphans", "orphan bytes", "unreadable", "duration seconds"} <= lines.keys()
    assert "session files" not in told.stderr, "no progress bar where nobody looks"


def test_a_terminal_shows_how_far_a_sweep_has_come(service: Service) -> None:
    ours, theirs = pty.openpty()
    told = run(
        service,
        "cleanup_expired_session_files",
        "--json",
        stderr=theirs,
        env={"TERM": "xterm", "COLUMNS": "100"},
    )
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "session files" in shown
    assert json.loads(told.stdout)["dry_run"] is False


def test_retention_says_what_is_past_its_time(service: Service) -> None:
    told = json.loads(run(service, "apply_retention", "--json").stdout)
    assert (told["purged_runs"], told["deleted_artifacts"], told["is_complete"]) == (0, 0, True)
