"""Mutual exclusion of commits by name, for what a conditional PUT cannot guard.

Only two things need it on a server with conditional writes: the plain DELETE at the end of an
expiry, and a commit that replaces an expiring manifest. Without them, every commit does.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from app.store.postgres import Database

# Ends with the transaction, so a lost connection or a killed node never leaves it held.
LOCK_NAME = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))"


class CommitFence(Protocol):
    """One holder a name, among all nodes."""

    def fence(self, name: str) -> AbstractAsyncContextManager[None]:
        """Hold the name for the length of the block; waits for its turn."""
        ...


class PostgresFence:
    """Advisory locks on a small pool of its own.

    A commit runs inside a transaction of the main pool: if its fence waited for a connection of
    that same pool, all of them could be taken by commits that wait.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    @asynccontextmanager
    async def fence(self, name: str) -> AsyncIterator[None]:
        """Raises Unavailable when PostgreSQL, or the lock, does not come in time."""
        async with self._database.transaction() as transaction:
            await transaction.execute(LOCK_NAME, name)
            yield
