"""Containers of the Docker engine, each made for one job: created, attached, started, removed.

The engine is asked four things for a container: create, attach, start, remove. It has `--rm`, and
its runner ends when its stdin closes, so a worker that is killed leaves nothing that runs; what
else may be left (created and never started, say) is found by its labels.

The only module that knows the docker SDK, which blocks: its calls run in threads, and are always
waited for, because a container whose creation nobody waited for would be one that nobody removes.
"""

import asyncio
import itertools
import math
import random
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, TypeVar

import docker
import requests
from docker.errors import APIError, DockerException, ImageNotFound, NotFound

from app.concurrency import run_to_end
from app.log import get_log
from workers.sandbox.attached import Attached
from workers.sandbox.base import SandboxLimits, SandboxLost, SandboxUnavailable
from workers.sandbox.confinement import GID, UIDS, USER, make_host_config
from workers.sandbox.owner import is_gone, name_owner
from workers.sandbox.protocol import RunnerNotStarted, longest_seconds, wait_until_ready

LABEL = "skriptoteket.sandbox"
OWNER_LABEL = "skriptoteket.owner"
EXPIRES_LABEL = "skriptoteket.expires"
DEFAULT_SOCKET = "unix:///var/run/docker.sock"
CONNECT_SECONDS = 5
ENGINE_SECONDS = 60
REMOVE_SECONDS = 30.0
MAKE_SECONDS = 3 * ENGINE_SECONDS  # created, attached, started
# Between the steps of a container's making, or of its end, it looks like one that was left.
SETTLE_SECONDS = 10.0

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


class Container:
    """A started container whose runner waits for its job, and its streams."""

    def __init__(self, name: str, limits: SandboxLimits, streams: Attached) -> None:
        self.name, self.limits, self.streams = name, limits, streams
        self.made_at = time.monotonic()

    @property
    def is_alive(self) -> bool:
        """False as soon as its streams have ended: its runner, or the engine, is gone."""
        return not self.streams.has_ended

    @property
    def complaints(self) -> str:
        """What its runner wrote to stderr."""
        return self.streams.stderr.decode("utf-8", "replace")


class Engine:
    """The Docker engine that DOCKER_HOST names, for containers of one image.

    `runtime` names another OCI runtime of the engine (gVisor, a microVM); None is its default.
    """

    def __init__(self, *, image: str, runtime: str | None) -> None:
        self._image, self._runtime = image, runtime
        self._owner = name_owner()
        # In turn, so that ours never share one; from anywhere, so that those of another worker on
        # this machine hardly ever do.
        self._uids = itertools.count(random.randrange(len(UIDS)))
        self._client: docker.APIClient | None = None
        self._cpu_count = 0
        self._unremoved: set[str] = set()
        self._threads = ThreadPoolExecutor(8, thread_name_prefix="docker")

    async def open(self) -> None:
        """Connect, and look for the image. Raises SandboxUnavailable with the reason."""
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
                log.warning("sandbox.limit_missing", sandbox="docker", limit=limit)

    async def aclose(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await self._call(client.close)
        self._threads.shutdown(wait=False)

    async def open_container(
        self, limits: SandboxLimits, preload: Sequence[str] = (), *, idle_seconds: float = 0
    ) -> Container:
        """Start a container and wait until its runner takes a job. Raises SandboxUnavailable.

        The caller removes it, and gives it no job that may run for longer than `limits` say, nor
        any later than `idle_seconds` from now: when it has to be over, anybody may remove it.
        `preload` are modules that its runner imports before it takes a job.
        """
        expires_at = time.time() + MAKE_SECONDS + idle_seconds + longest_seconds(limits)
        # Ours, so that it can be removed also when the engine's answer never reaches us.
        name = f"skriptoteket-{uuid.uuid4().hex}"
        connections: list[socket.socket] = []
        streams: Attached | None = None
        try:
            await self._ask(self._create, name, limits, preload, expires_at)
            await self._ask(self._attach, name, connections)
            streams = await Attached.open(connections[0])
            await self._ask(self._asked.start, name)
            await wait_until_ready(streams)
        except BaseException as error:
            if streams is not None:
                streams.close()
            else:
                for connection in connections:
                    connection.close()
            await self.remove(name)
            if streams is not None and isinstance(error, RunnerNotStarted):
                said = streams.stderr.decode("utf-8", "replace")
                raise SandboxUnavailable(f"{error}: {said}") from error
            raise
        return Container(name, limits, streams)

    async def remove(self, name: str) -> None:
        """Remove a container and its volume, and see that it is gone; no failure is raised.

        What could not be removed, or was not because the caller was cancelled, is tried again with
        all else that is left over.
        """
        self._unremoved.add(name)
        give_up_at = time.monotonic() + REMOVE_SECONDS
        while True:
            try:
                await self._call(self._asked.remove_container, name, force=True, v=True)
            except NotFound:
                break
            except APIError as error:
                # 409: its `--rm` is at work; 500: the engine is busy with it.
                if time.monotonic() > give_up_at:
                    log.error("sandbox.remove_failed", container=name, reason=str(error))
                    return
                await asyncio.sleep(0.005)
            except (*_ENGINE_ERRORS, SandboxUnavailable) as error:
                log.error("sandbox.remove_failed", container=name, reason=str(error))
                return
            else:
                break
        self._unremoved.discard(name)

    async def was_out_of_memory(self, name: str) -> bool:
        """Tell why a container's runner went away. Raises SandboxLost if nobody knows any more."""
        try:
            state = (await self._call(self._asked.inspect_container, name))["State"]
        except NotFound:  # its `--rm` was faster
            return False
        except _ENGINE_ERRORS as error:
            raise SandboxLost(f"the Docker engine went away: {error}") from error
        return bool(state.get("OOMKilled"))

    async def measure(self, name: str) -> int:
        """Return the bytes of memory that a container takes now, and could not give back.

        Pages of files are left out: the first container to read the image's libraries from the disk
        has them on its account, and the kernel takes them back when it needs them.
        """
        stats = await self._ask(
            lambda: self._asked.stats(name, decode=False, stream=False, one_shot=True)
        )
        memory = stats["memory_stats"]
        pages = memory.get("stats", {})
        files = pages.get("active_file", 0) + pages.get("inactive_file", 0)
        return max(0, int(memory.get("usage", 0)) - int(files))

    async def remove_left_over(self) -> int:
        """Remove what dead workers left behind: how much it was.

        A container is left over when its worker is gone, when it does not run although it is old
        enough to, or when it is older than its run can be, ours included; a volume when nothing
        uses it.
        """
        for name in list(self._unremoved):
            await self.remove(name)
        now = time.time()
        wanted = {"label": LABEL}
        found = await self._ask(lambda: self._asked.containers(all=True, filters=wanted))
        left = [entry["Id"] for entry in found if self._is_left_over(entry, now)]
        for container_id in left:
            await self.remove(container_id)
        removed = len(left)
        unused = {"label": LABEL, "dangling": True}
        answer = await self._ask(lambda: self._asked.volumes(filters=unused))
        for volume in answer["Volumes"] or ():
            age_seconds = now - datetime.fromisoformat(volume["CreatedAt"]).timestamp()
            if age_seconds > SETTLE_SECONDS:
                removed += await self._remove_volume(volume["Name"])
        return removed

    def _is_left_over(self, entry: dict[str, Any], now: float) -> bool:
        labels, state = entry["Labels"], str(entry["State"])
        if now > float(labels.get(EXPIRES_LABEL, "inf")):
            return True
        if labels.get(OWNER_LABEL) == self._owner:
            return False
        is_settled = now - float(entry["Created"]) > SETTLE_SECONDS
        if is_gone(labels.get(OWNER_LABEL, "")):
            # An engine whose `--rm` met a removal may say "removing" for ever, until asked again.
            return is_settled or state != "removing"
        return is_settled and state not in {"running", "removing"}

    async def _remove_volume(self, name: str) -> bool:
        try:
            await self._call(self._asked.remove_volume, name)
        except _ENGINE_ERRORS:  # in use after all, or gone
            return False
        return True

    def _create(
        self, name: str, limits: SandboxLimits, preload: Sequence[str], expires_at: float
    ) -> None:
        labels = {
            LABEL: "1",
            OWNER_LABEL: self._owner,
            EXPIRES_LABEL: str(math.ceil(expires_at)),
        }
        uid = UIDS[next(self._uids) % len(UIDS)]
        self._asked.create_container(
            self._image,
            command=list(preload),
            name=name,
            hostname="sandbox",
            user=f"{uid}:{GID}",
            working_dir="/work",
            environment=_make_environment(limits),
            labels=labels,
            stdin_open=True,
            network_disabled=True,
            host_config=make_host_config(
                limits,
                {LABEL: "1", OWNER_LABEL: self._owner},
                uid,
                runtime=self._runtime,
                cpu_count=self._cpu_count,
            ),
        )

    def _attach(self, name: str, connections: list[socket.socket]) -> None:
        """Attach to a container that is not started yet, so that nothing of it is missed.

        The connection is put where the caller finds it also when it was cancelled meanwhile.
        """
        params = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        stream = self._asked.attach_socket(name, params=params)
        # A descriptor of our own: the SDK's is closed with its response, unseen by asyncio.
        connections.append(stream._sock.dup())
        stream._response.close()
        stream.close()

    @property
    def _asked(self) -> docker.APIClient:
        if self._client is None:
            raise SandboxUnavailable("the sandbox is not started")
        return self._client

    async def _ask(self, function: Callable[..., T], *args: Any) -> T:
        """Call the engine. Raises SandboxUnavailable when that fails."""
        try:
            return await self._call(function, *args)
        except _ENGINE_ERRORS as error:
            raise SandboxUnavailable(f"the Docker engine failed: {error}") from error

    async def _call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Run a blocking call in a thread, to its end also when this task is cancelled."""
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._threads, lambda: function(*args, **kwargs))
        return await run_to_end(work)


def _make_environment(limits: SandboxLimits) -> dict[str, str]:
    # A thread pool as big as the machine would only get in its own way.
    threads = str(max(1, math.ceil(limits.cpus)))
    return {
        "USER": USER,
        "LOGNAME": USER,
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
