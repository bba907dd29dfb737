"""Artifacts: the files that runs produced, under `runs/{run_id}/artifacts/{n}`.

Names and sizes stand with the run in PostgreSQL; here are only bytes. A retried run writes over the
same keys, so nothing of a lost attempt outlives the run.
"""

import asyncio
import os
import stat
from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from pathlib import Path
from uuid import UUID

import msgspec

from app.concurrency import run_to_end
from app.store.object_types import ObjectInfo, ObjectStream
from app.store.object_writer import ObjectWriter, WrittenObject
from app.store.objects import ObjectStore

READ_BYTES = 1024 * 1024
PREFIX = "runs/"


class RemovedArtifacts(msgspec.Struct):
    """How many artifacts were deleted, and how large they were."""

    artifacts: int = 0
    bytes: int = 0


class ArtifactStore:
    """Artifacts of runs, numbered from 0."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    async def put_stream(
        self, run_id: UUID, number: int, chunks: AsyncIterator[bytes]
    ) -> WrittenObject:
        """Write an artifact; on failure or cancellation nothing is left of it. Can be repeated."""
        key = artifact_key(run_id, number)
        writer = ObjectWriter(self._objects, key)
        try:
            async for chunk in chunks:
                await writer.write(chunk)
            return await writer.finish()
        except BaseException:
            await run_to_end(self._undo(writer, key))
            raise

    async def put_path(self, run_id: UUID, number: int, path: Path) -> WrittenObject:
        """Write an artifact from a local regular file. A link in its last place is refused.

        Raises:
            OSError: not there, or not a regular file.
        """
        return await self.put_stream(run_id, number, _read_file(path))

    def open(
        self, run_id: UUID, number: int, *, offset: int = 0, length: int | None = None
    ) -> AbstractAsyncContextManager[ObjectStream]:
        """Open an artifact, or a range of it, for reading.

        Raises:
            ObjectMissing, RangeNotSatisfiable
        """
        return self._objects.open(artifact_key(run_id, number), offset=offset, length=length)

    async def delete_all(self, run_id: UUID) -> RemovedArtifacts:
        """Delete what a run produced and return what there was."""
        removed = RemovedArtifacts()
        async for page in self._objects.list_pages(f"{PREFIX}{run_id}/"):
            await self._remove(page, removed)
        return removed

    async def delete_of_runs(
        self, run_ids: Collection[UUID], *, dry_run: bool = False
    ) -> RemovedArtifacts:
        """Delete what these runs produced; `dry_run` only counts.

        For runs that were created one after the other: all from the first to the last are listed,
        which is one request for a thousand artifacts where asking for each run is one for each.
        """
        names = {str(run_id) for run_id in run_ids}
        last, removed = max(names), RemovedArtifacts()
        async for page in self._objects.list_pages(PREFIX, start_after=f"{PREFIX}{min(names)}"):
            theirs = [info for info in page if _run_name(info) in names]
            await self._remove(theirs, removed, dry_run=dry_run)
            if page and _run_name(page[-1]) > last:
                break
        return removed

    async def delete_older(self, age: timedelta, *, dry_run: bool = False) -> RemovedArtifacts:
        """Delete artifacts that are older by the server's clock, whether or not a run lists them.

        Their keys are in order of their runs' creation: the first page on which none is old ends
        it, so that with nothing to do this is one request. `dry_run` only counts.
        """
        removed = RemovedArtifacts()
        async for page in self._objects.list_pages(PREFIX):
            old = [info for info in page if info.served_at - info.last_modified > age]
            if not old:
                break
            await self._remove(old, removed, dry_run=dry_run)
        return removed

    async def _remove(
        self, infos: list[ObjectInfo], removed: RemovedArtifacts, *, dry_run: bool = False
    ) -> None:
        if infos and not dry_run:
            await self._objects.delete(info.key for info in infos)
        removed.artifacts += len(infos)
        removed.bytes += sum(info.bytes for info in infos)

    async def _undo(self, writer: ObjectWriter, key: str) -> None:
        await writer.abort()
        await self._objects.delete([key])


def artifact_key(run_id: UUID, number: int) -> str:
    return f"{PREFIX}{run_id}/artifacts/{number}"


def _run_name(info: ObjectInfo) -> str:
    return info.key.removeprefix(PREFIX).partition("/")[0]


async def _read_file(path: Path) -> AsyncIterator[bytes]:
    # What a tool planted is not followed, and a pipe does not block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"not a regular file: {path.name}")
        while chunk := await asyncio.to_thread(file.read, READ_BYTES):
            yield chunk
