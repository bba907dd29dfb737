"""What goes on by the clock: lost and unsent runs, deletions, and session files past their time.

Each job runs under an advisory lock, since neither the queue nor several workers keep two ticks
from overlapping.
"""

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from app.domain.runs import RunStatus
from app.errors import AppError
from app.jobs import Queue
from app.log import get_log
from app.settings import Settings
from app.store import runs
from app.store.artifacts import ArtifactStore
from app.store.events import RunEvent, RunEvents
from app.store.postgres import Database
from app.store.session_files import SessionFileStorageProtocol
from app.usecases.deletions import Deletions
from app.usecases.retention import apply_retention
from app.usecases.storage_sweep import clean_up_expired

log = get_log(__name__)

# So long may an object store that hangs keep the recovery of runs waiting.
DELETE_SECONDS = 2


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
    # Failed runs whose uploads are still to be deleted; what is lost of it goes by retention.
    _abandoned: set[UUID] = field(default_factory=set)

    async def recover_runs(self) -> None:
        """Send queued runs without a job again; queue or fail those whose worker is gone."""
        async with self.db.try_lock("sweep:runs") as is_ours:
            if not is_ours:
                return
            now = datetime.now(UTC)
            seconds = self.settings.run_queue_timeout_seconds
            run_seconds = max(
                self.settings.run_timeout_seconds, self.settings.sandbox_run_timeout_seconds
            )
            for run_id in await runs.fail_overdue_runs(self.db, seconds, run_seconds, now):
                log.warning("run.queue_timeout", run_id=run_id)
                await self.events.publish(run_id, RunEvent(status=RunStatus.FAILED))
            limits = (self.settings.run_max_attempts, self.settings.run_lease_seconds)
            for run_id, attempt in await runs.recover_lost_runs(self.db, *limits, now):
                log.warning("run.lost", run_id=run_id, is_requeued=attempt is not None)
                if attempt is None:
                    self._abandoned.add(run_id)
                    await self.events.publish(run_id, RunEvent(status=RunStatus.FAILED))
                else:
                    await self.queue.enqueue_run(run_id, attempt)
            for run_id, attempt in await runs.list_unsent(self.db):
                await self.queue.resend_run(run_id, attempt)
        # Last, and outside the lock: runs are recovered also while the object store is away.
        await self._delete_abandoned()

    async def _delete_abandoned(self) -> None:
        """Delete what lost runs had uploaded of their results: nothing names it, or ever will."""
        try:
            async with asyncio.timeout(DELETE_SECONDS):
                for run_id in list(self._abandoned):
                    count = await self.artifacts.delete_all(run_id)
                    self._abandoned.discard(run_id)
                    log.info("run.uploads_deleted", run_id=run_id, count=count)
        except (AppError, TimeoutError) as error:
            log.warning("run.uploads_not_deleted", count=len(self._abandoned), error=repr(error))

    async def finish_deletions(self) -> None:
        """Go on with users and tools that are being deleted: one query where there are none."""
        await self.deletions.finish_all()

    async def clean_up_expired_session_files(self) -> None:
        """Delete session files that no run was given for the TTL (ADR-0039 §3)."""
        await clean_up_expired(self.db, self.session_files, self.settings)

    async def apply_retention(self) -> None:
        """Delete runs and artifacts that are older than they are kept."""
        await apply_retention(self.db, self.artifacts, self.settings, datetime.now(UTC))
