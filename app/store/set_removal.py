"""All session files below a path at once: those of a tool, or of one user's with a tool.

Invariant: called only when nobody can commit there any more (see `usecases/deletions.py`). Sets go
the way of all sets (`set_expiry`), so that a touch under way wins or loses cleanly.
"""

from collections.abc import Mapping

import msgspec

from app.errors import Unavailable
from app.store.file_sets import FileSets
from app.store.manifests import SetRecord, find_session_key
from app.store.set_expiry import FoundSet, SetExpiry
from app.store.set_listing import BLOBS, MANIFESTS

# So many sets are marked and deleted together, under one fence.
BATCH_SETS = 100
# A set that somebody touched between its read and its mark is met again by the next pass.
PASSES = 3


class RemovedFiles(msgspec.Struct):
    """How many files and bytes were deleted, also those that no manifest named."""

    files: int = 0
    bytes: int = 0


async def remove_sets(sets: FileSets, path_prefix: str, removed: RemovedFiles) -> None:
    """Delete every set below a path, and every blob; adds to `removed` as it goes.

    Raises:
        Unavailable: also when sets were in use to the last; what is left can be removed again.
    """
    for _ in range(PASSES):
        if not await _expire_pass(sets, path_prefix, removed):
            break
    else:
        raise Unavailable("s3")
    # What uploads that broke off have left: no manifest can name it now.
    async for page in sets.objects.list_pages(f"{BLOBS}{path_prefix}"):
        if page:
            removed.files += await sets.objects.delete(info.key for info in page)
            removed.bytes += sum(info.bytes for info in page)


async def _expire_pass(sets: FileSets, path_prefix: str, removed: RemovedFiles) -> int:
    """Delete the sets that are there now: how many manifests were seen."""
    expiry = SetExpiry(sets)
    seen = 0
    prefix = f"{MANIFESTS}{path_prefix}"
    async for page in sets.objects.list_pages(prefix, page_keys=BATCH_SETS):
        if not page:
            continue
        seen += len(page)
        keys = {info.key: find_session_key(info.key) for info in page}
        found: dict[str, SetRecord] = {}

        async def choose(
            records: Mapping[str, SetRecord], found: dict[str, SetRecord] = found
        ) -> list[FoundSet]:
            found.update(records)
            return [
                FoundSet(key, record.manifest, record)
                for manifest_key, record in records.items()
                if record.manifest is not None and (key := find_session_key(manifest_key))
            ]

        if manifest_keys := [name for name, key in keys.items() if key is not None]:
            expired = await expiry.expire_batch("sessions", manifest_keys, choose)
            for gone in expired.deleted:
                removed.files += len(gone.manifest.files)
                removed.bytes += sum(file.bytes for file in gone.manifest.files)
            for error in expired.failed.values():
                raise Unavailable("s3") from error
        for manifest_key, record in found.items():
            key = keys[manifest_key]
            if record.unreadable and key is not None:
                removed.files += await expiry.delete_unreadable(key)
        # What is no set's manifest, such as the marker of a folder, nobody commits to.
        await sets.objects.delete(name for name, key in keys.items() if key is None)
    return seen
