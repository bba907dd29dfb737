"""The worker's side of the runner protocol: feed one job, take back one outcome, trust nothing.

The bytes are described in `infra/runner/runner_wire.py`. Whatever answers may be the tool itself:
it shares a user with the runner and may write to its stream. So every length is checked before
it is read, every name before it is used, and files are stored under names of our own. What breaks
a rule is a `violation` in the result, with Swedish words; it is never an exception.
"""

import asyncio
import os
import time
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Protocol, TypeVar

import msgspec
from msgspec import Meta

from workers.sandbox.base import (
    CapturedOutput,
    CollectedArtifact,
    Outcome,
    ProgressCallback,
    SandboxJob,
    SandboxLimits,
    SandboxResult,
)
from workers.sandbox.progress import LatestProgress

MAGIC = b"SKR\x01"
JOB = b"J"
READY = b"R"
PROGRESS = b"P"
EXITED = b"X"
STDOUT = b"O"
STDERR = b"E"
RESULT = b"T"
ARTIFACT = b"A"
DATA = b"D"
REFUSED = b"V"
END = b"Z"

CHUNK_BYTES = 256 * 1024
NOTE_MAX_BYTES = 16 * 1024
# Frames are read by type only in their phase, so this bounds how often a forger can keep us busy.
PROGRESS_MAX_FRAMES = 100_000

START_SECONDS = 40.0  # to start, import and take in the job
BACKSTOP_SECONDS = 8.0  # after the tool's time: the runner enforces it, and needs a moment to kill
COLLECT_SECONDS = 60.0

_REASONS = {
    "link": "Verktyget lade en länk bland sina filer: {path}. Bara vanliga filer tas emot.",
    "not_a_regular_file": "Verktyget lämnade något som inte är en vanlig fil: {path}.",
    "bad_name": "Verktyget gav en fil ett namn som inte går att använda: {path}.",
    "path_too_long": "Verktyget gav en fil ett för långt namn: {path}.",
    "unreadable": "Verktyget lämnade en fil som inte går att läsa: {path}.",
    "changed": "En av verktygets filer ändrades medan den hämtades: {path}.",
    "too_many_directories": "Verktyget skapade för många mappar.",
    "too_many_artifacts": "Verktyget skapade fler filer än de {files} som får plats.",
    "artifact_too_large": "Verktyget skapade en för stor fil: {path}. Högst {each} byte.",
    "artifacts_too_large": "Verktygets filer är tillsammans större än {total} byte.",
    "result_too_large": "Verktygets svar (result.json) är större än {result} byte.",
    "work_full": "Verktyget använde mer än {work} byte diskutrymme.",
}
_BROKEN = "Körningen svarade på ett sätt som inte går att tolka."


_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

T = TypeVar("T")


class ByteSource(Protocol):
    """Where the answer is read from; `asyncio.StreamReader` is one."""

    async def readexactly(self, n: int, /) -> bytes: ...


class ByteSink(Protocol):
    """Where the request is written to; `asyncio.StreamWriter` is one."""

    def write(self, data: bytes, /) -> None: ...

    async def drain(self) -> None: ...


class RunnerNotStarted(Exception):
    """The stream ended before the runner said that it is there: the tool never ran."""


class _Violation(Exception):
    """The answer breaks the contract; the message is Swedish."""


class _Exited(msgspec.Struct):
    timed_out: bool
    out_of_memory: bool
    exit_code: Annotated[int, Meta(ge=-255, le=255)] | None = None


class _Progress(msgspec.Struct):
    fraction: Annotated[float, Meta(ge=0, le=1)]
    text: Annotated[str, Meta(max_length=500)]


class _Artifact(msgspec.Struct):
    path: str
    bytes: Annotated[int, Meta(ge=0)]


class _Refused(msgspec.Struct):
    reason: str
    path: str = ""


@dataclass
class _Answer:
    """What has been read so far; it is complete when `ended` is set."""

    exited: _Exited | None = None
    stdout: CapturedOutput = field(default_factory=CapturedOutput)
    stderr: CapturedOutput = field(default_factory=CapturedOutput)
    result_json: bytes | None = None
    artifacts: list[CollectedArtifact] = field(default_factory=list)
    violation: str | None = None
    timed_out: bool = False
    ended: bool = False
    started_at: float = 0.0
    exited_at: float | None = None


async def exchange(
    job: SandboxJob,
    source: ByteSource,
    sink: ByteSink,
    *,
    spool: Path,
    alone: bool,
    watch_work: bool = False,
    on_progress: ProgressCallback | None = None,
) -> SandboxResult:
    """Send the job to a runner and read its answer. The caller ends the runner afterwards.

    `alone` tells the runner that every process it can see is the tool's; `watch_work` makes it
    measure its directory, where no file system bounds it. A stream that ends early is `CRASHED`.

    Raises:
        RunnerNotStarted: nothing came back; what the runner's stderr says may tell why.
    """
    answer = _Answer(started_at=time.monotonic())
    sending = asyncio.create_task(_send_job(job, sink, alone=alone, watch_work=watch_work))
    progress = LatestProgress(on_progress)
    try:
        await _read_answer(job.limits, source, sending, answer, progress, spool)
    except _Violation as violation:
        answer.violation = str(violation)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # `ended` is not set
    finally:
        await progress.aclose()
        if not sending.done():
            sending.cancel()
        await asyncio.wait([sending])
    return _make_result(answer)


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
        }
    )
    sink.write(MAGIC + JOB + len(header).to_bytes(4, "big") + header + source)
    sink.write((job.inputs or b"") + (job.action or b""))
    for input_file in job.files:
        # Opened in turn: a job's files must not hold a descriptor each.
        file = await asyncio.to_thread(input_file.path.open, "rb")
        with file:
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
    limits: SandboxLimits,
    source: ByteSource,
    sending: asyncio.Task[None],
    answer: _Answer,
    progress: LatestProgress,
    spool: Path,
) -> None:
    reader = _FrameReader(source, limits)
    try:
        async with asyncio.timeout(START_SECONDS):
            if await source.readexactly(len(MAGIC)) != MAGIC:
                raise RunnerNotStarted("the runner speaks another protocol version")
            await reader.read({READY: 0})
            await asyncio.wait([sending])
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError) as error:
        raise RunnerNotStarted("the runner did not start") from error
    # A runner that goes away makes sending fail too, and its answer says more. All else is ours.
    failure = sending.exception()
    if failure is not None and not isinstance(failure, ConnectionError):
        raise failure
    answer.started_at = time.monotonic()
    try:
        async with asyncio.timeout(limits.timeout_seconds + BACKSTOP_SECONDS):
            answer.exited = await _read_exit(reader, progress)
    except TimeoutError:
        answer.timed_out = True
        return
    finally:
        answer.exited_at = time.monotonic()
    try:
        async with asyncio.timeout(COLLECT_SECONDS):
            await _collect(reader, answer, spool)
    except TimeoutError:
        raise _Violation(_BROKEN) from None


async def _read_exit(reader: "_FrameReader", progress: LatestProgress) -> _Exited:
    for _ in range(PROGRESS_MAX_FRAMES):
        kind, payload = await reader.read({PROGRESS: NOTE_MAX_BYTES, EXITED: NOTE_MAX_BYTES})
        if kind == EXITED:
            return _decode(payload, _Exited)
        step = _decode(payload, _Progress)
        progress.offer(step.fraction, _printable(step.text))
    raise _Violation(_BROKEN)


async def _collect(reader: "_FrameReader", answer: _Answer, spool: Path) -> None:
    limits = reader.limits
    _, payload = await reader.read({STDOUT: 8 + limits.output_max_bytes})
    answer.stdout = _capture(payload)
    _, payload = await reader.read({STDERR: 8 + limits.output_max_bytes})
    answer.stderr = _capture(payload)
    artifacts = _Artifacts(limits, spool)
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
            await artifacts.collect(reader, _decode(payload, _Artifact))
        else:
            raise _Violation(_explain(_decode(payload, _Refused), limits))


class _FrameReader:
    """Reads frames of the kinds that may come next, each up to its own length."""

    def __init__(self, source: ByteSource, limits: SandboxLimits) -> None:
        self._source = source
        self.limits = limits

    async def read(self, expected: dict[bytes, int]) -> tuple[bytes, bytes]:
        head = await self._source.readexactly(5)
        kind, length = head[:1], int.from_bytes(head[1:], "big")
        if kind not in expected:
            raise _Violation(_BROKEN)
        if length > expected[kind]:
            if kind == RESULT:
                raise _Violation(_explain(_Refused("result_too_large"), self.limits))
            raise _Violation(_BROKEN)
        return kind, await self._source.readexactly(length)


class _Artifacts:
    """Takes artifacts one by one into the spool, within the limits."""

    def __init__(self, limits: SandboxLimits, spool: Path) -> None:
        self._limits, self._spool = limits, spool
        self._seen: set[str] = set()
        self._total = 0
        self.collected: list[CollectedArtifact] = []

    async def collect(self, reader: _FrameReader, artifact: _Artifact) -> None:
        self._check(artifact)
        # The name is ours: the tool's own never touches the worker's file system.
        spooled = self._spool / f"artifact-{len(self.collected):04d}"
        fd = os.open(spooled, _NEW_FILE, 0o600)
        try:
            left = artifact.bytes
            while left:
                kind, chunk = await reader.read(
                    {DATA: min(left, CHUNK_BYTES), REFUSED: NOTE_MAX_BYTES}
                )
                if kind == REFUSED:
                    raise _Violation(_explain(_decode(chunk, _Refused), self._limits))
                if not chunk:  # empty frames would keep us here for ever
                    raise _Violation(_BROKEN)
                await asyncio.to_thread(_write_all, fd, chunk)
                left -= len(chunk)
        finally:
            os.close(fd)
        self.collected.append(CollectedArtifact(artifact.path, artifact.bytes, spooled))

    def _check(self, artifact: _Artifact) -> None:
        limits = self._limits
        reason = None
        self._total += artifact.bytes
        if len(self.collected) >= limits.artifacts_max_files:
            reason = "too_many_artifacts"
        elif artifact.bytes > limits.artifact_max_bytes:
            reason = "artifact_too_large"
        elif self._total > limits.artifacts_max_total_bytes:
            reason = "artifacts_too_large"
        elif len(artifact.path.encode()) > 1024:
            reason = "path_too_long"
        elif not _is_plain_path(artifact.path):
            reason = "bad_name"
        if reason is not None:
            raise _Violation(_explain(_Refused(reason, artifact.path), limits))
        # One name for what a user, or the disk of a user, would take for the same one.
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", artifact.path).casefold())
        if key in self._seen:
            raise _Violation(f"Två av verktygets filer har samma namn: {_show(artifact.path)}.")
        self._seen.add(key)


def _is_plain_path(path: str) -> bool:
    """Tell whether the path is relative, stays below where it starts and can be shown."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in path):
        return False
    parts = path.split("/")
    return all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)


def _decode(payload: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise _Violation(_BROKEN) from None


def _capture(payload: bytes) -> CapturedOutput:
    if len(payload) < 8:
        raise _Violation(_BROKEN)
    total, kept = int.from_bytes(payload[:8], "big"), payload[8:]
    total = min(max(total, len(kept)), 2**63 - 1)  # it is stored as a bigint
    text = kept.decode("utf-8", "replace").replace("\0", "\ufffd")  # PostgreSQL stores no NUL
    return CapturedOutput(text, total, truncated=total > len(kept))


def _explain(refused: _Refused, limits: SandboxLimits) -> str:
    return _REASONS.get(refused.reason, _BROKEN).format(
        path=_show(refused.path),
        files=limits.artifacts_max_files,
        each=limits.artifact_max_bytes,
        total=limits.artifacts_max_total_bytes,
        result=limits.result_max_bytes,
        work=limits.work_bytes,
    )


def _show(path: str) -> str:
    """Make a tool's name fit to be shown: short and printable."""
    return _printable(path[:100]) or "(utan namn)"


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _write_all(fd: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view) :]


def _make_result(answer: _Answer) -> SandboxResult:
    exited = answer.exited
    if answer.timed_out or (exited is not None and exited.timed_out):
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
