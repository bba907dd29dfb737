"""Temporary directories of runs, on this machine: each names its worker, so that others can tell.

They hold users' files. Only their owner may look into them, and who finds that a directory's
worker is dead removes it. One whose worker cannot be seen from here (in another container, or from
before a restart of the machine) is removed when it is older than any run can be.
"""

import asyncio
import contextlib
import os
import stat
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from app.concurrency import run_to_end
from app.log import get_log
from workers.sandbox.owner import LEFT_OVER_SECONDS, is_gone, is_in_sight, name_owner

PREFIX = "skriptoteket-run-"

log = get_log(__name__)


@contextlib.asynccontextmanager
async def run_directory() -> AsyncIterator[Path]:
    """Make a directory that goes with the block, with all that is in it."""
    path = make_run_directory()
    try:
        yield path
    finally:
        await run_to_end(remove_directory(path))


def make_run_directory() -> Path:
    """Make a directory of mode 0700; the caller removes it with `remove_directory`."""
    owner = name_owner().replace("/", "-")
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{owner}-"))


async def remove_directory(path: Path) -> None:
    """Remove a run's directory, whatever a tool has made in it. Never raises for that."""
    # Empty is what a work directory is when a mount of its own held the files.
    with contextlib.suppress(OSError):
        os.rmdir(path)  # noqa: PTH106
        return
    # Trees too deep for Python are no matter for these. What the tool made unreadable is made
    # readable only if need be, since snapshots share their files with the cache.
    await _execute(["rm", "-rf", "--", str(path)])
    if await asyncio.to_thread(path.exists):
        await _execute(["chmod", "-R", "u+rwx", "--", str(path)])
        await _execute(["rm", "-rf", "--", str(path)])
    if await asyncio.to_thread(path.exists):
        log.error("sandbox.remove_failed", directory=str(path))


async def keep_left_over_removed(max_age_seconds: float) -> None:
    """Remove what dead workers left now, and by the clock from then on."""
    while True:
        try:
            for path in await asyncio.to_thread(find_left_over, max_age_seconds):
                log.warning("sandbox.left_over_removed", directory=path.name)
                await remove_directory(path)
        except OSError as error:
            log.warning("sandbox.tidying_failed", reason=str(error))
        await asyncio.sleep(LEFT_OVER_SECONDS)


def find_left_over(max_age_seconds: float) -> list[Path]:
    """List the directories of runs whose worker is gone, or has to be by their age."""
    oldest = time.time() - max_age_seconds
    left = []
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        owner, _, _ = path.name.removeprefix(PREFIX).rpartition("-")
        owner = owner.replace("-", "/")
        with contextlib.suppress(OSError):  # removed meanwhile
            info = path.lstat()
            # In a place that all may write to: a link with such a name may lead anywhere.
            is_our_users = stat.S_ISDIR(info.st_mode) and info.st_uid == os.getuid()
            is_old = info.st_mtime < oldest and not is_in_sight(owner)
            if is_our_users and (is_gone(owner) or is_old):
                left.append(path)
    return left


async def _execute(command: Sequence[str]) -> None:
    nowhere = asyncio.subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(
        *command, stdin=nowhere, stdout=nowhere, stderr=nowhere
    )
    await process.wait()
