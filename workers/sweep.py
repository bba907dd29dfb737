"""What goes on by the clock: lost and unsent runs, deletions, and session files past their time.

Each job runs under an advisory lock, since neither the queue nor several workers keep two ticks
from overlapping.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from app.domain.runs import RunStatus
from app.jobs import Queue
from app.log import get_log
from app.settings import Settings
from app.store import run_recovery
from app.store.artifacts import ArtifactStore
from app.store.events import RunEvent, RunEvents
from app.store.postgres import Database
from app.store.session_files import SessionFileStorageProtocol
from app.usecases.deletions import Deletions
from app.usecases.retention import apply_retention
from app.usecases.storage_sweep import clean_up_expired
from workers.abandoned import AbandonedUploads

log = get_log(__name__)

# So long may a Redis that hangs keep the next round waiting; that sends what is left.
TELL_SECONDS = 5


@dataclass(frozen=True)
class Sweep:
    """The clock's jobs, over the adapters that they take."""

    settings: Settings
    db: Database
    queue: Queue
    events: RunEvents
    session_files: SessionFileStorageProtocol
    artifacts: ArtifactStore
    deletions: Deletions
    abandoned: AbandonedUploads

    async def recover_runs(self) -> None:
        """Send queued runs without a job again; queue or end those whose worker is gone."""
        async with self.db.try_lock("sweep:runs") as is_ours:
            if is_ours:
                ended = await self._end_overdue()
                ended_too, to_send = await self._recover_lost()
                # What was just recovered may be among them too.
                to_send |= dict(await run_recovery.list_unsent(self.db))
            else:
                ended, ended_too, to_send = {}, {}, {}
        # Outside the lock: runs are recovered also while Redis or the object store is away.
        try:
            async with asyncio.timeout(TELL_SECONDS):
                await self._tell(ended | ended_too, to_send)
        except TimeoutError:
            log.warning("sweep.cut_short", ended=len(ended | ended_too), to_send=len(to_send))
        await self.abandoned.delete()

    async def _end_overdue(self) -> dict[UUID, RunStatus]:
        """Fail what waited for too long; what ended."""
        seconds = self.settings.run_queue_timeout_seconds
        run_seconds = max(
            self.settings.run_timeout_seconds, self.settings.sandbox_run_timeout_seconds
        )
        overdue = await run_recovery.fail_overdue_runs(
            self.db, seconds, run_seconds, datetime.now(UTC)
        )
        for run_id in overdue:
            log.warning("run.queue_timeout", run_id=run_id)
        return dict.fromkeys(overdue, RunStatus.FAILED)

    async def _recover_lost(self) -> tuple[dict[UUID, RunStatus], dict[UUID, int]]:
        """Queue or end the runs of dead workers: what ended, and what is to be sent."""
        limits = (self.settings.run_max_attempts, self.settings.run_lease_seconds)
        ended: dict[UUID, RunStatus] = {}
        to_send: dict[UUID, int] = {}
        for run in await run_recovery.recover_lost_runs(self.db, *limits, datetime.now(UTC)):
            log.warning("run.lost", run_id=run.id, status=run.status, attempt=run.attempt)
            if run.status is RunStatus.QUEUED:
                to_send[run.id] = run.attempt
            else:
                ended[run.id] = run.status
                self.abandoned.add(run.id)
        return ended, to_send

    async def _tell(self, ended: Mapping[UUID, RunStatus], to_send: Mapping[UUID, int]) -> None:
        """Tell who waits for runs that ended, and send those that are queued."""
        for run_id, status in ended.items():
            await self.events.publish(run_id, RunEvent(status=status))
        for run_id, attempt in to_send.items():
            await self.queue.resend_run(run_id, attempt)

    async def finish_deletions(self) -> None:
        """Go on with users and tools that are being deleted: one query where there are none."""
        await self.deletions.finish_all()

    async def clean_up_expired_session_files(self) -> None:
        """Delete session files that no run was given for the TTL (ADR-0039 §3)."""
        await clean_up_expired(self.db, self.session_files, self.settings)

    async def apply_retention(self) -> None:
        """Delete runs and artifacts that are older than they are kept."""
        await apply_retention(self.db, self.artifacts, self.settings)
