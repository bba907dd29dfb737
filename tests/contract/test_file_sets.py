"""File sets: races and undoing, on every S3 server and on one without conditions, fenced."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
from racing import rounds
from s3_servers import Node, Nodes
from session_sets import (
    LIMITS,
    TTL,
    assert_no_leftovers,
    contents,
    new_key,
    nothing_needed,
    pieces,
    read,
    store,
)

from app.errors import SessionFilesExpired
from app.store import session_sweep
from app.store.file_sets import FileSets
from app.store.object_types import ConditionLost
from app.store.session_files import SessionFilesKey, StoredSet
from app.store.set_removal import RemovedFiles, remove_sets
from app.store.upload_buffers import PART_BYTES

pytestmark = pytest.mark.parametrize(
    "variant",
    ["embedded", "embedded-fenced", pytest.param("ceph", marks=pytest.mark.ceph)],
    indirect=True,
    scope="session",
)


# --- Undoing ----------------------------------------------------------------------------------


def rounds_of(nodes: Nodes, count: int) -> int:
    """How often to race: half as often where all commits take turns at a fence, which is slow."""
    return count // 2 if nodes.variant.fenced else count


@pytest.mark.parametrize("sent", [10, PART_BYTES + 10, 2 * PART_BYTES + 10])
@pytest.mark.parametrize("how", ["error", "cancel"])
async def test_upload_that_breaks_off_leaves_the_old_set_and_nothing_else(
    nodes: Nodes, sent: int, how: str
) -> None:
    node, key = nodes.another(), new_key()
    await store(node, key, {"gammal.txt": b"kvar"})
    stuck = asyncio.Event()

    async def broken() -> AsyncIterator[bytes]:
        async for piece in pieces(bytes(sent)):
            yield piece
        if how == "error":
            raise ConnectionResetError
        stuck.set()
        await asyncio.Event().wait()

    async def upload_all() -> None:
        async with node.storage.begin_upload(key, LIMITS) as upload:
            await upload.add_file("hel.txt", "", pieces(b"whole"))
            await upload.add_file("halv.txt", "", broken())

    task = asyncio.create_task(upload_all())
    if how == "cancel":
        await stuck.wait()
        task.cancel()
    with pytest.raises((ConnectionResetError, asyncio.CancelledError)):
        await task
    assert await contents(node, key) == {"gammal.txt": b"kvar"}
    await assert_no_leftovers(nodes, node, key)
    assert node.store.buffers.free_bytes == node.store.buffers.total_bytes


async def test_upload_cancelled_at_any_moment_is_whole_or_undone(nodes: Nodes) -> None:
    node, key = nodes.another(), new_key()
    old = {"gammal.txt": b"kvar"}
    await store(node, key, old)
    outcomes = set()
    for step in range(rounds_of(nodes, 25)):
        new = {"a.txt": b"%d" % step, "b.bin": bytes(PART_BYTES + step)}

        async def upload_all(new: dict[str, bytes] = new) -> StoredSet:
            async with node.storage.begin_upload(key, LIMITS) as upload:
                for name, data in new.items():
                    await upload.add_file(name, "", pieces(data, 1024 * 1024))
                return await node.storage.store_files(upload)

        task = asyncio.create_task(upload_all())
        await asyncio.sleep(step * 0.004)
        task.cancel()
        try:
            await node.storage.discard_replaced(await task, ())
            old = new
            outcomes.add("stored")
        except asyncio.CancelledError:
            outcomes.add("undone")
        assert await contents(node, key) == old
        await assert_no_leftovers(nodes, node, key)
    assert "undone" in outcomes


async def test_upload_left_without_commit_is_deleted(nodes: Nodes) -> None:
    node, key = nodes.another(), new_key()
    async with node.storage.begin_upload(key, LIMITS) as upload:
        await upload.add_file("a", "", pieces(b"1"))
    assert await node.storage.get_files(key) is None
    assert await nodes.keys() == []


async def test_undo_puts_the_replaced_set_back(nodes: Nodes) -> None:
    node, key = nodes.another(), new_key()
    async with node.storage.begin_upload(key, LIMITS) as upload:
        await upload.add_file("a", "", pieces(b"1"))
        stored = await node.storage.store_files(upload)
    await node.storage.restore_files(stored)
    assert await nodes.keys() == []
    first = await store(node, key, {"a": b"1"})
    async with node.storage.begin_upload(key, LIMITS) as upload:
        await upload.add_file("b", "", pieces(b"2"))
        stored = await node.storage.store_files(upload)
    await node.storage.touch_files(key)
    await node.storage.restore_files(stored)
    snapshot = await node.storage.get_files(key)
    assert snapshot is not None
    assert snapshot.version == first.version
    assert await contents(node, key) == {"a": b"1"}
    await assert_no_leftovers(nodes, node, key)
    async with node.storage.begin_upload(key, LIMITS) as upload:
        await upload.add_file("b", "", pieces(b"2"))
        stored = await node.storage.store_files(upload)
    await store(node, key, {"c": b"3"})
    await node.storage.restore_files(stored)
    assert await contents(node, key) == {"c": b"3"}


@pytest.mark.parametrize(("hours", "is_over"), [(23, False), (25, True)])
async def test_undo_does_not_bring_back_a_set_whose_time_was_over(
    nodes: Nodes, hours: int, is_over: bool
) -> None:
    node, key = nodes.another(), new_key()
    await store(node, key, {"a": b"1"})
    node.store.clock_offset = timedelta(hours=hours)
    async with node.storage.begin_upload(key, LIMITS) as upload:
        await upload.add_file("b", "", pieces(b"2"))
        stored = await node.storage.store_files(upload)
    await node.storage.restore_files(stored)
    assert await contents(nodes.another(), key) == (None if is_over else {"a": b"1"})
    assert len(await nodes.keys()) == (0 if is_over else 2)


# --- Removal ----------------------------------------------------------------------------------


async def test_all_below_a_path_is_removed_whatever_it_is(nodes: Nodes) -> None:
    node, key, other = nodes.another(), new_key(), new_key()
    await store(node, key, {"a": b"1", "b": b"2"})
    await store(node, other, {"c": b"3"})
    manifests = f"sessions/manifests/{key.tool_id}"
    own = key.set_key.manifest_key
    for name in ("/", "/x", "/y.json", f"/{key.user_id}/", f"/{key.user_id}/x/y.json"):
        await nodes.store.put(f"{manifests}{name}", b"")
    await nodes.store.put(own.removesuffix(".json"), b"{}")
    await nodes.store.put(own.replace(key.set_key.path[-4:], "0000"), b"damaged")
    await nodes.store.put(key.set_key.blob_key("stray"), b"4")
    sets = FileSets(node.store, nodes.variant.fence, conditional=not nodes.variant.fenced)
    removed = RemovedFiles()
    await remove_sets(sets, f"{key.tool_id}/", removed)
    assert (removed.files, removed.bytes) == (3, 3)
    assert set(await nodes.keys()) == {
        other.set_key.manifest_key,
        *await nodes.keys(other.set_key.blobs_prefix),
    }


# --- Races ------------------------------------------------------------------------------------


@rounds(6, 30)
async def test_of_racing_uploads_one_wins_whole(nodes: Nodes, rounds: int) -> None:
    key = new_key()
    writers = [nodes.another() for _ in range(8)]
    for round_ in range(rounds_of(nodes, rounds)):
        large = PART_BYTES + 1 if round_ == 10 else 100
        sets = [
            {
                f"{name}.txt": f"{round_} {n} {name}".encode().ljust(size)
                for name, size in (("a", large), ("b", 100))
            }
            for n in range(8)
        ]
        await asyncio.gather(
            *(store(node, key, files) for node, files in zip(writers, sets, strict=True))
        )
        assert await contents(writers[0], key) in sets
        await assert_no_leftovers(nodes, writers[0], key)


@rounds(100, 300)
async def test_reader_never_sees_a_mixed_or_missing_set(nodes: Nodes, rounds: int) -> None:
    last = rounds_of(nodes, rounds)
    writer, reader, key = nodes.another(), nodes.another(), new_key()
    row_lock = asyncio.Lock()  # Stands for the lock of the session's row.
    in_use: set[str] = set()
    done = False

    def content(number: int) -> dict[str, bytes]:
        return {f"{name}-{number % 3}": b"%d" % number * 50 for name in "abcd"[: 2 + number % 3]}

    async def write() -> None:
        nonlocal done
        for number in range(1, last + 1):
            async with writer.storage.begin_upload(key, LIMITS) as upload:
                for name, data in content(number).items():
                    await upload.add_file(name, "", pieces(data))
                async with row_lock:
                    stored = await writer.storage.store_files(upload)
                    needed = set(in_use)
            await writer.storage.discard_replaced(stored, needed)
        done = True

    async def read_all() -> int:
        seen = 0
        while not done:
            async with row_lock:
                snapshot = await reader.storage.touch_files(key)
                assert snapshot is not None
                in_use.update(file.blob_id for file in snapshot.files)
            found = {file.name: await read(reader, key, file) for file in snapshot.files}
            number = int(next(iter(found.values()))[: len(next(iter(found.values()))) // 50])
            assert found == content(number)
            in_use.clear()
            seen += 1
            await asyncio.sleep(0.005)
        return seen

    async def look() -> None:
        while not done:
            snapshot = await reader.storage.get_files(key)
            assert snapshot is not None
            assert len({file.bytes for file in snapshot.files}) == 1
            await asyncio.sleep(0.02)

    await store(writer, key, content(0))
    _, seen, _ = await asyncio.gather(write(), read_all(), look())
    assert seen > 10
    assert await contents(reader, key) == content(last)


@rounds(10, 50)
async def test_touches_race_with_replaces_without_loss(nodes: Nodes, rounds: int) -> None:
    toucher, writer, key = nodes.another(), nodes.another(), new_key()
    await store(writer, key, {"a": b"0"})
    for round_ in range(1, rounds_of(nodes, rounds) + 1):
        files = {"a": b"%d" % round_}
        touched, *_ = await asyncio.gather(
            toucher.storage.touch_files(key),
            toucher.storage.touch_files(key),
            store(writer, key, files),
        )
        assert touched is not None
        assert await contents(writer, key) == files
        await assert_no_leftovers(nodes, writer, key)


@rounds(15, 90)
async def test_touch_or_replace_races_with_expiry_and_one_wins_whole(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch, rounds: int
) -> None:
    # By the sweeper's clock, blobs uploaded this moment are a day old.
    monkeypatch.setattr(session_sweep, "ORPHAN_AGE", timedelta(days=30))
    # A few seconds apart the same clock says "not yet" to one and "over" to the other.
    toucher, writer, sweeper = nodes.another(), nodes.another(), nodes.another()
    toucher.store.clock_offset = TTL - timedelta(seconds=10)
    writer.store.clock_offset = sweeper.store.clock_offset = TTL + timedelta(seconds=10)
    key = new_key()
    outcomes: set[str] = set()

    async def touch(delay: float) -> bool:
        await asyncio.sleep(delay)
        try:
            return await toucher.storage.touch_files(key) is not None
        except SessionFilesExpired:
            return False

    delay, round_ = 0.0, 0
    while round_ < rounds_of(nodes, rounds) or (len(outcomes) < 2 and round_ < 90):
        round_ += 1
        old = {"a": b"%d" % round_, "b": b"old"}
        await store(nodes.another(), key, old)
        replaces = round_ % 3 == 0
        new = {"c": b"%d" % round_}
        touched, report, *_ = await asyncio.gather(
            touch(delay),
            sweeper.storage.cleanup_expired(nothing_needed),
            *([_store_later(writer, key, new, delay)] if replaces else []),
        )
        if replaces:
            assert await contents(nodes.another(), key) == new
        elif touched:
            assert report.deleted_sets == 0
            assert await contents(nodes.another(), key) == old
            outcomes.add("touched")
            delay += 0.003  # Closer to the moment at which it turns.
        else:
            assert report.deleted_sets == 1
            assert await nodes.keys() == []
            outcomes.add("expired")
            delay *= 0.7
        await assert_no_leftovers(nodes, nodes.another(), key)
        await nodes.another().storage.clear_session(key)
        assert await nodes.keys() == []
    assert outcomes == {"touched", "expired"}


async def _store_later(
    node: Node, key: SessionFilesKey, files: dict[str, bytes], delay: float
) -> None:
    await asyncio.sleep(delay)
    await store(node, key, files)


@rounds(10, 50)
async def test_clear_races_with_replace_and_one_wins_whole(nodes: Nodes, rounds: int) -> None:
    writer, clearer, key = nodes.another(), nodes.another(), new_key()
    for round_ in range(rounds_of(nodes, rounds)):
        await store(writer, key, {"a": b"old"})
        new = {"b": b"%d" % round_}
        await asyncio.gather(store(writer, key, new), clearer.storage.clear_session(key))
        assert await contents(writer, key) in (new, None)
        await assert_no_leftovers(nodes, writer, key)


async def test_unanswered_commit_is_recognized_or_made_again(nodes: Nodes) -> None:
    for fault in ("lose", "refuse"):
        node, key = nodes.another(), new_key()
        await store(node, key, {"a": b"old"})
        once = iter([fault])

        def fail_once(operation: str, params: dict[str, Any], once: Any = once) -> str | None:
            manifest = str(params.get("Key", "")).startswith("sessions/manifests/")
            return next(once, None) if operation == "put_object" and manifest else None

        node.store.fault = fail_once
        stored = await store(node, key, {"b": b"new"})
        assert stored.replaced is not None
        assert await contents(node, key) == {"b": b"new"}
        await assert_no_leftovers(nodes, node, key)


async def test_unanswered_commit_that_was_replaced_since_is_not_made_again(nodes: Nodes) -> None:
    node, other, key = nodes.another(), nodes.another(), new_key()
    await store(node, key, {"a": b"old"})
    original = node.store.put
    replaced = False

    async def put(*args: Any, **params: Any) -> Any:
        """Our commit is applied, its answer lost, and somebody replaces it before we look."""
        nonlocal replaced
        if replaced:
            return await original(*args, **params)
        replaced = True
        await original(*args, **params)
        racing.set()
        await go_on.wait()
        node.store.fault = lambda operation, params: None
        raise ConditionLost(args[0], certain=False)

    racing, go_on = asyncio.Event(), asyncio.Event()
    if nodes.variant.fenced:
        pytest.skip("inside the fence nobody can come between")
    node.store.put = put  # type: ignore[method-assign]
    ours = asyncio.create_task(store(node, key, {"b": b"ours"}))
    await racing.wait()
    await store(other, key, {"c": b"theirs"})
    go_on.set()
    assert (await ours).replaced is not None
    assert await contents(other, key) == {"c": b"theirs"}
    await assert_no_leftovers(nodes, other, key)
