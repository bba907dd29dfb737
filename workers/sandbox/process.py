"""A process per run, on a machine without Docker: for development, and no security boundary.

The same runner and protocol as in a container, over a subprocess's stdin and stdout. Around it is
what the kernel gives to whoever starts it: a session of its own, rlimits, a scrubbed environment,
and through util-linux's `unshare` namespaces without network, other processes or a writable file
system. Which of those this machine allows is probed once, at the start, and logged.
"""

import asyncio
import contextlib
import math
import os
import shutil
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from app.concurrency import run_to_end
from app.log import get_log
from workers.sandbox import fence as fence_program
from workers.sandbox.base import (
    ProgressCallback,
    SandboxJob,
    SandboxLimits,
    SandboxResult,
    SandboxUnavailable,
)
from workers.sandbox.directories import run_directory
from workers.sandbox.fence import Fence
from workers.sandbox.protocol import RunnerNotStarted, exchange, wait_until_ready

RUNNER = Path(__file__).resolve().parents[2] / "infra" / "runner" / "runner.py"
END_SECONDS = 2.0
STDERR_KEEP_BYTES = 8 * 1024
PROBE_SECONDS = 20.0

log = get_log(__name__)


@dataclass(frozen=True)
class _Namespaces:
    """The namespaces that a run gets, of those that this machine allows."""

    user: bool = False
    pid: bool = False
    mount: bool = False
    net: bool = False

    @property
    def command(self) -> list[str]:
        flags = {
            "--user": self.user,
            "--map-root-user": self.user,
            "--pid": self.pid,
            "--fork": self.pid,
            "--kill-child": self.pid,
            "--mount": self.mount,
            "--mount-proc": self.pid and self.mount,
            "--net": self.net,
            "--ipc": self.mount,
            "--uts": self.mount,
        }
        chosen = [flag for flag, wanted in flags.items() if wanted]
        return ["unshare", *chosen, "--"] if chosen else []


# The best first. Inside a container, say, mounting is often not allowed.
_CHOICES = (
    _Namespaces(user=True, pid=True, mount=True, net=True),
    _Namespaces(pid=True, mount=True, net=True),  # root, where user namespaces are off
    _Namespaces(user=True, pid=True, net=True),
    _Namespaces(user=True, net=True),
)


class ProcessSandbox:
    """Runs each job as a process of this machine, fenced as far as that goes.

    `use_namespaces=False` is what is left where the kernel allows none.
    """

    name = "process"

    def __init__(self, *, use_namespaces: bool = True) -> None:
        self._choices = _CHOICES if use_namespaces and shutil.which("unshare") else ()
        self._namespaces = _Namespaces()

    async def start(self) -> None:
        """Find out what the machine allows. Says loudly that this is no security boundary."""
        if not RUNNER.is_file():
            raise SandboxUnavailable(f"the runner is missing: {RUNNER.name}")
        for choice in self._choices:
            if await _probe(choice):
                self._namespaces = choice
                break
        log.warning(
            "sandbox.no_boundary",
            sandbox=self.name,
            namespaces=[name for name, on in asdict(self._namespaces).items() if on],
            advice="tools run with this user's rights: for development only, use Docker",
        )

    async def run(
        self,
        job: SandboxJob,
        *,
        spool: Path,
        on_progress: ProgressCallback | None = None,
        stop: asyncio.Event | None = None,
    ) -> SandboxResult:
        async with run_directory() as root:
            return await self._run(job, root, spool, on_progress, stop)

    async def check(self) -> None:
        if not await _probe(self._namespaces):
            raise SandboxUnavailable("this machine starts no fenced process any more")

    async def aclose(self) -> None:
        """Nothing is held between runs."""

    async def _run(
        self,
        job: SandboxJob,
        root: Path,
        spool: Path,
        on_progress: ProgressCallback | None,
        stop: asyncio.Event | None,
    ) -> SandboxResult:
        spaces = self._namespaces
        process = await _start_fenced(spaces, root, job.limits, RUNNER)
        assert process.stdin is not None and process.stdout is not None
        stderr = bytearray()
        reading = asyncio.create_task(_read_stderr(process, stderr))
        try:
            await wait_until_ready(process.stdout)
            result = await exchange(
                job,
                process.stdout,
                process.stdin,
                spool=spool,
                alone=spaces.pid,
                watch_work=not spaces.mount,
                on_progress=on_progress,
                stop=stop,
            )
        except RunnerNotStarted as error:
            await run_to_end(_end(process, root, spaces))
            await run_to_end(_stop_reading(reading))
            raise SandboxUnavailable(f"{error}: {stderr.decode('utf-8', 'replace')}") from error
        finally:
            await run_to_end(_end(process, root, spaces))
            await run_to_end(_stop_reading(reading))
        if stderr:
            text = stderr.decode("utf-8", "replace")
            log.warning("sandbox.runner_stderr", run_id=job.run_id, text=text)
        return result


async def _start_fenced(
    spaces: _Namespaces, root: Path, limits: SandboxLimits, runner: Path | None
) -> asyncio.subprocess.Process:
    fence = Fence(
        root=str(root),
        runner=None if runner is None else str(runner),
        work_bytes=limits.work_bytes,
        memory_bytes=limits.memory_bytes,
        processes=limits.processes,
        cpu_seconds=math.ceil(limits.timeout_seconds * max(1.0, limits.cpus)) + 10,
        in_user_namespace=spaces.user,
        in_pid_namespace=spaces.pid,
        in_mount_namespace=spaces.mount,
    )
    # When the worker dies, the kernel ends the namespace with all that is in it. Without one it
    # must not: the runner sees its stdin close, and only a living runner can end its descendants.
    is_used = spaces.pid and shutil.which("setpriv")
    die_with_parent = ["setpriv", "--pdeathsig", "KILL"] if is_used else []
    return await asyncio.create_subprocess_exec(
        *die_with_parent,
        *spaces.command,
        sys.executable,
        "-I",
        fence_program.__file__,
        msgspec.json.encode(fence).decode(),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=_make_environment(root, limits),
        cwd="/",
        start_new_session=True,
    )


def _make_environment(root: Path, limits: SandboxLimits) -> dict[str, str]:
    """Make the whole environment of a run: nothing of the worker's own gets in."""
    threads = str(max(1, math.ceil(limits.cpus)))
    return {
        "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin",
        "HOME": str(root / ".home"),
        "TMPDIR": str(root / ".home"),
        "LANG": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "SKRIPTOTEKET_WORK": str(root),
        # A thread pool as big as the machine would reserve more memory than the run may have.
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
        "MALLOC_ARENA_MAX": "2",
    }


async def _probe(spaces: _Namespaces) -> bool:
    limits = SandboxLimits(10, 1 << 30, 1, 256, 1 << 20, 1, 1, 1, 1, 1)
    async with run_directory() as root:
        process = await _start_fenced(spaces, root, limits, None)
        try:
            async with asyncio.timeout(PROBE_SECONDS):
                _, stderr = await process.communicate()
        except TimeoutError:
            await _end(process, root, spaces)
            return False
        if process.returncode != 0:
            reason = stderr.decode("utf-8", "replace")[-500:]
            log.debug("sandbox.probe_failed", command=spaces.command, reason=reason)
        return process.returncode == 0


async def _read_stderr(process: asyncio.subprocess.Process, kept: bytearray) -> None:
    assert process.stderr is not None
    while chunk := await process.stderr.read(STDERR_KEEP_BYTES):
        kept += chunk[: STDERR_KEEP_BYTES - len(kept)]


async def _stop_reading(reading: asyncio.Task[None]) -> None:
    """Wait for the end of the stream, but not for a stray process that holds it open."""
    await asyncio.wait([reading], timeout=END_SECONDS)
    reading.cancel()


async def _end(process: asyncio.subprocess.Process, root: Path, spaces: _Namespaces) -> None:
    """End the runner and all that it started. Idempotent."""
    assert process.stdin is not None
    # Asked first: it knows its descendants, and leaves none behind.
    process.stdin.close()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_SECONDS):
            await process.wait()
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
    if not spaces.pid:
        await asyncio.to_thread(_kill_strays, root)


def _kill_strays(root: Path) -> None:
    """Kill what outlived a runner that was itself killed: all of it carries one variable."""
    mark = os.fsencode(f"SKRIPTOTEKET_WORK={root}")
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    os.kill(int(entry.name), signal.SIGKILL)
