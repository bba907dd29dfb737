"""Reading a tool session, and its files: listing is not access, clearing takes effect at once."""

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from app.domain.users import User
from app.errors import NotFound
from app.store import runs, sessions, tools
from app.store.postgres import Database
from app.store.session_files import SessionFilesKey, SessionFileStorageProtocol
from app.usecases.tools import may_start


class SessionView(msgspec.Struct, frozen=True, kw_only=True):
    """A session as its user sees it; one that does not exist yet is empty at revision 0."""

    tool_id: UUID
    context: str
    state: dict[str, Any]
    state_rev: int
    latest_run_id: UUID | None
    active_run_id: UUID | None
    next_actions: list[dict[str, Any]]


async def get_key(db: Database, user: User, slug: str, context: str) -> SessionFilesKey:
    """Name a session that the user may have of a published tool, or does have.

    What is saved in a session stays its user's when the tool leaves their catalogue.

    Raises:
        NotFound: there is neither.
    """
    tool = await tools.find_tool_by_slug(db, slug)
    if tool is None:
        raise NotFound
    key = SessionFilesKey(tool.id, user.id, context)
    if not may_start(user, tool) and await sessions.find_session(db, *key.parts) is None:
        raise NotFound
    return key


async def view_session(db: Database, user: User, key: SessionFilesKey) -> SessionView:
    """A session, with the actions that its user may take now."""
    session = await sessions.find_session(db, *key.parts)
    next_actions: list[dict[str, Any]] = []
    if session is not None and session.offer_run_id is not None:
        offer = await runs.find_offer(db, session.offer_run_id)
        if offer is not None and user.has_role(offer.min_role):
            next_actions = offer.next_actions
    return SessionView(
        tool_id=key.tool_id,
        context=key.context,
        state={} if session is None else session.state,
        state_rev=0 if session is None else session.state_rev,
        latest_run_id=None if session is None else session.latest_run_id,
        active_run_id=None if session is None else session.active_run_id,
        next_actions=next_actions,
    )


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
