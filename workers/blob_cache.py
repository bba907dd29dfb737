"""The node-local cache of blobs: what a run on this machine downloaded, the next one just links.

Invariant: the cache can make a run faster, never wrong and never fail. What it gives is proved by
SHA-256 each time (some 11 ms for 20 MB), and where its disk fails a run goes on without it.

Names are made of blob id and hash, not of the hash alone: equal bytes of two uploads are two
entries. Sharing them would save little, since the steps of a session read one upload's blobs, and
would let a user learn from the time of a run that somebody else has a file of just these bytes.
"""

import asyncio
import errno
import hashlib
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from weakref import WeakValueDictionary

from app.domain.files import StoredFile
from app.log import get_log
from app.settings import Settings
from workers.cache_directory import CacheDirectory

# A file that nobody used for its time is gone so much later at most, also on an idle machine.
SWEEP_SECONDS = 600
# A cache that does not work says so this often.
QUIET_SECONDS = 600

log = get_log(__name__)


class BlobCache:
    """Blobs on this machine's disk, shared with the other workers that are given the directory.

    Runs hold links, so that an eviction takes nothing from them: what they hold, and what is being
    downloaded, stands on the disk beside `max_bytes`, as it would without a cache.
    """

    def __init__(self, directory: Path, *, max_bytes: int, max_age_seconds: float) -> None:
        self.directory = directory
        self._files = CacheDirectory(
            directory, max_bytes=max_bytes, max_age_seconds=max_age_seconds
        )
        self._downloads: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._quiet_until = 0.0

    @contextmanager
    def hold(self) -> Iterator[Path | None]:
        """Give a run a directory to fetch blobs into; None where the cache cannot be used."""
        with ExitStack() as stack:
            hand = None
            try:
                self._files.open()
                hand = stack.enter_context(self._files.hold())
            except OSError as error:
                self._complain(error)
            yield hand

    async def fetch(
        self, file: StoredFile, path: Path, download: Callable[[Path], Awaitable[None]]
    ) -> bool:
        """Bring a blob to `path` (in what `hold` gave), by `download` if need be: was it here?

        `download` writes a whole and proved file. One blob is downloaded once at a time by this
        process; two processes may both do it. The file is read-only, and stays whatever happens to
        the cache.

        Raises:
            OSError: the cache's disk failed; whatever `download` raises
        """
        name = hashlib.sha256(f"{file.blob_id} {file.sha256} {file.bytes}".encode()).hexdigest()
        downloading = self._downloads.setdefault(name, asyncio.Lock())
        async with downloading:
            proof = (file.sha256, file.bytes)
            if await asyncio.to_thread(self._files.take, name, path, *proof):
                return True
            await download(path)
            try:
                await asyncio.to_thread(self._files.add, name, path)
            except OSError as error:
                self._complain(error)  # The run has its file all the same.
        return False

    async def give_way(self, error: OSError) -> None:
        """Note that the cache's disk failed a run; on a full one, give back what can be had."""
        self._complain(error)
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            await self.sweep(keep_bytes=0)

    async def sweep(self, *, keep_bytes: int | None = None) -> None:
        """Remove what is too old and what killed workers left behind."""
        try:
            self._files.open()
            kept_bytes = await asyncio.to_thread(self._files.sweep, keep_bytes=keep_bytes)
        except OSError as error:
            self._complain(error)
        else:
            log.info("blob_cache.swept", kept_bytes=kept_bytes)

    async def keep_swept(self) -> None:
        """Sweep by the clock, for as long as the worker lives."""
        while True:
            await self.sweep()
            await asyncio.sleep(SWEEP_SECONDS)

    def _complain(self, error: OSError) -> None:
        if time.monotonic() >= self._quiet_until:
            self._quiet_until = time.monotonic() + QUIET_SECONDS
            log.warning("blob_cache.failed", directory=str(self.directory), error=str(error))


def make_blob_cache(settings: Settings) -> BlobCache | None:
    """Make the cache that the settings ask for; None: none."""
    if settings.worker_cache_bytes == 0:
        return None
    try:
        directory = settings.cache_directory.expanduser()
    except RuntimeError as error:
        log.warning("blob_cache.failed", directory=str(settings.cache_directory), error=str(error))
        return None
    return BlobCache(
        directory,
        max_bytes=settings.worker_cache_bytes,
        max_age_seconds=settings.session_files_ttl_seconds,
    )
