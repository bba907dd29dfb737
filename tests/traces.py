"""Everything that the stores hold of somebody: what has to be gone after a deletion."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
from redis.asyncio import Redis

from app.domain.users import Role
from app.settings import load_settings
from app.store.objects import open_object_store
from app.store.postgres import open_database
from app.store.redis import LoginSession
from app.usecases.accounts import create_token, create_user

PASSWORD = "mycket-hemligt"

# Every row that names one of some ids, as (table, how many).
_ROWS = """
SELECT 'users' AS name, count(*) FROM users WHERE id = ANY($1)
UNION ALL SELECT 'tools', count(*) FROM tools WHERE id = ANY($1) OR owner_id = ANY($1)
UNION ALL
SELECT 'tool_versions', count(*) FROM tool_versions
WHERE tool_id = ANY($1) OR created_by = ANY($1)
UNION ALL SELECT 'api_tokens', count(*) FROM api_tokens WHERE user_id = ANY($1)
UNION ALL
SELECT 'tool_sessions', count(*) FROM tool_sessions WHERE tool_id = ANY($1) OR user_id = ANY($1)
UNION ALL
SELECT 'tool_runs', count(*) FROM tool_runs WHERE tool_id = ANY($1) OR user_id = ANY($1)
"""
_RUN_IDS = "SELECT id FROM tool_runs WHERE tool_id = ANY($1) OR user_id = ANY($1)"


@dataclass
class Traces:
    """What there is of a user or tool: rows by table, objects, browser sessions."""

    rows: dict[str, int] = field(default_factory=dict)
    keys: set[str] = field(default_factory=set)
    logins: int = 0

    def __bool__(self) -> bool:
        return bool(self.rows or self.keys or self.logins)


def find_traces(environment: Mapping[str, str], *ids: str, runs: Iterable[str] = ()) -> Traces:
    """Look into every store, past the service. `runs` are those whose rows may be gone."""
    return asyncio.run(_find_traces(environment, [UUID(id) for id in ids], set(runs)))


async def _find_traces(environment: Mapping[str, str], ids: list[UUID], runs: set[str]) -> Traces:
    settings = load_settings(environment)
    connection = await asyncpg.connect(settings.database_url)
    rows = {row["name"]: row["count"] for row in await connection.fetch(_ROWS, ids) if row["count"]}
    runs = runs | {str(row["id"]) for row in await connection.fetch(_RUN_IDS, ids)}
    await connection.close()
    async with open_object_store(settings) as objects:
        names = {*map(str, ids), *runs}
        keys = [info.key async for info in objects.list_objects("")]
        keys += [upload.key async for upload in objects.list_multipart("")]
    async with Redis.from_url(settings.redis_url) as redis:
        values = [await redis.get(key) async for key in redis.scan_iter("login:*")]
    logins = [msgspec.msgpack.decode(raw, type=LoginSession).user_id for raw in values if raw]
    theirs = {key for key in keys if not names.isdisjoint(key.split("/"))}
    return Traces(rows, theirs, sum(id in ids for id in logins))


def find_strays(environment: Mapping[str, str]) -> list[str]:
    """Artifacts of runs that are not there, and session files of users or tools that are not."""
    return asyncio.run(_find_strays(environment))


async def _find_strays(environment: Mapping[str, str]) -> list[str]:
    settings = load_settings(environment)
    async with open_object_store(settings) as objects:
        keys = [info.key async for info in objects.list_objects("")]
    connection = await asyncpg.connect(settings.database_url)
    known = {
        str(row["id"])
        for table in ("tool_runs", "tools", "users")
        for row in await connection.fetch(f"SELECT id FROM {table}")
    }
    await connection.close()

    def is_stray(key: str) -> bool:
        match key.split("/"):
            case ["runs", run_id, *_]:
                return run_id not in known
            case ["sessions", "manifests" | "files", tool_id, user_id, *_]:
                return not {tool_id, user_id} <= known
        return False

    return [key for key in keys if is_stray(key)]


def add_user(environment: Mapping[str, str], username: str, role: Role = "user") -> str:
    """Add a user with `PASSWORD`, past the service: their id."""

    async def add() -> str:
        now = datetime.now(UTC)
        async with open_database(load_settings(environment).database_url, size=1) as db:
            user = await create_user(db, username, role, PASSWORD, now)
        assert user is not None, "the name is taken"
        return str(user.id)

    return asyncio.run(add())


def add_program(environment: Mapping[str, str], username: str) -> tuple[str, str]:
    """Add a user who has an API token and no password: their id, and the token."""

    async def add() -> tuple[str, str]:
        now = datetime.now(UTC)
        async with open_database(load_settings(environment).database_url, size=1) as db:
            user = await create_user(db, username, "user", None, now)
            assert user is not None, "the name is taken"
            _, token = await create_token(db, user, "tests", None, now)
        return str(user.id), token

    return asyncio.run(add())


def log_in_as(client: Any, username: str) -> None:
    """Log a client in as a user that `add_user` has added."""
    login = {"username": username, "password": PASSWORD}
    client.post("/auth/login", json=login).raise_for_status()
    client.headers["x-csrftoken"] = client.cookies["csrftoken"]
