"""The sweep of session files: sets past their time, sweeps that broke off, orphans.

Invariant: what is live is decided by manifests alone; the database is only asked what unfinished
runs still need, so an empty one deletes nothing that lives. Every step can be done twice. Memory
does not grow with the bucket, and live sets cost their share of a listing.
"""

import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import unquote
from uuid import UUID

import msgspec

from app.domain.ids import group_of
from app.log import get_log
from app.store.file_sets import FileSets
from app.store.manifests import Manifest, SetKey, SetRecord
from app.store.object_types import ObjectInfo
from app.store.set_expiry import FoundSet, SetExpiry, gather_some
from app.store.set_listing import (
    MANIFESTS,
    ListedSet,
    is_session_path,
    manifest_path,
    walk_sets,
)

FAMILY: Final = "sessions"
ORPHAN_AGE = timedelta(hours=1)
OPEN_UPLOAD_AGE = timedelta(days=1)
# The server's clock is read in whole seconds: a set may look a second older than it is.
CLOCK_GRAIN = timedelta(seconds=1)
SHARD_SETS = 5_000
# Under one fence, which an upload to one of them would wait for.
BATCH_SETS = 100
REPORTED_KEYS = 100

# Which blobs unfinished runs of some sets still need; sets of which none is needed may be left out.
NeededBlobs = Callable[[Sequence[SetKey]], Awaitable[Mapping[SetKey, set[str]]]]
# Those of some owners (tool, user) of whom one is not known.
FindUnexplained = Callable[[Sequence[tuple[UUID, UUID]]], Awaitable[set[tuple[UUID, UUID]]]]

log = get_log(__name__)


class SweepReport(msgspec.Struct, kw_only=True):
    """What a sweep saw and did; of a dry run, what one would do.

    `scanned` counts all sets, `oldest_access`, `files`, `bytes` and `unexplained` what is left of
    them; the last three and `orphans` are of the `walked_sets`, whose blobs were listed.
    `unreadable_keys` holds the first 100. `is_complete` is False when its time was up before all
    was swept: the next sweep begins with the rest. `requests` to S3 count those made in vain too.
    """

    dry_run: bool = False
    is_complete: bool = True
    scanned: int = 0
    oldest_access: datetime | None = None
    expired: int = 0
    in_use: int = 0
    deleted_sets: int = 0
    deleted_files: int = 0
    deleted_bytes: int = 0
    resumed: int = 0
    walked_sets: int = 0
    files: int = 0
    bytes: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    missing_manifests: int = 0
    unexplained: int = 0
    unreadable: int = 0
    unreadable_keys: list[str] = []
    aborted_uploads: int = 0
    requests: dict[str, int] = {}
    duration_seconds: float = 0.0


class ShardCount(msgspec.Struct, kw_only=True):
    """What is left in a range of sets, from `first_path` up to `end_path` (None: the last).

    All but `sets` and `oldest_access` is counted only where the blobs were walked.
    """

    first_path: str
    end_path: str | None = None
    is_walked: bool = False
    sets: int = 0
    oldest_access: datetime | None = None
    files: int = 0
    bytes: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    unexplained: int = 0


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """A range of sets for a sweep: up to, not including, `end_path` (None: the last).

    `cuts` are the paths in between at which shards are known to begin. Orphans are found where
    blobs are walked.
    """

    first_path: str = ""
    end_path: str | None = None
    cuts: tuple[str, ...] = ()
    walk_blobs: bool = True


WHOLE_BUCKET = Reach()


def is_expired(record: SetRecord, ttl: timedelta) -> bool:
    """Tell whether a set's time is over by the server's clock, never a moment too early."""
    return record.served_at - record.accessed_at > ttl + CLOCK_GRAIN


class SessionSweep:
    """One sweep, a shard at a time. Two at once do no harm, but they share the work badly."""

    def __init__(
        self,
        sets: FileSets,
        ttl: timedelta,
        needed: NeededBlobs,
        find_unexplained: FindUnexplained | None = None,
        *,
        dry_run: bool = False,
    ) -> None:
        self._sets, self._objects, self._expiry = sets, sets.objects, SetExpiry(sets)
        self._ttl, self._needed, self._dry_run = ttl, needed, dry_run
        self._find_unexplained = find_unexplained
        self._unreadable: set[str] = set()
        self._started = time.monotonic()
        self._report = SweepReport(dry_run=dry_run)

    @property
    def report(self) -> SweepReport:
        """What was seen and done up to now."""
        self._report.requests = dict(self._objects.requests)
        self._report.duration_seconds = round(time.monotonic() - self._started, 3)
        return self._report

    async def begin(self) -> None:
        """Finish what other sweeps and clears began, and abort uploads that nobody goes on with.

        Raises:
            Unavailable
        """
        async for journal_key, manifest_keys in self._expiry.read_journals(FAMILY):
            await gather_some(self._resume, manifest_keys)
            if not self._dry_run:
                await self._objects.delete([journal_key])
        async for upload in self._objects.list_multipart(""):
            if upload.served_at - upload.started_at > OPEN_UPLOAD_AGE:
                if not self._dry_run:
                    await self._objects.abort_multipart(upload.key, upload.upload_id)
                self._report.aborted_uploads += 1

    async def sweep(self, reach: Reach = WHOLE_BUCKET) -> AsyncGenerator[ShardCount, None]:
        """Sweep a range of sets; yields what is left in it, shard by shard.

        A shard ends where one is known to, or holds `SHARD_SETS` sets.

        Raises:
            Unavailable: half-way; the next sweep finishes what this one began.
        """
        cuts = deque(reach.cuts)
        part = _Part(ShardCount(first_path=reach.first_path, is_walked=reach.walk_blobs))
        listing = walk_sets(
            self._objects, reach.first_path, reach.end_path, with_blobs=reach.walk_blobs
        )
        async with aclosing(listing):
            async for listed in listing:
                while cuts and listed.path >= cuts[0]:
                    yield await self._close(part, cuts[0])
                    part = part.next(cuts.popleft())
                if part.count.sets >= SHARD_SETS and listed.is_real:
                    yield await self._close(part, listed.path)
                    part = part.next(listed.path)
                self._take(part, listed)
                if len(part.due) >= BATCH_SETS or len(part.suspects) >= BATCH_SETS:
                    await self._settle(part)
        while cuts:
            yield await self._close(part, cuts[0])
            part = part.next(cuts.popleft())
        yield await self._close(part, reach.end_path)

    # --- What the listing tells -----------------------------------------------------------

    def _take(self, part: "_Part", listed: ListedSet) -> None:
        manifest = listed.manifest
        if manifest is not None:
            self._report.scanned += 1
            if not listed.is_real:
                self._note_unreadable(manifest.key)
                return
            if manifest.served_at - manifest.last_modified > self._ttl + CLOCK_GRAIN:
                part.due.append(listed)
                return
        part.add(listed)
        # One upload's blobs are named all or none, and an upload without a manifest is an orphan.
        if any(map(_is_old, listed.blobs)) and (manifest is None or not _is_one_upload(listed)):
            part.suspects.append(listed)

    async def _settle(self, part: "_Part") -> None:
        """Do what the part has gathered so far."""
        if part.due:
            await self._expire(part)
        if part.suspects:
            await self._delete_orphans(part)
        part.due, part.suspects = [], []
        self._unreadable.clear()  # Whatever is asked of a set is asked within one batch.

    async def _close(self, part: "_Part", end_path: str | None) -> ShardCount:
        await self._settle(part)
        count, report = part.count, self._report
        count.end_path = end_path
        if self._find_unexplained is not None and part.owners:
            unknown = await self._find_unexplained(list(part.owners))
            count.unexplained = sum(part.owners[owner] for owner in unknown)
        if count.oldest_access is not None:
            known = report.oldest_access or count.oldest_access
            report.oldest_access = min(known, count.oldest_access)
        report.walked_sets += count.sets if count.is_walked else 0
        report.files += count.files
        report.bytes += count.bytes
        report.orphans += count.orphans
        report.orphan_bytes += count.orphan_bytes
        report.unexplained += count.unexplained
        return count

    # --- Expiry ---------------------------------------------------------------------------

    async def _resume(self, manifest_key: str) -> None:
        found = self._find(manifest_key, await self._sets.read_manifest(manifest_key))
        if found is not None and found.manifest.state == "expiring":
            await self._finish(found)

    async def _expire(self, part: "_Part") -> None:
        keys = [f"{MANIFESTS}{one.path}.json" for one in part.due]
        if self._dry_run:
            records = await gather_some(self._sets.read_manifest, keys)
            await self._choose_due(dict(zip(keys, records, strict=True)))
            doomed = {}
        else:
            deleted = await self._expiry.expire_batch(FAMILY, keys, self._choose_due)
            doomed = {found.key.path: found.manifest for found in deleted}
        for one in part.due:
            if one.path in doomed:
                self._count_deleted(doomed[one.path])
                named = {file.blob_id for file in doomed[one.path].files}
                one.blobs = [blob for blob in one.blobs if _blob_id(blob) not in named]
                one.manifest = None
            part.add(one)
            # What the set held beside its own blobs is looked at at once, not in the next walk.
            if any(map(_is_old, one.blobs)):
                part.suspects.append(one)

    async def _choose_due(self, records: Mapping[str, SetRecord]) -> list[FoundSet]:
        found = [self._find(key, record) for key, record in records.items()]
        due = [one for one in found if one is not None and self._is_due(one)]
        # Asked after the reading: a run that begins from now on changes the manifest first.
        needed = await self._needed([one.key for one in due]) if due else {}
        chosen = [one for one in due if one.manifest.state == "expiring" or not needed.get(one.key)]
        self._report.in_use += len(due) - len(chosen)
        self._report.expired += len(chosen)
        return chosen

    def _is_due(self, found: FoundSet) -> bool:
        return found.manifest.state == "expiring" or is_expired(found.record, self._ttl)

    async def _finish(self, found: FoundSet) -> None:
        """Go on with a clear or a sweep that broke off between the mark and the end."""
        self._report.resumed += 1
        if not self._dry_run:
            await self._expiry.finish(found.key, found.manifest)
            self._count_deleted(found.manifest)

    def _count_deleted(self, manifest: Manifest) -> None:
        self._report.deleted_sets += 1
        self._report.deleted_files += len(manifest.files)
        self._report.deleted_bytes += sum(file.bytes for file in manifest.files)

    # --- Orphans --------------------------------------------------------------------------

    async def _delete_orphans(self, part: "_Part") -> None:
        found = await gather_some(self._find_orphans, part.suspects)
        asked = list({key: None for key, orphans in found if key is not None and orphans})
        # Asked after the manifests were read: a later run can only need what those name.
        needed = await self._needed(asked) if asked else {}
        orphans = [
            blob
            for key, blobs in found
            for blob in blobs
            if key is None or _blob_id(blob) not in needed.get(key, ())
        ]
        orphan_bytes = sum(blob.bytes for blob in orphans)
        part.count.orphans += len(orphans)
        part.count.orphan_bytes += orphan_bytes
        if not self._dry_run:
            await self._objects.delete(blob.key for blob in orphans)
            part.count.files -= len(orphans)
            part.count.bytes -= orphan_bytes

    async def _find_orphans(self, listed: ListedSet) -> tuple[SetKey | None, list[ObjectInfo]]:
        """Return whose set it is, if that can be known, and its old blobs that nothing names."""
        old = [blob for blob in listed.blobs if _is_old(blob)]
        manifest_key = f"{MANIFESTS}{listed.path}.json"
        record = await self._sets.read_manifest(manifest_key)
        found = self._find(manifest_key, record)
        if found is not None:
            if found.manifest.state == "expiring":
                await self._finish(found)
            if record.served_at - found.manifest.created_at <= ORPHAN_AGE:
                return None, []  # A commit that is undone puts the files before it in force again.
            named = {file.blob_id for file in found.manifest.files}
            return found.key, [blob for blob in old if _blob_id(blob) not in named]
        if record.etag is not None:
            return None, []  # What it names cannot be known: its blobs stay, and it is reported.
        there = await self._objects.find(old[0].key)
        if there is None:
            return None, []  # Deleted with its set since it was listed.
        self._report.missing_manifests += 1
        log.warning("session_files.manifest_missing", set=listed.path, blobs=len(old))
        # Whose set it was: the raw context stands in the blobs' metadata.
        context = there.metadata.get("context")
        return _session_key(listed.path, None if context is None else unquote(context)), old

    # --- Manifests ------------------------------------------------------------------------

    def _find(self, manifest_key: str, record: SetRecord) -> FoundSet | None:
        """Return the set of a manifest, or None: gone meanwhile, or unreadable and noted so."""
        if record.etag is None:
            return None
        manifest = record.manifest
        key = _session_key(manifest_path(manifest_key), manifest.context) if manifest else None
        if manifest is None or key is None:
            self._note_unreadable(manifest_key)
            return None
        return FoundSet(key, manifest, record)

    def _note_unreadable(self, manifest_key: str) -> None:
        if manifest_key in self._unreadable:
            return
        self._unreadable.add(manifest_key)
        self._report.unreadable += 1
        if len(self._report.unreadable_keys) < REPORTED_KEYS:
            self._report.unreadable_keys.append(manifest_key)
        log.error("session_files.manifest_unreadable", key=manifest_key)


@dataclass
class _Part:
    """A part of the bucket while it is walked, and what is to be done there before the next."""

    count: ShardCount
    due: list[ListedSet] = field(default_factory=list)
    suspects: list[ListedSet] = field(default_factory=list)
    owners: Counter[tuple[UUID, UUID]] = field(default_factory=Counter)

    def next(self, first_path: str) -> "_Part":
        """Return the part that begins where this one ends."""
        return _Part(ShardCount(first_path=first_path, is_walked=self.count.is_walked))

    def add(self, listed: ListedSet) -> None:
        """Count what stays."""
        count, manifest = self.count, listed.manifest
        count.files += len(listed.blobs)
        count.bytes += sum(blob.bytes for blob in listed.blobs)
        if manifest is None:
            return
        count.sets += 1
        count.oldest_access = min(
            count.oldest_access or manifest.last_modified, manifest.last_modified
        )
        if count.is_walked:
            self.owners[listed.owner] += 1


def _session_key(path: str, context: str | None) -> SetKey | None:
    """Return the key of the set that lies at a path; None when no session's set can lie there."""
    if context is None or not is_session_path(path):
        return None
    tool_id, user_id, _ = path.split("/")
    return SetKey(FAMILY, path, user_id, tool_id, context)


def _is_old(blob: ObjectInfo) -> bool:
    return blob.served_at - blob.last_modified > ORPHAN_AGE


def _is_one_upload(listed: ListedSet) -> bool:
    """Tell from their ids whether a set's blobs came in one upload."""
    try:
        return len({group_of(UUID(_blob_id(blob))) for blob in listed.blobs}) == 1
    except ValueError:
        return False


def _blob_id(blob: ObjectInfo) -> str:
    return blob.key.rpartition("/")[2]
