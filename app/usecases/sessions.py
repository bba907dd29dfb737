"""Reading a tool session, and its files: listing is not access, clearing takes effect at once."""

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from app.store import runs, sessions
from app.store.postgres import Database
from app.store.session_files import FileSnapshot, SessionFilesKey, SessionFileStorageProtocol


class SessionView(msgspec.Struct, frozen=True, kw_only=True):
    """A session as its user sees it; one that does not exist yet is empty at revision 0."""

    tool_id: UUID
    context: str
    state: dict[str, Any]
    state_rev: int
    latest_run_id: UUID | None
    active_run_id: UUID | None
    next_actions: list[dict[str, Any]]


async def view_session(db: Database, tool_id: UUID, user_id: UUID, context: str) -> SessionView:
    session = await sessions.find_session(db, tool_id, user_id, context)
    next_actions: list[dict[str, Any]] = []
    if session is not None and session.offer_run_id is not None:
        offer = await runs.find_offer(db, session.offer_run_id)
        next_actions = [] if offer is None else offer.next_actions
    return SessionView(
        tool_id=tool_id,
        context=context,
        state={} if session is None else session.state,
        state_rev=0 if session is None else session.state_rev,
        latest_run_id=None if session is None else session.latest_run_id,
        active_run_id=None if session is None else session.active_run_id,
        next_actions=next_actions,
    )


async def list_files(
    storage: SessionFileStorageProtocol, tool_id: UUID, user_id: UUID, context: str
) -> FileSnapshot | None:
    """The files that the next action would get, or None. Does not prolong their life."""
    return await storage.get_files(SessionFilesKey(tool_id, user_id, context))


async def clear_files(
    db: Database,
    storage: SessionFileStorageProtocol,
    key: SessionFilesKey,
    now: datetime,
) -> None:
    """Delete a session's files now. A queued run that still needs them will fail clearly."""
    async with db.transaction() as tx:
        # Under the session's lock: an upload that commits at the same time comes before or after.
        session = await sessions.lock_session(tx, key.parts)
        if session is not None:
            await sessions.set_has_files(tx, session.id, False, now)
        await storage.clear_session(key)
