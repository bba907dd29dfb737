"""The catalogue, and writing tools: who may see and change which."""

from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec

from app.domain.ids import new_uuid7
from app.domain.runs import RunSource
from app.domain.tools import InputSchema, Tool, ToolCode, ToolVersion, check_source, is_slug
from app.domain.users import User
from app.errors import Conflict, EditConflict, Forbidden, Invalid, NotFound
from app.store import curated, tools
from app.store.postgres import Database


class OfferedTool(msgspec.Struct, frozen=True, kw_only=True):
    """An entry of the catalogue, and what a new session of it runs."""

    tool: Tool
    source: RunSource
    input_schema: InputSchema


async def list_catalogue(
    db: Database, user: User, query: str | None, after: tuple[str, UUID] | None, limit: int
) -> list[Tool]:
    """What the user may run, by title: tools whose title, summary or slug holds the query."""
    pattern = None
    if query and query.strip():
        escaped = query.strip().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        pattern = f"%{escaped}%"
    return await tools.list_published(db, user.roles, pattern, after, limit)


def may_start(user: User, tool: Tool) -> bool:
    """Whether the tool is in the user's catalogue."""
    is_offered = tool.published_version_id is not None or tool.curated_app_version is not None
    return is_offered and user.has_role(tool.min_role)


async def get_offered(db: Database, user: User, slug: str) -> OfferedTool:
    """Raises NotFound for a tool that is not there for this user, or not published."""
    tool = await tools.find_tool_by_slug(db, slug)
    if tool is None or not may_start(user, tool):
        raise NotFound
    app_id, app_version = tool.curated_app_id, tool.curated_app_version
    if app_id is not None and app_version is not None:
        source = RunSource(
            source_kind="curated_app", curated_app_id=app_id, curated_app_version=app_version
        )
        schema = await curated.get_input_schema(db, app_id, app_version)
        return OfferedTool(tool=tool, source=source, input_schema=schema)
    assert tool.published_version_id is not None, "what may be started is one of the two"
    version = await tools.find_version(db, tool.published_version_id)
    if version is None:
        raise NotFound  # The tool was deleted since it was read.
    return OfferedTool(tool=tool, source=version_source(version), input_schema=version.input_schema)


def version_source(version: ToolVersion) -> RunSource:
    return RunSource(source_kind="tool_version", version_id=version.id)


async def get_editable_tool(db: Database, user: User, tool_id: UUID) -> Tool:
    """A contributor's own tool, any for an admin; raises NotFound otherwise.

    Curated apps are changed in the repository, by nobody here.
    """
    tool = await tools.find_tool(db, tool_id)
    if tool is None or tool.curated_app_id is not None:
        raise NotFound
    if not (user.role == "admin" or tool.owner_id == user.id):
        raise NotFound
    return tool


async def get_editable_version(
    db: Database, user: User, version_id: UUID
) -> tuple[Tool, ToolVersion]:
    version = await tools.find_version(db, version_id)
    if version is None:
        raise NotFound
    return await get_editable_tool(db, user, version.tool_id), version


async def list_editable(
    db: Database, user: User, after: tuple[str, UUID] | None, limit: int
) -> list[Tool]:
    owner_id = None if user.role == "admin" else user.id
    return await tools.list_editable(db, owner_id, after, limit)


async def create_tool(
    db: Database, user: User | None, slug: str, texts: dict[str, str], now: datetime
) -> Tool:
    """Add an unpublished tool. Raises Invalid for a bad slug, Conflict for one that is taken."""
    if not is_slug(slug):
        raise Invalid(
            "Kortnamnet får bestå av små bokstäver, siffror, - och _ (högst 80 tecken).",
            details={"slug": slug[:100]},
        )
    tool = Tool(
        id=new_uuid7(now),
        slug=slug,
        title=texts["title"],
        summary=texts["summary"],
        usage_instructions=texts["usage_instructions"],
        owner_id=None if user is None else user.id,
        published_version_id=None,
        created_at=now,
        updated_at=now,
    )
    await tools.insert_tool(db, tool)
    return tool


async def update_tool(
    db: Database, user: User, tool_id: UUID, texts: dict[str, Any], now: datetime
) -> Tool:
    await get_editable_tool(db, user, tool_id)
    return await tools.update_tool(db, tool_id, texts, now)


async def create_version(
    db: Database,
    tool: Tool,
    user: User | None,
    code: ToolCode,
    now: datetime,
) -> ToolVersion:
    """Add a draft. Raises InvalidSource."""
    check_source(code.source, code.entrypoint)
    created_by = None if user is None else user.id
    return await tools.insert_version(db, new_uuid7(now), tool.id, code, created_by, now)


async def save_draft(
    db: Database,
    user: User,
    version_id: UUID,
    expected_rev: int,
    code: ToolCode,
    now: datetime,
) -> ToolVersion:
    """Save a draft unless somebody saved it since.

    Raises:
        Conflict: the version is published and thus fixed.
        EditConflict: it was saved since `expected_rev`; the current revision is in `details`.
    """
    _, version = await get_editable_version(db, user, version_id)
    if version.status != "draft":
        raise Conflict("En publicerad version kan inte ändras. Skapa en ny.")
    check_source(code.source, code.entrypoint)
    saved = await tools.update_draft(db, version_id, expected_rev, code, now)
    if saved is None:
        current = await tools.find_version(db, version_id)
        raise EditConflict(details={"rev": None if current is None else current.rev})
    return saved


async def publish(
    db: Database, user: User | None, version: ToolVersion, now: datetime
) -> ToolVersion:
    """Make a version the one that new sessions get; `user` None is the service itself."""
    if user is not None and not user.has_role("admin"):
        raise Forbidden
    check_source(version.source, version.entrypoint)
    async with db.transaction() as tx:
        return await tools.publish_version(tx, version, now)
