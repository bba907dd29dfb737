"""What a scrape is answered: what is known, nothing made up, and no series that strangers name."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.parser import text_string_to_metric_families
from statuses import NOW, make_status

from app import metrics as metrics_module
from app.errors import Unavailable
from app.metrics import Metrics, Snapshot, take_snapshot
from app.settings import Settings
from app.store import lifecycle as lifecycle_module
from app.store.lifecycle import LifecycleReport, LifecycleWatch
from app.store.postgres import Database
from app.store.upkeep import Upkeep


def read(metrics: Metrics, snapshot: Snapshot) -> dict[str, float]:
    """Render and parse: the value of each series as `name{label=value}`."""
    return {
        sample.name + "".join(f"{{{k}={v}}}" for k, v in sorted(sample.labels.items())): (
            sample.value
        )
        for family in text_string_to_metric_families(metrics.render(snapshot).decode())
        for sample in family.samples
        if sample.name.startswith("skriptoteket_")
    }


def test_without_the_database_the_rest_is_told() -> None:
    metrics = Metrics(Settings(session_files_ttl_seconds=7_200))
    metrics.observe_request("GET", "/api/v1/runs", 200, 0.1)
    told = read(metrics, Snapshot(lifecycle="drifted"))
    assert told["skriptoteket_storage_status_up"] == 0
    assert told["skriptoteket_session_files_ttl_seconds"] == 7_200
    assert told["skriptoteket_storage_lifecycle_rules{state=drifted}"] == 1
    assert told["skriptoteket_http_request_duration_seconds_count{method=GET}{route=/api/v1/runs}"]
    unknown = ("sweep", "unfinished", "retention", "deletions")
    assert not any(word in name for word in unknown for name in told)


def test_before_the_first_sweep_nothing_is_made_up() -> None:
    told = read(
        Metrics(Settings()), Snapshot(storage=make_status(), unfinished={}, upkeep=Upkeep())
    )
    assert told["skriptoteket_storage_status_up"] == 1
    assert told["skriptoteket_sweeps_total"] == told["skriptoteket_retentions_total"] == 0
    assert told["skriptoteket_deletions_pending"] == 0
    assert "skriptoteket_retention_complete" not in told
    assert told["skriptoteket_unfinished_runs{status=queued}"] == 0
    assert told["skriptoteket_storage_lifecycle_rules{state=unknown}"] == 1
    assert not any("timestamp" in name or "duration_seconds" in name for name in told)
    assert "skriptoteket_sweep_unreadable_manifests" not in told


def test_strangers_cannot_make_series() -> None:
    metrics = Metrics(Settings())
    before = read(metrics, Snapshot())
    for number in range(20):
        metrics.observe_request(f"M{number}", None, 404, 0.1)
    metrics.observe_request("GET", None, 0, 0.1)
    added = read(metrics, Snapshot()).keys() - before.keys()
    counters = {name for name in added if name.startswith("skriptoteket_http_requests_total")}
    assert counters == {
        "skriptoteket_http_requests_total{method=other}{route=unmatched}{status=4xx}",
        "skriptoteket_http_requests_total{method=GET}{route=unmatched}{status=none}",
    }


class _Rules:
    """A server's answer to the question for its rules, and how often it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked, self.clock = 0, 0.0
        self.answer: Any = LifecycleReport("complete")
        monkeypatch.setattr(lifecycle_module, "check_lifecycle", self._check)
        clock = SimpleNamespace(monotonic=lambda: self.clock)
        monkeypatch.setattr(lifecycle_module, "time", clock)
        self.watch = LifecycleWatch(cast("Any", None), Settings())

    async def _check(self, *_: Any) -> LifecycleReport:
        self.asked += 1
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        report: LifecycleReport = self.answer
        return report


async def test_s3_is_asked_for_its_rules_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    rules = _Rules(monkeypatch)
    found = await asyncio.gather(*(rules.watch.find_state() for _ in range(5)))
    assert (found, rules.asked) == (["complete"] * 5, 1)
    rules.answer, rules.clock = Unavailable("s3"), 59.0
    assert (await rules.watch.find_state(), rules.asked) == ("complete", 1)
    rules.clock = 61.0
    for _ in range(3):
        assert (await rules.watch.find_state(), rules.asked) == (None, 2)
    rules.answer, rules.clock = LifecycleReport("drifted"), 122.0
    assert (await rules.watch.find_state(), rules.asked) == ("drifted", 3)


class _HangingDatabase:
    def __init__(self) -> None:
        self.is_back = asyncio.Event()

    def connection(self) -> "_HangingDatabase":
        return self

    async def __aenter__(self) -> None:
        try:
            await self.is_back.wait()
        finally:
            # A connection whose server hangs takes its time to be given back.
            await self.is_back.wait()

    async def __aexit__(self, *_: object) -> None: ...


async def test_a_database_that_hangs_does_not_hold_a_scrape(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(metrics_module, "READ_SECONDS", 0.05)
    rules, database = _Rules(monkeypatch), _HangingDatabase()
    async with asyncio.timeout(1):
        snapshot = await take_snapshot(cast("Database", database), rules.watch)
    assert snapshot == Snapshot(lifecycle="complete")
    database.is_back.set()


def test_times_are_told_in_seconds() -> None:
    status = make_status(sets=1, oldest_access=NOW)
    told = read(Metrics(Settings()), Snapshot(storage=status))
    name = "skriptoteket_session_files_oldest_access_timestamp_seconds"
    assert told[name] == NOW.timestamp() == 1_795_262_400


def test_upkeep_is_told_as_it_stands() -> None:
    upkeep = Upkeep(
        pending_deletions=2,
        oldest_deletion_at=NOW,
        retention_succeeded_at=NOW,
        retention_is_complete=False,
        retentions_total=9,
        retention_failures_total=3,
    )
    told = read(Metrics(Settings()), Snapshot(upkeep=upkeep))
    names = ("retention_", "retentions_", "deletions_")
    found = {name.removeprefix("skriptoteket_"): value for name, value in told.items()}
    assert {name: value for name, value in found.items() if name.startswith(names)} == {
        "retention_succeeded_timestamp_seconds": NOW.timestamp(),
        "retention_complete": 0,
        "retentions_total": 9,
        "retention_failures_total": 3,
        "deletions_pending": 2,
        "deletions_oldest_timestamp_seconds": NOW.timestamp(),
    }
