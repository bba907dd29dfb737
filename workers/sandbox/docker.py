"""A container per run: made for one job, fed and read over its attached streams, then removed.

Nothing of the host is in it: no path, no socket, no network. Its work directory is an anonymous
volume of its own in memory, which goes with the container; those bytes count against the memory
limit too. The engine is asked four things for a run: create, attach, start, remove. The container
has `--rm`, and its runner ends when its stdin closes, so a worker that is killed leaves nothing.

The only module that knows the docker SDK, which blocks: its calls run in threads, and are always
waited for, because a container whose creation nobody waited for would be one that nobody removes.
"""

import asyncio
import math
import socket
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import DriverConfig, LogConfig, Mount, Ulimit

from app.log import get_log
from workers.sandbox.base import (
    Outcome,
    ProgressCallback,
    SandboxJob,
    SandboxLimits,
    SandboxResult,
    SandboxUnavailable,
)
from workers.sandbox.cleanup import finish
from workers.sandbox.protocol import RunnerNotStarted, exchange

RUN_LABEL = "skriptoteket.run"
UID = 10001
TEMP_BYTES = 128 * 1024 * 1024
OPEN_FILES = 1024
STDERR_KEEP_BYTES = 8 * 1024
DEFAULT_SOCKET = "unix:///var/run/docker.sock"
CONNECT_SECONDS = 5
ENGINE_SECONDS = 60
REMOVE_SECONDS = 30.0

# What each limit needs of the kernel, as the engine's info names it.
_NEEDED = {
    "MemoryLimit": "memory",
    "SwapLimit": "swap",
    "CpuCfsQuota": "cpus",
    "PidsLimit": "processes",
}
_ENGINE_ERRORS = (DockerException, requests.RequestException, OSError)

T = TypeVar("T")
log = get_log(__name__)


class DockerSandbox:
    """Runs each job in a container of `image`, whose entrypoint is the runner.

    `runtime` names another OCI runtime of the engine (gVisor, a microVM); None is its default.
    """

    name = "docker"

    def __init__(self, *, image: str, runtime: str | None = None) -> None:
        self._image, self._runtime = image, runtime
        self._client: docker.APIClient | None = None
        self._cpu_count = 0
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="docker")

    async def start(self) -> None:
        """Connect to the engine that DOCKER_HOST names, and look for the image."""
        try:
            self._client = client = await self._call(_connect)
            info = await self._call(client.info)
            await self._call(client.inspect_image, self._image)
        except ImageNotFound:
            raise SandboxUnavailable(f"image {self._image} does not exist") from None
        except _ENGINE_ERRORS as error:
            raise SandboxUnavailable(f"no Docker engine answers: {error}") from error
        if client.base_url.startswith("https"):
            raise SandboxUnavailable("a Docker engine over TLS is not supported; use its socket")
        self._cpu_count = int(info["NCPU"]) if info.get("CpuCfsQuota") else 0
        for flag, limit in _NEEDED.items():
            if not info.get(flag):
                log.warning("sandbox.limit_missing", sandbox=self.name, limit=limit)

    async def run(
        self, job: SandboxJob, *, spool: Path, on_progress: ProgressCallback | None = None
    ) -> SandboxResult:
        if self._client is None:
            raise SandboxUnavailable("the sandbox is not started")
        # Ours, so that it can be removed also when the engine's answer never reaches us.
        name = f"skriptoteket-{uuid.uuid4().hex}"
        try:
            return await self._run(self._client, name, job, spool, on_progress)
        finally:
            await self._remove(self._client, name)

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await self._call(client.close)
        self._threads.shutdown(wait=False)

    async def _run(
        self,
        client: docker.APIClient,
        name: str,
        job: SandboxJob,
        spool: Path,
        on_progress: ProgressCallback | None,
    ) -> SandboxResult:
        await self._ask(self._create, client, name, job)
        async with _Attached() as streams:
            await self._ask(streams.attach, client, name)
            await streams.open()
            await self._ask(client.start, name)
            try:
                result = await exchange(
                    job, streams, streams.stdin, spool=spool, alone=True, on_progress=on_progress
                )
            except RunnerNotStarted as error:
                said = streams.stderr.decode("utf-8", "replace")
                raise SandboxUnavailable(f"{error}: {said}") from error
            if streams.stderr:
                log.warning(
                    "sandbox.runner_stderr",
                    run_id=job.run_id,
                    text=streams.stderr.decode("utf-8", "replace"),
                )
        if result.outcome is Outcome.CRASHED and await self._was_out_of_memory(client, name):
            return replace(result, outcome=Outcome.OUT_OF_MEMORY)
        return result

    def _create(self, client: docker.APIClient, name: str, job: SandboxJob) -> None:
        labels = {RUN_LABEL: str(job.run_id)}
        client.create_container(
            self._image,
            name=name,
            hostname="sandbox",
            user=f"{UID}:{UID}",
            working_dir="/work",
            environment=_make_environment(job.limits),
            labels=labels,
            stdin_open=True,
            network_disabled=True,
            host_config=client.create_host_config(**self._host_settings(job.limits, labels)),
        )

    def _host_settings(self, limits: SandboxLimits, labels: dict[str, str]) -> dict[str, Any]:
        owner = f"uid={UID},gid={UID},mode=0700"
        work = DriverConfig(
            "local",
            {
                "type": "tmpfs",
                "device": "tmpfs",
                "o": f"size={limits.work_bytes},nr_inodes=100k,nosuid,nodev,{owner}",
            },
        )
        settings = {
            "auto_remove": True,
            "network_mode": "none",
            "read_only": True,
            "mounts": [
                Mount("/work", None, type="volume", no_copy=True, labels=labels, driver_config=work)
            ],
            "tmpfs": {"/tmp": f"size={TEMP_BYTES},exec,nosuid,nodev,{owner}"},  # noqa: S108
            "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"],
            "init": True,
            "mem_limit": limits.memory_bytes,
            "memswap_limit": limits.memory_bytes,  # the same: no swap on top
            "pids_limit": limits.processes,
            "oom_score_adj": 500,  # before anything of the host's own
            "ulimits": [
                Ulimit(name="nofile", soft=OPEN_FILES, hard=OPEN_FILES),
                Ulimit(name="core", soft=0, hard=0),
                Ulimit(name="fsize", soft=limits.work_bytes, hard=limits.work_bytes),
            ],
            "log_config": LogConfig(type="none"),
            "runtime": self._runtime,
        }
        if self._cpu_count:  # the engine refuses what its machine does not have
            settings["nano_cpus"] = int(min(limits.cpus, self._cpu_count) * 1_000_000_000)
        return settings

    async def _was_out_of_memory(self, client: docker.APIClient, name: str) -> bool:
        try:
            state = (await self._ask(client.inspect_container, name))["State"]
        except SandboxUnavailable as error:
            if isinstance(error.__cause__, NotFound):  # its `--rm` was faster
                return False
            raise  # the engine went away, and the run with it
        return bool(state.get("OOMKilled"))

    async def _remove(self, client: docker.APIClient, name: str) -> None:
        """Remove the container and its volume, and see that it is gone. Never raises."""
        give_up_at = time.monotonic() + REMOVE_SECONDS
        while True:
            try:
                await self._call(client.remove_container, name, force=True, v=True)
            except NotFound:
                return
            except APIError as error:
                # 409: its `--rm` is at work; 500: the engine is busy with it.
                if time.monotonic() > give_up_at:
                    log.error("sandbox.remove_failed", container=name, reason=str(error))
                    return
                await asyncio.sleep(0.005)
            except _ENGINE_ERRORS as error:
                log.error("sandbox.remove_failed", container=name, reason=str(error))
                return
            else:
                return

    async def _ask(self, function: Callable[..., T], *args: Any) -> T:
        """Call the engine for a run. Raises SandboxUnavailable when that fails."""
        try:
            return await self._call(function, *args)
        except _ENGINE_ERRORS as error:
            raise SandboxUnavailable(f"the Docker engine failed: {error}") from error

    async def _call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run a blocking call in a thread, to its end also when this task is cancelled."""
        loop = asyncio.get_running_loop()
        return await finish(loop.run_in_executor(self._threads, lambda: function(*args, **kwargs)))


class _Attached:
    """The attached streams of a container: stdout to read, stdin to write, stderr kept aside.

    The engine sends stdout and stderr in turns on one socket, each piece behind eight bytes: the
    stream's number, three zeros, the length (big-endian).
    """

    def __init__(self) -> None:
        self._connection: socket.socket | None = None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self._left = 0
        self.stderr = bytearray()

    def attach(self, client: docker.APIClient, name: str) -> None:
        """Attach to a container that is not started yet, so that nothing of it is missed."""
        params = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        stream = client.attach_socket(name, params=params)
        # A descriptor of our own: the SDK's is closed with its response, unseen by asyncio.
        self._connection = stream._sock.dup()
        stream._response.close()
        stream.close()

    async def open(self) -> None:
        """Go on with asyncio from here."""
        assert self._connection is not None, "attach comes first"
        self._connection.setblocking(False)
        if self._connection.family == socket.AF_UNIX:
            self._streams = await asyncio.open_unix_connection(sock=self._connection)
        else:
            self._streams = await asyncio.open_connection(sock=self._connection)

    async def __aenter__(self) -> "_Attached":
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._streams is not None:
            self.stdin.transport.abort()  # unsent input is of no use to anyone
        elif self._connection is not None:
            self._connection.close()

    @property
    def stdin(self) -> asyncio.StreamWriter:
        assert self._streams is not None, "open comes first"
        return self._streams[1]

    @property
    def _received(self) -> asyncio.StreamReader:
        assert self._streams is not None, "open comes first"
        return self._streams[0]

    async def readexactly(self, n: int, /) -> bytes:
        """Read `n` bytes of stdout. Raises asyncio.IncompleteReadError at the end of the stream."""
        data = bytearray()
        while len(data) < n:
            if self._left == 0:
                self._left = await self._skip_to_stdout()
            piece = await self._received.readexactly(min(self._left, n - len(data)))
            self._left -= len(piece)
            data += piece
        return bytes(data)

    async def _skip_to_stdout(self) -> int:
        while True:
            head = await self._received.readexactly(8)
            length = int.from_bytes(head[4:], "big")
            if head[0] == 1:
                return length
            while length:
                piece = await self._received.readexactly(min(length, 64 * 1024))
                length -= len(piece)
                self.stderr += piece[: STDERR_KEEP_BYTES - len(self.stderr)]


def _make_environment(limits: SandboxLimits) -> dict[str, str]:
    # A thread pool as big as the machine would only get in its own way.
    threads = str(max(1, math.ceil(limits.cpus)))
    return {
        "HOME": "/tmp",  # noqa: S108 -- a file system of its own
        "TMPDIR": "/tmp",  # noqa: S108
        "OMP_NUM_THREADS": threads,
        "OPENBLAS_NUM_THREADS": threads,
    }


def _connect() -> docker.APIClient:
    settings: dict[str, Any] = docker.utils.kwargs_from_env()
    _, is_socket, path = settings.get("base_url", DEFAULT_SOCKET).partition("unix://")
    if is_socket:
        # Tried by hand first: the SDK forgets to close its socket when nobody is there.
        with socket.socket(socket.AF_UNIX) as attempt:
            attempt.settimeout(CONNECT_SECONDS)
            attempt.connect(path)
    return docker.APIClient(**settings, version="auto", timeout=ENGINE_SECONDS)
