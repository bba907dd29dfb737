"""Whether this worker's sandbox can start runs. While it cannot, the worker takes none."""

import asyncio

from app.log import get_log
from workers.sandbox.base import Sandbox, SandboxUnavailable

TRIAL_SECONDS = 2.0  # between two trials of a sandbox that failed

log = get_log(__name__)


class Readiness:
    """Ready until a run could not be started; then again when a trial succeeded."""

    def __init__(self, sandbox: Sandbox) -> None:
        self._sandbox = sandbox
        self._trial: asyncio.Task[None] | None = None

    @property
    def is_ready(self) -> bool:
        return self._trial is None or self._trial.done()

    def doubt(self) -> None:
        """Take no runs until a trial says that they can be started."""
        if self.is_ready:
            log.warning("worker.not_ready", sandbox=self._sandbox.name)
            self._trial = asyncio.create_task(self._try_until_it_starts(), name="sandbox-trial")

    async def aclose(self) -> None:
        """Stop trying. Idempotent."""
        if self._trial is not None:
            self._trial.cancel()
            await asyncio.wait([self._trial])

    async def _try_until_it_starts(self) -> None:
        while True:
            try:
                await self._sandbox.check()
            except SandboxUnavailable as error:
                log.info("worker.trial_failed", error=str(error))
            except Exception:
                # Whatever it is: a worker that stopped trying would never take a run again.
                log.exception("worker.trial_crashed")
            else:
                log.info("worker.ready", sandbox=self._sandbox.name)
                return
            await asyncio.sleep(TRIAL_SECONDS)
