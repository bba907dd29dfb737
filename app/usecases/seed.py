"""Filling the catalogue: the script bank and the curated apps. Idempotent; versions stay fixed."""

from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from app.curated import load_curated_apps
from app.domain.curated import CuratedApp
from app.domain.tools import DEFAULT_ENTRYPOINT, Tool, ToolCode, parse_input_schema
from app.log import get_log
from app.store import curated
from app.store import tools as tool_store
from app.store.postgres import Database
from app.usecases import tools

log = get_log(__name__)

SCRIPT_BANK = Path(__file__).resolve().parents[2] / "infra" / "tools"


class ToolFolder(msgspec.Struct, frozen=True, kw_only=True):
    """`meta.json` of a tool in the script bank."""

    slug: str
    title: str
    summary: str
    usage_instructions: str = ""
    entrypoint: str = DEFAULT_ENTRYPOINT
    input_schema: list[dict[str, Any]] = []


async def seed_catalogue(db: Database, now: datetime) -> list[str]:
    """Bring the catalogue up to this release: the slugs of what it offers of ours."""
    seeded = await seed_script_bank(db, now)
    apps = await seed_curated_apps(db, now)
    return sorted([tool.slug for tool in seeded] + [app.slug for app in apps])


async def seed_curated_apps(db: Database, now: datetime) -> list[CuratedApp]:
    """Offer the curated apps of this release, each in its present version, and no others."""
    apps = load_curated_apps()
    async with db.transaction() as tx:
        for app in apps:
            await curated.offer_app(tx, app, now)
        await curated.retire_others(tx, [app.app_id for app in apps], now)
    return apps


async def seed_script_bank(db: Database, now: datetime, folder: Path = SCRIPT_BANK) -> list[Tool]:
    """Add and publish each tool of the bank; one whose code changed gets a new version."""
    seeded = []
    for meta_path in sorted(folder.glob("*/meta.json")):  # noqa: ASYNC240 - a few small files
        meta = msgspec.json.decode(meta_path.read_bytes(), type=ToolFolder)
        source = meta_path.with_name("tool.py").read_text("utf-8")
        seeded.append(await _seed_tool(db, meta, source, now))
    return seeded


async def _seed_tool(db: Database, meta: ToolFolder, source: str, now: datetime) -> Tool:
    texts = {
        "title": meta.title,
        "summary": meta.summary,
        "usage_instructions": meta.usage_instructions,
    }
    code = ToolCode(source, meta.entrypoint, parse_input_schema(meta.input_schema))
    tool = await tool_store.find_tool_by_slug(db, meta.slug)
    if tool is None:
        tool = await tools.create_tool(db, None, meta.slug, texts, now)
    else:
        tool = await tool_store.update_tool(db, tool.id, texts, now)
    current = (
        None
        if tool.published_version_id is None
        else await tool_store.find_version(db, tool.published_version_id)
    )
    if current is None or current.code != code:
        version = await tools.create_version(db, tool, None, code, now)
        await tools.publish(db, None, version, now)
        log.info("tool.seeded", slug=meta.slug, number=version.number)
    return tool
