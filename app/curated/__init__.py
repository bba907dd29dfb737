"""Curated apps: tools that are kept here and run like any tool, under the curated policy.

A folder each: `app.py` is one self-contained script (standard library, skriptoteket_toolkit and
the runner image's packages) and `meta.json` is its catalogue entry. No module of the service
imports an `app.py`: it is data, executed by a worker in a sandbox.
"""

import hashlib
from pathlib import Path
from typing import Any

import msgspec

from app.domain.curated import CuratedApp
from app.domain.tools import DEFAULT_ENTRYPOINT, check_source, parse_input_schema
from app.domain.users import Role

FOLDER = Path(__file__).parent


class AppFolder(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`meta.json` of a curated app; `min_role` holds until an admin decides otherwise."""

    app_id: str
    version: str
    slug: str
    title: str
    summary: str
    usage_instructions: str = ""
    entrypoint: str = DEFAULT_ENTRYPOINT
    input_schema: list[dict[str, Any]] = []
    min_role: Role = "user"


def load_curated_apps(folder: Path = FOLDER) -> list[CuratedApp]:
    """Read the apps of this release, by id.

    The version of each is the one in `meta.json` and, as build metadata (semver.org §10), a hash
    of all that decides what it does: code that was changed is never taken for what it was.

    Raises:
        InvalidSource, InvalidInputSchema: an app could not even start.
    """
    return [_load(path) for path in sorted(folder.glob("*/meta.json"))]


def _load(meta_path: Path) -> CuratedApp:
    meta = msgspec.json.decode(meta_path.read_bytes(), type=AppFolder)
    source = meta_path.with_name("app.py").read_text("utf-8")
    check_source(source, meta.entrypoint)
    schema = parse_input_schema(meta.input_schema)
    behaviour = msgspec.json.encode([source, meta.entrypoint, schema])
    return CuratedApp(
        app_id=meta.app_id,
        version=f"{meta.version}+{hashlib.sha256(behaviour).hexdigest()[:12]}",
        slug=meta.slug,
        title=meta.title,
        summary=meta.summary,
        usage_instructions=meta.usage_instructions,
        min_role=meta.min_role,
        source=source,
        entrypoint=meta.entrypoint,
        input_schema=schema,
    )
