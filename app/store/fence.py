"""Mutual exclusion of commits by name, for what a conditional PUT cannot guard.

Only two things need it on a server with conditional writes: the plain DELETE at the end of an
expiry, and a commit that replaces an expiring manifest. Without them, every commit does.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from app.store.postgres import Database

# Ends with the transaction, so a lost connection or a killed node never leaves it held. Several at
# once are taken in one order by all, so that nobody waits for each other in a circle.
LOCK_NAMES = """
SELECT pg_advisory_xact_lock(hash) FROM (
    SELECT DISTINCT hashtextextended(name, 0) AS hash FROM unnest($1::text[]) AS name ORDER BY hash
) AS hashes
"""
STILL_HELD = "SELECT 1"

Confirm = Callable[[], Awaitable[None]]


class CommitFence(Protocol):
    """One holder a name, among all nodes."""

    def fence(self, *names: str) -> AbstractAsyncContextManager[Confirm]:
        """Hold the names for the length of the block; waits for its turn.

        What it yields raises Unavailable if they are not held any more: to be asked after a while,
        before a step that nothing else guards. Safe for concurrent use.
        """
        ...


class PostgresFence:
    """Advisory locks on a small pool of its own.

    A commit runs inside a transaction of the main pool: if its fence waited for a connection of
    that same pool, all of them could be taken by commits that wait.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def fence(self, *names: str) -> AsyncIterator[Confirm]:
        """Raises Unavailable when PostgreSQL, or the lock, does not come in time."""
        async with self._database.transaction() as transaction:
            await transaction.execute(LOCK_NAMES, names)

            turns = asyncio.Lock()  # A connection answers one at a time.

            async def confirm() -> None:
                async with turns:
                    await transaction.execute(STILL_HELD)

            yield confirm
