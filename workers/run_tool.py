"""One run, from the claim to the end: claim → stage → execute → normalize → finish.

A worker holds a run by a lease that a heartbeat renews. Who lost the lease changes nothing.
"""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

import msgspec

from app.domain.contract import ContractViolation, decode_result
from app.domain.normalizer import normalize
from app.domain.policy import DEFAULT_POLICY
from app.domain.runs import Artifact, Captured, ClaimedRun, FinishedRun, RunKind, RunStatus
from app.errors import AppError, Unavailable
from app.log import get_log
from app.settings import Settings
from app.store import runs
from app.store.artifacts import ArtifactStore
from app.store.events import RunEvent, RunEvents
from app.store.postgres import Database
from app.store.session_files import SessionFilesKey, SessionFileStorageProtocol
from workers.sandbox.base import (
    CapturedOutput,
    Outcome,
    Sandbox,
    SandboxJob,
    SandboxLimits,
    SandboxResult,
    SandboxUnavailable,
)
from workers.snapshot import download_snapshot

log = get_log(__name__)

# The end of a run is written again so often; while the store is down nobody can take the run.
FINISH_SECONDS = 120
GENERAL_ERROR = "Något gick fel när verktyget kördes. Försök igen om en stund."


class LeaseLost(Exception):
    """Another worker has the run, or it was ended; what this one did is dropped."""


class CancelRequested(Exception):
    """The user asked to stop."""


@dataclass(frozen=True)
class RunTool:
    """Does runs, over the adapters that it takes; `owner` names this worker in leases."""

    settings: Settings
    db: Database
    session_files: SessionFileStorageProtocol
    artifacts: ArtifactStore
    events: RunEvents
    sandbox: Sandbox
    owner: str

    async def __call__(self, run_id: UUID, attempt: int) -> None:
        """Do one attempt of a run; does nothing if somebody else has or had it."""
        seconds = self.settings.run_lease_seconds
        run = await runs.claim_run(self.db, run_id, attempt, self.owner, seconds)
        if run is None:
            log.info("run.not_claimed", run_id=run_id, attempt=attempt)
            return
        log.info("run.claimed", run_id=run_id, attempt=run.attempt, sandbox=self.sandbox.name)
        await self.events.publish(run_id, RunEvent(status=RunStatus.RUNNING))
        try:
            async with self._lease(run):
                finished = await self._execute(run)
        except LeaseLost:
            log.warning("run.lease_lost", run_id=run_id)
            return
        except CancelRequested:
            finished = _failed(RunStatus.CANCELLED, "cancelled", "Körningen avbröts.")
        await self._finish(run, finished)

    async def _execute(self, run: ClaimedRun) -> FinishedRun:
        try:
            with tempfile.TemporaryDirectory(prefix="skriptoteket-run-") as name:
                return await self._stage_and_run(run, Path(name))
        except LeaseLost:
            raise
        except SandboxUnavailable as error:
            log.error("run.sandbox_unavailable", run_id=run.id, error=str(error))
            return _failed(RunStatus.FAILED, "sandbox_unavailable", GENERAL_ERROR)
        except AppError as error:
            log.warning("run.refused", run_id=run.id, code=error.code, detail=error.detail)
            words = GENERAL_ERROR if isinstance(error, Unavailable) else error.detail
            return _failed(RunStatus.FAILED, error.code, words)
        except Exception:
            # The outermost edge of a run: whatever happened, the session must become free.
            log.exception("run.crashed", run_id=run.id)
            return _failed(RunStatus.FAILED, "internal_error", GENERAL_ERROR)

    async def _stage_and_run(self, run: ClaimedRun, directory: Path) -> FinishedRun:
        inputs_dir, spool = directory / "inputs", directory / "spool"
        inputs_dir.mkdir()
        spool.mkdir()
        key = SessionFilesKey(run.tool_id, run.user_id, run.context)
        files = await download_snapshot(self.session_files, key, run.files, inputs_dir)
        job = SandboxJob(
            run_id=run.id,
            source=run.source,
            entrypoint=run.entrypoint,
            files=files,
            limits=make_limits(self.settings, is_sandbox=run.is_sandbox),
            inputs=msgspec.json.encode(run.inputs or {}) if run.kind is RunKind.INITIAL else None,
            action=None if run.action is None else msgspec.json.encode(run.action),
        )

        async def report_progress(fraction: float, text: str) -> None:
            await self.events.publish(run.id, RunEvent(fraction=fraction, text=text))

        result = await self.sandbox.run(job, spool=spool, on_progress=report_progress)
        log.info(
            "run.executed",
            run_id=run.id,
            outcome=result.outcome,
            duration_ms=round(result.duration_seconds * 1000),
        )
        if not await _persist(lambda: runs.mark_result(self.db, run.id, self.owner)):
            raise LeaseLost
        # Objects before the SQL commit: a row never names an artifact that is not there.
        for number, artifact in enumerate(result.artifacts):
            await self.artifacts.put_path(run.id, number, artifact.spooled)
        return interpret_result(result)

    async def _finish(self, run: ClaimedRun, finished: FinishedRun) -> None:
        """Write the end; retried, since all of the run's work hangs on this one commit."""
        is_ours = await _persist(
            lambda: runs.finish_run(self.db, run.id, self.owner, finished, datetime.now(UTC))
        )
        if is_ours is None:
            log.error("run.finish_given_up", run_id=run.id)
            return
        if not is_ours:
            log.warning("run.lease_lost", run_id=run.id)
            return
        log.info("run.finished", run_id=run.id, status=finished.status, code=finished.error_code)
        await self.events.publish(run.id, RunEvent(status=finished.status))

    @asynccontextmanager
    async def _lease(self, run: ClaimedRun) -> AsyncIterator[None]:
        """Renew the lease while the block runs; end the block when it is lost or cancelled."""
        ended_by: list[type[Exception]] = []
        task = asyncio.current_task()
        assert task is not None, "a coroutine runs in a task"

        async def beat() -> None:
            lease_seconds = self.settings.run_lease_seconds
            async with self.events.subscribe(run.id, ready_seconds=1) as updates:
                while True:
                    try:
                        wish = await runs.renew_lease(self.db, run.id, self.owner, lease_seconds)
                        if wish is None or wish:
                            ended_by.append(LeaseLost if wish is None else CancelRequested)
                            break
                    except Unavailable as error:
                        # That says nothing about the lease, and all that is written is checked
                        # against it: a restart of the database must not cost the run.
                        log.warning("run.lease_unrenewed", run_id=run.id, error=str(error))
                    # A cancel request comes as an event; the next beat would see it anyway.
                    try:
                        async with asyncio.timeout(self.settings.run_heartbeat_seconds):
                            while (await updates.get()).status is None:
                                pass
                    except TimeoutError:
                        pass
            task.cancel()

        heart = asyncio.create_task(beat(), name=f"lease:{run.id}")
        try:
            yield
        except asyncio.CancelledError:
            if ended_by:
                task.uncancel()
                raise ended_by[0] from None
            raise
        finally:
            heart.cancel()


async def _persist(write: Callable[[], Awaitable[bool]]) -> bool | None:
    """Write until the database takes it; None if it did not for too long."""
    end = asyncio.get_running_loop().time() + FINISH_SECONDS
    delay = 0.1
    while True:
        try:
            return await write()
        except Unavailable as error:
            log.warning("run.write_retried", error=str(error))
        if asyncio.get_running_loop().time() > end:
            return None
        await asyncio.sleep(delay)
        delay = min(2 * delay, 1.0)


def make_limits(settings: Settings, *, is_sandbox: bool) -> SandboxLimits:
    """Return the caps of a run; an editor's test run has a shorter time."""
    return SandboxLimits(
        timeout_seconds=settings.sandbox_run_timeout_seconds
        if is_sandbox
        else settings.run_timeout_seconds,
        memory_bytes=settings.run_memory_bytes,
        cpus=settings.run_cpus,
        processes=settings.run_processes,
        work_bytes=settings.run_work_bytes,
        output_max_bytes=settings.run_output_max_bytes,
        result_max_bytes=settings.run_result_max_bytes,
        artifacts_max_files=settings.artifacts_max_files,
        artifact_max_bytes=settings.artifact_max_bytes,
        artifacts_max_total_bytes=settings.artifacts_max_total_bytes,
    )


def interpret_result(result: SandboxResult) -> FinishedRun:
    """Say what a sandbox's result means: the run's status, payload, state and error."""
    stdout, stderr = _captured(result.stdout), _captured(result.stderr)
    artifacts = tuple(Artifact(f"output/{a.path}", a.bytes) for a in result.artifacts)

    def failed(status: RunStatus, code: str, words: str) -> FinishedRun:
        finished = _failed(status, code, words)
        return msgspec.structs.replace(finished, stdout=stdout, stderr=stderr, artifacts=artifacts)

    match result.outcome:
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
        normalized = normalize(decode_result(result.result_json), policy=DEFAULT_POLICY)
    except ContractViolation as violation:
        return failed(RunStatus.FAILED, "contract_violation", str(violation))
    succeeded = normalized.status == "succeeded"
    return FinishedRun(
        status=RunStatus.SUCCEEDED if succeeded else RunStatus.FAILED,
        error_code=None if succeeded else "tool_failed",
        error_summary=normalized.error_summary,
        ui_payload=normalized.ui_payload_bytes,
        is_interactive=bool(normalized.ui_payload["next_actions"]),
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
