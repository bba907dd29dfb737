"""Tools and their versions in PostgreSQL."""

from datetime import datetime
from typing import Any
from uuid import UUID

from app.domain.tools import Tool, ToolCode, ToolVersion
from app.domain.users import Role
from app.errors import NotFound
from app.store.postgres import Connection, Executor, convert_row

_TOOL = """id, slug, title, summary, usage_instructions, owner_id, published_version_id,
curated_app_id, curated_app_version, min_role, created_at, updated_at"""
_VERSION = """id, tool_id, number, status, source, entrypoint, input_schema, rev,
created_at, updated_at, published_at"""

# The catalogue of some roles: published tools and curated apps by (title, id), after a position,
# matching a word or all.
LIST_PUBLISHED = f"""
SELECT {_TOOL} FROM tools
WHERE (published_version_id IS NOT NULL OR curated_app_version IS NOT NULL)
  AND min_role = ANY($5)
  AND ($1::text IS NULL OR title ILIKE $1 OR summary ILIKE $1 OR slug ILIKE $1)
  AND ($2::text IS NULL OR (title, id) > ($2, $3::uuid))
ORDER BY title, id LIMIT $4
"""  # noqa: S608

# Every tool for admins, a contributor's own otherwise. Curated apps are changed in the repository.
LIST_EDITABLE = f"""
SELECT {_TOOL} FROM tools
WHERE curated_app_id IS NULL AND deleted_at IS NULL AND ($1::uuid IS NULL OR owner_id = $1)
  AND ($2::text IS NULL OR (title, id) > ($2, $3::uuid))
ORDER BY title, id LIMIT $4
"""  # noqa: S608

# One tool, unless it is being deleted.
GET_TOOL = f"SELECT {_TOOL} FROM tools WHERE id = $1 AND deleted_at IS NULL"  # noqa: S608
GET_TOOL_BY_SLUG = f"SELECT {_TOOL} FROM tools WHERE slug = $1 AND deleted_at IS NULL"  # noqa: S608

# Keep a tool from being deleted until the transaction ends. The weakest lock there is: claims do
# not wait for each other, nor for who edits the tool.
HOLD_TOOL = "SELECT id FROM tools WHERE id = $1 AND deleted_at IS NULL FOR KEY SHARE"

INSERT_TOOL = """
INSERT INTO tools (id, slug, title, summary, usage_instructions, owner_id, created_at, updated_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $7)
"""

UPDATE_TOOL = f"""
UPDATE tools SET title = coalesce($2, title), summary = coalesce($3, summary),
    usage_instructions = coalesce($4, usage_instructions), updated_at = $5
WHERE id = $1 AND deleted_at IS NULL RETURNING {_TOOL}
"""  # noqa: S608

GET_VERSION = f"SELECT {_VERSION} FROM tool_versions WHERE id = $1"  # noqa: S608

LIST_VERSIONS = f"""
SELECT {_VERSION} FROM tool_versions WHERE tool_id = $1 ORDER BY number DESC LIMIT 200
"""  # noqa: S608

# The next number of the tool; two at once collide on the unique key and one is told.
INSERT_VERSION = f"""
INSERT INTO tool_versions
    (id, tool_id, number, status, source, entrypoint, input_schema, created_by,
     created_at, updated_at)
SELECT $1, $2, coalesce(max(number), 0) + 1, 'draft', $3, $4, $5, $6, $7, $7
FROM tool_versions WHERE tool_id = $2
RETURNING {_VERSION}
"""  # noqa: S608

# Save a draft if nobody saved since revision $2.
UPDATE_DRAFT = f"""
UPDATE tool_versions SET source = $3, entrypoint = $4, input_schema = $5, rev = rev + 1,
    updated_at = $6
WHERE id = $1 AND rev = $2 AND status = 'draft' RETURNING {_VERSION}
"""  # noqa: S608

# Publish a draft; publishing again changes nothing but the tool's choice below.
PUBLISH_VERSION = f"""
UPDATE tool_versions SET status = 'published', published_at = coalesce(published_at, $2),
    updated_at = $2
WHERE id = $1 RETURNING {_VERSION}
"""  # noqa: S608

CHOOSE_PUBLISHED = """
UPDATE tools SET published_version_id = $2, updated_at = $3 WHERE id = $1 AND deleted_at IS NULL
"""


async def list_published(
    db: Executor,
    roles: tuple[Role, ...],
    pattern: str | None,
    after: tuple[str, UUID] | None,
    limit: int,
) -> list[Tool]:
    title, tool_id = after or (None, None)
    rows = await db.fetch(LIST_PUBLISHED, pattern, title, tool_id, limit, roles)
    return [convert_row(row, Tool) for row in rows]


async def list_editable(
    db: Executor, owner_id: UUID | None, after: tuple[str, UUID] | None, limit: int
) -> list[Tool]:
    title, tool_id = after or (None, None)
    rows = await db.fetch(LIST_EDITABLE, owner_id, title, tool_id, limit)
    return [convert_row(row, Tool) for row in rows]


async def find_tool(db: Executor, tool_id: UUID) -> Tool | None:
    row = await db.fetchrow(GET_TOOL, tool_id)
    return None if row is None else convert_row(row, Tool)


async def find_tool_by_slug(db: Executor, slug: str) -> Tool | None:
    row = await db.fetchrow(GET_TOOL_BY_SLUG, slug)
    return None if row is None else convert_row(row, Tool)


async def hold_tool(db: Connection, tool_id: UUID) -> bool:
    """Keep a tool until the transaction ends; False if there is none, or not for long."""
    return await db.fetchval(HOLD_TOOL, tool_id) is not None


async def insert_tool(db: Executor, tool: Tool) -> None:
    """Raises Conflict if the slug is taken."""
    texts = (tool.slug, tool.title, tool.summary, tool.usage_instructions)
    await db.execute(INSERT_TOOL, tool.id, *texts, tool.owner_id, tool.created_at)


async def update_tool(db: Executor, tool_id: UUID, texts: dict[str, Any], now: datetime) -> Tool:
    named = (texts.get("title"), texts.get("summary"), texts.get("usage_instructions"))
    row = await db.fetchrow(UPDATE_TOOL, tool_id, *named, now)
    if row is None:
        raise NotFound  # Deleted since the caller read it.
    return convert_row(row, Tool)


async def find_version(db: Executor, version_id: UUID) -> ToolVersion | None:
    row = await db.fetchrow(GET_VERSION, version_id)
    return None if row is None else convert_row(row, ToolVersion)


async def list_versions(db: Executor, tool_id: UUID) -> list[ToolVersion]:
    return [convert_row(row, ToolVersion) for row in await db.fetch(LIST_VERSIONS, tool_id)]


async def insert_version(
    db: Executor,
    version_id: UUID,
    tool_id: UUID,
    code: ToolCode,
    created_by: UUID | None,
    now: datetime,
) -> ToolVersion:
    """Add a draft."""
    parts = (code.source, code.entrypoint, code.input_schema)
    row = await db.fetchrow(INSERT_VERSION, version_id, tool_id, *parts, created_by, now)
    assert row is not None, "INSERT … RETURNING gives its row"
    return convert_row(row, ToolVersion)


async def update_draft(
    db: Executor,
    version_id: UUID,
    expected_rev: int,
    code: ToolCode,
    now: datetime,
) -> ToolVersion | None:
    """Save a draft; None if it was saved since `expected_rev` or is published."""
    parts = (code.source, code.entrypoint, code.input_schema)
    row = await db.fetchrow(UPDATE_DRAFT, version_id, expected_rev, *parts, now)
    return None if row is None else convert_row(row, ToolVersion)


async def publish_version(db: Executor, version: ToolVersion, now: datetime) -> ToolVersion:
    """Make it the version that new sessions get. Call inside a transaction: two writes."""
    # The tool before its version, as a deletion takes them.
    if await db.execute(CHOOSE_PUBLISHED, version.tool_id, version.id, now) == 0:
        raise NotFound  # Deleted since the caller read it.
    row = await db.fetchrow(PUBLISH_VERSION, version.id, now)
    assert row is not None, "a version is deleted only with its tool, which is locked"
    return convert_row(row, ToolVersion)
