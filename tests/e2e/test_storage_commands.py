"""The commands that an operator sees session files by."""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

from service import Service
from steps import Way, list_objects, log_in, publish
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
    with log_in(service, "bo") as client:
        way = Way(client, version["tool_id"], version["id"], version["slug"], is_sandbox=False)
        way.run(files=[("a.txt", b"12"), ("b.txt", b"345")])
        before = list_objects(service, "sessions/")
        ran = run(service, "session_files_usage", "--json", stderr=subprocess.PIPE)
        told = json.loads(ran.stdout)
        manifests = [key for key in before if key.startswith("sessions/manifests/")]
        blobs = [key for key in before if key.startswith("sessions/files/")]
        assert (told["scanned"], told["files"]) == (len(manifests), len(blobs))
        assert told["bytes"] >= 5
        assert (told["dry_run"], told["deleted_sets"], told["unreadable"]) == (True, 0, 0)
        assert "put_object" not in told["requests"]
        assert list_objects(service, "sessions/") == before
        assert "session files" not in ran.stderr, "no progress bar where nobody looks"


def test_a_person_sees_how_far_a_sweep_has_come_and_then_a_line_a_figure(
    service: Service,
) -> None:
    ours, theirs = pty.openpty()
    seen = {"TERM": "xterm", "COLUMNS": "100"}
    told = run(service, "cleanup_expired_session_files", stderr=theirs, env=seen)
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert "session files" in shown
    lines = dict(line.split(":", 1) for line in told.stdout.splitlines())
    assert lines["dry run"].strip() == "no"
    assert {"scanned", "expired", "deleted sets", "deleted files", "deleted bytes"} <= lines.keys()
    assert {"orphans", "orphan bytes", "unreadable", "duration seconds"} <= lines.keys()


def test_retention_says_what_is_past_its_time(service: Service) -> None:
    told = json.loads(run(service, "apply_retention", "--json").stdout)
    assert (told["purged_runs"], told["deleted_artifacts"], told["is_complete"]) == (0, 0, True)
