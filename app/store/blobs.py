"""Blobs on their way in and out: an upload of several files, and a stream that proves itself.

Invariant: an upload that is left without a commit leaves no blob and no open multipart upload. The
ids of an upload's blobs are a group, so that the sweep sees in a listing what belongs together.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime

from app.domain.files import StoredFile, UploadLimits, check_unique_names, normalize_file_name
from app.domain.ids import Uuid7Group
from app.errors import AppError, FileDamaged, MalformedRequest
from app.log import get_log
from app.store.manifests import SetKey
from app.store.object_writer import ObjectWriter, WrittenObject
from app.store.objects import ObjectStore

# Writes of finished files that may still be on their way while the next file is read.
FILES_IN_FLIGHT = 2
# The sweep takes blobs older than an hour that no manifest names for orphans.
MAX_UPLOAD_SECONDS = 45 * 60
MAX_CONTENT_TYPE_LENGTH = 255

log = get_log(__name__)


class BlobUpload:
    """Files being written as blobs of one set, before a manifest names them. Not concurrent."""

    def __init__(self, objects: ObjectStore, key: SetKey, limits: UploadLimits) -> None:
        self.key = key
        self.files: tuple[StoredFile, ...] = ()
        self.total_bytes = 0
        self._objects, self._limits = objects, limits
        self._writers: list[tuple[str, ObjectWriter]] = []
        self._finishing: list[asyncio.Task[WrittenObject]] = []
        self._ids = Uuid7Group()
        self._started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the upload began."""
        return time.monotonic() - self._started

    async def add_file(
        self, raw_name: str, content_type: str, chunks: AsyncIterator[bytes]
    ) -> StoredFile:
        """Stream one file into a blob and return what is stored of it.

        Names and limits are checked before and while it streams; the first one that is passed ends
        the upload. The write may still be on its way afterwards: `settle` waits for it.

        Raises:
            InvalidFileName, DuplicateFileNames, TooManyFiles, FileTooLarge, UploadTooLarge,
            MalformedRequest (took too long), Unavailable; whatever `chunks` raises
        """
        self._limits.check_file_count(len(self.files) + 1)
        name = normalize_file_name(raw_name)
        check_unique_names([*(file.name for file in self.files), name])
        blob_id = str(self._ids.new(datetime.now(UTC)))
        writer = ObjectWriter(
            self._objects, self.key.blob_key(blob_id), metadata=self.key.blob_metadata
        )
        self._writers.append((blob_id, writer))
        async for chunk in chunks:
            self._limits.check_sizes(
                name, writer.bytes + len(chunk), self.total_bytes + writer.bytes + len(chunk)
            )
            if self.seconds > MAX_UPLOAD_SECONDS:
                raise MalformedRequest("Uppladdningen tog för lång tid.")
            await writer.write(chunk)
        self.total_bytes += writer.bytes
        while len(self._finishing) >= FILES_IN_FLIGHT:
            await asyncio.shield(self._finishing[0])
            self._finishing.pop(0)
        self._finishing.append(asyncio.create_task(writer.finish()))
        stored = StoredFile(
            name=name,
            bytes=writer.bytes,
            sha256=writer.sha256,
            content_type=content_type[:MAX_CONTENT_TYPE_LENGTH],
            blob_id=blob_id,
        )
        self.files = (*self.files, stored)
        return stored

    async def settle(self) -> None:
        """Wait until every blob stands."""
        for task in self._finishing:
            await asyncio.shield(task)
        if self.seconds > MAX_UPLOAD_SECONDS:
            raise MalformedRequest("Uppladdningen tog för lång tid.")

    async def discard(self) -> None:
        """Delete everything that was written; what cannot be reached is left to the sweep."""
        await asyncio.gather(*self._finishing, return_exceptions=True)
        aborts = (writer.abort() for _, writer in self._writers)
        failures = [
            result
            for result in await asyncio.gather(*aborts, return_exceptions=True)
            if isinstance(result, BaseException)
        ]
        try:
            await self._objects.delete([self.key.blob_key(blob) for blob, _ in self._writers])
        except AppError as error:
            failures.append(error)
        if failures:
            log.warning("upload.discard_failed", error=repr(failures[0]), set=self.key.path)


async def verify_stream(chunks: AsyncIterator[bytes], file: StoredFile) -> AsyncIterator[bytes]:
    """Pass a file's bytes on; raise FileDamaged at the end unless they are the ones stored."""
    sha256 = hashlib.sha256()
    count = 0
    async for chunk in chunks:
        sha256.update(chunk)
        count += len(chunk)
        yield chunk
    if count != file.bytes or sha256.hexdigest() != file.sha256:
        log.error("blob.damaged", blob_id=file.blob_id, bytes=count, expected_bytes=file.bytes)
        raise FileDamaged(details={"name": file.name})
