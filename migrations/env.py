"""Alembic's entry point: one transaction for all steps, over the service's own driver."""

import asyncio

import asyncpg
from alembic import context
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool

# Two nodes that start at once must not migrate at once. Any constant does.
MIGRATION_LOCK = 0x5C121207


def _run_steps(connection: Connection) -> None:
    context.configure(connection=connection, transaction_per_migration=False)
    with context.begin_transaction():
        connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
        context.run_migrations()


async def _migrate(database_url: str) -> None:
    engine = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=lambda: asyncpg.connect(database_url),
        poolclass=NullPool,
    )
    try:
        async with engine.begin() as connection:
            await connection.run_sync(_run_steps)
    finally:
        await engine.dispose()


asyncio.run(_migrate(context.config.attributes["database_url"]))
