"""What /metrics tells: requests of this process, and the state of storage, queue and upkeep.

Sweeps run in workers, and any node may be asked: what is not of this process is read from
PostgreSQL when a scrape asks. So every node tells the same; rules take the maximum over nodes.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from datetime import datetime
from typing import Any, Final, TypeVar, get_args

import msgspec
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from app.errors import AppError
from app.log import get_log
from app.settings import Settings
from app.store import runs
from app.store.lifecycle import LifecycleState, LifecycleWatch
from app.store.postgres import Database
from app.store.sweep_ledger import StorageStatus, get_status
from app.store.sweep_types import SweepReport
from app.store.upkeep import Upkeep, get_upkeep

CONTENT_TYPE: Final = CONTENT_TYPE_LATEST
# Prometheus gives up on a scrape after 10 s, and would then learn nothing at all.
READ_SECONDS: Final = 4.0
# Up to 30 s are waited for because the caller asked to (`Prefer: wait`); events may take longer.
_DURATION_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_UNFINISHED: Final = ("queued", "running")
_UNKNOWN: Final = "unknown"

T = TypeVar("T")
# What of a state becomes a metric: name without prefix, help text, and how it is read.
Gauges = tuple[tuple[str, str, Callable[[T], float | None]], ...]
Counters = tuple[tuple[str, str, Callable[[T], int]], ...]

log = get_log(__name__)


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """What was found out for one scrape; None is what could not be, or not in time."""

    storage: StorageStatus | None = None
    unfinished: dict[str, int] | None = None
    upkeep: Upkeep | None = None
    lifecycle: LifecycleState | None = None


async def take_snapshot(db: Database, lifecycle: LifecycleWatch) -> Snapshot:
    """Read what all nodes share. Never raises for a dependency that is down or does not answer."""
    known, state = await asyncio.gather(_in_time(_read_database(db)), lifecycle.find_state())
    storage, unfinished, upkeep = known or (None, None, None)
    return Snapshot(storage=storage, unfinished=unfinished, upkeep=upkeep, lifecycle=state)


class Metrics:
    """The metrics of one API node: its own, and those that it reads for a scrape."""

    def __init__(self, settings: Settings) -> None:
        # Not the library's global one: tests have several applications in a process.
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        GCCollector(registry=self._registry)
        self._requests = Counter(
            "skriptoteket_http_requests_total",
            "Requests that this process has answered. `route` is the template of the path, "
            "`unmatched` where there is none; `status` is the class, `none` without an answer.",
            ["method", "route", "status"],
            registry=self._registry,
        )
        self._durations = Histogram(
            "skriptoteket_http_request_duration_seconds",
            "Time from a request's head to the end of its answer in this process. It includes "
            "uploading, and waiting that the caller asked for (`Prefer: wait`, events).",
            ["method", "route"],
            buckets=_DURATION_BUCKETS,
            registry=self._registry,
        )
        Gauge(
            "skriptoteket_session_files_ttl_seconds",
            "Setting SESSION_FILES_TTL_SECONDS of this process: how long session files live "
            "after their last access.",
            registry=self._registry,
        ).set(settings.session_files_ttl_seconds)

    def observe_request(self, method: str, route: str | None, status: int, seconds: float) -> None:
        """Count one request; `status` is 0 where the client left without an answer."""
        # Whatever a stranger can choose freely would make as many series as they like.
        known_method = method if method in _METHODS else "other"
        known_route = route or "unmatched"
        status_class = f"{status // 100}xx" if status else "none"
        self._requests.labels(known_method, known_route, status_class).inc()
        self._durations.labels(known_method, known_route).observe(seconds)

    def render(self, snapshot: Snapshot) -> bytes:
        """Return all metrics in the text format, to be sent as `CONTENT_TYPE`."""
        return generate_latest(self._registry) + generate_latest(_SnapshotCollector(snapshot))


class _SnapshotCollector(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        storage, upkeep = self._snapshot.storage, self._snapshot.upkeep
        yield GaugeMetricFamily(
            "skriptoteket_storage_status_up",
            "1 if PostgreSQL told this scrape the state of storage, runs, retention and deletions; "
            "at 0 they are absent.",
            value=float(storage is not None),
        )
        yield _list_states(self._snapshot.lifecycle)
        if self._snapshot.unfinished is not None:
            yield _count_unfinished(self._snapshot.unfinished)
        if storage is not None:
            yield from _list_known(storage, _STORAGE_GAUGES, _STORAGE_COUNTERS)
        if upkeep is not None:
            yield from _list_known(upkeep, _UPKEEP_GAUGES, _UPKEEP_COUNTERS)


def _list_states(now: LifecycleState | None) -> Metric:
    family = GaugeMetricFamily(
        "skriptoteket_storage_lifecycle_rules",
        "1 for the state of the bucket's lifecycle rules, 0 for the others. Compared by this "
        "process with those wanted, once a minute at most; `unknown` while S3 does not tell.",
        labels=["state"],
    )
    for state in (*get_args(LifecycleState), _UNKNOWN):
        family.add_metric([state], float(state == (now or _UNKNOWN)))
    return family


def _count_unfinished(unfinished: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(
        "skriptoteket_unfinished_runs",
        "Runs that wait for a worker (`queued`) or have one (`running`), in the moment of the "
        "scrape.",
        labels=["status"],
    )
    for status in _UNFINISHED:
        family.add_metric([status], unfinished.get(status, 0))
    return family


def _list_known(status: T, gauges: Gauges[T], counters: Counters[T]) -> Iterator[Metric]:
    for name, words, read in gauges:
        # What is not known has no sample: no number would be true.
        if (value := read(status)) is not None:
            yield GaugeMetricFamily(f"skriptoteket_{name}", words, value=float(value))
    for name, words, total in counters:
        yield CounterMetricFamily(f"skriptoteket_{name}", words, value=total(status))


def _timestamp(at: datetime | None) -> float | None:
    return None if at is None else at.timestamp()


def _of_report(read: Callable[[SweepReport], float]) -> Callable[[StorageStatus], float | None]:
    return lambda status: None if status.report is None else read(status.report)


_LAST_SWEEP = "As the last sweep left it."
_LAST_WALK = (
    "Counted blob by blob, each part of the bucket when it was last walked: none of it longer ago "
    "than skriptoteket_session_files_walked_timestamp_seconds."
)
_STORAGE_GAUGES: Gauges[StorageStatus] = (
    (
        "session_file_sets",
        f"Sets of session files (one a user, tool and context) in the bucket. {_LAST_SWEEP}",
        lambda s: s.sets,
    ),
    (
        "session_files_oldest_access_timestamp_seconds",
        "When the set of session files that is unused for longest was last given to a run; absent "
        f"without sets. {_LAST_SWEEP}",
        lambda s: _timestamp(s.oldest_access),
    ),
    (
        "session_files",
        f"Session files in the bucket, orphans among them. {_LAST_WALK}",
        lambda s: s.files,
    ),
    ("session_files_bytes", f"Size of the session files together. {_LAST_WALK}", lambda s: s.bytes),
    (
        "session_files_orphans",
        "Blobs older than an hour that no set names and no run needs, as the walk found them; it "
        f"deletes them after counting. {_LAST_WALK}",
        lambda s: s.orphans,
    ),
    (
        "session_files_orphans_bytes",
        f"Size of the orphans together. {_LAST_WALK}",
        lambda s: s.orphan_bytes,
    ),
    (
        "session_file_sets_unexplained",
        f"Sets whose tool or user is not in the database; they are kept. {_LAST_WALK}",
        lambda s: s.unexplained,
    ),
    (
        "session_files_walked_timestamp_seconds",
        "Since when the whole bucket has been walked for blobs: the part longest ago. Absent "
        "before the first time.",
        lambda s: _timestamp(s.walked_at),
    ),
    (
        "sweep_started_timestamp_seconds",
        "When the last sweep of session files began, whether it goes on, ended or was killed.",
        lambda s: _timestamp(s.started_at),
    ),
    (
        "sweep_ended_timestamp_seconds",
        "When the last sweep ended, well or not; absent while one runs, and after a kill.",
        lambda s: _timestamp(s.ended_at),
    ),
    (
        "sweep_succeeded_timestamp_seconds",
        "When a sweep last ended well; absent before the first time.",
        lambda s: _timestamp(s.succeeded_at),
    ),
    (
        "sweep_duration_seconds",
        "How long the last sweep that got to its end took.",
        _of_report(lambda report: report.duration_seconds),
    ),
    (
        "sweep_complete",
        "1 if the last sweep that got to its end went through the whole bucket, 0 if its time was "
        "up; the next one begins with the rest.",
        _of_report(lambda report: report.is_complete),
    ),
    (
        "sweep_unreadable_manifests",
        "Manifests and journals that the last sweep that got to its end could not read; what they "
        "tell of is kept.",
        _of_report(lambda report: report.unreadable),
    ),
    (
        "sweep_refused",
        "Sets, journals and uploads of which S3 refused something to the last sweep that got to "
        "its end; the next one tries again.",
        _of_report(lambda report: report.failed),
    ),
)
_STORAGE_COUNTERS: Counters[StorageStatus] = (
    (
        "sweeps",
        "Sweeps of session files that were begun, by any process of this installation.",
        lambda s: s.sweeps_total,
    ),
    (
        "sweep_failures",
        "Sweeps that ended in an error or were killed; the latter count when the next one begins.",
        lambda s: s.failures_total,
    ),
)


_UPKEEP_GAUGES: Gauges[Upkeep] = (
    (
        "retention_succeeded_timestamp_seconds",
        "When runs and artifacts past their time were last deleted well, if there were any; absent "
        "before the first time.",
        lambda u: _timestamp(u.retention_succeeded_at),
    ),
    (
        "retention_complete",
        "1 if retention left nothing past its time when it last ended well, 0 if its time was up; "
        "the next one goes on.",
        lambda u: u.retention_is_complete,
    ),
    (
        "deletions_pending",
        "Users and tools that are deleted for everybody, with files and runs that are not gone "
        "yet, in the moment of the scrape.",
        lambda u: u.pending_deletions,
    ),
    (
        "deletions_oldest_timestamp_seconds",
        "When the longest pending deletion was asked for; absent while none is.",
        lambda u: _timestamp(u.oldest_deletion_at),
    ),
)
_UPKEEP_COUNTERS: Counters[Upkeep] = (
    (
        "retentions",
        "Times that retention was begun, by any process of this installation.",
        lambda u: u.retentions_total,
    ),
    (
        "retention_failures",
        "Those that ended in an error or were killed; the latter count when the next one begins.",
        lambda u: u.retention_failures_total,
    ),
)


async def _read_database(db: Database) -> tuple[StorageStatus, dict[str, int], Upkeep]:
    async with db.connection() as connection:
        return (
            await get_status(connection),
            await runs.count_unfinished(connection),
            await get_upkeep(connection),
        )


async def _in_time(work: Coroutine[Any, Any, T]) -> T | None:
    """Return what the work gives, or None after `READ_SECONDS` or where a dependency is down."""
    task = asyncio.create_task(work)
    done, _ = await asyncio.wait({task}, timeout=READ_SECONDS)
    if not done:
        # Not waited for: a connection to a server that hangs takes its time to be given back.
        task.cancel()
        log.warning("metrics.read_timeout")
        return None
    try:
        return task.result()
    except AppError as error:
        log.warning("metrics.read_failed", error=str(error))
        return None
