"""Connections that get lost: what a caller hears of it, and that the pool goes on."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest

from app.devstack import DevStack
from app.errors import Conflict, Unavailable
from app.store.postgres import Connection, Database, open_database

END_CONNECTION = "SELECT pg_terminate_backend($1)"


@pytest.fixture
async def db(devstack: DevStack) -> AsyncIterator[Database]:
    """A pool of one connection: the next caller gets what the one before gave back."""
    async with open_database(devstack.database_url, size=1) as db:
        yield db


@pytest.fixture
async def server(devstack: DevStack) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the test's own."""
    connection = await asyncpg.connect(devstack.database_url)
    yield connection
    await connection.close()


async def end_connection(server: asyncpg.Connection, connection: Connection) -> None:
    """Have the server end a connection that does nothing just now; its client is not told yet."""
    assert await server.fetchval(
        END_CONNECTION, await connection.fetchval("SELECT pg_backend_pid()")
    )
    # The server's last word is on its way, and nothing on this side has read it.
    await asyncio.sleep(0)


@pytest.fixture
async def table(server: asyncpg.Connection) -> AsyncIterator[str]:
    await server.execute("CREATE TABLE notes (text text)")
    yield "notes"
    await server.execute("DROP TABLE notes")


async def test_connection_lost_at_its_release_is_replaced_and_nobody_told(
    db: Database, server: asyncpg.Connection
) -> None:
    async with db.connection() as connection:
        await end_connection(server, connection)
    assert await db.fetchval("SELECT 1") == 1


class LosingPool:
    """A pool whose connections get lost just before they are given back."""

    def __init__(self, pool: Any, server: asyncpg.Connection) -> None:
        self._pool, self._server = pool, server
        self.acquire = pool.acquire

    async def release(self, raw: Any) -> None:
        await end_connection(self._server, Connection(raw))
        await self._pool.release(raw)


async def test_commit_that_succeeded_stays_a_success_when_the_release_fails(
    db: Database, server: asyncpg.Connection, table: str
) -> None:
    losing = Database(LosingPool(db._pool, server))
    async with losing.transaction() as tx:
        await tx.execute("INSERT INTO notes VALUES ('kvar')")
    assert await db.fetchval("SELECT text FROM notes") == "kvar"


async def test_error_of_a_block_is_what_comes_out_when_its_connection_is_lost_too(
    db: Database, server: asyncpg.Connection
) -> None:
    with pytest.raises(Conflict, match="mitt eget"):
        async with db.transaction() as tx:
            await end_connection(server, tx)
            raise Conflict("mitt eget")
    with pytest.raises(Conflict, match="mitt eget"):
        async with db.connection() as connection:
            await end_connection(server, connection)
            raise Conflict("mitt eget")
    assert await db.fetchval("SELECT 1") == 1


async def test_commit_that_got_lost_is_told(
    db: Database, server: asyncpg.Connection, table: str
) -> None:
    with pytest.raises(Unavailable):
        async with db.transaction() as tx:
            await tx.execute("INSERT INTO notes VALUES ('borta')")
            await end_connection(server, tx)
    assert await db.fetchval("SELECT count(*) FROM notes") == 0


async def test_lock_whose_connection_was_lost_is_free_and_its_work_is_done(
    db: Database, server: asyncpg.Connection
) -> None:
    async with db.try_lock("tests") as is_ours:
        assert is_ours
        await server.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
    async with db.try_lock("tests") as is_ours:
        assert is_ours
