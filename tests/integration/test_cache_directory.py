"""The cache's directory among processes: its bound, its order, and what killed workers leave."""

import asyncio
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

import pytest

from app.domain.files import StoredFile
from workers.blob_cache import BlobCache
from workers.cache_directory import BLOCK_BYTES, CacheDirectory

DAY = 86_400.0


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "blobs"


def entries_of(root: Path) -> list[Path]:
    return list((root / "entries").iterdir())


def hands_of(root: Path) -> list[Path]:
    return list((root / "hands").iterdir())


# --- Bound and age ----------------------------------------------------------------------------


class Names:
    """A bare directory, and files that are named by what is in them."""

    def __init__(self, root: Path, blocks: int, max_age_seconds: float = DAY) -> None:
        max_bytes = blocks * BLOCK_BYTES
        self.root = root
        self.directory = CacheDirectory(root, max_bytes=max_bytes, max_age_seconds=max_age_seconds)
        self.directory.open()

    def add(self, name: str, size_bytes: int = BLOCK_BYTES) -> None:
        with self.directory.hold() as hand:
            source = hand / "0"
            source.write_bytes(name.encode().ljust(size_bytes))
            self.directory.add(name, source)

    def take(self, name: str, size_bytes: int = BLOCK_BYTES) -> bool:
        digest = sha256(name.encode().ljust(size_bytes)).hexdigest()
        with self.directory.hold() as hand:
            return self.directory.take(name, hand / "0", digest, size_bytes)

    @property
    def kept(self) -> set[str]:
        return {path.name for path in entries_of(self.root)}

    def age(self, name: str, seconds: float) -> None:
        used = time.time() - seconds
        os.utime(self.root / "entries" / name, (used, used))


def test_the_one_that_was_not_used_for_longest_goes_first(root: Path) -> None:
    names = Names(root, blocks=10)
    for number in range(10):
        names.add(str(number))
    assert len(names.kept) == 10, "all fit, to the byte"
    assert names.take("0") and names.take("2")
    names.add("new")
    assert names.kept == {"0", "2", "3", "4", "5", "6", "7", "8", "9", "new"}
    names.add("big", 5 * BLOCK_BYTES)
    assert names.kept == {"8", "9", "0", "2", "new", "big"}


def test_a_file_over_the_bound_is_left_out_and_evicts_nothing(root: Path) -> None:
    names = Names(root, blocks=3)
    names.add("small")
    names.add("big", 3 * BLOCK_BYTES + 1)
    assert names.kept == {"small"}
    names.add("just", 3 * BLOCK_BYTES)
    assert names.kept == {"just"}


def test_empty_files_are_not_free(root: Path) -> None:
    names = Names(root, blocks=5)
    for number in range(20):
        names.add(str(number), 0 if number else 1)
    assert 1 <= len(names.kept) <= 5


def test_what_nobody_used_for_its_time_is_removed(root: Path) -> None:
    names = Names(root, blocks=100, max_age_seconds=100)
    for name in ("old", "used", "young", "clock put back"):
        names.add(name)
    names.age("old", 101)
    names.age("used", 101)
    names.age("young", 90)
    names.age("clock put back", -101)
    assert names.take("used")
    assert names.directory.sweep() == 2 * BLOCK_BYTES
    assert names.kept == {"used", "young"}


# --- Processes --------------------------------------------------------------------------------

POPULATION, SHARED_BLOCKS = 60, 100


def shared_file(number: int) -> tuple[StoredFile, bytes]:
    data = random.Random(number).randbytes(number * 1_000)
    return StoredFile(str(number), len(data), sha256(data).hexdigest(), "", f"blob-{number}"), data


def open_cache(root: str) -> BlobCache:
    return BlobCache(Path(root), max_bytes=SHARED_BLOCKS * BLOCK_BYTES, max_age_seconds=DAY)


def use_for_a_while(root: str, seed: int, seconds: float) -> None:
    """One process among several: fetch, read, check, again."""

    async def fetch_some(choice: random.Random, cache: BlobCache) -> int:
        hits = 0
        with cache.hold() as hand:
            assert hand is not None
            held = []
            for index in range(choice.randint(1, 5)):
                file, data = shared_file(choice.randrange(POPULATION))

                async def download(path: Path, data: bytes = data) -> None:
                    with path.open("wb") as target:
                        for start in range(0, len(data), 10_000):
                            target.write(data[start : start + 10_000])
                            await asyncio.sleep(0)

                path = hand / str(index)
                hits += await cache.fetch(file, path, download)
                held.append((path, data))
            for path, data in held:
                assert path.read_bytes() == data
        return hits

    async def use() -> None:
        cache, end = open_cache(root), time.monotonic() + seconds
        choice = random.Random(seed)
        rounds = hits = 0
        while time.monotonic() < end:
            got = await asyncio.gather(*(fetch_some(choice, cache) for _ in range(3)))
            hits, rounds = hits + sum(got), rounds + 1
            if rounds % 20 == 0:
                await cache.sweep()
        assert rounds > 10 and hits > 10, (rounds, hits)

    asyncio.run(use())


def test_processes_that_fill_and_evict_at_once_read_right_and_keep_the_bound(root: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    bound = SHARED_BLOCKS * BLOCK_BYTES
    assert sum(shared_file(n)[0].bytes for n in range(POPULATION)) > 3 * bound
    users = [spawn.Process(target=use_for_a_while, args=(str(root), n, 4.0)) for n in range(3)]
    for user in users:
        user.start()
    most = samples = 0
    breaker = random.Random(0)
    while any(user.is_alive() for user in users):
        used = used_bytes(root)
        most, samples = max(most, used), samples + 1
        if samples % 10 == 0:
            replace_by_rubbish(root, breaker)
        time.sleep(0.01)
    assert [user.exitcode for user in users] == [0, 0, 0]
    assert bound / 2 < most <= bound
    assert hands_of(root) == []


def used_bytes(root: Path) -> int:
    """Look at the names while others change them: never more than there were at one moment."""
    used = 0
    for path in (root / "entries").glob("*"):
        try:
            used += -(-path.stat().st_size // BLOCK_BYTES) * BLOCK_BYTES
        except FileNotFoundError:
            return 0  # An eviction is on its way, and what was counted may be gone.
    return used


def replace_by_rubbish(root: Path, choice: random.Random) -> None:
    """Put another file in an entry's place, as long as the one that it replaces."""
    # Under the lock: the name must not come back after an eviction that nobody knows of.
    with Names(root, SHARED_BLOCKS).directory._lock():
        if entries := list((root / "entries").iterdir()):
            entry, rubbish = choice.choice(entries), root / uuid4().hex
            with suppress(FileNotFoundError):  # dropped as damaged, which needs no lock
                rubbish.write_bytes(bytes(entry.stat().st_size))
                rubbish.rename(entry)


STUCK = """
import asyncio, sys
from pathlib import Path
from app.domain.files import StoredFile
from workers.blob_cache import BlobCache

async def main():
    cache = BlobCache(Path(sys.argv[1]), max_bytes=10_000_000, max_age_seconds=1000)
    async def download(path):
        with path.open("wb") as target:
            target.write(bytes(500_000))
            target.flush()
            print("half", flush=True)
            await asyncio.sleep(60)
    with cache.hold() as hand:
        await cache.fetch(StoredFile("a", 1_000_000, "0" * 64, "", "a"), hand / "0", download)

asyncio.run(main())
"""


def test_a_worker_killed_while_it_fills_leaves_what_the_next_sweep_removes(root: Path) -> None:
    names = Names(root, blocks=100)
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, str(root)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"half\n"
        names.directory.sweep()
        assert len(hands_of(root)) == 1, "the living are left alone"
        process.send_signal(signal.SIGKILL)
    (hand,) = hands_of(root)
    assert [path.stat().st_size for path in hand.iterdir()] == [500_000]
    assert entries_of(root) == []
    assert names.directory.sweep() == 0
    assert hands_of(root) == []
