"""The schema: every step up and down on a real PostgreSQL, and the rules that it carries."""

import asyncio
import os
import sys
import uuid
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest
from databases import make_empty_database

from app.devstack import DevStack
from app.store.migrate import downgrade, migrate

NOW = datetime(2026, 1, 16, tzinfo=UTC)

# Everything of a schema that a migration can change, in an order of its own.
DESCRIBE = """
SELECT 'column', c.table_name, c.column_name, c.data_type, c.is_nullable, c.column_default
FROM information_schema.columns c WHERE c.table_schema = 'public'
UNION ALL
SELECT 'constraint', conrelid::regclass::text, conname, pg_get_constraintdef(oid),
    condeferrable::text, condeferred::text
FROM pg_constraint WHERE connamespace = 'public'::regnamespace
UNION ALL
SELECT 'index', tablename, indexname, indexdef, '', '' FROM pg_indexes WHERE schemaname = 'public'
UNION ALL
SELECT 'other', relkind::text, relname, '', '', '' FROM pg_class
WHERE relnamespace = 'public'::regnamespace AND relkind NOT IN ('r', 'i')
ORDER BY 1, 2, 3, 4
"""


@pytest.fixture(scope="module")
async def database_url(devstack: DevStack) -> AsyncIterator[str]:
    """A database of the module's own."""
    async with make_empty_database(devstack) as url:
        yield url


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Any]:
    """A connection to the newest schema; what is written in a test is rolled back."""
    await asyncio.to_thread(migrate, database_url)
    connection = await asyncpg.connect(database_url)
    transaction = connection.transaction()
    await transaction.start()
    yield connection
    await transaction.rollback()
    await connection.close()


async def describe(database_url: str) -> list[tuple[Any, ...]]:
    connection = await asyncpg.connect(database_url)
    rows = [tuple(row) for row in await connection.fetch(DESCRIBE)]
    await connection.close()
    return rows


async def test_up_down_up_ends_where_it_began(database_url: str) -> None:
    assert await describe(database_url) == []
    await asyncio.to_thread(migrate, database_url)
    first = await describe(database_url)
    tables = {row[1] for row in first if row[0] == "column"}
    expected = {"users", "api_tokens", "tools", "tool_versions", "tool_sessions", "tool_runs"}
    assert expected <= tables
    await asyncio.to_thread(downgrade, database_url, "base")
    left = await describe(database_url)
    assert {row[1] for row in left if row[0] == "column"} <= {"alembic_version"}
    await asyncio.to_thread(migrate, database_url)
    assert await describe(database_url) == first
    await asyncio.to_thread(migrate, database_url)
    assert await describe(database_url) == first, "migrating again changes nothing"


async def test_two_nodes_that_migrate_at_once_take_turns(devstack: DevStack) -> None:
    command = [sys.executable, "-m", "app.cli", "migrate"]
    async with make_empty_database(devstack) as url:
        environment = os.environ | {"DATABASE_URL": url}
        nodes = [
            await asyncio.create_subprocess_exec(*command, env=environment, stderr=PIPE)
            for _ in range(2)
        ]
        errors = [(await node.communicate())[1] for node in nodes]
        assert [node.returncode for node in nodes] == [0, 0], errors
        assert await describe(url)


async def test_the_schema_before_curated_apps_comes_back_with_everything_else_kept(
    devstack: DevStack,
) -> None:
    async with make_empty_database(devstack) as url:
        await check_downgrade_from_curated_apps(url)


async def check_downgrade_from_curated_apps(url: str) -> None:
    await asyncio.to_thread(migrate, url)
    async with closing_connection(url) as connection:
        await insert_runs_of_both_kinds(connection)
    await asyncio.to_thread(downgrade, url, "0001")
    async with closing_connection(url) as connection:
        left = await connection.fetch("SELECT source_kind FROM tool_runs")
    assert [row["source_kind"] for row in left] == ["tool_version"]
    await asyncio.to_thread(migrate, url)


async def test_the_schema_before_deletions_comes_back_without_what_is_half_deleted(
    devstack: DevStack,
) -> None:
    async with make_empty_database(devstack) as url:
        await check_downgrade_from_deletions(url)


async def check_downgrade_from_deletions(url: str) -> None:
    """Whoever was being deleted does not come back to life, and nobody else goes along."""
    tables = ("users", "tools", "tool_versions", "tool_sessions", "tool_runs")
    await asyncio.to_thread(migrate, url)
    async with closing_connection(url) as connection:
        kept, goes = Rows(connection), Rows(connection, "bo")
        for rows in (kept, goes):
            await rows.insert()
            await rows.run()
        # Half-way: a user with sessions of others' tools, and a tool that others have sessions of.
        await goes.run(user_id=kept.user, **ENDED)
        await connection.execute(
            "UPDATE users SET deleted_at = $2, is_active = false WHERE id = $1", goes.user, NOW
        )
        await connection.execute("UPDATE tools SET deleted_at = $2 WHERE id = $1", goes.tool, NOW)
    await asyncio.to_thread(downgrade, url, "0002")
    async with closing_connection(url) as connection:
        counts = [await connection.fetchval(f"SELECT count(*) FROM {name}") for name in tables]
        assert counts == [1] * len(tables)
        assert await connection.fetchval("SELECT username FROM users") == "anna"
    await asyncio.to_thread(migrate, url)
    async with closing_connection(url) as connection:
        assert await connection.fetchval("SELECT id FROM tool_runs") is not None


@asynccontextmanager
async def closing_connection(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def insert_runs_of_both_kinds(connection: Any) -> None:
    rows = Rows(connection)
    await rows.insert()
    await rows.run()
    app = uuid.uuid4()
    await connection.execute(
        "INSERT INTO tools (id, slug, title, summary, usage_instructions, curated_app_id,"
        " curated_app_version, created_at, updated_at)"
        " VALUES ($1, 'app', '', '', '', 'a', '1', $2, $2)",
        app,
        NOW,
    )
    await rows.run(**CURATED, tool_id=app, version_id=None)


# --- the rules that the schema carries ------------------------------------------------------


class Rows:
    """One user, tool, version and session, and runs of it to try out."""

    def __init__(self, db: Any, name: str = "anna") -> None:
        self.db, self.name = db, name
        self.user, self.tool, self.version, self.session = (uuid.uuid4() for _ in range(4))

    async def insert(self) -> None:
        await self.db.execute(
            "INSERT INTO users VALUES ($1, $3, 'Anna', 'user', 'x', true, $2)",
            self.user,
            NOW,
            self.name,
        )
        await self.db.execute(
            "INSERT INTO tools (id, slug, title, summary, usage_instructions, created_at,"
            " updated_at) VALUES ($1, 'prov-' || $3::text, '', '', '', $2, $2)",
            self.tool,
            NOW,
            self.name,
        )
        await self.db.execute(
            "INSERT INTO tool_versions (id, tool_id, number, status, source, entrypoint,"
            " input_schema, created_at, updated_at)"
            " VALUES ($1, $2, 1, 'draft', '', 'x', '[]', $3, $3)",
            self.version,
            self.tool,
            NOW,
        )
        await self.db.execute(
            "INSERT INTO curated_app_versions VALUES ('a', '1', '', 'x', '[]', $1)"
            " ON CONFLICT DO NOTHING",
            NOW,
        )
        await self.db.execute(
            "INSERT INTO tool_sessions (id, tool_id, user_id, context, created_at, updated_at)"
            " VALUES ($1, $2, $3, 'default', $4, $4)",
            self.session,
            self.tool,
            self.user,
            NOW,
        )

    async def run(self, **columns: Any) -> None:
        row = {
            "id": uuid.uuid4(),
            "tool_id": self.tool,
            "source_kind": "tool_version",
            "version_id": self.version,
            "user_id": self.user,
            "session_id": self.session,
            "context": "default",
            "kind": "initial",
            "status": "queued",
            "created_at": NOW,
        } | columns
        places = ", ".join(f"${number}" for number in range(1, len(row) + 1))
        insert = f"INSERT INTO tool_runs ({', '.join(row)}) VALUES ({places})"
        # A savepoint: after a refusal the test goes on.
        async with self.db.transaction():
            await self.db.execute(insert, *row.values())


@pytest.fixture
async def rows(db: Any) -> Rows:
    made = Rows(db)
    await made.insert()
    return made


ACTION = {"kind": "action", "action": "{}"}
RUNNING = {"status": "running", "lease_owner": "w"}
ENDED = {"status": "succeeded", "finished_at": NOW}


async def test_a_session_has_at_most_one_unfinished_action_run(rows: Rows) -> None:
    await rows.run(**ACTION, **ENDED)
    await rows.run(**ACTION, superseded=True)
    await rows.run(**ACTION)
    for unfinished in ({}, RUNNING):
        with pytest.raises(asyncpg.UniqueViolationError) as refused:
            await rows.run(**ACTION, **unfinished)
        assert refused.value.constraint_name == "tool_runs_one_unfinished_action"
    await rows.run()
    await rows.run(**ACTION, **ENDED)


CURATED = {"source_kind": "curated_app", "curated_app_id": "a", "curated_app_version": "1"}


@pytest.mark.parametrize(
    ("columns", "is_right"),
    [
        ({}, True),
        (CURATED | {"version_id": None}, True),
        (CURATED, False),
        (CURATED | {"version_id": None, "curated_app_version": None}, False),
        (CURATED | {"version_id": None, "curated_app_id": None}, False),
        ({"version_id": None}, False),
        ({"curated_app_id": "a"}, False),
        ({"source_kind": "other"}, False),
    ],
)
async def test_a_run_has_the_source_that_its_kind_says(
    rows: Rows, columns: dict[str, Any], is_right: bool
) -> None:
    if is_right:
        await rows.run(**columns)
        return
    with pytest.raises(asyncpg.CheckViolationError) as refused:
        await rows.run(**columns)
    assert refused.value.constraint_name == "tool_runs_source_kind"


@pytest.mark.parametrize(
    "columns",
    [
        {"status": "done"},
        {"kind": "other"},
        {"kind": "action"},
        {"action": "{}"},
        {"status": "running"},
        {"lease_owner": "w"},
        {"status": "succeeded"},
        {"finished_at": NOW},
        RUNNING | {"finished_at": NOW},
    ],
)
async def test_a_run_in_an_impossible_state_is_refused(rows: Rows, columns: dict[str, Any]) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await rows.run(**columns)


async def test_a_user_has_one_session_for_each_tool_and_context(rows: Rows) -> None:
    again = "INSERT INTO tool_sessions (id, tool_id, user_id, context, created_at, updated_at)"
    again += " VALUES ($1, $2, $3, $4, $5, $5)"
    await rows.db.execute(again, uuid.uuid4(), rows.tool, rows.user, "other", NOW)
    with pytest.raises(asyncpg.UniqueViolationError) as refused:
        await rows.db.execute(again, uuid.uuid4(), rows.tool, rows.user, "default", NOW)
    assert refused.value.constraint_name == "tool_sessions_key"


async def test_a_new_session_is_empty_at_revision_zero(rows: Rows) -> None:
    row = await rows.db.fetchrow("SELECT state, state_rev, has_files FROM tool_sessions")
    assert tuple(row) == ("{}", 0, False)


async def test_who_is_being_deleted_is_out_of_everything(rows: Rows) -> None:
    for refused in (
        "UPDATE users SET deleted_at = now()",
        "UPDATE tools SET deleted_at = now(), published_version_id = $1",
        "UPDATE tools SET deleted_at = now(), curated_app_id = 'a'",
    ):
        args = [rows.version] if "$1" in refused else []
        with pytest.raises(asyncpg.CheckViolationError):
            async with rows.db.transaction():
                await rows.db.execute(refused, *args)
    await rows.db.execute("UPDATE users SET deleted_at = now(), is_active = false")
    await rows.db.execute("UPDATE tools SET deleted_at = now()")


async def test_what_belongs_to_a_deleted_user_goes_with_them(rows: Rows) -> None:
    await rows.run()
    await rows.db.execute("DELETE FROM users WHERE id = $1", rows.user)
    for table in ("tool_sessions", "tool_runs"):
        assert await rows.db.fetchval(f"SELECT count(*) FROM {table}") == 0
    assert await rows.db.fetchval("SELECT count(*) FROM tools") == 1
