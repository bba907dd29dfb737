"""Databases of a test's own, on the server that all tests share."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from app.devstack import DevStack
from app.store.migrate import migrate


@asynccontextmanager
async def make_empty_database(devstack: DevStack) -> AsyncIterator[str]:
    """Make a database without our schema, dropped at the end; yields its URL."""
    name = f"test_{uuid.uuid4().hex[:8]}"
    server = await asyncpg.connect(devstack.database_url)
    await server.execute(f"CREATE DATABASE {name}")
    base, _, query = devstack.database_url.partition("?")
    try:
        yield f"{base.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")
    finally:
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await server.close()


@asynccontextmanager
async def make_database(devstack: DevStack) -> AsyncIterator[str]:
    """Make a database with the newest schema and no rows, dropped at the end; yields its URL."""
    async with make_empty_database(devstack) as url:
        await asyncio.to_thread(migrate, url)
        yield url
