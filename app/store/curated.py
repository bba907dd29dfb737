"""Curated apps in PostgreSQL: the code of every version offered so far, and catalogue entries."""

from datetime import datetime

from app.domain.curated import CuratedApp, CuratedEntry
from app.domain.tools import InputSchema, parse_input_schema
from app.domain.users import Role
from app.errors import NotFound
from app.store.postgres import Connection, Executor, convert_row

INSERT_VERSION = """
INSERT INTO curated_app_versions (app_id, version, source, entrypoint, input_schema, created_at)
VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (app_id, version) DO NOTHING
"""

# Offer a version. Who may see the entry is the admins' word once it is there.
UPSERT_ENTRY = """
INSERT INTO tools (id, slug, title, summary, usage_instructions, curated_app_id,
    curated_app_version, min_role, created_at, updated_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $9)
ON CONFLICT (id) DO UPDATE SET slug = excluded.slug, title = excluded.title,
    summary = excluded.summary, usage_instructions = excluded.usage_instructions,
    curated_app_version = excluded.curated_app_version, updated_at = excluded.updated_at
"""

# An app that is no longer shipped leaves the catalogue; sessions under way keep their version.
RETIRE_OTHERS = """
UPDATE tools SET curated_app_version = NULL, updated_at = $2
WHERE curated_app_version IS NOT NULL AND NOT curated_app_id = ANY($1)
"""

_ENTRY = "curated_app_id AS app_id, curated_app_version AS version, slug, title, min_role"
LIST_ENTRIES = f"SELECT {_ENTRY} FROM tools WHERE curated_app_id IS NOT NULL ORDER BY title, id"  # noqa: S608
SET_MIN_ROLE = f"""
UPDATE tools SET min_role = $2, updated_at = $3 WHERE curated_app_id = $1 RETURNING {_ENTRY}
"""  # noqa: S608

GET_INPUT_SCHEMA = """
SELECT input_schema FROM curated_app_versions WHERE app_id = $1 AND version = $2
"""


async def offer_app(db: Connection, app: CuratedApp, now: datetime) -> None:
    """Keep the app's code and offer it. Raises Conflict if another tool has its slug."""
    code = (app.source, app.entrypoint, app.input_schema)
    await db.execute(INSERT_VERSION, app.app_id, app.version, *code, now)
    texts = (app.slug, app.title, app.summary, app.usage_instructions)
    named = (app.app_id, app.version, app.min_role)
    await db.execute(UPSERT_ENTRY, app.tool_id, *texts, *named, now)


async def retire_others(db: Connection, app_ids: list[str], now: datetime) -> int:
    """Take all but these apps out of the catalogue: how many there were."""
    return await db.execute(RETIRE_OTHERS, app_ids, now)


async def get_input_schema(db: Executor, app_id: str, version: str) -> InputSchema:
    return parse_input_schema(await db.fetchval(GET_INPUT_SCHEMA, app_id, version))


async def list_entries(db: Executor) -> list[CuratedEntry]:
    """All apps that were ever offered: a repository holds a handful."""
    return [convert_row(row, CuratedEntry) for row in await db.fetch(LIST_ENTRIES)]


async def set_min_role(db: Executor, app_id: str, role: Role, now: datetime) -> CuratedEntry:
    """Raises NotFound for an app that was never offered."""
    row = await db.fetchrow(SET_MIN_ROLE, app_id, role, now)
    if row is None:
        raise NotFound
    return convert_row(row, CuratedEntry)
