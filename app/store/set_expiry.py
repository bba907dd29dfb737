"""The end of file sets: marked first, then their blobs, then their manifests.

Invariant: a set whose manifest is marked belongs to whoever marked it; readers take it for gone.
The DELETE of a manifest cannot carry a condition that every server honours, hence the fence: a
commit that replaces a marked manifest takes it too. Every step can be done twice, and a journal
tells the sweep of what was begun.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar, cast

import msgspec

from app.store.file_sets import FileSets
from app.store.manifests import Family, Manifest, SetKey, SetRecord
from app.store.object_types import ConditionLost, ObjectMissing

JOURNAL_MAX_BYTES = 4 * 1024 * 1024
PARALLEL_SETS = 8

T = TypeVar("T")
R = TypeVar("R")


class FoundSet(msgspec.Struct, frozen=True):
    """A set that is there: its key, its manifest, and the record that holds it."""

    key: SetKey
    manifest: Manifest
    record: SetRecord


# Given what stands under some manifests' keys, picks the sets to be deleted.
ChooseSets = Callable[[Mapping[str, SetRecord]], Awaitable[list[FoundSet]]]


class SetExpiry:
    """Deletes sets of one bucket."""

    def __init__(self, sets: FileSets) -> None:
        self._sets, self._objects, self._fence = sets, sets.objects, sets.fence

    async def expire(self, key: SetKey) -> Manifest | None:
        """Delete a set now, whoever uses it. Return what was deleted."""
        async with self._journal(key.family, [key.manifest_key]):
            change = await self._sets.change(key, _marked)
            doomed = change.written or change.before.manifest
            if doomed is not None:
                await self.finish(key, doomed)
        return doomed

    async def expire_batch(
        self, family: Family, manifest_keys: Sequence[str], choose: ChooseSets
    ) -> list[FoundSet]:
        """Delete those of some sets that `choose` picks, at the least cost; return them.

        That is a read and a mark for each set, and the deletions of all together. Whoever changes a
        set between the two keeps it.
        """
        async with (
            self._journal(family, manifest_keys),
            self._fence.fence(*manifest_keys) as confirm_fence,
        ):
            records = await gather_some(self._sets.read_manifest, manifest_keys)
            chosen = await choose(dict(zip(manifest_keys, records, strict=True)))
            marked = await gather_some(self._mark_fenced, chosen)
            doomed = [found for found, is_marked in zip(chosen, marked, strict=True) if is_marked]
            await self._objects.delete(
                found.key.blob_key(file.blob_id)
                for found in doomed
                for file in found.manifest.files
            )
            # Without its fence, an upload may have come in that we would delete.
            await confirm_fence()
            await self._objects.delete(found.key.manifest_key for found in doomed)
        return doomed

    async def finish(self, key: SetKey, manifest: Manifest) -> None:
        """Delete a set that is marked. Can be repeated."""
        await self._sets.delete_blobs(key, (file.blob_id for file in manifest.files))
        async with self._fence.fence(key.manifest_key):
            record = await self._sets.read(key)
            if record.manifest is not None and record.manifest.state == "expiring":
                await self._objects.delete([key.manifest_key])

    async def delete_unreadable(self, key: SetKey) -> int:
        """Delete a set whose manifest cannot be read, with all its blobs; return how many."""
        keys = [info.key async for info in self._objects.list_objects(key.blobs_prefix)]
        async with self._fence.fence(key.manifest_key):
            if not (await self._sets.read(key)).unreadable:
                return 0
            await self._objects.delete([key.manifest_key])
        return await self._objects.delete(keys)

    async def read_journals(self, family: Family) -> AsyncIterator[tuple[str, list[str]]]:
        """Yield the journals of expiries that have not ended: their key, and manifests' keys."""
        async for journal in self._objects.list_objects(_journals_prefix(family)):
            try:
                body, _ = await self._objects.get(journal.key, max_bytes=JOURNAL_MAX_BYTES)
            except ObjectMissing:
                continue
            yield journal.key, msgspec.json.decode(body, type=list[str])

    async def _mark_fenced(self, found: FoundSet) -> bool:
        """Mark a set under its fence; False if it was changed since it was found."""
        if found.manifest.state == "expiring":
            return True
        wanted = msgspec.structs.replace(found.manifest, state="expiring")
        try:
            await self._sets.put_manifest(found.key, wanted, found.record)
        except ConditionLost as lost:
            if lost.certain:
                return False
            # It may have been applied all the same.
            return (await self._sets.read(found.key)).manifest == wanted
        return True

    @asynccontextmanager
    async def _journal(self, family: Family, manifest_keys: Sequence[str]) -> AsyncIterator[None]:
        """Write down which sets are about to be marked, until they are deleted.

        A mark renews its manifest's LastModified: a set that nobody goes on with would not be
        looked at for a whole TTL. Only a block that ends without an error takes its journal away.
        """
        journal_key = f"{_journals_prefix(family)}{uuid.uuid4()}.json"
        await self._objects.put(journal_key, msgspec.json.encode(manifest_keys))
        yield
        await self._objects.delete([journal_key])


async def gather_some(work: Callable[[T], Awaitable[R]], items: Iterable[T]) -> list[R]:
    """Do the work for all items, some at a time; the first error is raised after all settled."""
    turns = asyncio.Semaphore(PARALLEL_SETS)

    async def do(item: T) -> R:
        async with turns:
            return await work(item)

    results = await asyncio.gather(*(do(item) for item in items), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast(list[R], results)


def _journals_prefix(family: Family) -> str:
    return f"{family}/expiring/"


def _marked(record: SetRecord) -> Manifest | None:
    live = record.live
    return None if live is None else msgspec.structs.replace(live, state="expiring")
