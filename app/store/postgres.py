"""The connection pool: JSON through msgspec, driver errors as our own, one table for each.

Queries live beside their nouns (tools, sessions, runs, users); this module knows none of them.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import asyncpg
import msgspec

from app.errors import (
    AppError,
    Conflict,
    MalformedRequest,
    NotAuthenticated,
    NotFound,
    SessionBusy,
    Unavailable,
)
from app.log import get_log

T = TypeVar("T")
log = get_log(__name__)

COMMAND_TIMEOUT_SECONDS = 15

# Session locks by name, for work of which one at a time is enough.
TRY_LOCK = "SELECT pg_try_advisory_lock(hashtextextended($1, 1))"
UNLOCK = "SELECT pg_advisory_unlock(hashtextextended($1, 1))"

# A constraint that a caller can run into, and what to tell them.
CONSTRAINT_ERRORS: dict[str, AppError] = {
    "users_username_key": Conflict("Användarnamnet är upptaget."),
    "tools_slug_key": Conflict("Det finns redan ett verktyg med det kortnamnet."),
    "tool_versions_number_key": Conflict("Någon annan skapade en version samtidigt. Försök igen."),
    "tool_runs_one_unfinished_action": SessionBusy(),
    # What the request is about, or who asks, was deleted since the request began.
    "tool_versions_tool_id_fkey": NotFound(),
    "tool_versions_created_by_fkey": NotAuthenticated(),
    "tools_owner_id_fkey": NotAuthenticated(),
    "api_tokens_user_id_fkey": NotAuthenticated(),
}

# Not the caller's fault and over soon: connection lost, server starting, stopping or full.
_UNAVAILABLE = (
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    # What the driver says of a connection whose farewell it has read and not yet acted on.
    asyncpg.InternalClientError,
    TimeoutError,
    OSError,
)


@contextmanager
def _own_errors() -> Iterator[None]:
    try:
        yield
    except (asyncpg.UniqueViolationError, asyncpg.ForeignKeyViolationError) as error:
        known = CONSTRAINT_ERRORS.get(error.constraint_name or "")
        if known is None:
            raise
        raise type(known)(known.detail) from error
    except (asyncpg.CharacterNotInRepertoireError, asyncpg.UntranslatableCharacterError) as error:
        # NUL: the one character that JSON and addresses can hold and PostgreSQL's text cannot.
        raise MalformedRequest("Texten innehåller ett otillåtet tecken.") from error
    except _UNAVAILABLE as error:
        raise Unavailable("database") from error


@contextmanager
def _ending(step: str) -> Iterator[None]:
    """Let nothing of a lost connection out: what was to be ended on it has ended with it.

    How the block before it went is what the caller needs to know, a commit included.
    """
    try:
        yield
    except (asyncpg.PostgresError, *_UNAVAILABLE, Unavailable) as error:
        log.warning("database.connection_lost", step=step, error=str(error))


class Connection:
    """One connection, usually inside a transaction."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    async def fetch(self, query: str, *args: Any) -> list[dict[str, Any]]:
        with _own_errors():
            return [dict(row) for row in await self._raw.fetch(query, *args)]

    async def fetchrow(self, query: str, *args: Any) -> dict[str, Any] | None:
        with _own_errors():
            row = await self._raw.fetchrow(query, *args)
            return None if row is None else dict(row)

    async def fetchval(self, query: str, *args: Any) -> Any:
        with _own_errors():
            return await self._raw.fetchval(query, *args)

    async def execute(self, query: str, *args: Any) -> int:
        """Return the number of rows that the statement touched."""
        with _own_errors():
            tag: str = await self._raw.execute(query, *args)
        return int(tag.rsplit(" ", 1)[-1]) if tag[-1].isdigit() else 0


class Database:
    """A pool of connections; the same calls as a `Connection`, each on one of its own."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        with _own_errors():
            raw = await self._pool.acquire(timeout=COMMAND_TIMEOUT_SECONDS)
        try:
            yield Connection(raw)
        finally:
            # Shielded by the pool itself: a cancelled request still gives its connection back. One
            # that cannot be made clean again is thrown away by the pool.
            with _ending("release"):
                await self._pool.release(raw)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """Commit at the end of the block, roll back if it raises.

        Raises:
            Unavailable: also when the COMMIT itself got lost; it may or may not have happened.
        """
        async with self.connection() as connection:
            transaction = connection._raw.transaction()
            with _own_errors():
                await transaction.start()
            try:
                yield connection
            except BaseException:
                with _ending("rollback"):
                    await transaction.rollback()
                raise
            with _own_errors():
                await transaction.commit()

    @asynccontextmanager
    async def try_lock(self, name: str) -> AsyncIterator[bool]:
        """Hold an advisory lock for the block, or yield False at once if somebody else does.

        It lives as long as its connection: a killed holder never leaves it behind.
        """
        async with self.connection() as connection:
            is_ours = bool(await connection.fetchval(TRY_LOCK, name))
            try:
                yield is_ours
            finally:
                if is_ours:
                    with _ending("unlock"):
                        await connection.execute(UNLOCK, name)

    async def fetch(self, query: str, *args: Any) -> list[dict[str, Any]]:
        async with self.connection() as connection:
            return await connection.fetch(query, *args)

    async def fetchrow(self, query: str, *args: Any) -> dict[str, Any] | None:
        async with self.connection() as connection:
            return await connection.fetchrow(query, *args)

    async def fetchval(self, query: str, *args: Any) -> Any:
        async with self.connection() as connection:
            return await connection.fetchval(query, *args)

    async def execute(self, query: str, *args: Any) -> int:
        async with self.connection() as connection:
            return await connection.execute(query, *args)


Executor = Database | Connection


def convert_row(row: dict[str, Any], type_: type[T]) -> T:
    """Build a Struct from a row; columns are named as its fields."""
    return msgspec.convert(row, type_)


@asynccontextmanager
async def open_database(database_url: str, *, size: int) -> AsyncIterator[Database]:
    """Open a pool with our JSON codec. Raises Unavailable if the server does not answer."""
    with _own_errors():
        pool = await asyncpg.create_pool(
            database_url,
            min_size=1,
            max_size=size,
            command_timeout=COMMAND_TIMEOUT_SECONDS,
            timeout=10,
            init=_prepare_connection,
            server_settings={"application_name": "skriptoteket"},
        )
    try:
        yield Database(pool)
    finally:
        try:
            await asyncio.wait_for(pool.close(), timeout=5)
        except TimeoutError:
            pool.terminate()


async def _prepare_connection(raw: Any) -> None:
    await raw.set_type_codec(
        "jsonb",
        schema="pg_catalog",
        encoder=_encode_json,
        decoder=msgspec.json.decode,
        format="text",
    )


def _encode_json(value: Any) -> str:
    # Bytes are JSON text already (a normalized payload): they go in as they are.
    encoded = value if isinstance(value, bytes) else msgspec.json.encode(value)
    return encoded.decode()
