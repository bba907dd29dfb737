"""A container per run: taken warm from the pool or made cold, fed and read, then removed.

Nothing of the host is in it: no path, no socket, no network. Its work directory is an anonymous
volume of its own in memory, which goes with the container; those bytes count against the memory
limit too. Warm and cold speak the same protocol, and no container ever serves a second run.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from app.log import get_log
from workers.sandbox.base import (
    Outcome,
    ProgressCallback,
    SandboxJob,
    SandboxLimits,
    SandboxResult,
    SandboxUnavailable,
)
from workers.sandbox.engine import Container, Engine
from workers.sandbox.owner import LEFT_OVER_SECONDS
from workers.sandbox.pool import WarmPool
from workers.sandbox.protocol import RunnerNotStarted, exchange

# Of a container that no tool is ever in: 256 MiB, 16 processes, and nothing comes out of it.
CHECK_LIMITS = SandboxLimits(1, 256 << 20, 1, 16, 1 << 20, 0, 0, 0, 0, 0)

log = get_log(__name__)


@dataclass(frozen=True)
class PoolSettings:
    """How many containers wait, for which limits, and with which modules imported.

    Runs with another time limit than that of `limits` take them too, if it is no longer.
    """

    limits: SandboxLimits
    size: int
    max_bytes: int
    max_age_seconds: float
    preload: Sequence[str] = ()


class DockerSandbox:
    """Runs each job in a container of `image`, whose entrypoint is the runner.

    `runtime` names another OCI runtime of the engine (gVisor, a microVM); None is its default.
    Without `pool` every container is made cold.
    """

    name = "docker"

    def __init__(
        self, *, image: str, runtime: str | None = None, pool: PoolSettings | None = None
    ) -> None:
        self._engine = Engine(image=image, runtime=runtime)
        self._pool_settings = pool
        self._pool: WarmPool | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._tidying: asyncio.Task[None] | None = None

    @property
    def pool_size(self) -> int:
        """How many containers may wait for a run."""
        return self._pool_settings.size if self._pool_settings else 0

    @property
    def idle(self) -> int:
        """How many containers wait now."""
        return self._pool.idle if self._pool else 0

    async def start(self) -> None:
        """Connect to the engine that DOCKER_HOST names, and begin to fill the pool."""
        await self._engine.open()
        settings = self._pool_settings
        if settings is not None and settings.size:
            self._pool = WarmPool(
                make=lambda: self._engine.open_container(
                    settings.limits, settings.preload, idle_seconds=settings.max_age_seconds
                ),
                measure=self._engine.measure,
                discard=self._discard,
                size=settings.size,
                max_bytes=settings.max_bytes,
                max_age_seconds=settings.max_age_seconds,
            )
            self._pool.start()
        self._tidying = asyncio.create_task(self._tidy(), name="sandbox-left-over")

    async def run(
        self,
        job: SandboxJob,
        *,
        spool: Path,
        on_progress: ProgressCallback | None = None,
        stop: asyncio.Event | None = None,
    ) -> SandboxResult:
        container = self._take_warm(job.limits)
        if container is not None:
            with suppress(RunnerNotStarted):  # it died while it was taken: as if it were not there
                return await self._run_in(container, job, spool, on_progress, stop)
        container = await self._engine.open_container(job.limits)
        try:
            return await self._run_in(container, job, spool, on_progress, stop)
        except RunnerNotStarted as error:
            raise SandboxUnavailable(f"{error}: {container.complaints}") from error

    async def check(self) -> None:
        container = await self._engine.open_container(CHECK_LIMITS)
        self._discard(container)

    async def aclose(self) -> None:
        if self._tidying is not None:
            self._tidying.cancel()
            await asyncio.wait([self._tidying])
        if self._pool is not None:
            await self._pool.aclose()
        while self._background:
            await asyncio.wait(self._background)
        await self._engine.aclose()

    def _take_warm(self, limits: SandboxLimits) -> Container | None:
        if self._pool is None or self._pool_settings is None:
            return None
        # The clock and what comes back are watched by the runner and by us; the rest is cast in
        # the container. One that could run for longer would be taken for left over.
        fixed = self._pool_settings.limits
        if _cast(limits) != _cast(fixed) or limits.timeout_seconds > fixed.timeout_seconds:
            return None
        return self._pool.take()

    async def _run_in(
        self,
        container: Container,
        job: SandboxJob,
        spool: Path,
        on_progress: ProgressCallback | None,
        stop: asyncio.Event | None,
    ) -> SandboxResult:
        """Do the job in a container, which goes with it.

        Raises:
            RunnerNotStarted: the container went away before it had the job.
        """
        is_over = False
        try:
            streams = container.streams
            result = await exchange(
                job,
                streams,
                streams.stdin,
                spool=spool,
                alone=True,
                on_progress=on_progress,
                stop=stop,
            )
            if container.complaints:
                log.warning("sandbox.runner_stderr", run_id=job.run_id, text=container.complaints)
            if result.outcome is Outcome.CRASHED and await self._engine.was_out_of_memory(
                container.name
            ):
                result = replace(result, outcome=Outcome.OUT_OF_MEMORY)
            # The runner says so only when nothing of the tool is alive.
            is_over = result.outcome is Outcome.COMPLETED
            return result
        finally:
            if is_over:
                self._discard(container)
            else:
                container.streams.close()
                await self._engine.remove(container.name)

    def _discard(self, container: Container) -> None:
        """Remove a container in which nothing of a tool is alive; nobody waits for that."""
        container.streams.close()
        task = asyncio.create_task(self._engine.remove(container.name))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _tidy(self) -> None:
        """Look for what dead workers left, as long as this one lives."""
        while True:
            try:
                removed = await self._engine.remove_left_over()
                if removed:
                    log.warning("sandbox.left_over_removed", count=removed)
            except SandboxUnavailable as error:
                log.warning("sandbox.engine_unavailable", reason=str(error))
            except Exception:
                log.exception("sandbox.tidying_failed")
            await asyncio.sleep(LEFT_OVER_SECONDS)


def _cast(limits: SandboxLimits) -> tuple[float, ...]:
    return limits.memory_bytes, limits.cpus, limits.processes, limits.work_bytes
