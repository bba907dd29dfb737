"""The alert rules: they are sound, they fire when they should, and what they name is exposed."""

import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from app.metrics import Metrics, Snapshot
from app.settings import Settings
from app.store.session_sweep import SweepReport
from app.store.sweep_ledger import StorageStatus

ALERTS = Path(__file__).resolve().parents[2] / "infra" / "alerts"
RULES = ALERTS / "storage.yml"
NOW = datetime(2026, 11, 21, tzinfo=UTC)
# All that there is to tell, as after a sweep.
STATUS = StorageStatus(
    sets=1,
    oldest_access=NOW,
    files=1,
    bytes=1,
    orphans=1,
    orphan_bytes=1,
    unexplained=1,
    walked_at=NOW,
    started_at=NOW,
    ended_at=NOW,
    succeeded_at=NOW,
    report={name: getattr(SweepReport(), name) for name in SweepReport.__struct_fields__},
    sweeps_total=1,
)
SNAPSHOT = Snapshot(storage=STATUS, unfinished={"queued": 1}, lifecycle="complete")


def render() -> str:
    metrics = Metrics(Settings())
    metrics.observe_request("GET", "/api/v1/tools", 200, 0.1)
    return metrics.render(SNAPSHOT).decode()


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        reason = "promtool is not installed (Debian package prometheus)"
        if os.environ.get("SKRIPTOTEKET_REQUIRE_PROMTOOL") == "1":
            pytest.fail(f"{reason}, and SKRIPTOTEKET_REQUIRE_PROMTOOL=1")
        pytest.skip(reason)
    return found


def run(*command: str, stdin: str = "") -> None:
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, timeout=60, cwd=ALERTS
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_metric_that_a_rule_names_is_exposed() -> None:
    series = {
        sample.name
        for family in text_string_to_metric_families(render())
        for sample in family.samples
    }
    named = set(re.findall(r"\bskriptoteket_\w+", RULES.read_text("utf-8")))
    assert len(named) >= 10
    assert named <= series, named - series


def test_states_that_a_rule_names_are_exposed() -> None:
    exposed = set(re.findall(r'lifecycle_rules{state="(\w+)"}', render()))
    named = set(re.findall(r'state="(\w+)"', RULES.read_text("utf-8")))
    assert named and named <= exposed


def test_every_alert_says_what_it_means_and_what_to_do() -> None:
    alerts = RULES.read_text("utf-8").split("- alert: ")[1:]
    for alert in alerts:
        for line in ("severity:", "summary:", "description:", "runbook:"):
            assert alert.count(f" {line}") == 1, (alert.splitlines()[0], line)
    tests = ALERTS.joinpath("storage_test.yml").read_text("utf-8")
    names = [alert.splitlines()[0] for alert in alerts]
    assert len(set(names)) == len(names)
    assert [name for name in names if f'"{name}"' not in tests] == [], "each is seen to fire"


def test_the_rules_are_sound_and_fire_when_they_should(promtool: str) -> None:
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", RULES.name)
    run(promtool, "test", "rules", "storage_test.yml")


def test_names_and_help_texts_are_as_prometheus_asks(promtool: str) -> None:
    run(promtool, "check", "metrics", stdin=render())
