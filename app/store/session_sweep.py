"""The sweep of session files: sets past their time, sweeps that broke off, orphans.

Invariant: what is live is decided by manifests alone; the database is only asked what unfinished
runs still need, so an empty one deletes nothing that lives. Every step can be done twice. Memory
does not grow with the bucket, and live sets cost their share of a listing. What S3 refuses of one
set, journal or upload is noted and left, and all others are swept.
"""

import math
import time
from collections import Counter, deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final
from urllib.parse import unquote
from uuid import UUID

from app.domain.ids import group_of
from app.errors import Unavailable
from app.log import get_log
from app.store.file_sets import FileSets
from app.store.manifests import Manifest, SetKey, SetRecord, find_session_key
from app.store.object_types import NotSupported, ObjectInfo, is_of_one_object
from app.store.set_expiry import FoundSet, SetExpiry, settle_delete, settle_some
from app.store.set_listing import ListedSet, walk_sets
from app.store.sweep_types import SHARD_SETS, WHOLE_BUCKET, Reach, ShardCount, SweepReport

FAMILY: Final = "sessions"
ORPHAN_AGE = timedelta(hours=1)
OPEN_UPLOAD_AGE = timedelta(days=1)
# The server's clock is read in whole seconds: a set may look a second older than it is.
CLOCK_GRAIN = timedelta(seconds=1)
# A journal that tells of sets that are not marked may be of a clear that is about to mark them.
JOURNAL_AGE = timedelta(minutes=10)
# Sets of a batch for each call that may be under way: a few seconds' work at any pace. It is done
# under one fence, which an upload to one of them would wait for.
BATCH_ROUNDS = 10
BATCH_MAX_SETS = 500
PARALLEL_FENCES = 8
REPORTED_KEYS = 100

# Which blobs unfinished runs of some sets still need; sets of which none is needed may be left out.
NeededBlobs = Callable[[Sequence[SetKey]], Awaitable[Mapping[SetKey, set[str]]]]
# Those of some owners (tool, user) of whom one is not known.
FindUnexplained = Callable[[Sequence[tuple[UUID, UUID]]], Awaitable[set[tuple[UUID, UUID]]]]

log = get_log(__name__)


def is_expired(record: SetRecord, ttl: timedelta) -> bool:
    """Tell whether a set's time is over by the server's clock, never a moment too early."""
    return is_past(record.served_at, record.accessed_at, ttl)


def is_past(served_at: datetime, accessed_at: datetime, ttl: timedelta) -> bool:
    """Tell the same of a moment and an access, both by the server's clock."""
    return served_at - accessed_at > ttl + CLOCK_GRAIN


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
        self._parallel = self._objects.parallel_calls
        self._batch_sets = min(BATCH_ROUNDS * self._parallel, BATCH_MAX_SETS)
        # What journals tell of and could not be ended by this sweep.
        self._stuck: set[str] = set()
        self._unreadable: set[str] = set()
        self._started = time.monotonic()
        self._report = SweepReport(dry_run=dry_run)

    @property
    def report(self) -> SweepReport:
        """What was seen and done up to now."""
        self._report.requests = dict(self._objects.requests)
        self._report.duration_seconds = round(time.monotonic() - self._started, 3)
        return self._report

    async def begin(self, *, max_seconds: float = math.inf) -> None:
        """Finish what other sweeps and clears began, and abort uploads that nobody goes on with.

        Journals that are not reached within the time are left to the next sweep.

        Raises:
            Unavailable
        """
        end = time.monotonic() + max_seconds
        async for journal in self._expiry.list_journals(FAMILY):
            if time.monotonic() > end:
                self._report.is_complete = False
                break
            async with self._apart(journal.key):
                await self._resume_journal(journal)
            self._unreadable.clear()
        async with self._apart("multipart uploads"):
            await self._abort_uploads()

    async def sweep(self, reach: Reach = WHOLE_BUCKET) -> AsyncGenerator[ShardCount, None]:
        """Sweep a range of sets; yields what is left in it, shard by shard.

        A shard ends where one is known to, or held `SHARD_SETS` sets when it was listed.

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
                if part.seen >= SHARD_SETS and listed.is_real:
                    yield await self._close(part, listed.path)
                    part = part.next(listed.path)
                self._take(part, listed)
                if max(len(part.due), len(part.suspects)) >= self._batch_sets:
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
            part.seen += 1
            if not listed.is_real:
                self._note_unreadable(manifest.key)
                return
            is_due = is_past(manifest.served_at, manifest.last_modified, self._ttl)
            if is_due and manifest.key not in self._stuck:
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

    async def _resume_journal(self, journal: ObjectInfo) -> None:
        manifest_keys = await self._expiry.read_journal(journal.key)
        if manifest_keys is None:
            self._note_unreadable(journal.key, "journal")
            return
        # What stays marked comes to its time again, and into another journal: one is enough.
        keys = {key: key for key in manifest_keys if key not in self._stuck}
        # Each takes a fence of its own.
        unmarked, failed = await settle_some(self._resume, keys, PARALLEL_FENCES)
        self._stuck |= failed.keys()
        await self._note_failed(failed)
        is_young = journal.served_at - journal.last_modified <= JOURNAL_AGE
        if self._dry_run or (is_young and any(unmarked.values())):
            return
        if not failed or len(failed) < len(manifest_keys):
            await self._expiry.end_journal(journal.key, list(failed))

    async def _resume(self, manifest_key: str) -> bool:
        """Go on with a set if it is marked; tell whether it still may be."""
        found = self._find(manifest_key, await self._sets.read_manifest(manifest_key))
        if found is None:
            return False
        if found.manifest.state == "expiring":
            await self._finish(found)
            return False
        return True

    async def _expire(self, part: "_Part") -> None:
        keys = [one.manifest_key for one in part.due]
        doomed: dict[str, Manifest] = {}
        if self._dry_run:
            records, failed = await settle_some(
                self._sets.read_manifest, dict(zip(keys, keys, strict=True)), self._parallel
            )
            await self._choose_due(records)
        else:
            expired = await self._expiry.expire_batch(FAMILY, keys, self._choose_due)
            doomed = {found.key.path: found.manifest for found in expired.deleted}
            failed = expired.failed
        for one in part.due:
            if one.path in doomed:
                self._count_deleted(doomed[one.path])
                named = {file.blob_id for file in doomed[one.path].files}
                one.blobs = [blob for blob in one.blobs if _blob_id(blob) not in named]
                one.manifest = None
            part.add(one)
            # What the set held beside its own blobs is looked at at once, not in the next walk.
            if one.manifest_key not in failed and any(map(_is_old, one.blobs)):
                part.suspects.append(one)
        await self._note_failed(failed)

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
        if not self._dry_run:
            await self._expiry.finish(found.key, found.manifest)
            self._count_deleted(found.manifest)
        self._report.resumed += 1

    def _count_deleted(self, manifest: Manifest) -> None:
        self._report.deleted_sets += 1
        self._report.deleted_files += len(manifest.files)
        self._report.deleted_bytes += sum(file.bytes for file in manifest.files)

    async def _abort_uploads(self) -> None:
        try:
            async for upload in self._objects.list_multipart(""):
                if upload.served_at - upload.started_at > OPEN_UPLOAD_AGE:
                    async with self._apart(upload.key):
                        if not self._dry_run:
                            await self._objects.abort_multipart(upload.key, upload.upload_id)
                        self._report.aborted_uploads += 1
        except NotSupported:
            log.info("session_files.uploads_not_listed")  # The server sees to them by itself.

    # --- Orphans --------------------------------------------------------------------------

    async def _delete_orphans(self, part: "_Part") -> None:
        suspects = {one.blobs[0].key: one for one in part.suspects}
        looks, failed = await settle_some(self._find_orphans, suspects, self._parallel)
        await self._note_failed(failed)
        found = looks.values()
        asked = list({key: None for key, orphans in found if key is not None and orphans})
        # Asked after the manifests were read: a later run can only need what those name.
        needed = await self._needed(asked) if asked else {}
        orphans = [
            blob
            for key, blobs in found
            for blob in blobs
            if key is None or _blob_id(blob) not in needed.get(key, ())
        ]
        part.count.orphans += len(orphans)
        part.count.orphan_bytes += sum(blob.bytes for blob in orphans)
        if not self._dry_run:
            keys = [blob.key for blob in orphans]
            refused = await settle_delete(self._objects.delete(keys), keys)
            gone = [blob.bytes for blob in orphans if blob.key not in refused]
            part.count.files -= len(gone)
            part.count.bytes -= sum(gone)
            await self._note_failed(refused)

    async def _find_orphans(self, listed: ListedSet) -> tuple[SetKey | None, list[ObjectInfo]]:
        """Return whose set it is, if that can be known, and its old blobs that nothing names."""
        old = [blob for blob in listed.blobs if _is_old(blob)]
        manifest_key = listed.manifest_key
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
        if context is None:
            return None, old
        return find_session_key(manifest_key, unquote(context)), old

    # --- Manifests ------------------------------------------------------------------------

    def _find(self, manifest_key: str, record: SetRecord) -> FoundSet | None:
        """Return the set of a manifest, or None: gone meanwhile, or unreadable and noted so."""
        if record.etag is None:
            return None
        manifest = record.manifest
        key = find_session_key(manifest_key, manifest.context) if manifest else None
        if manifest is None or key is None or key.context is None:
            self._note_unreadable(manifest_key)
            return None
        return FoundSet(key, manifest, record)

    # --- Trouble --------------------------------------------------------------------------

    def _note_unreadable(self, key: str, kind: str = "manifest") -> None:
        if key in self._unreadable:
            return
        self._unreadable.add(key)
        self._report.unreadable += 1
        if len(self._report.unreadable_keys) < REPORTED_KEYS:
            self._report.unreadable_keys.append(key)
        log.error(f"session_files.{kind}_unreadable", key=key)

    @asynccontextmanager
    async def _apart(self, key: str) -> AsyncIterator[None]:
        """Note what S3 refuses of one thing, and go on with the others."""
        try:
            yield
        except Exception as error:
            if not is_of_one_object(error):
                raise
            await self._note_failed({key: error})

    async def _note_failed(self, failed: Mapping[str, Exception]) -> None:
        """Note what was refused, by key.

        Raises:
            Unavailable: it is S3 that is away, and no matter of these alone.
        """
        if failed and not await self._objects.bucket_exists():
            raise Unavailable("s3")
        for key, error in failed.items():
            self._report.failed += 1
            if len(self._report.failed_keys) < REPORTED_KEYS:
                self._report.failed_keys.append(key)
                log.error("session_files.refused", key=key, error=repr(error))


@dataclass
class _Part:
    """A part of the bucket while it is walked, and what is to be done there before the next."""

    count: ShardCount
    seen: int = 0
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
