"""A worker whose sandbox can be broken: what a file says to fail fails, as if its engine were away.

`run` in it is what a run asks of the sandbox, `check` the trial whether it is back. Such a worker
waits a moment for what a real one waits a minute for.
"""

import os
from pathlib import Path
from typing import Any

from halting_worker import Wrapped

from app.settings import Settings
from workers import main as worker
from workers import readiness, run_tool
from workers.sandbox.base import Sandbox, SandboxUnavailable

BROKEN = Path(os.environ["BROKEN_FILE"])
PATIENCE_SECONDS = 0.5


class BreakableSandbox(Wrapped):
    async def run(self, *args: Any, **rest: Any) -> Any:
        fail_if_broken("run")
        return await self._inner.run(*args, **rest)

    async def check(self) -> None:
        fail_if_broken("check")
        await self._inner.check()


def fail_if_broken(what: str) -> None:
    if what in BROKEN.read_text().split():
        raise SandboxUnavailable(f"{what} is broken")


async def open_breakable_sandbox(settings: Settings) -> Sandbox:
    sandbox: Any = BreakableSandbox(await open_sandbox(settings))
    return sandbox  # type: ignore[no-any-return]


if __name__ == "__main__":
    open_sandbox, worker.open_sandbox = worker.open_sandbox, open_breakable_sandbox
    run_tool.SANDBOX_PATIENCE_SECONDS = PATIENCE_SECONDS
    readiness.TRIAL_SECONDS = PATIENCE_SECONDS
    worker.main()
