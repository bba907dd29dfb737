"""The end of file sets: marked first, then their blobs, then their manifests.

Invariant: a set whose manifest is marked belongs to whoever marked it; readers take it for gone.
The DELETE of a manifest cannot carry a condition that every server honours, hence the fence: a
commit that replaces a marked manifest takes it too. Every step can be done twice, and a journal
tells the sweep of what was begun. What S3 refuses of one set never keeps another from its end.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TypeVar

import msgspec

from app.concurrency import settle
from app.errors import Unavailable
from app.store.fence import Confirm
from app.store.file_sets import FileSets
from app.store.manifests import Family, Manifest, SetKey, SetRecord, journals_prefix
from app.store.object_types import (
    ConditionLost,
    NotDeleted,
    ObjectInfo,
    ObjectMissing,
    ObjectTooLarge,
    is_of_one_object,
)

JOURNAL_MAX_BYTES = 4 * 1024 * 1024
DELETE_ATTEMPTS = 3
DELETE_PAUSE_SECONDS = 0.2

T = TypeVar("T")
R = TypeVar("R")


class FoundSet(msgspec.Struct, frozen=True):
    """A set that is there: its key, its manifest, and the record that holds it."""

    key: SetKey
    manifest: Manifest
    record: SetRecord


class Expired(msgspec.Struct, frozen=True):
    """The sets that were deleted, and what kept others from it, by their manifests' keys."""

    deleted: list[FoundSet]
    failed: dict[str, Exception]


# Given what stands under some manifests' keys, picks the sets to be deleted.
ChooseSets = Callable[[Mapping[str, SetRecord]], Awaitable[list[FoundSet]]]


class SetExpiry:
    """Deletes sets of one bucket."""

    def __init__(self, sets: FileSets) -> None:
        self._sets, self._objects, self._fence = sets, sets.objects, sets.fence

    async def expire(self, key: SetKey) -> Manifest | None:
        """Delete a set now, whoever uses it. Return what was deleted."""
        journal_key = await self._begin_journal(key.family, [key.manifest_key])
        change = await self._sets.change(key, _marked)
        doomed = change.written or change.before.manifest
        if doomed is not None:
            await self.finish(key, doomed)
        await self.end_journal(journal_key, [])
        return doomed

    async def expire_batch(
        self, family: Family, manifest_keys: Sequence[str], choose: ChooseSets
    ) -> Expired:
        """Delete those of some sets that `choose` picks, at the least cost.

        That is a read and a mark for each set, and the deletions of all together. Whoever changes a
        set between the two keeps it. At most 1000 sets.

        Raises:
            Unavailable: the fence was lost, or the journal could not be written.
        """
        parallel = self._objects.parallel_calls
        journal_key = await self._begin_journal(family, manifest_keys)
        async with self._fence.fence(*manifest_keys) as confirm_fence:
            keys = {key: key for key in manifest_keys}
            records, failed = await settle_some(self._sets.read_manifest, keys, parallel)
            chosen = {found.key.manifest_key: found for found in await choose(records)}

            async def mark(found: FoundSet) -> bool:
                return await self._mark_fenced(found, confirm_fence)

            marks, unmarked = await settle_some(mark, chosen, parallel)
            failed |= unmarked
            doomed = [found for key, found in chosen.items() if marks.get(key)]
            blobs = {
                found.key.blob_key(file.blob_id): found.key.manifest_key
                for found in doomed
                for file in found.manifest.files
            }
            refused = await settle_delete(self._objects.delete(blobs), blobs)
            failed |= {blobs[blob_key]: error for blob_key, error in refused.items()}
            left = [key for key, is_marked in marks.items() if is_marked and key not in failed]
            if left:
                failed |= await settle_delete(self._delete_fenced(left, confirm_fence), left)
        # What is marked now, or may be, is told of on.
        begun = [key for key in failed if key in chosen]
        failed |= await settle_delete(self.end_journal(journal_key, begun), [journal_key])
        return Expired([found for found in doomed if found.key.manifest_key not in failed], failed)

    async def finish(self, key: SetKey, manifest: Manifest) -> None:
        """Delete a set that is marked. Can be repeated."""
        await self._sets.delete_blobs(key, (file.blob_id for file in manifest.files))
        async with self._fence.fence(key.manifest_key) as confirm_fence:
            record = await self._sets.read(key)
            if record.manifest is not None and record.manifest.state == "expiring":
                await self._delete_fenced([key.manifest_key], confirm_fence)

    async def delete_unreadable(self, key: SetKey) -> int:
        """Delete a set whose manifest cannot be read, with its blobs; return how many.

        Blobs that came after the manifest may be of an upload that is not committed yet: nothing
        names them when it never is, and the sweep finds them.
        """
        async with self._fence.fence(key.manifest_key) as confirm_fence:
            if not (await self._sets.read(key)).unreadable:
                return 0
            # Listed, since that tells milliseconds as it does of the blobs.
            written_at = [
                info.last_modified
                async for info in self._objects.list_objects(key.manifest_key)
                if info.key == key.manifest_key
            ]
            blobs = [info async for info in self._objects.list_objects(key.blobs_prefix)]
            await self._delete_fenced([key.manifest_key], confirm_fence)
        old = [blob.key for blob in blobs if written_at and blob.last_modified <= written_at[0]]
        return await self._objects.delete(old)

    # --- Journals -------------------------------------------------------------------------

    def list_journals(self, family: Family) -> AsyncIterator[ObjectInfo]:
        """Yield the journals of expiries that have not ended, some of which are under way."""
        return self._objects.list_objects(journals_prefix(family))

    async def read_journal(self, journal_key: str) -> list[str] | None:
        """Return the keys of the manifests that a journal tells of; None if this is no journal."""
        try:
            body, _ = await self._objects.get(journal_key, max_bytes=JOURNAL_MAX_BYTES)
            return msgspec.json.decode(body, type=list[str])
        except ObjectMissing:
            return []
        except (ObjectTooLarge, msgspec.DecodeError):
            return None

    async def end_journal(self, journal_key: str, left: Sequence[str]) -> None:
        """Take a journal away, or have it tell of the sets that are left."""
        if left:
            await self._objects.put(journal_key, msgspec.json.encode(left))
        else:
            await self._objects.delete([journal_key])

    async def _begin_journal(self, family: Family, manifest_keys: Sequence[str]) -> str:
        """Write down which sets are about to be marked, and return where.

        A mark renews its manifest's LastModified: a set that nobody goes on with would not be
        looked at for a whole TTL. Whoever fails half-way leaves the journal to the sweep.
        """
        journal_key = f"{journals_prefix(family)}{uuid.uuid4()}.json"
        await self._objects.put(journal_key, msgspec.json.encode(manifest_keys))
        return journal_key

    # --- Steps under a fence --------------------------------------------------------------

    async def _mark_fenced(self, found: FoundSet, confirm_fence: Confirm) -> bool:
        """Mark a set under its fence; False if it was changed since it was found."""
        if found.manifest.state == "expiring":
            return True
        wanted = msgspec.structs.replace(found.manifest, state="expiring")
        try:
            await self._sets.put_fenced(found.key, wanted, found.record, confirm_fence)
        except ConditionLost as lost:
            if lost.certain:
                return False
            # It may have been applied all the same.
            return (await self._sets.read(found.key)).manifest == wanted
        return True

    async def _delete_fenced(self, manifest_keys: Sequence[str], confirm_fence: Confirm) -> int:
        """Delete manifests; each attempt comes right after a proof that their fence is held.

        Without it, an upload may have come in that would be deleted.
        """
        for attempts_left in reversed(range(DELETE_ATTEMPTS)):
            await confirm_fence()
            try:
                return await self._objects.delete(manifest_keys, attempts=1)
            except Unavailable as error:
                if isinstance(error, NotDeleted) or not attempts_left:
                    raise
            await asyncio.sleep(DELETE_PAUSE_SECONDS)
        raise AssertionError("unreachable")


# --- Work on many sets ------------------------------------------------------------------------


async def settle_some(
    work: Callable[[T], Awaitable[R]], items: Mapping[str, T], parallel: int
) -> tuple[dict[str, R], dict[str, Exception]]:
    """Do the work for all items, some at a time: what came of it, and what S3 refused, by key.

    Errors that are not of one object alone are raised after all settled.
    """
    done: dict[str, R] = {}
    failed: dict[str, Exception] = {}
    results = await settle(work, items.values(), parallel)
    for key, result in zip(items, results, strict=True):
        if not isinstance(result, BaseException):
            done[key] = result
        elif isinstance(result, Exception) and is_of_one_object(result):
            failed[key] = result
        else:
            raise result
    return done, failed


async def settle_delete(deleting: Awaitable[object], keys: Iterable[str]) -> dict[str, Exception]:
    """Await the deletion of some keys: those that were refused, and why. Raises other errors."""
    try:
        await deleting
    except NotDeleted as error:
        return dict.fromkeys(error.codes, error)
    except Exception as error:
        if not is_of_one_object(error):
            raise
        return dict.fromkeys(keys, error)
    return {}


def _marked(record: SetRecord) -> Manifest | None:
    live = record.live
    return None if live is None else msgspec.structs.replace(live, state="expiring")
