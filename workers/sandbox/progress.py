"""Progress of a running tool, passed on without ever holding up the run.

Whoever listens (a database, a queue) may be slow or broken; the stream from the sandbox must be
read all the same. So only the latest step is kept, and a task of its own delivers it.
"""

import asyncio

from app.log import get_log
from workers.sandbox.base import ProgressCallback

log = get_log(__name__)


class LatestProgress:
    """Delivers steps to a callback one at a time, the newest first; older ones are dropped."""

    def __init__(self, callback: ProgressCallback | None) -> None:
        self._callback = callback
        self._latest: tuple[float, str] | None = None
        self._delivery: asyncio.Task[None] | None = None

    def offer(self, fraction: float, text: str) -> None:
        """Take the newest step; returns at once."""
        self._latest = (fraction, text)
        if self._callback is not None and (self._delivery is None or self._delivery.done()):
            self._delivery = asyncio.create_task(self._deliver(self._callback))

    async def aclose(self, grace_seconds: float = 1.0) -> None:
        """Let the last step through if that is quick, then stop."""
        if self._delivery is None:
            return
        try:
            await asyncio.wait([self._delivery], timeout=grace_seconds)
        finally:
            self._delivery.cancel()

    async def _deliver(self, callback: ProgressCallback) -> None:
        while self._latest is not None:
            fraction, text = self._latest
            self._latest = None
            try:
                await callback(fraction, text)
            except Exception:
                log.exception("sandbox.progress_failed")
