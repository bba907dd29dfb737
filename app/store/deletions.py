"""Users and tools that are being deleted: marked at once, then their rows in batches, then theirs.

Invariant: nobody finds what is marked, and no claim gets past a marked user or tool (see
`usecases/claims.py`): what is theirs does not grow again once the claims under way have ended.
"""

from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

from app.store.postgres import Connection, Database, Executor, convert_row

BATCH_SESSIONS = 500

OwnerKind = Literal["user", "tool"]
_COLUMNS: dict[OwnerKind, str] = {"user": "user_id", "tool": "tool_id"}
_TABLES: dict[OwnerKind, str] = {"user": "users", "tool": "tools"}


class Owner(msgspec.Struct, frozen=True):
    """A user or a tool, as that to which sessions, runs and files belong."""

    kind: OwnerKind
    id: UUID


# Every active admin, until the transaction ends: of two who delete each other one is told.
LOCK_ADMINS = """
SELECT id FROM users WHERE role = 'admin' AND is_active ORDER BY id FOR NO KEY UPDATE
"""

# From here on nobody by that name, who may have a successor at once. Waits for the user's claims
# under way, which hold the row; they see the mark or are seen by it.
MARK_USER = """
UPDATE users SET deleted_at = $2, is_active = false, username = 'deleted:' || id,
    display_name = '', password_hash = ''
WHERE id = $1 AND deleted_at IS NULL
"""
DELETE_TOKENS = "DELETE FROM api_tokens WHERE user_id = $1"

# The same for a tool, without its name: that is a key, whose change would wait for the claims under
# way, and new ones would keep coming. After the mark there are no new ones.
MARK_TOOL = """
UPDATE tools SET deleted_at = $2, published_version_id = NULL
WHERE id = $1 AND deleted_at IS NULL
"""
FREE_SLUG = "UPDATE tools SET slug = 'deleted-' || id WHERE id = $1 AND deleted_at IS NOT NULL"

# Who is being deleted, the longest waiting first. Both tables have an index of these alone.
LIST_MARKED = """
SELECT 'user' AS kind, id, deleted_at FROM users WHERE deleted_at IS NOT NULL
UNION ALL
SELECT 'tool', id, deleted_at FROM tools WHERE deleted_at IS NOT NULL
ORDER BY deleted_at LIMIT 1000
"""

# Waits until every claim that did not see the mark has ended: each holds the row FOR KEY SHARE at
# least, which this alone conflicts with. Those that see it take no lock.
AWAIT_CLAIMS = {
    kind: f"SELECT id FROM {table} WHERE id = $1 FOR UPDATE"  # noqa: S608
    for kind, table in _TABLES.items()
}

LIST_UNFINISHED = {
    kind: f"""
SELECT id, session_id FROM tool_runs
WHERE {column} = $1 AND status IN ('queued', 'running') ORDER BY id
"""  # noqa: S608
    for kind, column in _COLUMNS.items()
}

# The tools that a user has sessions with: under each of them there may be files.
LIST_TOOLS_OF_USER = "SELECT DISTINCT tool_id FROM tool_sessions WHERE user_id = $1"

# Some of the sessions, in an order that all deletions share. Their runs are gone already.
DELETE_SESSIONS = {
    kind: f"""
DELETE FROM tool_sessions WHERE id IN (
    SELECT id FROM tool_sessions WHERE {column} = $1 ORDER BY id LIMIT $2 FOR UPDATE)
"""  # noqa: S608
    for kind, column in _COLUMNS.items()
}

# Last of all. What else refers to it goes along (tokens, versions) or forgets it (authors).
DELETE_OWNER = {
    kind: f"DELETE FROM {table} WHERE id = $1 AND deleted_at IS NOT NULL"  # noqa: S608
    for kind, table in _TABLES.items()
}


async def lock_admins(db: Connection) -> list[UUID]:
    """Lock all active admins until the transaction ends; call it before any other lock."""
    return [row["id"] for row in await db.fetch(LOCK_ADMINS)]


async def mark_user(db: Connection, user_id: UUID, now: datetime) -> bool:
    """Make a user invisible for good; False if there is none. Their tokens end here."""
    if await db.execute(MARK_USER, user_id, now) == 0:
        return False
    await db.execute(DELETE_TOKENS, user_id)
    return True


async def mark_tool(db: Connection, tool_id: UUID, now: datetime) -> bool:
    """Make a tool invisible for good; False if there is none."""
    return await db.execute(MARK_TOOL, tool_id, now) == 1


async def free_slug(db: Executor, tool_id: UUID) -> None:
    """Let another tool have a marked one's name; waits for the claims under way."""
    await db.execute(FREE_SLUG, tool_id)


async def list_marked(db: Executor) -> list[Owner]:
    """Return who is being deleted, the longest waiting first; one query over two small indexes."""
    return [
        convert_row({"kind": row["kind"], "id": row["id"]}, Owner)
        for row in await db.fetch(LIST_MARKED)
    ]


async def await_claims(db: Executor, owner: Owner) -> None:
    """Return once no claim is under way that may still add runs or files of a marked owner."""
    await db.execute(AWAIT_CLAIMS[owner.kind], owner.id)


async def list_unfinished(db: Executor, owner: Owner) -> list[tuple[UUID, UUID]]:
    """Return the unfinished runs as (run, session)."""
    rows = await db.fetch(LIST_UNFINISHED[owner.kind], owner.id)
    return [(row["id"], row["session_id"]) for row in rows]


async def list_file_paths(db: Executor, owner: Owner) -> list[str]:
    """Return the beginnings of paths of session files under which the owner's lie."""
    if owner.kind == "tool":
        return [f"{owner.id}/"]
    rows = await db.fetch(LIST_TOOLS_OF_USER, owner.id)
    return [f"{row['tool_id']}/{owner.id}/" for row in rows]


async def delete_sessions(db: Database, owner: Owner) -> int:
    """Delete some sessions and return how many; 0 once there are none left."""
    return await db.execute(DELETE_SESSIONS[owner.kind], owner.id, BATCH_SESSIONS)


async def delete_owner(db: Executor, owner: Owner) -> None:
    """Delete the marked row itself, and with it what a cascade may take in one go."""
    await db.execute(DELETE_OWNER[owner.kind], owner.id)
