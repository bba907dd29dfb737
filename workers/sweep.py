"""What goes on by the clock: lost and unsent runs, and session files past their time.

Each job runs under an advisory lock, since neither the queue nor several workers keep two ticks
from overlapping.
"""

from dataclasses import dataclass
from datetime import UTC, datetime

from app.domain.runs import RunStatus
from app.jobs import Queue
from app.log import get_log
from app.settings import Settings
from app.store import runs
from app.store.events import RunEvent, RunEvents
from app.store.postgres import Database
from app.store.session_files import SessionFileStorageProtocol
from app.usecases.storage_sweep import clean_up_expired

log = get_log(__name__)


@dataclass(frozen=True)
class Sweep:
    """The clock's jobs, over the adapters that they take."""

    settings: Settings
    db: Database
    queue: Queue
    events: RunEvents
    session_files: SessionFileStorageProtocol

    async def recover_runs(self) -> None:
        """Send queued runs without a job again; queue or fail those whose worker is gone."""
        async with self.db.try_lock("sweep:runs") as is_ours:
            if not is_ours:
                return
            now = datetime.now(UTC)
            seconds = self.settings.run_queue_timeout_seconds
            for run_id in await runs.fail_overdue_runs(self.db, seconds, now):
                log.warning("run.queue_timeout", run_id=run_id)
                await self.events.publish(run_id, RunEvent(status=RunStatus.FAILED))
            limits = (self.settings.run_max_attempts, self.settings.run_lease_seconds)
            for run_id, attempt in await runs.recover_lost_runs(self.db, *limits, now):
                log.warning("run.lost", run_id=run_id, is_requeued=attempt is not None)
                if attempt is None:
                    await self.events.publish(run_id, RunEvent(status=RunStatus.FAILED))
                else:
                    await self.queue.enqueue_run(run_id, attempt)
            for run_id, attempt in await runs.list_unsent(self.db):
                await self.queue.resend_run(run_id, attempt)

    async def clean_up_expired_session_files(self) -> None:
        """Delete session files that no run was given for the TTL (ADR-0039 §3)."""
        await clean_up_expired(self.db, self.session_files, self.settings)
