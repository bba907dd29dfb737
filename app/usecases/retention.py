"""How long runs and their artifacts are kept, by the clocks of PostgreSQL and of the bucket.

Bounded, and resumable at any point: what is left is the oldest, and comes first the next time.
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Final
from uuid import UUID

import msgspec

from app.errors import AppError, Unavailable
from app.log import get_log
from app.settings import Settings
from app.store import run_purge, sweep_ledger
from app.store.artifacts import ArtifactStore
from app.store.postgres import Database

RETENTION: Final = "retention"
# So long may one go purge runs; a backlog of months is worked off over some hours.
MAX_SECONDS = 600.0

log = get_log(__name__)


class RetentionReport(msgspec.Struct):
    """What was deleted, or, of a dry run, what would be. `is_complete`: nothing old is left."""

    dry_run: bool = False
    purged_runs: int = 0
    deleted_artifacts: int = 0
    artifact_bytes: int = 0
    is_complete: bool = False
    duration_seconds: float = 0.0


async def apply_retention(
    db: Database,
    artifacts: ArtifactStore,
    settings: Settings,
    *,
    dry_run: bool = False,
) -> RetentionReport | None:
    """Delete artifacts older than ARTIFACT_RETENTION_DAYS and runs than RUN_RETENTION_DAYS.

    Returns None, and does nothing, while another process does it. With nothing to do it costs one
    LIST and one short walk of an index.

    Raises:
        Unavailable: half-way; the next time goes on.
    """
    async with db.try_lock("sweep:retention") as is_ours:
        if not is_ours:
            return None
        report = RetentionReport(dry_run=dry_run)
        async with _noted(db, report):
            started = time.monotonic()
            age = timedelta(days=settings.artifact_retention_days)
            # First those that are old by the bucket's own clock, whatever run they are of, if any.
            removed = await artifacts.delete_older(age, dry_run=dry_run)
            report.deleted_artifacts, report.artifact_bytes = removed.artifacts, removed.bytes
            await _purge_runs(db, artifacts, settings, report)
            report.duration_seconds = time.monotonic() - started
    log.info("retention.applied", **msgspec.to_builtins(report))
    return report


@asynccontextmanager
async def _noted(db: Database, report: RetentionReport) -> AsyncIterator[None]:
    """Write down for the operator that the block began, and how it ended; not of a dry run."""
    if report.dry_run:
        yield
        return
    await sweep_ledger.begin_sweep(db, RETENTION)
    try:
        yield
    except asyncio.CancelledError:
        with suppress(Unavailable):
            await sweep_ledger.interrupt_sweep(db, RETENTION)
        raise
    except Exception as error:
        log.exception("retention.failed")
        name = error.code if isinstance(error, AppError) else type(error).__name__
        with suppress(Unavailable):
            await sweep_ledger.fail_sweep(db, RETENTION, name)
        raise
    await sweep_ledger.end_sweep(db, RETENTION, report)


async def _purge_runs(
    db: Database, artifacts: ArtifactStore, settings: Settings, report: RetentionReport
) -> None:
    before = await run_purge.find_cutoff(db, timedelta(days=settings.run_retention_days))
    # A run's artifacts are as old as the run: where those are kept no longer, they are counted.
    are_counted = settings.artifact_retention_days <= settings.run_retention_days
    end = time.monotonic() + MAX_SECONDS
    after: UUID | None = None
    while batch := await run_purge.list_old_runs(db, before, after):
        after = batch[-1].id
        with_artifacts = {run.id for run in batch if run.may_have_artifacts}
        if with_artifacts and not (report.dry_run and are_counted):
            removed = await artifacts.delete_of_runs(with_artifacts, dry_run=report.dry_run)
            report.deleted_artifacts += removed.artifacts
            report.artifact_bytes += removed.bytes
        run_ids = [run.id for run in batch]
        if report.dry_run:
            report.purged_runs += len(run_ids)
        else:
            report.purged_runs += await run_purge.delete_runs(db, run_ids)
        if time.monotonic() > end:
            return
    report.is_complete = True
