"""One run, from the claim to the end: claim → stage → execute → normalize → finish.

A worker holds a run by a lease that a heartbeat renews. Who lost the lease changes nothing.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import UUID

import msgspec

from app.domain.backend_actions import offer_backend_actions
from app.domain.contract import ContractViolation, decode_result
from app.domain.normalizer import normalize
from app.domain.policy import policy_for
from app.domain.runs import Artifact, Captured, ClaimedRun, FinishedRun, RunKind, RunStatus
from app.errors import AppError, Unavailable
from app.jobs import Queue
from app.log import get_log
from app.settings import Settings
from app.store import runs
from app.store.artifacts import ArtifactStore
from app.store.events import RunEvent, RunEvents
from app.store.postgres import Database
from app.store.session_files import SessionFileStorageProtocol
from workers.blob_cache import BlobCache
from workers.lease import CancelRequested, LeaseLost, hold_lease
from workers.readiness import Readiness
from workers.sandbox.base import (
    CapturedOutput,
    CollectedArtifact,
    Outcome,
    Sandbox,
    SandboxJob,
    SandboxLost,
    SandboxResult,
    SandboxUnavailable,
)
from workers.sandbox.cleanup import finish
from workers.sandbox.directories import run_directory
from workers.sandbox.pick import make_limits
from workers.snapshot import stage_snapshot

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
# start is that long ago.
SANDBOX_PATIENCE_SECONDS = 60
CANCELLED = "Körningen avbröts."
GENERAL_ERROR = "Något gick fel när verktyget kördes. Försök igen om en stund."


@dataclass(frozen=True)
class RunTool:
    """Does runs, over the adapters that it takes; `owner` names this worker in leases."""

    settings: Settings
    db: Database
    session_files: SessionFileStorageProtocol
    artifacts: ArtifactStore
    events: RunEvents
    queue: Queue
    sandbox: Sandbox
    readiness: Readiness
    owner: str
    blob_cache: BlobCache | None = None

    async def __call__(self, run_id: UUID, attempt: int) -> None:
        """Do one attempt of a run; does nothing if somebody else has or had it."""
        seconds = self.settings.run_lease_seconds
        run = await runs.claim_run(self.db, run_id, attempt, self.owner, seconds)
        if run is None:
            log.info("run.not_claimed", run_id=run_id, attempt=attempt)
            return
        log.info("run.claimed", run_id=run_id, attempt=run.attempt, sandbox=self.sandbox.name)
        await self.events.publish(run_id, RunEvent(status=RunStatus.RUNNING))
        lease = hold_lease(self.db, self.events, self.settings, run_id, self.owner)
        try:
            async with lease as stop:
                finished = await self._execute(run, stop)
        except LeaseLost:
            log.warning("run.lease_lost", run_id=run_id)
            return
        except CancelRequested:
            finished = _failed(RunStatus.CANCELLED, "cancelled", CANCELLED)
        except SandboxLost as error:
            log.error("run.sandbox_lost", run_id=run_id, error=str(error))
            if run.attempt < self.settings.run_max_attempts:
                await self._hand_back(run, uses_attempt=True)
                return
            finished = _failed(RunStatus.FAILED, "sandbox_lost", GENERAL_ERROR)
        except SandboxUnavailable as error:
            log.error("run.sandbox_unavailable", run_id=run_id, error=str(error))
            # Its tool has not run, so this is no attempt; another worker may well be able to.
            seconds = self.settings.run_queue_timeout_seconds
            if await self._hand_back(run, uses_attempt=False, within_seconds=seconds):
                return
            finished = _failed(RunStatus.FAILED, "sandbox_unavailable", GENERAL_ERROR)
        except asyncio.CancelledError:
            # This worker is told to end, and the run did not end in the time that it had left.
            await finish(self._hand_back(run, uses_attempt=False))
            raise
        await finish(self._finish(run, finished))

    async def _execute(self, run: ClaimedRun, stop: asyncio.Event) -> FinishedRun:
        try:
            async with run_directory() as directory:
                return await self._stage_and_run(run, directory, stop)
        except (LeaseLost, SandboxLost, SandboxUnavailable):
            raise
        except AppError as error:
            log.warning("run.refused", run_id=run.id, code=error.code, detail=error.detail)
            words = GENERAL_ERROR if isinstance(error, Unavailable) else error.detail
            return _failed(RunStatus.FAILED, error.code, words)
        except Exception:
            # The outermost edge of a run: whatever happened, the session must become free.
            log.exception("run.crashed", run_id=run.id)
            return _failed(RunStatus.FAILED, "internal_error", GENERAL_ERROR)

    async def _stage_and_run(
        self, run: ClaimedRun, directory: Path, stop: asyncio.Event
    ) -> FinishedRun:
        inputs_dir, spool = directory / "inputs", directory / "spool"
        inputs_dir.mkdir()
        spool.mkdir()
        is_initial = run.kind is RunKind.INITIAL
        async with stage_snapshot(self.session_files, run, inputs_dir, self.blob_cache) as files:
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
        log.info(
            "run.executed",
            run_id=run.id,
            outcome=result.outcome,
            duration_ms=round(result.duration_seconds * 1000),
        )
        if result.artifacts:
            await _see_through(self._store_artifacts(run.id, result.artifacts), stop)
        return interpret_result(run, result)

    async def _store_artifacts(self, run_id: UUID, artifacts: Sequence[CollectedArtifact]) -> None:
        # Marked at once only where more is to be done before the end is written.
        mark = partial(runs.mark_result, self.db, run_id, self.owner)
        if not await _persist(mark, FINISH_SECONDS):
            raise LeaseLost
        # Objects before the SQL commit: a row never names an artifact that is not there.
        for number, artifact in enumerate(artifacts):
            put = partial(self.artifacts.put_path, run_id, number, artifact.spooled)
            await _persist(put, UPLOAD_SECONDS)

    async def _run_in_sandbox(
        self, job: SandboxJob, spool: Path, stop: asyncio.Event
    ) -> SandboxResult:
        """Run the tool; where it cannot even begin, try again for as long as that may help."""

        async def report_progress(fraction: float, text: str) -> None:
            await self.events.publish(job.run_id, RunEvent(fraction=fraction, text=text))

        end = asyncio.get_running_loop().time() + SANDBOX_PATIENCE_SECONDS
        delay = 0.5
        while True:
            try:
                return await self.sandbox.run(
                    job, spool=spool, on_progress=report_progress, stop=stop
                )
            except SandboxUnavailable as error:
                if asyncio.get_running_loop().time() > end:
                    raise
                log.warning("run.sandbox_awaited", run_id=job.run_id, error=str(error))
                self.readiness.doubt()
            await asyncio.sleep(delay)
            delay = min(2 * delay, 5.0)

    async def _hand_back(
        self, run: ClaimedRun, *, uses_attempt: bool, within_seconds: float | None = None
    ) -> bool:
        """Queue a run again, for another worker. False: it has to end here, if it is still ours.

        With `within_seconds`, only so long after its first start. One that cannot be queued because
        the database is away is found by the sweep.
        """
        write = partial(runs.hand_back, self.db, run.id, self.owner)
        try:
            attempt = await write(uses_attempt=uses_attempt, within_seconds=within_seconds)
        except Unavailable as error:
            log.warning("run.hand_back_failed", run_id=run.id, error=str(error))
            return True
        if attempt is None:
            return False
        log.info("run.handed_back", run_id=run.id, attempt=attempt)
        await self.events.publish(run.id, RunEvent(status=RunStatus.QUEUED))
        await self.queue.hand_over_run(run.id, attempt, self.owner)
        return True

    async def _finish(self, run: ClaimedRun, finished: FinishedRun) -> None:
        """Write the end; retried, since all of the run's work hangs on this one commit."""
        now = datetime.now(UTC)
        write = partial(runs.finish_run, self.db, run.id, self.owner, finished, now)
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


async def _see_through(work: Awaitable[None], stop: asyncio.Event) -> None:
    """Await what keeps a tool's result, also when this worker is told to end meanwhile.

    Such a run cannot be handed back any more (rule 11). Its user's cancel still ends the work.
    """
    task, ours = asyncio.ensure_future(work), asyncio.current_task()
    assert ours is not None, "a coroutine runs in a task"
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError:
            if stop.is_set():
                task.cancel()
                await asyncio.wait([task])
                raise
            ours.uncancel()
    task.result()


async def _persist(write: Callable[[], Awaitable[T]], seconds: float) -> T:
    """Write until the store takes it. Raises Unavailable if it was away for so long."""
    end = asyncio.get_running_loop().time() + seconds
    delay = 0.1
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    while True:
        try:
            return await write()
        except Unavailable as error:
            if task.cancelling():
                # Cleaning up after it failed too, and that is what came out.
                raise asyncio.CancelledError from error
            if asyncio.get_running_loop().time() > end:
                raise
            log.warning("run.write_retried", error=str(error))
        await asyncio.sleep(delay)
        delay = min(2 * delay, 1.0)


def interpret_result(run: ClaimedRun, result: SandboxResult) -> FinishedRun:
    """Say what a sandbox's result means: the run's status, payload, state and error."""
    stdout, stderr = _captured(result.stdout), _captured(result.stderr)
    artifacts = tuple(Artifact(f"output/{a.path}", a.bytes) for a in result.artifacts)

    def failed(status: RunStatus, code: str, words: str) -> FinishedRun:
        finished = _failed(status, code, words)
        return msgspec.structs.replace(finished, stdout=stdout, stderr=stderr, artifacts=artifacts)

    match result.outcome:
        case Outcome.CANCELLED:
            return failed(RunStatus.CANCELLED, "cancelled", CANCELLED)
        case Outcome.TIMED_OUT:
            return failed(RunStatus.TIMED_OUT, "timed_out", "Verktyget tog för lång tid.")
        case Outcome.OUT_OF_MEMORY:
            return failed(RunStatus.FAILED, "out_of_memory", "Verktyget behövde för mycket minne.")
        case Outcome.VIOLATION:
            words = result.violation or "Verktyget bröt mot kontraktet."
            return failed(RunStatus.FAILED, "contract_violation", words)
    if result.result_json is None:
        return failed(RunStatus.FAILED, "tool_crashed", "Verktyget avslutades utan resultat.")
    try:
        raw = decode_result(result.result_json)
        policy = policy_for(run.source_kind)
        actions = offer_backend_actions(run, raw, policy)
        normalized = normalize(raw, backend_actions=actions, policy=policy)
    except ContractViolation as violation:
        return failed(RunStatus.FAILED, "contract_violation", str(violation))
    succeeded = normalized.status == "succeeded"
    return FinishedRun(
        status=RunStatus.SUCCEEDED if succeeded else RunStatus.FAILED,
        error_code=None if succeeded else "tool_failed",
        error_summary=normalized.error_summary,
        ui_payload=normalized.ui_payload_bytes,
        is_interactive=normalized.offers_steps,
        state=normalized.state,
        artifacts=artifacts,
        stdout=stdout,
        stderr=stderr,
    )


def _failed(status: RunStatus, code: str, words: str) -> FinishedRun:
    return FinishedRun(status=status, error_code=code, error_summary=words)


def _captured(output: CapturedOutput) -> Captured:
    # PostgreSQL's JSON holds no NUL.
    return Captured(output.text.replace("\0", "�"), output.bytes, output.truncated)
