"""Databases of a test's own, on the server that all tests share."""

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg

from app.devstack import DevStack


@asynccontextmanager
async def make_database(devstack: DevStack) -> AsyncIterator[str]:
    """Make an empty database, without our schema, dropped at the end; yields its URL."""
    name = f"test_{uuid.uuid4().hex[:8]}"
    server = await asyncpg.connect(devstack.database_url)
    await server.execute(f"CREATE DATABASE {name}")
    base, _, query = devstack.database_url.partition("?")
    try:
        yield f"{base.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")
    finally:
        await server.execute(f"DROP DATABASE {name} WITH (FORCE)")
        await server.close()
