"""Tool sessions in PostgreSQL: state, revision, and which run may write them."""

from datetime import datetime
from typing import Any
from uuid import UUID

from app.domain.runs import ToolSession
from app.store.postgres import Connection, Executor, convert_row

_SESSION = """id, tool_id, user_id, context, state, state_rev, active_run_id, latest_run_id,
offer_run_id, has_files, files_rev"""

_GET_SESSION = f"""
SELECT {_SESSION} FROM tool_sessions WHERE tool_id = $1 AND user_id = $2 AND context = $3
"""  # noqa: S608
# A session of a tool that is being deleted is gone for its user.
FIND_SESSION = f"""{_GET_SESSION}
AND EXISTS (SELECT FROM tools t WHERE t.id = tool_id AND t.deleted_at IS NULL)
"""

# Create the session if it is new. DO NOTHING takes no lock: LOCK_SESSION follows.
ENSURE_SESSION = """
INSERT INTO tool_sessions (id, tool_id, user_id, context, created_at, updated_at)
VALUES ($1, $2, $3, $4, $5, $5) ON CONFLICT ON CONSTRAINT tool_sessions_key DO NOTHING
"""

# Lock one session's row: claims, finishes and file changes of a session happen one at a time.
# Lock order everywhere: user, tool, session, run.
LOCK_SESSION = f"{_GET_SESSION} FOR UPDATE"
LOCK_SESSION_BY_ID = f"SELECT {_SESSION} FROM tool_sessions WHERE id = $1 FOR UPDATE"  # noqa: S608
# The same, without a wait: no row where somebody else holds it.
TRY_LOCK_SESSION = "SELECT id FROM tool_sessions WHERE id = $1 FOR UPDATE SKIP LOCKED"

# A claim: this run alone may write the session from now on.
SET_ACTIVE_RUN = "UPDATE tool_sessions SET active_run_id = $2, updated_at = $3 WHERE id = $1"

# What the user last did with the files; the count tells a claim that it changed meanwhile.
SET_HAS_FILES = """
UPDATE tool_sessions SET has_files = $2, files_rev = files_rev + 1, updated_at = $3 WHERE id = $1
"""

# The active run ended without success: the session is free again and otherwise as it was.
RELEASE_SESSION = """
UPDATE tool_sessions SET active_run_id = NULL, latest_run_id = $2, updated_at = $3 WHERE id = $1
"""

# The active run succeeded: it is what the session offers now. $4: new state or NULL for "as it
# was"; $5: by how much the revision rises.
ADVANCE_SESSION = """
UPDATE tool_sessions SET active_run_id = NULL, latest_run_id = $2, offer_run_id = $2,
    state = coalesce($4, state), state_rev = state_rev + $5, updated_at = $3
WHERE id = $1 RETURNING state_rev
"""


async def find_session(
    db: Executor, tool_id: UUID, user_id: UUID, context: str
) -> ToolSession | None:
    row = await db.fetchrow(FIND_SESSION, tool_id, user_id, context)
    return None if row is None else convert_row(row, ToolSession)


async def ensure_and_lock_session(
    db: Connection, new_id: UUID, key: tuple[UUID, UUID, str], now: datetime
) -> ToolSession:
    """Lock the session of `key` (tool, user, context) until the transaction ends."""
    await db.execute(ENSURE_SESSION, new_id, *key, now)
    row = await db.fetchrow(LOCK_SESSION, *key)
    assert row is not None, "sessions are deleted only with their user or tool, which is held"
    return convert_row(row, ToolSession)


async def lock_session(db: Connection, key: tuple[UUID, UUID, str]) -> ToolSession | None:
    row = await db.fetchrow(LOCK_SESSION, *key)
    return None if row is None else convert_row(row, ToolSession)


async def lock_session_by_id(db: Connection, session_id: UUID) -> ToolSession | None:
    row = await db.fetchrow(LOCK_SESSION_BY_ID, session_id)
    return None if row is None else convert_row(row, ToolSession)


async def try_lock_session(db: Connection, session_id: UUID) -> bool:
    """Lock a session until the transaction ends, unless somebody else has it."""
    return await db.fetchval(TRY_LOCK_SESSION, session_id) is not None


async def set_active_run(db: Connection, session_id: UUID, run_id: UUID, now: datetime) -> None:
    await db.execute(SET_ACTIVE_RUN, session_id, run_id, now)


async def set_has_files(db: Connection, session_id: UUID, has_files: bool, now: datetime) -> None:
    await db.execute(SET_HAS_FILES, session_id, has_files, now)


async def release_session(db: Connection, session_id: UUID, run_id: UUID, now: datetime) -> None:
    await db.execute(RELEASE_SESSION, session_id, run_id, now)


async def advance_session(
    db: Connection,
    session_id: UUID,
    run_id: UUID,
    now: datetime,
    state: dict[str, Any] | None,
    rev_step: int,
) -> int:
    """Store the success of a run; returns the new revision."""
    rev: int = await db.fetchval(ADVANCE_SESSION, session_id, run_id, now, state, rev_step)
    return rev
