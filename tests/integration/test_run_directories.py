"""Temporary directories of runs: whose they are, who may look into them, and who removes them."""

import os
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.sandbox.directories import (
    PREFIX,
    find_left_over,
    make_run_directory,
    remove_directory,
    run_directory,
)
from workers.sandbox.owner import name_owner

AGE_SECONDS = 1000
MAKE_ONE = """
import sys, time
from workers.sandbox.directories import make_run_directory
print(make_run_directory(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def temp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def other_worker(temp: Path) -> Iterator[tuple["subprocess.Popen[str]", Path]]:
    """A living process, and the directory that it made."""
    process = subprocess.Popen(
        [sys.executable, "-c", MAKE_ONE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    with process:
        yield process, Path(process.stdout.readline().strip())
        process.kill()


async def test_directory_is_its_owners_alone_and_goes_with_the_block(temp: Path) -> None:
    before = os.umask(0)
    try:
        async with run_directory() as path:
            assert stat.S_IMODE(path.stat().st_mode) == 0o700
            assert list(temp.iterdir()) == [path]
    finally:
        os.umask(before)
    assert list(temp.iterdir()) == []


async def test_directory_is_left_over_when_its_worker_is_dead_and_not_before(
    temp: Path, other_worker: tuple["subprocess.Popen[str]", Path]
) -> None:
    process, path = other_worker
    ours = make_run_directory()
    (path / "inputs").mkdir()
    (path / "inputs" / "a.txt").write_text("secret")
    assert find_left_over(AGE_SECONDS) == []
    # However old a directory is, its worker is the one who knows, if it can be seen.
    for each in (ours, path):
        os.utime(each, (0, 0))
    assert find_left_over(AGE_SECONDS) == []
    process.kill()
    process.wait()
    assert find_left_over(AGE_SECONDS) == [path]
    await remove_directory(path)
    assert list(temp.iterdir()) == [ours]


def test_directory_of_a_worker_out_of_sight_is_left_over_when_it_is_old(temp: Path) -> None:
    path = temp / f"{PREFIX}another-view-7-1-abcdefgh"
    path.mkdir()
    foreign = temp / "skriptoteket-something-else"
    foreign.mkdir()
    planted = temp / f"{PREFIX}another-view-7-1-planted"
    planted.symlink_to(foreign)
    assert find_left_over(AGE_SECONDS) == []
    for each in (path, foreign, planted):
        os.utime(each, (0, time.time() - AGE_SECONDS - 1), follow_symlinks=False)
    assert find_left_over(AGE_SECONDS) == [path]


async def test_directory_is_removed_whatever_a_tool_made_in_it(temp: Path) -> None:
    path = make_run_directory()
    deep = path
    for _ in range(50):
        deep /= "x" * 50
        deep.mkdir()
    deep.chmod(0)
    (path / "loop").symlink_to(temp)
    await remove_directory(path)
    assert list(temp.iterdir()) == []


def test_names_leave_room_for_sockets_below_them(temp: Path) -> None:
    # A socket's path has 107 bytes; multiprocessing's is 37 of them, below a directory of ours.
    assert len(f"/tmp/{make_run_directory().name}/.home/pymp-abcdefgh/listener-abcdefgh") < 108
    assert name_owner().count("/") == 2
