"""The alert rules: they are sound, they fire when they should, and what they name is exposed."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from requirements import skip_for_want_of
from statuses import NOW, make_status

from app.metrics import Metrics, Snapshot
from app.settings import Settings
from app.store.sweep_types import SweepReport
from app.store.upkeep import Upkeep

ROOT = Path(__file__).resolve().parents[2]
ALERTS = ROOT / "infra" / "alerts"
RULES = [ALERTS / "runs.yml", ALERTS / "storage.yml"]
# All that there is to tell, as after a sweep.
SNAPSHOT = Snapshot(
    storage=make_status(
        oldest_access=NOW,
        walked_at=NOW,
        started_at=NOW,
        ended_at=NOW,
        succeeded_at=NOW,
        report=SweepReport(),
    ),
    unfinished={"queued": 1},
    upkeep=Upkeep(
        pending_deletions=1,
        oldest_deletion_at=NOW,
        retention_succeeded_at=NOW,
        retention_is_complete=True,
    ),
    lifecycle="complete",
)
each_file = pytest.mark.parametrize("rules", RULES, ids=lambda path: path.stem)


def render() -> str:
    metrics = Metrics(Settings())
    metrics.observe_request("GET", "/api/v1/tools", 200, 0.1)
    return metrics.render(SNAPSHOT).decode()


@pytest.fixture
def promtool() -> str:
    found = shutil.which("promtool")
    if found is None:
        skip_for_want_of("PROMTOOL", "promtool is not installed (Debian package prometheus)")
    return found


def run(*command: str, stdin: str = "") -> None:
    done = subprocess.run(
        command, input=stdin, capture_output=True, text=True, check=False, timeout=60, cwd=ALERTS
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_file_of_rules_is_left_out() -> None:
    found = {path for path in ALERTS.glob("*.yml") if not path.stem.endswith("_test")}
    assert found == set(RULES)


@each_file
def test_every_metric_that_a_rule_names_is_exposed(rules: Path) -> None:
    series = {
        sample.name
        for family in text_string_to_metric_families(render())
        for sample in family.samples
    }
    named = set(re.findall(r"\bskriptoteket_\w+", rules.read_text("utf-8")))
    assert len(named) >= (10 if rules.stem == "storage" else 6)
    assert named <= series, named - series


@each_file
def test_states_that_a_rule_names_are_exposed(rules: Path) -> None:
    states = r'{(?:state|status)="(\w+)"}'
    exposed = set(re.findall(states, render()))
    named = set(re.findall(states, rules.read_text("utf-8")))
    assert named and named <= exposed


@each_file
def test_every_alert_says_what_it_means_and_what_to_do(rules: Path) -> None:
    alerts = rules.read_text("utf-8").split("- alert: ")[1:]
    for alert in alerts:
        for line in ("severity:", "summary:", "description:", "runbook:"):
            assert alert.count(f" {line}") == 1, (alert.splitlines()[0], line)
    tests = rules.with_stem(f"{rules.stem}_test").read_text("utf-8")
    names = [alert.splitlines()[0] for alert in alerts]
    assert len(set(names)) == len(names)
    assert [name for name in names if f'"{name}"' not in tests] == [], "each is seen to fire"


def test_events_and_alerts_that_operators_are_told_of_exist() -> None:
    readme = ROOT.joinpath("README.md").read_text("utf-8")
    rules = "".join(path.read_text("utf-8") for path in RULES)
    nouns = "(?:blob_cache|deletion|metrics|queue|re[a-z]+|run|s3|session_files|storage|worker)"
    named = set(re.findall(rf"\b{nouns}\.(?!yml)[a-z_]+", readme + rules))
    assert len(named) >= 15
    sources = [path for top in ("app", "workers") for path in ROOT.joinpath(top).rglob("*.py")]
    code = "".join(path.read_text("utf-8") for path in sources)
    events = set(re.findall(rf'"({nouns}\.[a-z_{{}}]+)"', code))
    logged = re.compile("|".join(re.sub("{[a-z_]+}", "[a-z_]+", event) for event in events))
    assert [name for name in sorted(named) if not logged.fullmatch(name)] == []
    words = re.sub("`[^`]*`", "", readme.partition("### At night")[2])
    alerts = {f"Skriptoteket{name}" for name in re.findall(r"\b(?:[A-Z][a-z]+){2,}\b", words)}
    assert len(alerts) >= 8
    assert alerts <= set(re.findall(r"- alert: (\w+)", rules))


@each_file
def test_the_rules_are_sound_and_fire_when_they_should(promtool: str, rules: Path) -> None:
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", rules.name)
    run(promtool, "test", "rules", f"{rules.stem}_test.yml")


def test_names_and_help_texts_are_as_prometheus_asks(promtool: str) -> None:
    run(promtool, "check", "metrics", stdin=render())
