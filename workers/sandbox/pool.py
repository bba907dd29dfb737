"""Containers that were started beforehand, each for one run: what a run need not wait for.

Invariant: a container leaves the pool once, to a run or to its removal, and never comes back. The
pool is filled in the background, one container at a time, so that filling never takes more than
one core from the runs. Whoever finds it empty makes a container for himself.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress

from app.log import get_log
from workers.sandbox.base import SandboxUnavailable
from workers.sandbox.engine import Container

CHECK_SECONDS = 1.0  # an idle container that died, or grew old, is noticed within this
RETRY_SECONDS = (1.0, 30.0)  # after a failure: at first, and at most

log = get_log(__name__)


class WarmPool:
    """Keeps up to `size` containers ready, as long as they take no more than `max_bytes` idle.

    All are made alike, by `make`; `discard` takes back one that no run will use.
    """

    def __init__(
        self,
        *,
        make: Callable[[], Awaitable[Container]],
        measure: Callable[[str], Awaitable[int]],
        discard: Callable[[Container], None],
        size: int,
        max_bytes: int,
        max_age_seconds: float,
    ) -> None:
        self._make, self._measure, self._discard = make, measure, discard
        self._size, self._max_bytes, self._max_age_seconds = size, max_bytes, max_age_seconds
        self._idle: deque[Container] = deque()
        self._wanted = asyncio.Event()
        self._filling: asyncio.Task[None] | None = None
        self._each_bytes = 0  # the most that one was seen to take

    def start(self) -> None:
        self._filling = asyncio.create_task(self._keep_full(), name="sandbox-pool")

    @property
    def idle(self) -> int:
        """How many containers wait."""
        return len(self._idle)

    def take(self) -> Container | None:
        """Give away the oldest container that is fit; None if there is none."""
        self._wanted.set()
        while self._idle:
            container = self._idle.popleft()
            if self._is_fit(container):
                return container
            self._discard(container)
        return None

    async def aclose(self) -> None:
        """Give back what is idle. Idempotent."""
        if self._filling is not None:
            self._filling.cancel()
            await asyncio.wait([self._filling])
        while self._idle:
            self._discard(self._idle.popleft())

    def _is_fit(self, container: Container) -> bool:
        age_seconds = time.monotonic() - container.made_at
        return container.is_alive and age_seconds < self._max_age_seconds

    async def _keep_full(self) -> None:
        retry_seconds = RETRY_SECONDS[0]
        while True:
            self._wanted.clear()
            self._drop_unfit()
            try:
                while len(self._idle) < self._room():
                    await self._add_one()
                retry_seconds = RETRY_SECONDS[0]
                with suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_SECONDS):
                        await self._wanted.wait()
                continue
            except SandboxUnavailable as error:
                # Runs will meet the same, and say so; this goes on until the engine is back.
                log.warning("sandbox.pool_not_filled", reason=str(error), idle=self.idle)
            except Exception:
                # Nobody would miss the pool before all runs were slow.
                log.exception("sandbox.pool_not_filled", idle=self.idle)
            await asyncio.sleep(retry_seconds)
            retry_seconds = min(2 * retry_seconds, RETRY_SECONDS[1])

    async def _add_one(self) -> None:
        container = await self._make()
        try:
            self._each_bytes = max(self._each_bytes, await self._measure(container.name))
        except BaseException:
            self._discard(container)
            raise
        self._idle.append(container)

    def _room(self) -> int:
        """How many may be idle: one at least, so that what each takes can be known."""
        if self._each_bytes == 0:
            return min(self._size, 1)
        return min(self._size, max(1, self._max_bytes // self._each_bytes))

    def _drop_unfit(self) -> None:
        for container in [c for c in self._idle if not self._is_fit(c)]:
            self._idle.remove(container)
            self._discard(container)
