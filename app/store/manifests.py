"""Manifests: the objects that name the blobs of a set, and the keys of all that a set is made of.

Invariant: raw contexts and file names stand in the manifest, never in a key. What lies where in the
bucket is said here and nowhere else.
"""

import re
from datetime import datetime, timedelta
from typing import Literal
from urllib.parse import quote

import msgspec

from app.domain.files import StoredFile

SCHEMA = 1
# So many replaced versions are remembered, newest first. They tell a writer whose PUT went
# unanswered whether it was applied and replaced since, or never applied.
REMEMBERED_VERSIONS = 32

Family = Literal["sessions", "workspaces"]

_UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_SESSION_PATH = re.compile(f"{_UUID}/{_UUID}/[0-9a-f]{{64}}")


def manifests_prefix(family: Family) -> str:
    return f"{family}/manifests/"


def blobs_prefix(family: Family) -> str:
    return f"{family}/files/"


def journals_prefix(family: Family) -> str:
    """Where expiries say which sets they have begun to delete."""
    return f"{family}/expiring/"


class SetKey(msgspec.Struct, frozen=True):
    """Where a set lives and whose it is. `path` is safe in object keys, the rest stays out."""

    family: Family
    path: str
    user_id: str
    tool_id: str | None = None
    context: str | None = None
    session_id: str | None = None

    @property
    def manifest_key(self) -> str:
        return f"{manifests_prefix(self.family)}{self.path}.json"

    @property
    def blobs_prefix(self) -> str:
        return f"{blobs_prefix(self.family)}{self.path}/"

    def blob_key(self, blob_id: str) -> str:
        return f"{self.blobs_prefix}{blob_id}"

    @property
    def blob_metadata(self) -> dict[str, str]:
        """What a blob says of its set, for the day that the manifest is lost."""
        return {} if self.context is None else {"context": quote(self.context)}


def find_session_key(manifest_key: str, context: str | None = None) -> SetKey | None:
    """Return the key of the session's set whose manifest lies there; None where none can lie."""
    path = manifest_key.removeprefix(manifests_prefix("sessions")).removesuffix(".json")
    if _SESSION_PATH.fullmatch(path) is None:
        return None
    tool_id, user_id, _ = path.split("/")
    key = SetKey("sessions", path, user_id, tool_id, context)
    return key if key.manifest_key == manifest_key else None


class Manifest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The object that names a set's blobs. All times are the S3 server's."""

    schema: int
    version: str
    user_id: str
    tool_id: str | None = None
    context: str | None = None
    session_id: str | None = None
    files: tuple[StoredFile, ...]
    created_at: datetime
    last_accessed_at: datetime
    blobs_written_at: datetime
    state: Literal["live", "expiring"]
    replaced_versions: tuple[str, ...] = ()

    @property
    def lineage(self) -> tuple[str, ...]:
        """This version and those it replaced, newest first."""
        return (self.version, *self.replaced_versions)[:REMEMBERED_VERSIONS]


class SetRecord(msgspec.Struct, frozen=True):
    """What was found under a set's manifest key, and when by the server's clock.

    `etag` is None when nothing is there; `manifest` is None then, and also when what is there
    cannot be read (`unreadable`).
    """

    manifest: Manifest | None
    etag: str | None
    modified_at: datetime | None
    served_at: datetime

    @property
    def unreadable(self) -> bool:
        return self.etag is not None and self.manifest is None

    @property
    def live(self) -> Manifest | None:
        return self.manifest if self.manifest and self.manifest.state == "live" else None

    @property
    def accessed_at(self) -> datetime:
        """The later of what the manifest says and when it was written, so nothing dies early."""
        assert self.manifest is not None and self.modified_at is not None
        return max(self.manifest.last_accessed_at, self.modified_at)


def new_manifest(
    key: SetKey,
    files: tuple[StoredFile, ...],
    version: str,
    found: SetRecord,
    uploading_seconds: float,
) -> Manifest:
    """Make the manifest that replaces what was found, timed by the server's clock."""
    lineage = found.manifest.lineage if found.manifest else ()
    return Manifest(
        schema=SCHEMA,
        version=version,
        user_id=key.user_id,
        tool_id=key.tool_id,
        context=key.context,
        session_id=key.session_id,
        files=files,
        created_at=found.served_at,
        last_accessed_at=found.served_at,
        blobs_written_at=found.served_at - timedelta(seconds=uploading_seconds),
        state="live",
        replaced_versions=lineage,
    )


def decode_manifest(body: bytes) -> Manifest | None:
    """Return the manifest, or None if this is none, or one of a schema to come."""
    try:
        manifest = msgspec.json.decode(body, type=Manifest)
    except msgspec.DecodeError:
        return None
    return manifest if manifest.schema == SCHEMA else None
