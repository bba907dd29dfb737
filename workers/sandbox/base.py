"""The seam between a worker and whatever isolates a run.

A `Sandbox` takes one `SandboxJob`, executes it once and returns a `SandboxResult`. It never raises
for anything that the tool did: a tool that hangs, dies, floods or lies is a result. It raises
`SandboxUnavailable` only when it could not run the job at all, and then the job may be retried.
Whatever happens, nothing of the job is left behind (process, container, volume, directory).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol
from uuid import UUID

from app.domain.runs import Captured

ProgressCallback = Callable[[float, str], Awaitable[None]]


class SandboxUnavailable(Exception):
    """The sandbox itself failed (daemon gone, image missing) before the tool ran: retry later."""


class SandboxLost(Exception):
    """The sandbox went away while the tool ran: what the tool did by then nobody knows."""


@dataclass(frozen=True)
class SandboxLimits:
    """Caps of one run; bytes, seconds and counts, each inclusive."""

    timeout_seconds: float
    memory_bytes: int
    cpus: float
    processes: int
    work_bytes: int
    output_max_bytes: int  # of stdout and of stderr, each
    result_max_bytes: int
    artifacts_max_files: int
    artifact_max_bytes: int
    artifacts_max_total_bytes: int


@dataclass(frozen=True)
class InputFile:
    """A file for `/work/input/`: `name` there, and where its bytes lie on the worker."""

    name: str
    path: Path
    bytes: int


@dataclass(frozen=True)
class SandboxJob:
    """What to run. `inputs` and `action` are JSON texts for the contract's variables."""

    run_id: UUID
    source: str
    entrypoint: str
    files: Sequence[InputFile]
    limits: SandboxLimits
    inputs: bytes | None = None
    action: bytes | None = None


class Outcome(StrEnum):
    """How the sandbox ended; what the tool made of its work is in `result_json`."""

    COMPLETED = "completed"
    TIMED_OUT = "timed_out"
    OUT_OF_MEMORY = "out_of_memory"
    CRASHED = "crashed"  # the runner went away without a result
    CANCELLED = "cancelled"  # it was asked to stop
    VIOLATION = "violation"  # what came back broke the contract; `violation` says how


@dataclass(frozen=True)
class CollectedArtifact:
    """A regular file from `/work/output/`: relative POSIX path, size, and its copy in the spool."""

    path: str
    bytes: int
    spooled: Path


@dataclass(frozen=True)
class SandboxResult:
    """All that came back of a run; every part is bounded by the job's limits.

    What the tool printed is UTF-8 decoded with replacement, and has no NUL.
    """

    outcome: Outcome
    duration_seconds: float
    exit_code: int | None = None
    stdout: Captured = field(default_factory=Captured)
    stderr: Captured = field(default_factory=Captured)
    result_json: bytes | None = None
    artifacts: Sequence[CollectedArtifact] = ()
    violation: str | None = None


class Sandbox(Protocol):
    """One way to isolate a run."""

    @property
    def name(self) -> str:
        """`docker` or `process`, for logs and readiness."""
        ...

    async def start(self) -> None:
        """Check that runs are possible. Raises SandboxUnavailable with the reason."""
        ...

    async def check(self) -> None:
        """Start what a run would be started in, and end it. Raises SandboxUnavailable."""
        ...

    async def run(
        self,
        job: SandboxJob,
        *,
        spool: Path,
        on_progress: ProgressCallback | None = None,
        stop: asyncio.Event | None = None,
    ) -> SandboxResult:
        """Execute the job once. Artifacts are written below `spool`, which the caller removes.

        Setting `stop` kills the tool and returns what it has printed, within a second or so.
        Cancelling the call kills the run and cleans up before the cancellation goes on.

        Raises:
            SandboxUnavailable: the tool did not run.
            SandboxLost: it may have run, and its result will never be known.
        """
        ...

    async def aclose(self) -> None:
        """Give back what is held between runs. Idempotent."""
        ...
