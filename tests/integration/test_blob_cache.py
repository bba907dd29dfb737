"""The cache of blobs: what it gives is right whatever happens to it, and it never stops a run."""

import asyncio
import logging
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import msgspec
import pytest
from staging import Stage, open_stage, random_files

from app.devstack import DevStack
from app.errors import FileDamaged, SessionFilesExpired
from app.settings import Settings, load_settings
from workers.blob_cache import BlobCache, make_blob_cache
from workers.cache_directory import BLOCK_BYTES
from workers.snapshot import stage_snapshot

DAY = 86_400.0


@pytest.fixture(scope="module")
async def stage(
    devstack: DevStack, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stage]:
    directory = tmp_path_factory.mktemp("runs")
    async with open_stage(devstack.database_url, devstack.s3_endpoint, directory) as stage:
        yield stage


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "blobs"


@pytest.fixture
def cache(root: Path) -> BlobCache:
    return open_cache(root)


def open_cache(root: Path, max_bytes: int = 100_000_000) -> BlobCache:
    return BlobCache(root, max_bytes=max_bytes, max_age_seconds=DAY)


def entries_of(root: Path) -> list[Path]:
    return sorted((root / "entries").iterdir(), key=lambda path: path.stat().st_mtime_ns)


def hands_of(root: Path) -> list[Path]:
    return list((root / "hands").iterdir())


# --- Hits -------------------------------------------------------------------------------------


async def test_the_next_run_downloads_nothing(
    stage: Stage, cache: BlobCache, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    files = {**random_files(3, 300_000), "tom.txt": b"", "å/b".replace("/", " "): b"x"}
    run = await stage.upload(files)
    before = stage.store.downloads
    assert await stage.stage(run, cache) == files
    assert stage.store.downloads - before == len(files)
    # Not a call is made, so it is no matter that the blobs are gone.
    await stage.delete(run)
    before = len(stage.store.calls)
    assert await stage.stage(run, cache) == files
    # Nor by another worker of this machine.
    assert await stage.stage(run, open_cache(root)) == files
    assert len(stage.store.calls) == before
    ready = [r.fields for r in caplog.records if r.getMessage() == "snapshot.ready"]
    counts = [(f["files"], f["bytes"], f["hits"], f["hit_bytes"]) for f in ready]
    total = sum(map(len, files.values()))
    assert counts == [(5, total, 0, 0), (5, total, 5, total), (5, total, 5, total)]
    assert hands_of(root) == []


async def test_a_hit_is_the_cached_file_itself_and_nobody_can_write_it(
    stage: Stage, cache: BlobCache, root: Path
) -> None:
    run = await stage.upload({"a": b"once"})
    await stage.stage(run, cache)
    async with stage_snapshot(stage.storage, run, root, cache) as files:
        (entry,) = entries_of(root)
        assert files[0].path.samefile(entry)
    assert entry.stat().st_mode & 0o777 == 0o400
    modes = {path.stat().st_mode & 0o777 for path in (root, root / "entries", root / "hands")}
    assert modes == {0o700}


async def test_equal_bytes_of_two_uploads_are_not_shared(stage: Stage, cache: BlobCache) -> None:
    first, second = [await stage.upload({"a": b"the same"}) for _ in range(2)]
    await stage.stage(first, cache)
    await stage.delete(second)
    with pytest.raises(SessionFilesExpired):
        await stage.stage(second, cache)


async def test_runs_that_want_a_blob_at_once_download_it_once(
    stage: Stage, cache: BlobCache
) -> None:
    files = random_files(4, 100_000)
    run = await stage.upload(files)
    before = stage.store.downloads
    assert await asyncio.gather(*(stage.stage(run, cache) for _ in range(5))) == [files] * 5
    assert stage.store.downloads - before == 4


async def test_download_that_fails_leaves_the_blob_to_the_next(
    stage: Stage, cache: BlobCache, root: Path
) -> None:
    run = await stage.upload({"a": b"right"})
    await stage.overwrite(run, b"wrong")
    outcomes = await asyncio.gather(
        *(stage.stage(run, cache) for _ in range(3)), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [FileDamaged] * 3
    assert (entries_of(root), hands_of(root)) == ([], [])
    await stage.overwrite(run, b"right")
    assert await stage.stage(run, cache) == {"a": b"right"}


async def test_a_run_of_a_cleared_session_gets_no_cached_file(
    stage: Stage, cache: BlobCache
) -> None:
    run = await stage.upload({"a": b"cleared"})
    await stage.stage(run, cache)
    cleared = msgspec.structs.replace(run, session_has_files=False)
    with pytest.raises(SessionFilesExpired, match="tagits bort"):
        await stage.stage(cleared, cache)
    # After another upload the session has files again: the run asks S3 for its own.
    superseded = msgspec.structs.replace(run, superseded=True)
    assert await stage.stage(superseded, cache) == {"a": b"cleared"}
    await stage.delete(run)
    with pytest.raises(SessionFilesExpired, match="tagits bort"):
        await stage.stage(superseded, cache)
    nothing = msgspec.structs.replace(cleared, files=())
    assert await stage.stage(nothing, cache) == {}


# --- Damage -----------------------------------------------------------------------------------


def flip_a_bit(entry: Path) -> None:
    data = bytearray(entry.read_bytes())
    data[len(data) // 2] ^= 1
    entry.chmod(0o600)
    entry.write_bytes(data)


def truncate(entry: Path) -> None:
    os.truncate(entry, entry.stat().st_size // 2)


def lengthen(entry: Path) -> None:
    with entry.open("ab") as file:
        file.write(b"x")


def replace_by_link(entry: Path) -> None:
    right = entry.with_name("right")
    right.write_bytes(entry.read_bytes())
    entry.unlink()
    entry.symlink_to(right)


def replace_by_pipe(entry: Path) -> None:
    entry.unlink()
    os.mkfifo(entry)


def replace_by_directory(entry: Path) -> None:
    entry.unlink()
    entry.mkdir()


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_bit,
        truncate,
        lambda entry: os.truncate(entry, 0),
        lengthen,
        replace_by_link,
        replace_by_pipe,
    ],
    ids=["bit flipped", "truncated", "emptied", "longer", "link", "pipe"],
)
async def test_a_damaged_entry_never_reaches_a_tool(
    stage: Stage, cache: BlobCache, root: Path, damage: Callable[[Path], None]
) -> None:
    files = random_files(1, 50_000)
    run = await stage.upload(files)
    await stage.stage(run, cache)
    (entry,) = entries_of(root)
    damage(entry)
    before = stage.store.downloads
    assert await stage.stage(run, cache) == files
    assert stage.store.downloads - before == 1
    assert await stage.stage(run, cache) == files, "and the good one was kept"
    assert stage.store.downloads - before == 1


async def test_something_strange_in_an_entrys_place_costs_a_download(
    stage: Stage, cache: BlobCache, root: Path
) -> None:
    files = random_files(1, 50_000)
    run = await stage.upload(files)
    await stage.stage(run, cache)
    replace_by_directory(entries_of(root)[0])
    assert await stage.stage(run, cache) == files
    await cache.sweep()


@pytest.mark.parametrize("count", ["", "x", "-1", "9" * 20, f"{1:020}"])
async def test_a_broken_count_of_bytes_breaks_no_bound(
    stage: Stage, root: Path, count: str
) -> None:
    cache = open_cache(root, max_bytes=4 * BLOCK_BYTES)
    runs = [await stage.upload(random_files(1, BLOCK_BYTES)) for _ in range(6)]
    for run in runs[:3]:
        await stage.stage(run, cache)
    (root / "usage").write_text(count)
    if count == f"{1:020}":
        await cache.sweep()  # Nobody can see that it is too low; by the clock it is set right.
    for run in runs[3:]:
        await stage.stage(run, cache)
    assert 1 <= len(entries_of(root)) <= 4


# --- Evictions, disks and directories ----------------------------------------------------------


async def test_an_eviction_takes_nothing_from_a_run_that_reads(stage: Stage, root: Path) -> None:
    files = random_files(2, 200_000)
    run = await stage.upload(files)
    cache = open_cache(root, max_bytes=500_000)
    for _ in range(2):  # a run that filled the cache, and one that hit
        async with stage_snapshot(stage.storage, run, root, cache) as staged:
            await cache.sweep(keep_bytes=0)
            assert entries_of(root) == []
            assert {file.name: file.path.read_bytes() for file in staged} == files
            await open_cache(root).sweep()
            assert {file.name: file.path.read_bytes() for file in staged} == files
        assert not staged[0].path.exists()
        assert await stage.stage(run, cache) == files


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of two megabytes; only root can make one."""
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m,mode=0700", "none", str(path)]
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"a small disk cannot be mounted: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", str(path)], check=True)


async def test_a_full_disk_stops_no_run_and_is_given_back(
    stage: Stage, small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = small_disk / "blobs"
    cache = open_cache(root)  # allowed far more than there is
    sets = [random_files(3, 300_000) for _ in range(4)]
    runs = [await stage.upload(files) for files in sets]
    for _ in range(2):
        for run, files in zip(runs, sets, strict=True):
            assert await stage.stage(run, cache) == files
    assert hands_of(root) == []
    failures = [r.fields for r in caplog.records if r.getMessage() == "blob_cache.failed"]
    assert len(failures) == 1, "said once in a while, not for every file"
    assert "No space left" in failures[0]["error"]
    # What it gives back is used by those that did not fit before.
    for _ in range(2):
        assert await stage.stage(runs[-1], cache) == sets[-1]
    before = stage.store.downloads
    assert await stage.stage(runs[-1], cache) == sets[-1]
    assert stage.store.downloads == before


async def test_a_disk_that_is_full_of_others_files_stops_no_run(
    stage: Stage, small_disk: Path
) -> None:
    run = await stage.upload(files := random_files(2, 100_000))
    with (
        pytest.raises(OSError, match="No space"),
        (small_disk / "others").open("wb", buffering=0) as others,
    ):
        while True:
            others.write(bytes(BLOCK_BYTES))
    assert await stage.stage(run, open_cache(small_disk / "blobs")) == files


def in_a_files_place(root: Path) -> None:
    root.parent.mkdir()
    root.write_text("not a directory")


def below_a_file(root: Path) -> None:
    root.parent.write_text("not a directory")


def somebody_elses(root: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give a directory away")
    root.mkdir(parents=True)
    os.chown(root, 12345, 12345)


def writable_by_others(root: Path) -> None:
    root.mkdir(parents=True)
    root.chmod(0o777)


def readable_inside(root: Path) -> None:
    (root / "entries").mkdir(parents=True)
    (root / "entries").chmod(0o755)


def linked_inside(root: Path) -> None:
    root.mkdir(parents=True)
    (root.parent / "elsewhere").mkdir()
    (root / "entries").symlink_to(root.parent / "elsewhere")


@pytest.mark.parametrize(
    "spoil",
    [
        in_a_files_place,
        below_a_file,
        somebody_elses,
        writable_by_others,
        readable_inside,
        linked_inside,
    ],
)
async def test_a_directory_that_cannot_be_trusted_is_not_used(
    stage: Stage, root: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    spoil(root)
    files = random_files(2, 10_000)
    run = await stage.upload(files)
    cache = open_cache(root)
    for _ in range(2):
        assert await stage.stage(run, cache) == files
    await cache.sweep()
    failures = [r.fields for r in caplog.records if r.getMessage() == "blob_cache.failed"]
    assert len(failures) == 1
    assert str(root.parent) in failures[0]["error"]
    assert not list(root.parent.glob("elsewhere/*"))


async def test_a_directory_that_is_removed_is_made_again(
    stage: Stage, cache: BlobCache, root: Path
) -> None:
    files = random_files(2, 10_000)
    run = await stage.upload(files)
    await stage.stage(run, cache)
    async with stage_snapshot(stage.storage, run, root, cache):
        shutil.rmtree(root)
    assert await stage.stage(run, cache) == files
    with ExitStack() as stack:
        hand = stack.enter_context(cache.hold())
        assert hand is not None
        shutil.rmtree(root)
        path = hand / "0"

        async def download(path: Path) -> None:
            path.write_bytes(b"")

        with pytest.raises(OSError, match="No such file"):
            await cache.fetch(run.files[0], path, download)
    assert await stage.stage(run, cache) == files
    assert len(entries_of(root)) == 2


# --- Settings ---------------------------------------------------------------------------------


def test_the_directory_is_the_users_own_unless_one_is_named(tmp_path: Path) -> None:
    own = str(load_settings({}).cache_directory)
    assert own == "~/.cache/skriptoteket/blobs"
    assert str(load_settings({"XDG_CACHE_HOME": ""}).cache_directory) == own
    machine = load_settings({"XDG_CACHE_HOME": "/var/cache/x"})
    assert machine.cache_directory == Path("/var/cache/x/skriptoteket/blobs")
    named = load_settings({"XDG_CACHE_HOME": "/x", "WORKER_CACHE_DIR": str(tmp_path)})
    assert named.cache_directory == tmp_path
    made = make_blob_cache(named)
    assert made is not None
    assert made.directory == tmp_path


def test_no_bytes_are_no_cache() -> None:
    assert make_blob_cache(load_settings({"WORKER_CACHE_BYTES": "0"})) is None
    assert Settings().worker_cache_bytes == 2_000_000_000


async def test_without_a_cache_files_lie_in_the_runs_own_directory(
    stage: Stage, tmp_path: Path
) -> None:
    run = await stage.upload({"a": b"1"})
    async with stage_snapshot(stage.storage, run, tmp_path) as files:
        assert [file.path for file in files] == [tmp_path / "0"]
        assert files[0].path.read_bytes() == b"1"
