"""Tool sessions and their files, for published tools."""

from datetime import UTC, datetime

from litestar import Router, delete, get
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from app.api.schemas import FileView, SessionFilesView
from app.domain.sessions import parse_context
from app.domain.users import User
from app.store.session_files import SessionFilesKey
from app.usecases import sessions
from app.usecases.sessions import SessionView
from app.wiring import Services


async def view_files(services: Services, key: SessionFilesKey) -> SessionFilesView:
    """The saved files of a session; looking does not prolong their life."""
    snapshot = await services.session_files.get_files(key)
    return SessionFilesView(
        tool_id=key.tool_id,
        context=key.context,
        files=[]
        if snapshot is None
        else [FileView(name=file.name, bytes=file.bytes) for file in snapshot.files],
        last_accessed_at=None if snapshot is None else snapshot.last_accessed_at,
        expires_at=None if snapshot is None else snapshot.expires_at,
    )


@get("/{slug:str}/session")
async def show_session(
    services: NamedDependency[Services],
    user: NamedDependency[User],
    slug: FromPath[str],
    context: FromQuery[str | None] = None,
) -> SessionView:
    """State, revision and the actions on offer."""
    key = await sessions.get_key(services.db, user, slug, parse_context(context))
    return await sessions.view_session(services.db, user, key)


@get("/{slug:str}/session-files")
async def show_session_files(
    services: NamedDependency[Services],
    user: NamedDependency[User],
    slug: FromPath[str],
    context: FromQuery[str | None] = None,
) -> SessionFilesView:
    """The saved files and when they will go."""
    key = await sessions.get_key(services.db, user, slug, parse_context(context))
    return await view_files(services, key)


@delete("/{slug:str}/session-files", status_code=204)
async def clear_session_files(
    services: NamedDependency[Services],
    user: NamedDependency[User],
    slug: FromPath[str],
    context: FromQuery[str | None] = None,
) -> None:
    """Delete the saved files now; 204 also when there are none."""
    key = await sessions.get_key(services.db, user, slug, parse_context(context))
    await sessions.clear_files(services.db, services.session_files, key, datetime.now(UTC))


router = Router(
    "/tools",
    route_handlers=[show_session, show_session_files, clear_session_files],
    tags=["sessions"],
)
