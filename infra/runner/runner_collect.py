"""What a finished tool left in its work directory: found without following anything it planted.

Directories are walked by descriptor and every name is opened with O_NOFOLLOW, so a link never
leads out. The walk is bounded whatever the tree looks like, and what breaks the contract is an
answer (`Refused`), not a crash. The worker checks everything again: it trusts nothing from here.
"""

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

DEPTH_MAX = 32
DIRECTORIES_MAX = 1000
PATH_MAX_BYTES = 1024

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# O_NONBLOCK: opening a FIFO must not wait for a writer that never comes.
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC


class Refused(Exception):
    """Something breaks the contract: a reason that the worker knows, and where."""

    def __init__(self, reason: str, path: str = "") -> None:
        # Names that are no UTF-8 arrive with surrogates, which JSON could not carry as they are.
        self.reason, self.path = reason, path.encode("utf-8", "replace").decode()[:200]
        super().__init__(reason)


@dataclass(frozen=True)
class Found:
    """A regular file, open for reading; `bytes` is its size when it was opened."""

    path: str
    bytes: int
    fd: int


def open_result(path: str, max_bytes: int) -> Found | None:
    """Open result.json. None when there is none. Raises Refused when it cannot be taken."""
    try:
        found = _open_file(path, "result.json", None)
    except FileNotFoundError:
        return None
    if found.bytes > max_bytes:
        os.close(found.fd)
        raise Refused("result_too_large")
    return found


def walk_artifacts(
    root: str, *, max_files: int, max_bytes: int, max_total_bytes: int
) -> Iterator[Found]:
    """Yield the files below `root` by path; the caller closes each. Raises Refused.

    All are found, and refused, before the first is yielded, so that a refusal costs no copying.
    """
    try:
        top = os.open(root, _DIRECTORY)
    except FileNotFoundError:
        return
    except OSError:
        raise Refused("not_a_regular_file", "output") from None
    try:
        paths: list[tuple[str, int]] = []
        directories = 0
        # A path is opened again from the top for each directory: slow in the deep, but the number
        # of open descriptors stays at two.
        waiting = [""]
        while waiting:
            here = waiting.pop()
            directories += 1
            if directories > DIRECTORIES_MAX:
                raise Refused("too_many_directories", here)
            for path, info in _list_directory(top, here):
                if stat.S_ISDIR(info.st_mode):
                    waiting.append(path)
                    continue
                if stat.S_ISLNK(info.st_mode):
                    raise Refused("link", path)
                if not stat.S_ISREG(info.st_mode):
                    raise Refused("not_a_regular_file", path)
                if info.st_size > max_bytes:
                    raise Refused("artifact_too_large", path)
                paths.append((path, info.st_size))
                if len(paths) > max_files:
                    raise Refused("too_many_artifacts")
        if sum(size for _, size in paths) > max_total_bytes:
            raise Refused("artifacts_too_large")
        for path, _ in sorted(paths):
            parent, _, name = path.rpartition("/")
            directory = _open_below(top, parent)
            try:
                found = _open_file(name, path, directory)
            finally:
                os.close(directory)
            yield found
    finally:
        os.close(top)


def measure_tree(root: str, stop_at_bytes: int) -> int:
    """Count the bytes that `root` takes on disk, up to `stop_at_bytes`, without following links."""
    total, waiting = 0, [root]
    while waiting and total <= stop_at_bytes:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    total += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(entry.path)
        except OSError:  # the tool is busy removing it
            continue
    return total


def _list_directory(top: int, path: str) -> Iterator[tuple[str, os.stat_result]]:
    directory = _open_below(top, path)
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                child = f"{path}/{entry.name}" if path else entry.name
                try:
                    encoded = child.encode()
                except UnicodeEncodeError:
                    raise Refused("bad_name", child) from None
                if len(encoded) > PATH_MAX_BYTES or child.count("/") > DEPTH_MAX:
                    raise Refused("path_too_long", child)
                yield child, entry.stat(follow_symlinks=False)
    except PermissionError:
        raise Refused("unreadable", path) from None
    finally:
        os.close(directory)


def _open_below(top: int, path: str) -> int:
    directory = os.dup(top)
    try:
        for part in path.split("/") if path else ():
            below = os.open(part, _DIRECTORY, dir_fd=directory)
            os.close(directory)
            directory = below
    except OSError:
        os.close(directory)
        raise Refused("unreadable", path) from None
    return directory


def _open_file(name: str, path: str, directory: int | None) -> Found:
    try:
        fd = os.open(name, _FILE, dir_fd=directory)
    except FileNotFoundError:
        raise
    except PermissionError:
        raise Refused("unreadable", path) from None
    except OSError:  # ELOOP for a link, ENXIO for a socket
        raise Refused("not_a_regular_file", path) from None
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        os.close(fd)
        raise Refused("not_a_regular_file", path)
    return Found(path, info.st_size, fd)
