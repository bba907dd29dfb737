"""The files of a run: from this machine's cache or S3 to the worker's disk, each one verified."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path

from app.domain.files import StoredFile
from app.domain.runs import ClaimedRun
from app.errors import AppError, SessionFilesExpired, Unavailable
from app.log import get_log
from app.store.session_files import FILES_REMOVED, SessionFilesKey, SessionFileStorageProtocol
from workers.blob_cache import BlobCache
from workers.retries import retry
from workers.sandbox.base import InputFile

PARALLEL_DOWNLOADS = 4
# A server that restarts or fails over is back within this; then another worker may have more luck.
# The lease is renewed meanwhile.
PATIENCE_SECONDS = 60
# All of a run's files are here by then, or S3 is too slow to be of use.
STAGING_SECONDS = 120

log = get_log(__name__)


class SnapshotUnavailable(Exception):
    """S3 is away or too slow. The tool has not run: it may be tried again later."""


@asynccontextmanager
async def stage_snapshot(
    storage: SessionFileStorageProtocol,
    run: ClaimedRun,
    directory: Path,
    cache: BlobCache | None = None,
) -> AsyncIterator[list[InputFile]]:
    """Bring the files that a run was started with to disk, for as long as the block lasts.

    They lie in the cache's directory or, where it is of no use, in `directory`. There they are
    named by their place in the list: a user's name never becomes a path here.

    Raises:
        SessionFilesExpired: a file was deleted meanwhile, by a clear or by its time.
        FileDamaged: its bytes are not those stored.
        SnapshotUnavailable: S3 did not answer for PATIENCE_SECONDS, or took STAGING_SECONDS.
    """
    if run.files and not run.session_has_files:
        raise SessionFilesExpired(FILES_REMOVED)
    # A run that was not superseded saw no upload since it was queued, so that the session's word
    # is about its files. Of another's S3 alone knows whether they were cleared before that upload.
    if run.superseded:
        cache = None
    started = time.monotonic()
    with cache.hold() if cache is not None else nullcontext() as hand:
        staging = _Staging(storage, run, directory, cache, hand)
        try:
            async with asyncio.timeout(STAGING_SECONDS):
                files = await staging.fetch_all()
        except (Unavailable, TimeoutError) as error:
            raise SnapshotUnavailable(repr(error)) from error
        log.info(
            "snapshot.ready",
            run_id=run.id,
            files=len(run.files),
            bytes=sum(file.bytes for file in run.files),
            hits=len(staging.hits),
            hit_bytes=sum(file.bytes for file in staging.hits),
            duration_ms=round((time.monotonic() - started) * 1000),
        )
        yield files


class _Staging:
    """The files of one run on their way."""

    def __init__(
        self,
        storage: SessionFileStorageProtocol,
        run: ClaimedRun,
        directory: Path,
        cache: BlobCache | None,
        hand: Path | None,
    ) -> None:
        self.hits: list[StoredFile] = []
        self._storage, self._files, self._directory = storage, run.files, directory
        self._key = SessionFilesKey(run.tool_id, run.user_id, run.context)
        self._cache, self._hand = cache, hand
        self._turns = asyncio.Semaphore(PARALLEL_DOWNLOADS)
        self._end = time.monotonic() + PATIENCE_SECONDS

    async def fetch_all(self) -> list[InputFile]:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._fetch(i)) for i in range(len(self._files))]
        except* AppError as errors:
            # A run ends with one reason: the first is as good as any.
            reason = errors.exceptions[0]
        else:
            return [task.result() for task in tasks]
        raise reason

    async def _fetch(self, index: int) -> InputFile:
        file = self._files[index]
        async with self._turns:
            path = await self._fetch_by_cache(index, file)
            if path is None:
                path = self._directory / str(index)
                await self._download(file, path)
        return InputFile(file.name, path, file.bytes)

    async def _fetch_by_cache(self, index: int, file: StoredFile) -> Path | None:
        """Return where the file lies, or None where the cache's disk is of no use."""
        if self._cache is None or self._hand is None:
            return None
        path = self._hand / str(index)
        try:
            if await self._cache.fetch(file, path, partial(self._download, file)):
                self.hits.append(file)
        except OSError as error:
            with suppress(OSError):
                path.unlink(missing_ok=True)  # Half a file on what may be a full disk.
            await self._cache.give_way(error)
            return None
        return path

    async def _download(self, file: StoredFile, path: Path) -> None:
        """Download one file; again from its beginning while S3 is away."""

        async def download() -> None:
            async with self._storage.open_file(self._key, file) as chunks:
                with path.open("wb") as target:
                    async for chunk in chunks:
                        target.write(chunk)

        def report(error: Unavailable) -> None:
            log.warning("snapshot.retried", blob_id=file.blob_id, error=str(error))

        await retry(download, Unavailable, until=self._end, report=report)
