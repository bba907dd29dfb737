"""The sweep of session files over its shards, and a look at them that changes nothing."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, suppress
from datetime import UTC, datetime
from math import ceil
from time import monotonic
from uuid import UUID

import msgspec

from app.errors import AppError, Unavailable
from app.log import get_log
from app.settings import Settings
from app.store import runs, sweep_ledger
from app.store.postgres import Database
from app.store.session_files import SessionFilesKey, SessionFileStorageProtocol
from app.store.session_sweep import SessionSweep
from app.store.sweep_ledger import SESSION_FILES, Shard
from app.store.sweep_types import Reach, SweepReport

LOCK = "sweep:session-files"
# The blobs of a large bucket are walked in parts, one an hour, all of them once a day.
WALKS_OF_A_DAY = 24
PROGRESS_SECONDS = 0.2
# What a sweep that had to leave something (`SweepReport.failed`) is noted as.
PARTS_REFUSED = "parts_refused"
NEVER = datetime.min.replace(tzinfo=UTC)

# Told now and then how far a sweep has come.
OnProgress = Callable[[SweepReport], None]

log = get_log(__name__)


async def clean_up_expired(
    db: Database,
    storage: SessionFileStorageProtocol,
    settings: Settings,
    *,
    on_progress: OnProgress | None = None,
) -> SweepReport | None:
    """Delete session files that no run was given for the TTL (ADR-0039 §3).

    Returns None, and does nothing, while another process does it. Interrupted at any point, the
    next one goes on with what this one had not reached. A report with something `failed` is that of
    a sweep which got to its end, and is noted as a failure.

    Raises:
        Unavailable
    """
    async with db.try_lock(LOCK) as is_ours:
        if not is_ours:
            log.info("session_files.sweep_running_elsewhere")
            return None
        await sweep_ledger.begin_sweep(db, SESSION_FILES)
        sweep = _open_sweep(db, storage, settings, dry_run=False)
        try:
            async with _told(sweep, on_progress):
                await _sweep_shards(db, sweep, settings.sweep_max_seconds)
        except asyncio.CancelledError:
            await sweep_ledger.interrupt_sweep(db, SESSION_FILES)
            raise
        except Exception as error:
            log.exception("session_files.sweep_failed")
            with suppress(Unavailable):
                await sweep_ledger.fail_sweep(db, SESSION_FILES, _name_error(error))
            raise
        if sweep.report.failed:
            await sweep_ledger.fail_sweep(db, SESSION_FILES, PARTS_REFUSED, sweep.report)
        else:
            await sweep_ledger.end_sweep(db, SESSION_FILES, sweep.report)
    log.info("session_files.swept", **msgspec.to_builtins(sweep.report))
    return sweep.report


async def survey_session_files(
    db: Database,
    storage: SessionFileStorageProtocol,
    settings: Settings,
    *,
    on_progress: OnProgress | None = None,
) -> SweepReport:
    """Look at all session files, and at what a sweep would do; changes nothing.

    Raises:
        Unavailable
    """
    sweep = _open_sweep(db, storage, settings, dry_run=True)
    async with _told(sweep, on_progress):
        await sweep.begin()
        async for _ in sweep.sweep():
            pass
    return sweep.report


def _open_sweep(
    db: Database, storage: SessionFileStorageProtocol, settings: Settings, *, dry_run: bool
) -> SessionSweep:
    async def find_needed(
        keys: Sequence[SessionFilesKey],
    ) -> Mapping[SessionFilesKey, set[str]]:
        found = await runs.find_needed_blobs(db, [key.parts for key in keys])
        return {SessionFilesKey(*parts): blobs for parts, blobs in found.items()}

    async def find_unexplained(
        owners: Sequence[tuple[UUID, UUID]],
    ) -> set[tuple[UUID, UUID]]:
        return await sweep_ledger.find_unexplained(db, owners)

    return storage.open_sweep(
        find_needed,
        find_unexplained,
        requests_per_second=settings.sweep_requests_per_second,
        dry_run=dry_run,
    )


async def _sweep_shards(db: Database, sweep: SessionSweep, max_seconds: float) -> None:
    end = monotonic() + max_seconds
    # However much was left half done: the other half of the time is for all others.
    await sweep.begin(max_seconds=max_seconds / 2)
    for reach in _plan(await sweep_ledger.list_shards(db)):
        if monotonic() > end:
            sweep.report.is_complete = False
            return
        parts = sweep.sweep(reach)
        async with aclosing(parts):
            async for count in parts:
                await sweep_ledger.save_shard(db, count)
                if count.end_path != reach.end_path and monotonic() > end:
                    sweep.report.is_complete = False
                    return
    await sweep_ledger.merge_shards(db)


def _name_error(error: Exception) -> str:
    """Name an error for admins; what else it says, which may be an address, stands in the log."""
    return error.code if isinstance(error, AppError) else type(error).__name__


def _plan(shards: Sequence[Shard]) -> list[Reach]:
    """Say in which order to sweep: what the last sweep did not reach comes first.

    Neighbours are listed in one go, since each beginning costs a request. The blobs are walked of
    those shards that waited longest for it.
    """
    waiting = sorted(shards, key=lambda shard: shard.walked_at or NEVER)
    walked = {shard.first_path for shard in waiting[: ceil(len(shards) / WALKS_OF_A_DAY)]}
    plan: list[Reach] = []
    for shard in sorted(shards, key=lambda shard: shard.swept_at or NEVER):
        walk_blobs = shard.first_path in walked
        last = plan[-1] if plan else None
        if last and last.end_path == shard.first_path and last.walk_blobs == walk_blobs:
            cuts = (*last.cuts, shard.first_path)
            plan[-1] = msgspec.structs.replace(last, end_path=shard.end_path, cuts=cuts)
        else:
            first, end = shard.first_path, shard.end_path
            plan.append(Reach(first_path=first, end_path=end, walk_blobs=walk_blobs))
    return plan


@asynccontextmanager
async def _told(sweep: SessionSweep, on_progress: OnProgress | None) -> AsyncIterator[None]:
    """Tell now and then how far a sweep has come, while the block runs."""

    async def tell() -> None:
        while on_progress is not None:
            on_progress(sweep.report)
            await asyncio.sleep(PROGRESS_SECONDS)

    teller = asyncio.create_task(tell())
    try:
        yield
    finally:
        teller.cancel()
