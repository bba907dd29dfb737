"""One run, from the claim to the end: claim → stage → execute → normalize → finish.

A worker holds a run by a lease that a heartbeat renews. Who lost the lease changes nothing.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import UUID, uuid4

import msgspec

from app.concurrency import run_to_end
from app.domain.runs import ClaimedRun, FinishedRun, RunKind, RunStatus
from app.errors import AppError, Unavailable
from app.jobs import Queue
from app.log import get_log
from app.settings import Settings
from app.store import runs
from app.store.artifacts import ArtifactStore
from app.store.events import RunEvent, RunEvents
from app.store.postgres import Database
from app.store.session_files import SessionFileStorageProtocol
from workers.abandoned import AbandonedUploads
from workers.blob_cache import BlobCache
from workers.interruptible import Interruptible
from workers.lease import CancelRequested, Lease, LeaseLost, hold_lease
from workers.readiness import Readiness
from workers.results import ResultReader, end_without_result
from workers.retries import retry
from workers.sandbox.base import (
    CollectedArtifact,
    Sandbox,
    SandboxJob,
    SandboxLost,
    SandboxResult,
    SandboxUnavailable,
)
from workers.sandbox.directories import run_directory
from workers.sandbox.pick import make_limits
from workers.snapshot import SnapshotUnavailable, stage_snapshot

T = TypeVar("T")
log = get_log(__name__)

# The end of a run is written again so often; while the store is down nobody can take the run.
FINISH_SECONDS = 120
# An artifact is uploaded again for so long while S3 is away: the tool must not run again for it.
UPLOAD_SECONDS = 60
# A sandbox that cannot start is tried again for so long: an engine restarts in less. Then the run
# is handed back, for a worker whose sandbox can. Ours takes none until a trial succeeds
# (`Readiness`); if no worker takes it, the run fails as one that waited for too long
# (`fail_overdue_runs`). Where trials succeed and runs do not, it fails here, as soon as its first
# start is that long ago. So does one whose files cannot be downloaded.
SANDBOX_PATIENCE_SECONDS = 60
# What is done before and after a tool, up to its result, has limits of its own that are shorter
# together: this one is for what they do not see.
AROUND_TOOL_SECONDS = 480
GENERAL_ERROR = "Något gick fel när verktyget kördes. Försök igen om en stund."
NOT_DOWNLOADED = "Filerna kunde inte hämtas från lagringen. Försök igen om en stund."
NOT_UPLOADED = "Filerna som verktyget skapade kunde inte sparas. Försök igen om en stund."


class Drained(Exception):
    """This worker is told to end."""


def longest_seconds(settings: Settings) -> int:
    """How long it may take to stage and execute a run."""
    run_seconds = max(settings.run_timeout_seconds, settings.sandbox_run_timeout_seconds)
    return run_seconds + AROUND_TOOL_SECONDS


@dataclass(frozen=True)
class RunTool:
    """Does runs, over the adapters that it takes; `worker` names this process in leases."""

    settings: Settings
    db: Database
    session_files: SessionFileStorageProtocol
    artifacts: ArtifactStore
    events: RunEvents
    queue: Queue
    sandbox: Sandbox
    readiness: Readiness
    abandoned: AbandonedUploads
    worker: str
    read_result: ResultReader = field(default_factory=ResultReader)
    blob_cache: BlobCache | None = None

    async def __call__(self, run_id: UUID, attempt: int) -> None:
        """Do one attempt of a run; does nothing if somebody else has or had it.

        Cancelling it says that this worker is to end: until its tool has delivered the run is then
        handed back, later it is seen through (rule 11). The call ends with that.
        """
        execution = Interruptible()
        work = asyncio.create_task(self._do(run_id, attempt, execution), name=f"run:{run_id}")
        try:
            await asyncio.shield(work)
        except asyncio.CancelledError:
            execution.interrupt(Drained())
            await run_to_end(work)
            raise

    async def _do(self, run_id: UUID, attempt: int, execution: Interruptible) -> None:
        # Of this claim alone: after a pause the same worker may get the same run again.
        owner = f"{self.worker}:{uuid4().hex}"
        seconds = self.settings.run_lease_seconds
        run = await runs.claim_run(self.db, run_id, attempt, owner, seconds)
        if run is None:
            log.info("run.not_claimed", run_id=run_id, attempt=attempt)
            return
        log.info("run.claimed", run_id=run_id, attempt=run.attempt, sandbox=self.sandbox.name)
        async with hold_lease(self.db, self.events, self.settings, run) as lease:
            await self.events.publish(run_id, RunEvent(status=RunStatus.RUNNING))
            finished = await self._try_work(run, lease, execution)
            if finished is not None:
                await self._finish(run, finished)

    async def _try_work(
        self, run: ClaimedRun, lease: Lease, execution: Interruptible
    ) -> FinishedRun | None:
        """Do a run's work: how it ended, or None if it goes on elsewhere."""
        cancelled = end_without_result(RunStatus.CANCELLED, "cancelled", runs.CANCELLED)
        patience = self.settings.run_queue_timeout_seconds
        try:
            return await self._work(run, lease, execution)
        except LeaseLost:
            log.warning("run.lease_lost", run_id=run.id)
            return None
        except CancelRequested:
            return cancelled
        except Drained:
            is_handed_back = await self._hand_back(run, uses_attempt=False)
            ended = cancelled  # or the lease is lost, and nothing is written
        except SandboxLost as error:
            log.error("run.sandbox_lost", run_id=run.id, error=str(error))
            may_try = run.attempt < self.settings.run_max_attempts
            is_handed_back = may_try and await self._hand_back(run, uses_attempt=True)
            ended = end_without_result(RunStatus.FAILED, "sandbox_lost", GENERAL_ERROR)
        except SandboxUnavailable as error:
            log.error("run.sandbox_unavailable", run_id=run.id, error=str(error))
            # Its tool has not run, so this is no attempt; another worker may well be able to.
            is_handed_back = await self._hand_back(run, uses_attempt=False, within_seconds=patience)
            ended = end_without_result(RunStatus.FAILED, "sandbox_unavailable", GENERAL_ERROR)
        except SnapshotUnavailable as error:
            log.error("run.snapshot_unavailable", run_id=run.id, error=str(error))
            is_handed_back = await self._hand_back(run, uses_attempt=False, within_seconds=patience)
            ended = end_without_result(RunStatus.FAILED, "storage_unavailable", NOT_DOWNLOADED)
        except AppError as error:
            log.warning("run.refused", run_id=run.id, code=error.code, detail=error.detail)
            words = GENERAL_ERROR if isinstance(error, Unavailable) else error.detail
            return end_without_result(RunStatus.FAILED, error.code, words)
        except Exception:
            # The outermost edge of a run: whatever happened, the session must become free.
            log.exception("run.crashed", run_id=run.id)
            return end_without_result(RunStatus.FAILED, "internal_error", GENERAL_ERROR)
        if is_handed_back:
            return None
        return cancelled if lease.stop.is_set() else ended

    async def _work(self, run: ClaimedRun, lease: Lease, execution: Interruptible) -> FinishedRun:
        async with run_directory() as directory:
            with execution, lease.work:
                result = await self._stage_and_execute(run, directory, lease.stop)
            # A hostile result may take a second, in which the leases of others are to be renewed.
            finished = await asyncio.to_thread(self.read_result, run, result)
            if result.artifacts:
                with lease.work:
                    finished = await self._store_artifacts(run, result.artifacts, finished)
        return finished

    async def _stage_and_execute(
        self, run: ClaimedRun, directory: Path, stop: asyncio.Event
    ) -> SandboxResult:
        inputs_dir, spool = directory / "inputs", directory / "spool"
        inputs_dir.mkdir()
        spool.mkdir()
        is_initial = run.kind is RunKind.INITIAL
        stage = stage_snapshot(self.session_files, run, inputs_dir, self.blob_cache)
        try:
            async with asyncio.timeout(longest_seconds(self.settings)) as limit, stage as files:
                job = SandboxJob(
                    run_id=run.id,
                    source=run.source,
                    entrypoint=run.entrypoint,
                    files=files,
                    limits=make_limits(self.settings, is_sandbox=run.is_sandbox),
                    inputs=msgspec.json.encode(run.inputs or {}) if is_initial else None,
                    action=None if run.action is None else msgspec.json.encode(run.action),
                )
                result = await self._run_in_sandbox(job, spool, stop)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise SandboxLost("it took longer than any run may") from error
        log.info(
            "run.executed",
            run_id=run.id,
            outcome=result.outcome,
            duration_ms=round(result.duration_seconds * 1000),
        )
        return result

    async def _run_in_sandbox(
        self, job: SandboxJob, spool: Path, stop: asyncio.Event
    ) -> SandboxResult:
        """Run the tool; where it cannot even begin, try again for as long as that may help."""

        async def report_progress(fraction: float, text: str) -> None:
            await self.events.publish(job.run_id, RunEvent(fraction=fraction, text=text))

        def report(error: SandboxUnavailable) -> None:
            log.warning("run.sandbox_awaited", run_id=job.run_id, error=str(error))
            self.readiness.doubt()

        run = partial(self.sandbox.run, job, spool=spool, on_progress=report_progress, stop=stop)
        until = time.monotonic() + SANDBOX_PATIENCE_SECONDS
        return await retry(run, SandboxUnavailable, until=until, report=report)

    async def _store_artifacts(
        self, run: ClaimedRun, artifacts: Sequence[CollectedArtifact], finished: FinishedRun
    ) -> FinishedRun:
        """Upload what a tool made: the run's end, which is another one if that fails."""
        # Marked at once only where more is to be done before the end is written.
        if not await _persist(
            partial(runs.mark_result, self.db, run.id, run.lease_owner), FINISH_SECONDS
        ):
            raise LeaseLost
        # Objects before the SQL commit: a row never names an artifact that is not there.
        try:
            for number, artifact in enumerate(artifacts):
                put = partial(self.artifacts.put_path, run.id, number, artifact.spooled)
                await _persist(put, UPLOAD_SECONDS)
        except BaseException as error:
            # Nobody executes it again now, so that these keys are nobody else's.
            self.abandoned.add(run.id)
            if not isinstance(error, Unavailable):
                raise
            log.error("run.upload_failed", run_id=run.id, error=str(error))
            return msgspec.structs.replace(
                end_without_result(RunStatus.FAILED, "storage_unavailable", NOT_UPLOADED),
                stdout=finished.stdout,
                stderr=finished.stderr,
            )
        return finished

    async def _hand_back(
        self, run: ClaimedRun, *, uses_attempt: bool, within_seconds: float | None = None
    ) -> bool:
        """Queue a run again, for another worker. False: it has to end here, if it is still ours.

        With `within_seconds`, only so long after its first start. One that cannot be queued because
        the database is away is found by the sweep.
        """
        write = partial(runs.hand_back, self.db, run.id, run.lease_owner)
        try:
            attempt = await write(uses_attempt=uses_attempt, within_seconds=within_seconds)
        except Unavailable as error:
            log.warning("run.hand_back_failed", run_id=run.id, error=str(error))
            return True
        if attempt is None:
            return False
        log.info("run.handed_back", run_id=run.id, attempt=attempt)
        await self.events.publish(run.id, RunEvent(status=RunStatus.QUEUED))
        await self.queue.hand_over_run(run.id, attempt, run.lease_owner)
        return True

    async def _finish(self, run: ClaimedRun, finished: FinishedRun) -> None:
        """Write the end; retried, since all of the run's work hangs on this one commit."""
        now = datetime.now(UTC)
        write = partial(runs.finish_run, self.db, run.id, run.lease_owner, finished, now)
        try:
            is_ours = await _persist(write, FINISH_SECONDS)
        except Unavailable:
            log.error("run.finish_given_up", run_id=run.id)
            return
        if not is_ours:
            log.warning("run.lease_lost", run_id=run.id)
            return
        log.info("run.finished", run_id=run.id, status=finished.status, code=finished.error_code)
        await self.events.publish(run.id, RunEvent(status=finished.status))


async def _persist(write: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Write until the store takes it. Raises Unavailable if it was away for so long."""

    def report(error: Unavailable) -> None:
        log.warning("run.write_retried", error=str(error))

    return await retry(write, Unavailable, until=time.monotonic() + seconds, report=report)
