"""The sweep of session files: sets past their time, sweeps that broke off, orphans.

Invariant: what is live is decided by manifests alone; the database is only asked what unfinished
runs still need, so an empty one deletes nothing that lives. Every step can be done twice.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import timedelta
from typing import Final, TypeVar
from urllib.parse import unquote
from uuid import UUID

import msgspec

from app.log import get_log
from app.store.file_sets import FileSets
from app.store.manifests import Manifest, SetKey, SetRecord
from app.store.object_types import ObjectInfo, ObjectMissing

FAMILY: Final = "sessions"
MANIFESTS = f"{FAMILY}/manifests/"
BLOBS = f"{FAMILY}/files/"
# A mark renews the manifest's LastModified, so a sweep that broke off would not be seen for a whole
# TTL. Each batch therefore writes down beforehand which sets it will mark.
JOURNALS = f"{FAMILY}/expiring/"
JOURNAL_MAX_BYTES = 4 * 1024 * 1024
ORPHAN_AGE = timedelta(hours=1)
OPEN_UPLOAD_AGE = timedelta(days=1)
# The server's clock is read in whole seconds: a set may look a second older than it is.
CLOCK_GRAIN = timedelta(seconds=1)
PARALLEL_SETS = 8
REPORTED_KEYS = 100

T = TypeVar("T")
log = get_log(__name__)


class SweepReport(msgspec.Struct):
    """What a sweep saw and did; of a dry run, what one would do. `*_keys` hold the first 100."""

    dry_run: bool = False
    scanned: int = 0
    expired: int = 0
    in_use: int = 0
    deleted_sets: int = 0
    deleted_files: int = 0
    deleted_bytes: int = 0
    resumed: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    missing_manifests: int = 0
    unreadable: int = 0
    unreadable_keys: list[str] = []
    aborted_uploads: int = 0
    duration_seconds: float = 0.0


def is_expired(record: SetRecord, ttl: timedelta) -> bool:
    """Tell whether a set's time is over by the server's clock, never a moment too early."""
    return record.served_at - record.accessed_at > ttl + CLOCK_GRAIN


class _FoundSet(msgspec.Struct, frozen=True):
    key: SetKey
    manifest: Manifest
    record: SetRecord


class SessionSweep:
    """One sweep. Two at once do no harm, but they share the work badly: run one."""

    def __init__(
        self,
        sets: FileSets,
        ttl: timedelta,
        needed: Callable[[SetKey], Awaitable[set[str]]],
        *,
        dry_run: bool = False,
    ) -> None:
        self._sets, self._objects = sets, sets.objects
        self._ttl, self._needed, self._dry_run = ttl, needed, dry_run
        self._unreadable: set[str] = set()
        self.report = SweepReport(dry_run=dry_run)

    async def run(self) -> SweepReport:
        """Sweep everything once.

        Raises:
            Unavailable: half-way; the next sweep finishes what this one began.
        """
        started = time.monotonic()
        await self._finish_journals()
        await self._expire_sets()
        await self._delete_orphans()
        await self._abort_uploads()
        self.report.duration_seconds = time.monotonic() - started
        log.info("session_files.swept", **msgspec.to_builtins(self.report))
        return self.report

    # --- Expiry ---------------------------------------------------------------------------

    async def _finish_journals(self) -> None:
        async for journal in self._objects.list_objects(JOURNALS):
            try:
                body, _ = await self._objects.get(journal.key, max_bytes=JOURNAL_MAX_BYTES)
            except ObjectMissing:
                continue
            keys = msgspec.json.decode(body, type=list[str])
            await _for_each(keys, self._resume)
            if not self._dry_run:
                await self._objects.delete([journal.key])

    async def _resume(self, manifest_key: str) -> None:
        found = await self._read(manifest_key)
        if found is not None and found.manifest.state == "expiring":
            await self._finish(found)
            self.report.resumed += 1

    async def _expire_sets(self) -> None:
        async for page in self._objects.list_pages(MANIFESTS):
            self.report.scanned += len(page)
            old = [
                info.key
                for info in page
                if info.served_at - info.last_modified > self._ttl + CLOCK_GRAIN
            ]
            due: list[str] = []

            async def look(key: str, due: list[str] = due) -> None:
                if await self._is_due(key):
                    due.append(key)

            await _for_each(old, look)
            self.report.expired += len(due)
            if due and not self._dry_run:
                await self._expire_batch(due)

    async def _expire_batch(self, manifest_keys: list[str]) -> None:
        journal_key = f"{JOURNALS}{uuid.uuid4()}.json"
        await self._objects.put(journal_key, msgspec.json.encode(manifest_keys))
        await _for_each(manifest_keys, self._expire)
        await self._objects.delete([journal_key])

    async def _is_due(self, manifest_key: str) -> bool:
        found = await self._read(manifest_key)
        if found is None:
            return False
        if found.manifest.state == "expiring":
            return True
        if not is_expired(found.record, self._ttl):
            return False
        if await self._needed(found.key):
            self.report.in_use += 1
            return False
        return True

    async def _expire(self, manifest_key: str) -> None:
        found = await self._read(manifest_key)
        if found is None:
            return
        # Read once more by `expire`: a touch at this moment wins or loses, never half.
        doomed = await self._sets.expire(found.key, lambda now: is_expired(now, self._ttl))
        if doomed is not None:
            self._count_deleted(doomed)

    async def _finish(self, found: _FoundSet) -> None:
        if not self._dry_run:
            await self._sets.finish_expiry(found.key, found.manifest)
            self._count_deleted(found.manifest)

    async def _read(self, manifest_key: str) -> _FoundSet | None:
        """Return the set of a manifest, or None: gone meanwhile, or unreadable and noted so."""
        record = await self._sets.read_manifest(manifest_key)
        if record.etag is None:
            return None
        manifest = record.manifest
        key = _session_key(_path(manifest_key), manifest.context) if manifest else None
        if manifest is None or key is None:
            self._note_unreadable(manifest_key)
            return None
        return _FoundSet(key, manifest, record)

    def _count_deleted(self, manifest: Manifest) -> None:
        self.report.deleted_sets += 1
        self.report.deleted_files += len(manifest.files)
        self.report.deleted_bytes += sum(file.bytes for file in manifest.files)

    # --- Orphans --------------------------------------------------------------------------

    async def _delete_orphans(self) -> None:
        async for path, blobs in self._blobs_by_set():
            old = [b for b in blobs if b.served_at - b.last_modified > ORPHAN_AGE]
            if old:
                await self._delete_orphans_of(path, old)

    async def _delete_orphans_of(self, path: str, old: list[ObjectInfo]) -> None:
        manifest_key = f"{MANIFESTS}{path}.json"
        found = await self._read(manifest_key)
        if found is None and manifest_key in self._unreadable:
            return  # What it names cannot be known: its blobs stay, and the report says so.
        if found is not None and found.manifest.state == "expiring":
            # A clear or a sweep that broke off between the mark and the end.
            await self._finish(found)
            self.report.resumed += 1
        named = {file.blob_id for file in found.manifest.files} if found else set()
        orphans = [info for info in old if _blob_id(info) not in named]
        if not orphans:
            return
        if found is None:
            self.report.missing_manifests += 1
            log.warning("session_files.manifest_missing", set=path, blobs=len(orphans))
        key = found.key if found else await self._key_without_manifest(path, orphans[0])
        # Asked after the manifest was read: a run that begins later can only need what it names.
        needed = await self._needed(key) if key is not None else set()
        orphans = [info for info in orphans if _blob_id(info) not in needed]
        if not self._dry_run:
            await self._objects.delete([info.key for info in orphans])
        self.report.orphans += len(orphans)
        self.report.orphan_bytes += sum(info.bytes for info in orphans)

    async def _blobs_by_set(self) -> AsyncIterator[tuple[str, list[ObjectInfo]]]:
        """Yield the blobs of each set; a listing comes in order, so a set's lie together."""
        current, blobs = "", list[ObjectInfo]()
        async for info in self._objects.list_objects(BLOBS):
            path = info.key.removeprefix(BLOBS).rpartition("/")[0]
            if path != current and blobs:
                yield current, blobs
                blobs = []
            current = path
            blobs.append(info)
        if blobs:
            yield current, blobs

    async def _key_without_manifest(self, path: str, blob: ObjectInfo) -> SetKey | None:
        """Tell whose set this was; the raw context stands in the blobs' metadata."""
        found = await self._objects.find(blob.key)
        if found is None or "context" not in found.metadata:
            return None
        return _session_key(path, unquote(found.metadata["context"]))

    async def _abort_uploads(self) -> None:
        """Abort old multipart uploads, for servers whose lifecycle rules do not."""
        async for upload in self._objects.list_multipart(""):
            if upload.served_at - upload.started_at > OPEN_UPLOAD_AGE:
                if not self._dry_run:
                    await self._objects.abort_multipart(upload.key, upload.upload_id)
                self.report.aborted_uploads += 1

    def _note_unreadable(self, manifest_key: str) -> None:
        if manifest_key in self._unreadable:
            return
        self._unreadable.add(manifest_key)
        self.report.unreadable += 1
        if len(self.report.unreadable_keys) < REPORTED_KEYS:
            self.report.unreadable_keys.append(manifest_key)
        log.error("session_files.manifest_unreadable", key=manifest_key)


def _session_key(path: str, context: str | None) -> SetKey | None:
    """Return the key of the set that lies at a path; None when no session's set can lie there."""
    try:
        tool_id, user_id, _ = path.split("/")
        UUID(tool_id), UUID(user_id)
    except ValueError:
        return None
    return None if context is None else SetKey(FAMILY, path, user_id, tool_id, context)


def _path(manifest_key: str) -> str:
    return manifest_key.removeprefix(MANIFESTS).removesuffix(".json")


def _blob_id(info: ObjectInfo) -> str:
    return info.key.rpartition("/")[2]


async def _for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]]) -> None:
    """Do the work for all items, some at a time; the first error is raised after all settled."""
    turns = asyncio.Semaphore(PARALLEL_SETS)

    async def do(item: T) -> None:
        async with turns:
            await work(item)

    results = await asyncio.gather(*(do(item) for item in items), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
