"""Session files: the files that live with a tool session (ADR-0039), as file sets in S3.

Invariant: access is injection into a run, and `touch_files` is the only thing that counts as one.
"""

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Mapping,
    Sequence,
)
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime, timedelta
from typing import Any, Protocol
from uuid import UUID

import msgspec

from app.concurrency import run_to_end
from app.domain.files import StoredFile, UploadLimits
from app.domain.sessions import context_key
from app.errors import SessionFilesExpired
from app.log import get_log
from app.settings import Settings
from app.store.blobs import BlobUpload
from app.store.fence import CommitFence
from app.store.file_sets import CommitUncertain, FileSets
from app.store.manifests import Manifest, SetKey, SetRecord
from app.store.object_types import ObjectMissing
from app.store.objects import ObjectStore
from app.store.session_sweep import (
    FindUnexplained,
    NeededBlobs,
    SessionSweep,
    is_expired,
    is_past,
)
from app.store.set_expiry import SetExpiry
from app.store.sweep_types import SweepReport

# Which blobs the unfinished runs of some sessions still need; sessions without any may be left out.
FindNeededBlobs = Callable[
    [Sequence["SessionFilesKey"]], Awaitable[Mapping["SessionFilesKey", set[str]]]
]

FILES_REMOVED = "Filerna som körningen behövde har tagits bort. Ladda upp dem igen."

log = get_log(__name__)


class SessionFilesKey(msgspec.Struct, frozen=True):
    """Whose files, of which tool, in which context: the key of a tool session."""

    tool_id: UUID
    user_id: UUID
    context: str

    @property
    def parts(self) -> tuple[UUID, UUID, str]:
        return self.tool_id, self.user_id, self.context

    @property
    def set_key(self) -> SetKey:
        return SetKey(
            family="sessions",
            path=f"{self.tool_id}/{self.user_id}/{context_key(self.context)}",
            user_id=str(self.user_id),
            tool_id=str(self.tool_id),
            context=self.context,
        )


class FileSnapshot(msgspec.Struct, frozen=True):
    """A live set at one moment. `expires_at` is when it will go if nobody touches it."""

    files: tuple[StoredFile, ...]
    version: str
    last_accessed_at: datetime
    expires_at: datetime


class StoredSet(msgspec.Struct, frozen=True):
    """A committed upload, and what `restore_files` or `discard_replaced` need to follow it up."""

    key: SessionFilesKey
    files: tuple[StoredFile, ...]
    version: str
    replaced: Manifest | None


class SessionUpload(BlobUpload):
    """Files being uploaded for one session; `store_files` makes them the session's files."""

    def __init__(
        self, objects: ObjectStore, session_key: SessionFilesKey, limits: UploadLimits
    ) -> None:
        super().__init__(objects, session_key.set_key, limits)
        self.session_key = session_key
        # Set once the blobs may belong to a manifest: from then on they are not ours to delete.
        self.handed_over = False
        self.stored: StoredSet | None = None


class SessionFileStorageProtocol(Protocol):
    """What the rest of the service asks of session files (ST-12-05)."""

    def begin_upload(
        self, key: SessionFilesKey, limits: UploadLimits
    ) -> AbstractAsyncContextManager[SessionUpload]:
        """Stream files in; leaving the block without `store_files` deletes them again."""
        ...

    async def store_files(self, upload: SessionUpload) -> StoredSet:
        """Commit an upload: it replaces the session's files, whole, at this moment."""
        ...

    async def restore_files(self, stored: StoredSet) -> None:
        """Undo `store_files`, unless somebody replaced the files since.

        Files whose time was over do not come back: they are deleted with what replaced them.
        """
        ...

    async def discard_replaced(self, stored: StoredSet, needed: Collection[str]) -> int:
        """Delete the blobs that `store_files` replaced, but for the `needed` ids."""
        ...

    async def get_files(self, key: SessionFilesKey) -> FileSnapshot | None:
        """Return the session's files without touching them; None when there are none (left)."""
        ...

    async def touch_files(self, key: SessionFilesKey) -> FileSnapshot | None:
        """Count an access and return the files; None when there are none.

        Raises:
            SessionFilesExpired: their time is over, whether they are deleted yet or not.
        """
        ...

    async def clear_session(self, key: SessionFilesKey) -> int:
        """Delete the session's files at once and return how many there were."""
        ...

    async def cleanup_expired(
        self, needed: FindNeededBlobs, *, dry_run: bool = False
    ) -> SweepReport:
        """Delete sets past their time and blobs that nothing names. `dry_run` only counts."""
        ...

    def open_sweep(
        self,
        needed: FindNeededBlobs,
        find_unexplained: FindUnexplained | None = None,
        *,
        requests_per_second: float,
        dry_run: bool = False,
    ) -> SessionSweep:
        """Return the same work in parts, for a bucket of any size."""
        ...

    def open_file(
        self, key: SessionFilesKey, file: StoredFile
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """Open a stream that ends with FileDamaged unless size and SHA-256 are right.

        Raises:
            SessionFilesExpired: the file was deleted, by a clear or by its time.
        """
        ...


class S3SessionFileStorage:
    """`SessionFileStorageProtocol` over file sets. Call `aclose` at the end."""

    def __init__(self, objects: ObjectStore, fence: CommitFence, settings: Settings) -> None:
        self._objects = objects
        self._sets = FileSets(objects, fence, conditional=settings.storage_fence == "none")
        self._expiry = SetExpiry(self._sets)
        self._ttl = timedelta(seconds=settings.session_files_ttl_seconds)
        day = timedelta(seconds=settings.lifecycle_day_seconds)
        self._refresh_after = settings.lifecycle_days * day / 2
        self._background: set[asyncio.Task[None]] = set()

    async def aclose(self) -> None:
        """Wait for refreshes of blobs that are on their way."""
        await asyncio.gather(*self._background, return_exceptions=True)

    @asynccontextmanager
    async def begin_upload(
        self, key: SessionFilesKey, limits: UploadLimits
    ) -> AsyncIterator[SessionUpload]:
        upload = SessionUpload(self._objects, key, limits)
        try:
            yield upload
        finally:
            if not upload.handed_over:
                await run_to_end(upload.discard())

    async def store_files(self, upload: SessionUpload) -> StoredSet:
        await upload.settle()
        try:
            # A commit that is under way is seen through: cancelled half-way, nobody could tell
            # whether the blobs belong to the set or to nothing.
            return await run_to_end(self._commit(upload))
        except asyncio.CancelledError:
            # The caller never learns what was stored, so nobody else can undo it.
            if upload.stored is not None:
                await run_to_end(self.restore_files(upload.stored))
            raise

    async def _commit(self, upload: SessionUpload) -> StoredSet:
        try:
            commit = await self._sets.commit(
                upload.key, upload.files, uploading_seconds=upload.seconds
            )
        except CommitUncertain:
            upload.handed_over = True
            log.warning("session_files.commit_uncertain", set=upload.key.path)
            raise
        upload.handed_over = True
        upload.stored = StoredSet(upload.session_key, upload.files, commit.version, commit.replaced)
        return upload.stored

    async def restore_files(self, stored: StoredSet) -> None:
        key = stored.key.set_key
        before = stored.replaced

        def decide(record: SetRecord) -> Manifest | None:
            current = record.manifest
            if current is None or current.version != stored.version:
                return None
            if before is None or before.state == "expiring":
                return msgspec.structs.replace(current, state="expiring")
            # A write renews LastModified, which must not give them another life. No unfinished run
            # needs them: it would have touched them.
            is_over = is_past(record.served_at, before.last_accessed_at, self._ttl)
            return msgspec.structs.replace(
                before,
                replaced_versions=current.lineage,
                state="expiring" if is_over else "live",
            )

        change = await self._sets.change(key, decide)
        if change.written is not None and change.written.state == "expiring":
            await self._expiry.finish(key, change.written)
        await self._sets.delete_blobs(key, (file.blob_id for file in stored.files))

    async def discard_replaced(self, stored: StoredSet, needed: Collection[str]) -> int:
        if stored.replaced is None:
            return 0
        kept = set(needed) | {file.blob_id for file in stored.files}
        blobs = [file.blob_id for file in stored.replaced.files if file.blob_id not in kept]
        return await self._sets.delete_blobs(stored.key.set_key, blobs)

    async def get_files(self, key: SessionFilesKey) -> FileSnapshot | None:
        record = await self._sets.read(key.set_key)
        if record.live is None or is_expired(record, self._ttl):
            return None
        return self._snapshot(record.live, record.accessed_at)

    async def touch_files(self, key: SessionFilesKey) -> FileSnapshot | None:
        def decide(record: SetRecord) -> Manifest | None:
            if record.manifest is None:
                return None
            if record.live is None or is_expired(record, self._ttl):
                raise SessionFilesExpired
            return msgspec.structs.replace(record.live, last_accessed_at=record.served_at)

        change = await self._sets.change(key.set_key, decide)
        touched = change.written
        if touched is None:
            return None
        if change.served_at - touched.blobs_written_at > self._refresh_after:
            # Not while the run waits: there is half a lifecycle period left for it.
            self._in_background(self._refresh(key, touched))
        return self._snapshot(touched, change.served_at)

    async def clear_session(self, key: SessionFilesKey) -> int:
        set_key = key.set_key
        found = await self._sets.read(set_key)
        if found.unreadable:
            return await self._expiry.delete_unreadable(set_key)
        cleared = await self._expiry.expire(set_key) if found.etag is not None else None
        return len(cleared.files) if cleared is not None else 0

    async def cleanup_expired(
        self, needed: FindNeededBlobs, *, dry_run: bool = False
    ) -> SweepReport:
        sweep = SessionSweep(self._sets, self._ttl, _needed_of_sets(needed), dry_run=dry_run)
        await sweep.begin()
        async for _ in sweep.sweep():
            pass
        return sweep.report

    def open_sweep(
        self,
        needed: FindNeededBlobs,
        find_unexplained: FindUnexplained | None = None,
        *,
        requests_per_second: float,
        dry_run: bool = False,
    ) -> SessionSweep:
        sets = self._sets.over(self._objects.paced(requests_per_second))
        return SessionSweep(
            sets, self._ttl, _needed_of_sets(needed), find_unexplained, dry_run=dry_run
        )

    @asynccontextmanager
    async def open_file(
        self, key: SessionFilesKey, file: StoredFile
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        try:
            async with self._sets.open_blob(key.set_key, file) as chunks:
                yield chunks
        except ObjectMissing as error:
            raise SessionFilesExpired(FILES_REMOVED) from error

    def _snapshot(self, manifest: Manifest, accessed_at: datetime) -> FileSnapshot:
        return FileSnapshot(manifest.files, manifest.version, accessed_at, accessed_at + self._ttl)

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _refresh(self, key: SessionFilesKey, manifest: Manifest) -> None:
        try:
            await self._sets.refresh_blobs(key.set_key, manifest)
        except Exception:
            # The next access tries again.
            log.exception("session_files.refresh_failed", set=key.set_key.path)


def _needed_of_sets(find: FindNeededBlobs) -> NeededBlobs:
    """Ask by sessions what a sweep asks by sets."""

    async def find_by_sets(keys: Sequence[SetKey]) -> Mapping[SetKey, set[str]]:
        sessions = {
            SessionFilesKey(UUID(key.tool_id), UUID(key.user_id), key.context or ""): key
            for key in keys
        }
        found = await find(list(sessions))
        return {sessions[session]: blobs for session, blobs in found.items()}

    return find_by_sets
