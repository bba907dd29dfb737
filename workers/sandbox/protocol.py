"""The worker's side of the runner protocol: feed one job, take back one outcome, trust nothing.

The bytes are described in `infra/runner/runner_wire.py`. Whatever answers may be the tool itself:
it shares a user with the runner and may write to its stream. So every length is checked before
it is read, every name before it is used, and files are stored under names of our own. What breaks
a rule is a `violation` in the result, with Swedish words; it is never an exception.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from app.domain.runs import Captured
from workers.sandbox.artifacts import ArtifactHead, ArtifactIntake
from workers.sandbox.base import (
    CollectedArtifact,
    Outcome,
    ProgressCallback,
    SandboxJob,
    SandboxLimits,
    SandboxResult,
)
from workers.sandbox.progress import LatestProgress
from workers.sandbox.wire import (
    ARTIFACT,
    BROKEN,
    CHUNK_BYTES,
    END,
    EXITED,
    JOB,
    MAGIC,
    NOTE_MAX_BYTES,
    PROGRESS,
    PROGRESS_MAX_FRAMES,
    READY,
    REFUSED,
    RESULT,
    STDERR,
    STDOUT,
    STOP,
    TAKEN,
    ByteSource,
    FrameReader,
    Refused,
    Violation,
    decode,
    explain,
    printable,
)

START_SECONDS = 40.0  # to start and import; and again as long to take in the job
BACKSTOP_SECONDS = 8.0  # after the tool's time: the runner enforces it, and needs a moment to kill
COLLECT_SECONDS = 60.0
FRAME_SECONDS = 10.0  # while collecting: who forged the end must not gain a minute by silence
STOP_SECONDS = 1.0  # to kill the tool and say what it printed


class ByteSink(Protocol):
    """Where the request is written to; `asyncio.StreamWriter` is one."""

    def write(self, data: bytes, /) -> None: ...

    async def drain(self) -> None: ...


class RunnerNotStarted(Exception):
    """The stream ended before the runner had the whole job: the tool never ran."""


class _Exited(msgspec.Struct):
    timed_out: bool
    out_of_memory: bool
    exit_code: Annotated[int, Meta(ge=-255, le=255)] | None = None


class _Progress(msgspec.Struct):
    fraction: Annotated[float, Meta(ge=0, le=1)]
    text: Annotated[str, Meta(max_length=500)]


def answer_seconds(limits: SandboxLimits) -> float:
    """Return how long a runner that has its job may take until its answer has been read."""
    return limits.timeout_seconds + BACKSTOP_SECONDS + COLLECT_SECONDS


def longest_seconds(limits: SandboxLimits) -> float:
    """Return how long a runner may live that gets a job as soon as it is ready."""
    return 2 * START_SECONDS + answer_seconds(limits)


class _Phase(Enum):
    """What is awaited."""

    STARTING = 1  # that the runner has the job
    RUNNING = 2
    COLLECTING = 3


@dataclass
class _Answer:
    """What has been read so far, and how long more may take; complete when `ended` is set."""

    exited: _Exited | None = None
    stdout: Captured = field(default_factory=Captured)
    stderr: Captured = field(default_factory=Captured)
    result_json: bytes | None = None
    artifacts: list[CollectedArtifact] = field(default_factory=list)
    violation: str | None = None
    timed_out: bool = False
    stopped: bool = False
    ended: bool = False
    started_at: float = field(default_factory=time.monotonic)
    exited_at: float | None = None
    phase: _Phase = _Phase.STARTING
    taken: asyncio.Event = field(default_factory=asyncio.Event)
    timeout: asyncio.Timeout | None = None

    def begin(self, phase: _Phase, seconds: float) -> None:
        """Go on to a phase that may take so long; who was told to stop gets no more time."""
        self.phase = phase
        if phase is _Phase.RUNNING:
            self.started_at = time.monotonic()
            self.taken.set()
        if not self.stopped:
            self._wait_for(seconds)

    def stop(self) -> None:
        self.stopped = True
        self._wait_for(STOP_SECONDS)

    def break_off(self, error: Exception) -> None:
        """Say what it means that nothing more comes. Raises RunnerNotStarted if nothing did."""
        if self.stopped:
            return
        if self.phase is _Phase.STARTING:
            raise RunnerNotStarted("the runner went away before it had the job") from error
        if isinstance(error, TimeoutError):
            self.timed_out = self.phase is _Phase.RUNNING
            self.violation = None if self.timed_out else BROKEN

    def _wait_for(self, seconds: float) -> None:
        assert self.timeout is not None, "set before anything is read"
        self.timeout.reschedule(asyncio.get_running_loop().time() + seconds)


async def wait_until_ready(source: ByteSource) -> None:
    """Read a runner's greeting: from then on it waits for a job, for as long as it takes.

    Raises:
        RunnerNotStarted: it did not come; what the runner's stderr says may tell why.
    """
    try:
        async with asyncio.timeout(START_SECONDS):
            if await source.readexactly(len(MAGIC)) != MAGIC:
                raise RunnerNotStarted("the runner speaks another protocol version")
            if await source.readexactly(5) != READY + bytes(4):
                raise RunnerNotStarted("the runner does not say that it is ready")
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as error:
        raise RunnerNotStarted("the runner did not start") from error


async def exchange(
    job: SandboxJob,
    source: ByteSource,
    sink: ByteSink,
    *,
    spool: Path,
    alone: bool,
    watch_work: bool = False,
    on_progress: ProgressCallback | None = None,
    stop: asyncio.Event | None = None,
) -> SandboxResult:
    """Send the job to a runner that is ready and read its answer. The caller ends the runner.

    `alone` tells the runner that every process it can see is the tool's; `watch_work` makes it
    measure its directory, where no file system bounds it. A stream that ends early is `CRASHED`.

    Raises:
        RunnerNotStarted: the runner went away before it had the job.
    """
    answer = _Answer()
    sending = asyncio.create_task(_send_job(job, sink, alone=alone, watch_work=watch_work))
    progress = LatestProgress(on_progress)
    try:
        async with asyncio.timeout(START_SECONDS) as timeout, _stopping(stop, sink, answer):
            answer.timeout = timeout
            await _read_answer(FrameReader(source, job.limits), sending, answer, progress, spool)
    except Violation as violation:
        answer.violation = str(violation)
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as error:
        answer.break_off(error)
    finally:
        await progress.aclose()
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    return _make_result(answer)


@asynccontextmanager
async def _stopping(
    stop: asyncio.Event | None, sink: ByteSink, answer: "_Answer"
) -> AsyncIterator[None]:
    """Pass a stop on to the runner, as soon as it has the job."""

    async def listen(stop: asyncio.Event) -> None:
        await stop.wait()
        answer.stop()
        await answer.taken.wait()
        with contextlib.suppress(ConnectionError):
            sink.write(STOP)
            await sink.drain()

    if stop is None:
        yield
        return
    listening = asyncio.create_task(listen(stop))
    try:
        yield
    finally:
        listening.cancel()


async def _send_job(job: SandboxJob, sink: ByteSink, *, alone: bool, watch_work: bool) -> None:
    source = job.source.encode()
    header = msgspec.json.encode(
        {
            "entrypoint": job.entrypoint,
            "source": len(source),
            "inputs": None if job.inputs is None else len(job.inputs),
            "action": None if job.action is None else len(job.action),
            "files": [{"name": file.name, "bytes": file.bytes} for file in job.files],
            "limits": job.limits,
            "alone": alone,
            "watch_work": watch_work,
            "lifetime_seconds": answer_seconds(job.limits),
        }
    )
    sink.write(MAGIC + JOB + len(header).to_bytes(4, "big") + header + source)
    sink.write((job.inputs or b"") + (job.action or b""))
    for input_file in job.files:
        # Opened in turn: a job's files must not hold a descriptor each. Here and not in a thread,
        # where a cancelled run would leave the file open.
        with input_file.path.open("rb") as file:
            left = input_file.bytes
            while left:
                chunk = await asyncio.to_thread(file.read, min(left, CHUNK_BYTES))
                if not chunk:
                    raise ValueError(f"input file is shorter than its {input_file.bytes} bytes")
                sink.write(chunk)
                await sink.drain()
                left -= len(chunk)
    await sink.drain()


async def _read_answer(
    reader: FrameReader,
    sending: asyncio.Task[None],
    answer: _Answer,
    progress: LatestProgress,
    spool: Path,
) -> None:
    await _hand_over(reader, sending)
    answer.begin(_Phase.RUNNING, reader.limits.timeout_seconds + BACKSTOP_SECONDS)
    try:
        answer.exited = await _read_exit(reader, progress)
    finally:
        answer.exited_at = time.monotonic()
    answer.begin(_Phase.COLLECTING, COLLECT_SECONDS)
    reader.frame_seconds = FRAME_SECONDS
    await _collect(reader, answer, spool)


async def _hand_over(reader: FrameReader, sending: asyncio.Task[None]) -> None:
    """Wait until the runner has the whole job. Raises what keeps us from sending it."""
    taking = asyncio.create_task(reader.read({TAKEN: 0}))
    try:
        await asyncio.wait([sending, taking], return_when=asyncio.FIRST_EXCEPTION)
        # A runner that goes away makes sending fail too, and its answer says more. All else is
        # ours, and the runner would wait for the rest of its job.
        failure = sending.exception() if sending.done() else None
        if failure is not None and not isinstance(failure, ConnectionError):
            raise failure
        await taking
    finally:
        taking.cancel()
        await asyncio.gather(taking, return_exceptions=True)


async def _read_exit(reader: FrameReader, progress: LatestProgress) -> _Exited:
    for _ in range(PROGRESS_MAX_FRAMES):
        kind, payload = await reader.read({PROGRESS: NOTE_MAX_BYTES, EXITED: NOTE_MAX_BYTES})
        if kind == EXITED:
            return decode(payload, _Exited)
        step = decode(payload, _Progress)
        progress.offer(step.fraction, printable(step.text))
    raise Violation(BROKEN)


async def _collect(reader: FrameReader, answer: _Answer, spool: Path) -> None:
    limits = reader.limits
    _, payload = await reader.read({STDOUT: 8 + limits.output_max_bytes})
    answer.stdout = _capture(payload)
    _, payload = await reader.read({STDERR: 8 + limits.output_max_bytes})
    answer.stderr = _capture(payload)
    artifacts = ArtifactIntake(limits, spool)
    expected = {
        RESULT: limits.result_max_bytes,
        ARTIFACT: NOTE_MAX_BYTES,
        REFUSED: NOTE_MAX_BYTES,
        END: 0,
    }
    while True:
        kind, payload = await reader.read(expected)
        if kind == END:
            answer.ended = True
            answer.artifacts = artifacts.collected
            return
        if kind == RESULT:
            answer.result_json = payload
            del expected[RESULT]  # it comes once, and first
        elif kind == ARTIFACT:
            expected.pop(RESULT, None)
            await artifacts.collect(reader, decode(payload, ArtifactHead))
        else:
            raise Violation(explain(decode(payload, Refused), limits))


def _capture(payload: bytes) -> Captured:
    if len(payload) < 8:
        raise Violation(BROKEN)
    total, kept = int.from_bytes(payload[:8], "big"), payload[8:]
    total = min(max(total, len(kept)), 2**63 - 1)  # it is stored as a bigint
    text = kept.decode("utf-8", "replace").replace("\0", "\ufffd")  # PostgreSQL stores no NUL
    return Captured(text, total, truncated=total > len(kept))


def _make_result(answer: _Answer) -> SandboxResult:
    exited = answer.exited
    if answer.stopped:
        outcome = Outcome.CANCELLED
    elif answer.timed_out or (exited is not None and exited.timed_out):
        outcome = Outcome.TIMED_OUT
    elif exited is not None and exited.out_of_memory:
        outcome = Outcome.OUT_OF_MEMORY
    elif answer.violation is not None:
        outcome = Outcome.VIOLATION
    elif not answer.ended:
        outcome = Outcome.CRASHED
    else:
        outcome = Outcome.COMPLETED
    return SandboxResult(
        outcome=outcome,
        duration_seconds=(answer.exited_at or time.monotonic()) - answer.started_at,
        exit_code=None if exited is None else exited.exit_code,
        stdout=answer.stdout,
        stderr=answer.stderr,
        # Of a run that broke off, the beginning could be taken for the whole.
        result_json=answer.result_json if answer.ended else None,
        artifacts=tuple(answer.artifacts),
        violation=answer.violation,
    )
