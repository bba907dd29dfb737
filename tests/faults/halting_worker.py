"""A worker whose runs come to a halt, each at a stage that a test chose; then it goes no further.

The tests kill it there. The product knows nothing of it: what a worker's runs are given to work
with is wrapped here. It renews its leases meanwhile, as a worker that is only slow would.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any
from uuid import UUID

from app.store.runs import CLAIM_RUN
from workers import main as worker
from workers.run_tool import RunTool

# `plan.json` in it says where each run halts; a file named as the run says that it did.
DIRECTORY = Path(os.environ.get("HALT_DIRECTORY", "."))
current: ContextVar[str] = ContextVar("current")


async def reach(stage: str) -> None:
    """Come to a halt, and note it, if the run that is being done is to halt at this stage."""
    plan = json.loads((DIRECTORY / "plan.json").read_bytes())
    if plan[current.get()] == stage:
        (DIRECTORY / current.get()).touch()
        await asyncio.Event().wait()


class HaltingRunTool(RunTool):
    async def __call__(self, run_id: UUID, attempt: int) -> None:
        current.set(str(run_id))
        await super().__call__(run_id, attempt)


class Wrapped:
    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class HaltingDatabase(Wrapped):
    async def fetchrow(self, query: str, *args: Any) -> Any:
        if query != CLAIM_RUN:
            return await self._inner.fetchrow(query, *args)
        await reach("taken")
        row = await self._inner.fetchrow(query, *args)
        await reach("claimed")
        return row

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        """The end of a run is all that it writes in a transaction."""
        async with self._inner.transaction() as connection:
            yield connection
            await reach("before the commit")
        await reach("after the commit")


class HaltingFiles(Wrapped):
    @asynccontextmanager
    async def open_file(self, key: Any, file: Any) -> AsyncIterator[Any]:
        async with self._inner.open_file(key, file) as chunks:
            await reach("staging")
            yield chunks


class HaltingSandbox(Wrapped):
    async def run(self, job: Any, *, on_progress: Any, **rest: Any) -> Any:
        async def report_progress(fraction: float, text: str) -> None:
            await on_progress(fraction, text)
            await reach("executing")

        result = await self._inner.run(job, on_progress=report_progress, **rest)
        await reach("executed")
        return result


class HaltingArtifacts(Wrapped):
    async def put_path(self, run_id: Any, number: int, path: Path) -> Any:
        if number == 1:
            await reach("uploading")
        return await self._inner.put_path(run_id, number, path)


async def to_thread_or_halt(function: Any, *args: Any, **rest: Any) -> Any:
    if args and isinstance(args[0], int):  # what is written to a descriptor is an artifact
        await reach("collecting")
    return await to_thread(function, *args, **rest)


def make_run_tool(**adapters: Any) -> RunTool:
    wrappers = {
        "db": HaltingDatabase,
        "session_files": HaltingFiles,
        "sandbox": HaltingSandbox,
        "artifacts": HaltingArtifacts,
    }
    for name, wrap in wrappers.items():
        adapters[name] = wrap(adapters[name])
    return HaltingRunTool(**adapters)


if __name__ == "__main__":
    to_thread, asyncio.to_thread = asyncio.to_thread, to_thread_or_halt
    worker.RunTool = make_run_tool
    worker.main()
