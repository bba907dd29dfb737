"""File sets: a manifest object that names immutable blobs. Session files and workspaces are both.

Invariant: the one conditional PUT of the manifest is the commit. Whoever reads a manifest finds
every blob it names, and of two writers one wins whole. Time is the S3 server's (`Date` against
`LastModified`), never the node's. A write that was not confirmed means: read again, then decide.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Self

import msgspec

from app.domain.files import StoredFile
from app.domain.ids import new_uuid7
from app.errors import Unavailable
from app.log import get_log
from app.store.blobs import verify_stream
from app.store.fence import CommitFence, Confirm
from app.store.manifests import (
    Manifest,
    SetKey,
    SetRecord,
    decode_manifest,
    new_manifest,
)
from app.store.object_types import ConditionLost, ObjectMissing, ObjectTooLarge, PutAnswer
from app.store.objects import ObjectStore

MANIFEST_MAX_BYTES = 4 * 1024 * 1024
WRITE_ATTEMPTS = 24

log = get_log(__name__)


class Change(msgspec.Struct, frozen=True):
    """The outcome of a change: what was found, and what is written now (None: left alone)."""

    before: SetRecord
    written: Manifest | None
    served_at: datetime


class Commit(msgspec.Struct, frozen=True):
    """The version of a committed set and the manifest that it replaced, live or expiring.

    `replaced` says when it was last accessed as its record did.
    """

    version: str
    replaced: Manifest | None


class CommitUncertain(Unavailable):
    """The commit went unanswered and may stand: its blobs must be left alone."""


class FileSets:
    """Reads and changes manifests and blobs of one bucket."""

    def __init__(self, objects: ObjectStore, fence: CommitFence, *, conditional: bool) -> None:
        """`conditional` says that PUT conditions are relied on; else all writes are fenced."""
        self.objects = objects
        self.fence = fence
        self._conditional = conditional

    def over(self, objects: ObjectStore) -> Self:
        """Return the same sets by way of another store of the same bucket."""
        return type(self)(objects, self.fence, conditional=self._conditional)

    async def read(self, key: SetKey) -> SetRecord:
        """Return what stands under the set's key; a manifest that cannot be read is no error."""
        return await self.read_manifest(key.manifest_key)

    async def read_manifest(self, manifest_key: str) -> SetRecord:
        try:
            body, info = await self.objects.get(manifest_key, max_bytes=MANIFEST_MAX_BYTES)
        except ObjectMissing as missing:
            return SetRecord(None, None, None, missing.served_at)
        except ObjectTooLarge:
            found = await self.objects.find(manifest_key)
            if found is None:
                return await self.read_manifest(manifest_key)
            return SetRecord(None, found.etag, found.last_modified, found.served_at)
        return SetRecord(decode_manifest(body), info.etag, info.last_modified, info.served_at)

    async def change(self, key: SetKey, decide: Callable[[SetRecord], Manifest | None]) -> Change:
        """Read, let `decide` say what to write (None: nothing), write; again if others were faster.

        `decide` must be able to meet its own write of an earlier attempt.

        Raises:
            Unavailable; whatever `decide` raises
        """
        lost: ConditionLost | None = None
        for attempt in range(WRITE_ATTEMPTS):
            if attempt:
                await _back_off(attempt)
            record = await self.read(key)
            wanted = decide(record)
            if wanted is None:
                return Change(record, None, record.served_at)
            try:
                answer = await self._write(key, record, wanted)
            except ConditionLost as error:
                lost = error
            else:
                return Change(record, wanted, answer.served_at)
        raise _cause(lost) from lost

    async def commit(
        self, key: SetKey, files: Iterable[StoredFile], *, uploading_seconds: float
    ) -> Commit:
        """Make these files the set, whatever it was before: one PUT, the later commit wins.

        All blobs must stand. `uploading_seconds` is the age of the oldest of them.

        Raises:
            CommitUncertain: it may have happened; leave the blobs to the sweep.
            Unavailable: it did not happen.
        """
        names = tuple(files)
        version = str(new_uuid7(datetime.now(UTC)))
        bases: dict[str, Manifest] = {}
        uncertain: SetRecord | None = None
        lost: ConditionLost | None = None
        for attempt in range(WRITE_ATTEMPTS):
            if attempt:
                await _back_off(attempt)
            try:
                record = await self.read(key)
                current = record.manifest
                if current is not None and version in current.lineage:
                    # An earlier attempt was applied although it was not confirmed.
                    return _own_commit(current, version, bases)
                if uncertain is not None and not await self._never_applied(
                    key, names, uncertain, record
                ):
                    raise CommitUncertain("s3")
            except Unavailable as error:
                if uncertain is None or isinstance(error, CommitUncertain):
                    raise
                raise CommitUncertain("s3") from error
            wanted = new_manifest(key, names, version, record, uploading_seconds)
            if current is not None:
                current = msgspec.structs.replace(current, last_accessed_at=record.accessed_at)
                bases[current.version] = current
            try:
                await self._write(key, record, wanted)
            except ConditionLost as error:
                lost = error
                uncertain = uncertain if error.certain else record
            else:
                return Commit(version, replaced=current)
        if uncertain is not None:
            raise CommitUncertain("s3") from lost
        raise _cause(lost) from lost

    async def delete_blobs(self, key: SetKey, blob_ids: Iterable[str]) -> int:
        """Delete blobs; those that are gone already count as deleted."""
        return await self.objects.delete([key.blob_key(blob_id) for blob_id in blob_ids])

    async def refresh_blobs(self, key: SetKey, manifest: Manifest) -> bool:
        """Renew the age of a set's blobs by server-side copies, so that no lifecycle rule sees it.

        False when the set was replaced or deleted meanwhile.
        """
        try:
            started_at = (await self.read(key)).served_at
            for file in manifest.files:
                await self.objects.copy_onto_itself(key.blob_key(file.blob_id), key.blob_metadata)
        except ObjectMissing:
            return False

        def decide(record: SetRecord) -> Manifest | None:
            live = record.live
            if live is None or live.version != manifest.version:
                return None
            if live.blobs_written_at >= started_at:
                return None
            return msgspec.structs.replace(live, blobs_written_at=started_at)

        return (await self.change(key, decide)).written is not None

    @asynccontextmanager
    async def open_blob(self, key: SetKey, file: StoredFile) -> AsyncIterator[AsyncIterator[bytes]]:
        """Open a blob as a stream that ends with an error unless size and SHA-256 are right.

        Raises:
            ObjectMissing; FileDamaged while reading
        """
        async with self.objects.open(key.blob_key(file.blob_id)) as stream:
            yield verify_stream(stream.chunks, file)

    # --- One write ------------------------------------------------------------------------

    async def _write(self, key: SetKey, found: SetRecord, wanted: Manifest) -> PutAnswer:
        """Write the manifest if what was found still stands.

        Raises:
            ConditionLost
        """
        expiring = found.manifest is not None and found.manifest.state == "expiring"
        if self._conditional and not expiring and not found.unreadable:
            return await self._put(key, wanted, found)
        try:
            async with self.fence.fence(key.manifest_key) as confirm_fence:
                again = await self.read(key)
                if again.etag != found.etag:
                    raise ConditionLost(key.manifest_key, certain=True)
                return await self.put_fenced(key, wanted, found, confirm_fence)
        except Unavailable as error:
            raise ConditionLost(key.manifest_key, certain=False) from error

    async def put_fenced(
        self, key: SetKey, wanted: Manifest, found: SetRecord, confirm_fence: Confirm
    ) -> PutAnswer:
        """Write a manifest over what was found under the set's own fence, which is still held.

        Raises:
            ConditionLost; Unavailable: it may have been applied.
        """
        if not self._conditional:
            # The fence is all that keeps a commit of others from being overwritten.
            await confirm_fence()
        return await self._put(key, wanted, found)

    async def _put(self, key: SetKey, wanted: Manifest, found: SetRecord) -> PutAnswer:
        return await self.objects.put(
            key.manifest_key,
            msgspec.json.encode(wanted),
            content_type="application/json",
            if_match=found.etag if self._conditional else None,
            create_only=self._conditional and found.etag is None,
            attempts=1,
        )

    async def _never_applied(
        self, key: SetKey, files: tuple[StoredFile, ...], attempted: SetRecord, now: SetRecord
    ) -> bool:
        """Tell whether an unconfirmed commit over `attempted` can be made again over `now`.

        Our version is not in the lineage of `now`. If what we wrote over is, or still stands, we
        were not applied. If the lineage does not reach so far, the set was deleted and begun anew
        in between; had we been applied, our blobs would be gone with it.
        """
        if now.etag == attempted.etag and now.etag is not None:
            return True
        base = attempted.manifest
        if base is not None and now.manifest is not None and base.version in now.manifest.lineage:
            return True
        there = {info.key async for info in self.objects.list_objects(key.blobs_prefix)}
        return all(key.blob_key(file.blob_id) in there for file in files)


def _own_commit(current: Manifest, version: str, bases: dict[str, Manifest]) -> Commit:
    """Find our commit in a later manifest: itself, or one that replaced it since."""
    index = current.lineage.index(version)
    base = current.lineage[index + 1] if index + 1 < len(current.lineage) else ""
    return Commit(version, replaced=bases.get(base))


def _cause(lost: ConditionLost | None) -> Exception:
    """Name the dependency that failed; a race lost too often is the object store's."""
    cause = lost.__cause__ if lost is not None else None
    return cause if isinstance(cause, Unavailable) else Unavailable("s3")


async def _back_off(attempt: int) -> None:
    await asyncio.sleep(random.uniform(0, min(0.5, 0.01 * 2**attempt)))
