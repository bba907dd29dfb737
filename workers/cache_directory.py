"""A directory of files that worker processes of one machine share: bounded, oldest use out first.

Invariant: a file is whole before it gets its name, is never written again, and the names together
never cost more than the bound. Taking a name away takes the file from nobody: who holds it has a
hard link of its own. What stands here may still be damaged, by a disk or a power cut (nothing is
synced) or a hand: it is read in full before it is given out.
"""

import fcntl
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from app.log import get_log
from workers.cache_hands import hold_hand, remove_dead_hands

# What a file costs is rounded up to blocks: a million empty files are not free.
BLOCK_BYTES = 4096
# An eviction goes a good deal below the bound, so that the next fills need no look at all names.
LOW_WATER = 0.9

log = get_log(__name__)


class CacheUnusable(OSError):
    """The directory is not this user's alone; the message says which and why."""


class CacheDirectory:
    """Named files under one root. Blocking, safe among threads and processes.

    Every method raises OSError where the disk fails or the directory cannot be used.
    """

    def __init__(self, root: Path, *, max_bytes: int, max_age_seconds: float) -> None:
        """Files that nobody took for `max_age_seconds` are removed by a sweep."""
        self._root, self._entries, self._hands = root, root / "entries", root / "hands"
        self._max_bytes, self._max_age_seconds = max_bytes, max_age_seconds

    def open(self) -> None:
        """Make the directory, or check the one that is there. Cheap; may be called each time.

        Raises:
            CacheUnusable: somebody else owns it or may write to it.
        """
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_ours(self._root.resolve(), forbidden=0o022)
        for inner in (self._entries, self._hands):
            inner.mkdir(mode=0o700, exist_ok=True)
            _check_ours(inner, forbidden=0o077)

    def hold(self) -> AbstractContextManager[Path]:
        """Give a directory for links to the files, for the length of the block."""
        return hold_hand(self._hands)

    def take(self, name: str, target: Path, sha256: str, size_bytes: int) -> bool:
        """Link a file to `target`, inside a hand. False: it is not here, or no longer whole.

        The link comes first, then the proof: an eviction in between changes nothing.
        """
        entry = self._entries / name
        try:
            os.link(entry, target, follow_symlinks=False)
        except FileNotFoundError:
            return False
        if not _is_whole(target, sha256, size_bytes):
            log.warning("blob_cache.entry_damaged", name=name, expected_bytes=size_bytes)
            with suppress(FileNotFoundError):
                entry.unlink()
            target.unlink()
            return False
        _note_use(target)
        return True

    def add(self, name: str, source: Path) -> None:
        """Name a whole file of a hand, evicting others first; one that never fits is left out."""
        cost = _cost(source.stat().st_size)
        if cost > self._max_bytes:
            return
        source.chmod(0o400)
        _note_use(source)
        with self._lock() as usage:
            used = _read_usage(usage)
            if used is None or used + cost > self._max_bytes:
                used = self._evict(min(int(self._max_bytes * LOW_WATER), self._max_bytes - cost))
            # Written before it is true: who dies in between leaves a count that is too high, which
            # the next eviction sets right. One too low would let the names pass the bound.
            _write_usage(usage, used + cost)
            try:
                os.link(source, self._entries / name)
            except FileExistsError:
                _write_usage(usage, used)  # Another process was faster.

    def sweep(self, *, keep_bytes: int | None = None) -> int:
        """Remove what the dead left and what is too old; return the bytes that are kept.

        `keep_bytes` is less than the bound for a disk that is full.
        """
        remove_dead_hands(self._hands)
        with self._lock() as usage:
            used = self._evict(self._max_bytes if keep_bytes is None else keep_bytes)
            _write_usage(usage, used)
        return used

    def _evict(self, keep_bytes: int) -> int:
        """Look at all names and remove the oldest; return what the others cost. Needs the lock."""
        found = []
        with os.scandir(self._entries) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):
                    if entry.is_file(follow_symlinks=False):
                        seen = entry.stat(follow_symlinks=False)
                        found.append((seen.st_mtime_ns, _cost(seen.st_size), Path(entry.path)))
        found.sort(reverse=True)
        now, used, is_full = time.time(), 0, False
        for used_ns, cost, path in found:
            is_full = is_full or used + cost > keep_bytes
            # A clock that was put back must not keep a file for ever, hence the distance.
            if is_full or abs(now - used_ns / 1e9) > self._max_age_seconds:
                path.unlink(missing_ok=True)
            else:
                used += cost
        return used

    @contextmanager
    def _lock(self) -> Iterator[int]:
        """Keep the others from adding and evicting; yields the file with the count of bytes."""
        usage = os.open(self._root / "usage", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(usage, fcntl.LOCK_EX)
            yield usage
        finally:
            os.close(usage)


def _check_ours(path: Path, *, forbidden: int) -> None:
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise CacheUnusable(f"{path} is no directory")
    if found.st_uid != os.geteuid():
        raise CacheUnusable(f"{path} belongs to user {found.st_uid}, not to this one")
    if found.st_mode & forbidden:
        raise CacheUnusable(f"{path} is open to other users (mode {found.st_mode & 0o777:o})")


def _is_whole(path: Path, sha256: str, size_bytes: int) -> bool:
    """Read a file in full; whatever stands in its place (a link, a device) is none."""
    if path.is_symlink() or not path.is_file() or path.stat().st_size != size_bytes:
        return False
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == sha256


def _note_use(path: Path) -> None:
    """Set the time that evictions go by: a mount may keep none of reads, and a coarse one else."""
    now = time.time_ns()
    os.utime(path, ns=(now, now))


def _cost(size_bytes: int) -> int:
    return max(1, -(-size_bytes // BLOCK_BYTES)) * BLOCK_BYTES


def _read_usage(usage: int) -> int | None:
    """Return the count of bytes, or None when it cannot be relied on."""
    text = os.pread(usage, 20, 0)
    return int(text) if text.isdigit() else None


def _write_usage(usage: int, used: int) -> None:
    os.pwrite(usage, b"%020d" % used, 0)
