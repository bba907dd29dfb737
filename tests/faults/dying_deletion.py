"""Deletions by processes that are killed, as by a power cut, after so many changes to the stores.

The first is killed after one change, the next after two, and so on until one comes to its end. The
product knows nothing of it: what changes something is wrapped here. Prints how many were killed.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from app.settings import load_settings
from app.store.objects import ObjectStore
from app.store.postgres import Database
from app.wiring import open_services

changes_left = 0


def count_change() -> None:
    global changes_left
    changes_left -= 1
    if changes_left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


def count_changes(cls: type, name: str, is_change: Any) -> None:
    method = getattr(cls, name)

    async def wrapped(self: Any, what: Any, *args: Any, **rest: Any) -> Any:
        answer = await method(self, what, *args, **rest)
        if is_change(what):
            count_change()
        return answer

    setattr(cls, name, wrapped)


def count_commits() -> None:
    transaction = Database.transaction

    @asynccontextmanager
    async def counted(self: Database) -> AsyncIterator[Any]:
        async with transaction(self) as connection:
            yield connection
        count_change()

    setattr(Database, "transaction", counted)  # noqa: B010 - no plain assignment to a method


async def delete() -> None:
    async with open_services(load_settings()) as services:
        count_changes(ObjectStore, "delete", lambda keys: True)
        count_changes(ObjectStore, "put", lambda key: True)
        count_changes(Database, "execute", lambda query: "DELETE" in query)
        count_commits()
        await services.deletions.finish_all()


def main() -> None:
    global changes_left
    killed = 0
    while True:
        changes_left = killed + 1
        # A fork is a process of its own to be killed, without the time that importing takes.
        if (pid := os.fork()) == 0:
            asyncio.run(delete())
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSIGNALED(status):
            print(killed)
            raise SystemExit(os.waitstatus_to_exitcode(status))
        killed += 1


if __name__ == "__main__":
    main()
