"""Streaming write of an object whose length is not known beforehand.

Up to one part it is one PUT, beyond that a multipart upload with parts in flight while the next
one fills. SHA-256 and size are counted on the way. A writer ends with `finish` or `abort`.
"""

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Any

import msgspec

from app.store.objects import ObjectStore
from app.store.upload_buffers import PART_BYTES, PartBody

PARTS_IN_FLIGHT = 2
# So much of a file is not charged to the budget: many small uploads need no turn.
UNCHARGED_BYTES = 256 * 1024


class WrittenObject(msgspec.Struct, frozen=True):
    bytes: int
    sha256: str


class ObjectWriter:
    """Writes one object from chunks that are pushed. Not for concurrent use.

    After any error or cancellation call `abort`; it leaves no multipart upload, but the object may
    exist when `finish` had begun, and then it is the caller's to delete.
    """

    def __init__(
        self,
        objects: ObjectStore,
        key: str,
        *,
        content_type: str = "application/octet-stream",
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._objects, self._key = objects, key
        self._content_type, self._metadata = content_type, dict(metadata or {})
        self._buffer = bytearray()
        self._charged = False
        self._sha256 = hashlib.sha256()
        self._upload: asyncio.Task[str] | None = None
        self._parts: list[asyncio.Task[str]] = []
        self._ending: asyncio.Task[None] | None = None
        self.bytes = 0

    @property
    def sha256(self) -> str:
        """SHA-256 in hex of what was written so far."""
        return self._sha256.hexdigest()

    async def write(self, chunk: bytes | memoryview) -> None:
        """Take a chunk; waits while the server is slower than the caller."""
        self._sha256.update(chunk)
        self.bytes += len(chunk)
        rest = memoryview(chunk)
        while rest:
            if len(self._buffer) == PART_BYTES:
                await self._send_part()
            if not self._charged and len(self._buffer) + len(rest) > UNCHARGED_BYTES:
                await self._objects.buffers.reserve(PART_BYTES)
                self._charged = True
            room = PART_BYTES - len(self._buffer)
            self._buffer += rest[:room]
            rest = rest[room:]

    async def finish(self) -> WrittenObject:
        """Send what is left and wait until the object stands, whole."""
        if self._upload is not None:
            await self._send_part()
        self._ending = asyncio.create_task(self._end())
        # The server may act on a request that we stop waiting for: it runs on until abort.
        await asyncio.shield(self._ending)
        return WrittenObject(bytes=self.bytes, sha256=self.sha256)

    async def abort(self) -> None:
        """Drop what was sent. Waits for requests on their way, then aborts the upload.

        In the other order a part that lands after the abort would stay as an orphan.
        """
        tasks = [task for task in (self._upload, *self._parts, self._ending) if task is not None]
        await asyncio.gather(*tasks, return_exceptions=True)
        self._drop_buffer()
        upload, ending = self._upload, self._ending
        completed = ending is not None and _succeeded(ending)
        if upload is not None and _succeeded(upload) and not completed:
            await self._objects.abort_multipart(self._key, upload.result())

    async def _send_part(self) -> None:
        if self._upload is None:
            self._upload = asyncio.create_task(
                self._objects.create_multipart(self._key, self._content_type, self._metadata)
            )
        while sum(not part.done() for part in self._parts) >= PARTS_IN_FLIGHT:
            await asyncio.wait(
                [part for part in self._parts if not part.done()],
                return_when=asyncio.FIRST_COMPLETED,
            )
        for part in self._parts:
            if part.done():
                part.result()
        buffer, charged = self._buffer, self._charged
        self._buffer, self._charged = bytearray(), False
        sending = self._put_part(self._upload, len(self._parts) + 1, PartBody(buffer), charged)
        self._parts.append(asyncio.create_task(sending))

    async def _put_part(
        self, upload: asyncio.Task[str], number: int, body: PartBody, charged: bool
    ) -> str:
        try:
            return await self._objects.put_part(self._key, await upload, number, body)
        finally:
            if charged:
                self._objects.buffers.release(PART_BYTES)

    async def _end(self) -> None:
        if self._upload is None:
            try:
                await self._objects.put_part_body(
                    self._key, PartBody(self._buffer), self._content_type, self._metadata
                )
            finally:
                self._drop_buffer()
        else:
            etags = [await part for part in self._parts]
            await self._objects.complete_multipart(self._key, self._upload.result(), etags)

    def _drop_buffer(self) -> None:
        self._buffer = bytearray()
        if self._charged:
            self._charged = False
            self._objects.buffers.release(PART_BYTES)


def _succeeded(task: asyncio.Task[Any]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
