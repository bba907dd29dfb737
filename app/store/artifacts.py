"""Artifacts: the files that runs produced, under `runs/{run_id}/artifacts/{n}`.

Names and sizes stand with the run in PostgreSQL; here are only bytes. A retried run writes over the
same keys, so nothing of a lost attempt outlives the run.
"""

import asyncio
import os
import stat
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from uuid import UUID

from app.store.object_types import ObjectStream
from app.store.object_writer import ObjectWriter, WrittenObject, run_to_end
from app.store.objects import ObjectStore

READ_BYTES = 1024 * 1024


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

    async def delete_all(self, run_id: UUID) -> int:
        """Delete what a run produced and return how many artifacts there were."""
        prefix = f"runs/{run_id}/"
        keys = [info.key async for info in self._objects.list_objects(prefix)]
        return await self._objects.delete(keys)

    async def _undo(self, writer: ObjectWriter, key: str) -> None:
        await writer.abort()
        await self._objects.delete([key])


def artifact_key(run_id: UUID, number: int) -> str:
    return f"runs/{run_id}/artifacts/{number}"


async def _read_file(path: Path) -> AsyncIterator[bytes]:
    # What a tool planted is not followed, and a pipe does not block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"not a regular file: {path.name}")
        while chunk := await asyncio.to_thread(file.read, READ_BYTES):
            yield chunk
