"""Session files on every S3 server: uploads, limits, accesses, time to live, the sweep."""

import asyncio
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID

import msgspec
import pytest
from s3_servers import Nodes, Variant, make_nodes
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

from app.domain.files import UploadLimits
from app.errors import (
    AppError,
    DuplicateFileNames,
    FileDamaged,
    FileTooLarge,
    InvalidFileName,
    SessionFilesExpired,
    TooManyFiles,
    Unavailable,
    UploadTooLarge,
)
from app.store.session_files import SessionFilesKey
from app.store.session_sweep import JOURNAL_AGE
from app.store.upload_buffers import PART_BYTES

# --- Upload and read --------------------------------------------------------------------------


async def test_stored_files_come_back_byte_for_byte(nodes: Nodes) -> None:
    node, key = nodes.another(), new_key("grupp å")
    files = {
        "tom.txt": b"",
        "a.txt": b"x",
        "under.bin": os.urandom(PART_BYTES - 1),
        "lika.bin": os.urandom(PART_BYTES),
        "över.bin": os.urandom(PART_BYTES + 1),
        "stor.bin": os.urandom(12 * 1024 * 1024),
    }
    stored = await store(node, key, files)
    assert stored.replaced is None
    snapshot = await node.storage.get_files(key)
    assert snapshot is not None
    assert snapshot.version == stored.version
    assert {file.name: (file.bytes, file.sha256) for file in snapshot.files} == {
        name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in files.items()
    }
    assert await contents(node, key) == files
    assert snapshot.expires_at == snapshot.last_accessed_at + TTL
    await assert_no_leftovers(nodes, node, key)
    for name in await nodes.keys():
        assert "grupp" not in name
        assert ".txt" not in name


async def test_names_are_normalized_and_duplicates_refused(nodes: Nodes) -> None:
    node, key = nodes.another(), new_key()
    async with node.storage.begin_upload(key, LIMITS) as upload:
        stored = await upload.add_file("A\u030a.txt", "text/plain", pieces(b"1"))
        assert stored.name == "\u00c5.txt"
        with pytest.raises(DuplicateFileNames):
            await upload.add_file("\u00e5.TXT", "text/plain", pieces(b"2"))
        for name in ("", "..", "a/b", "a\x00", "å" * 128):
            with pytest.raises(InvalidFileName):
                await upload.add_file(name, "text/plain", pieces(b"2"))
        await upload.add_file("action.json", "application/json", pieces(b"{}"))
        await upload.add_file("å" * 127 + "a", "text/plain", pieces(b"3"))
        await node.storage.store_files(upload)
    found = await contents(node, key)
    assert found == {"\u00c5.txt": b"1", "action.json": b"{}", "å" * 127 + "a": b"3"}


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ([10, 5], None),
        ([11], FileTooLarge),
        ([10, 6], UploadTooLarge),
        ([1, 1, 1], None),
        ([1, 1, 1, 1], TooManyFiles),
    ],
)
async def test_limits_hold_to_the_byte_and_a_refused_upload_changes_nothing(
    nodes: Nodes, files: list[int], error: type[AppError] | None
) -> None:
    node, key = nodes.another(), new_key()
    await store(node, key, {"gammal.txt": b"kvar"})
    limits = UploadLimits(max_files=3, max_file_bytes=10, max_total_bytes=15)

    async def upload_all() -> None:
        async with node.storage.begin_upload(key, limits) as upload:
            for number, size in enumerate(files):
                await upload.add_file(f"{number}", "", pieces(bytes(size), 3))
            await node.storage.discard_replaced(await node.storage.store_files(upload), ())

    if error is None:
        await upload_all()
        assert len((await contents(node, key)) or {}) == len(files)
    else:
        with pytest.raises(error):
            await upload_all()
        assert await contents(node, key) == {"gammal.txt": b"kvar"}
    await assert_no_leftovers(nodes, node, key)


async def test_limit_ends_the_upload_before_the_rest_is_read(nodes: Nodes) -> None:
    node, key = nodes.another(), new_key()
    taken = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal taken
        while True:
            taken += 1_000_000
            yield bytes(1_000_000)

    with pytest.raises(FileTooLarge):
        async with node.storage.begin_upload(key, LIMITS) as upload:
            await upload.add_file("a", "", endless())
    assert taken == 21_000_000
    assert await nodes.keys() == []
    assert await nodes.open_uploads() == []
    assert node.store.buffers.free_bytes == node.store.buffers.total_bytes


async def test_replaced_blobs_stay_while_a_run_needs_them(nodes: Nodes) -> None:
    node, key = nodes.another(), new_key()
    old = (await store(node, key, {"a": b"1", "b": b"2"})).files
    await store(node, key, {"c": b"3"}, keep={old[0].blob_id})
    assert await read(node, key, old[0]) == b"1"
    with pytest.raises(SessionFilesExpired):
        await read(node, key, old[1])


async def test_damaged_blob_is_found_out(nodes: Nodes) -> None:
    node, key = nodes.another(), new_key()
    (file,) = (await store(node, key, {"a": b"12345"})).files
    for damaged in (b"12346", b"1234", b"123456"):
        await nodes.store.put(key.set_key.blob_key(file.blob_id), damaged)
        with pytest.raises(FileDamaged):
            await read(node, key, file)
    await nodes.store.put(key.set_key.blob_key(file.blob_id), b"12345")
    assert await read(node, key, file) == b"12345"


# --- Accesses and time to live ----------------------------------------------------------------


async def test_only_a_touch_counts_as_access(nodes: Nodes) -> None:
    node, key = nodes.another(), new_key()
    await store(node, key, {"a": b"1"})
    later = nodes.another()
    later.store.clock_offset = timedelta(hours=20)
    before = await later.storage.get_files(key)
    touched = await later.storage.touch_files(key)
    after = await later.storage.get_files(key)
    assert before is not None
    assert touched is not None
    assert after is not None
    assert touched.last_accessed_at - before.last_accessed_at > timedelta(hours=19)
    # LastModified is the server's own, which the test's clock does not reach.
    assert abs(after.last_accessed_at - touched.last_accessed_at) < timedelta(seconds=3)
    assert touched.version == before.version
    much_later = nodes.another()
    much_later.store.clock_offset = timedelta(hours=40)
    assert await contents(much_later, key) == {"a": b"1"}


async def test_touch_is_one_read_and_one_small_write(nodes: Nodes) -> None:
    node, key = nodes.another(), new_key()
    await store(node, key, {"a": b"1"})
    node.store.calls.clear()
    await node.storage.touch_files(key)
    if nodes.variant.fenced:
        assert node.store.calls == ["get_object", "get_object", "put_object"]
    else:
        assert node.store.calls == ["get_object", "put_object"]


async def test_touch_of_nothing_is_none_and_of_expired_files_an_error(nodes: Nodes) -> None:
    node, key = nodes.another(), new_key()
    assert await node.storage.touch_files(key) is None
    await store(node, key, {"a": b"1"})
    node.store.clock_offset = TTL + timedelta(seconds=5)
    assert await node.storage.get_files(key) is None
    with pytest.raises(SessionFilesExpired):
        await node.storage.touch_files(key)
    await store(node, key, {"b": b"2"})
    assert await node.storage.touch_files(key) is not None


async def test_files_live_to_the_end_of_a_short_ttl_and_no_longer(nodes: Nodes) -> None:
    node, key, idle = nodes.another(session_files_ttl_seconds=2), new_key(), new_key("annan")
    await store(node, key, {"a": b"1"})
    await store(node, idle, {"a": b"1"})
    for _ in range(4):  # Kept alive beyond its first deadline by touches.
        await asyncio.sleep(1)
        assert await node.storage.touch_files(key) is not None
        if _ == 0:
            await node.storage.cleanup_expired(nothing_needed)
            assert await contents(node, idle) == {"a": b"1"}
    await asyncio.sleep(0.5)
    assert await node.storage.get_files(idle) is None
    report = await node.storage.cleanup_expired(nothing_needed)
    assert (report.scanned, report.expired, report.deleted_sets) == (2, 1, 1)
    assert await contents(node, key) == {"a": b"1"}


async def test_old_blobs_are_renewed_on_access_in_the_background(nodes: Nodes) -> None:
    node, key = nodes.another(), new_key("grupp å")
    await store(node, key, {"a": b"1", "b": os.urandom(PART_BYTES + 1)})
    before = {i.key: i.last_modified async for i in nodes.store.list_objects("sessions/files/")}
    expected = await contents(node, key)
    await node.storage.touch_files(key)
    assert "copy_object" not in node.store.calls
    # Kept alive by touches for four days of a seven-day period.
    for days in range(1, 5):
        node.store.clock_offset = timedelta(days=days, seconds=-60 * days)
        assert await node.storage.touch_files(key) is not None
    await node.storage.aclose()
    # The large one by way of a part.
    assert node.store.calls.count("copy_object") == node.store.calls.count("upload_part_copy") == 1
    after = {i.key: i.last_modified async for i in nodes.store.list_objects("sessions/files/")}
    assert all(after[name] > before[name] for name in before)
    assert await contents(node, key) == expected
    node.store.calls.clear()
    await node.storage.touch_files(key)
    await node.storage.aclose()
    assert "copy_object" not in node.store.calls


async def test_clear_deletes_at_once_and_is_repeatable(nodes: Nodes) -> None:
    node, key, other = nodes.another(), new_key(), new_key()
    await store(node, other, {"x": b"kvar"})
    snapshot_files = (await store(node, key, {"a": b"1", "b": b"2"})).files
    assert await node.storage.clear_session(key) == 2
    assert await node.storage.clear_session(key) == 0
    assert await node.storage.get_files(key) is None
    assert await nodes.keys(key.set_key.blobs_prefix) == []
    assert await contents(node, other) == {"x": b"kvar"}
    with pytest.raises(SessionFilesExpired):
        await read(node, key, snapshot_files[0])


# --- The sweep --------------------------------------------------------------------------------


async def test_sweep_deletes_expired_sets_and_leaves_live_ones(nodes: Nodes) -> None:
    node = nodes.another()
    old, live = new_key(), new_key()
    await store(node, old, {"a": b"123", "b": b"4567"})
    await store(node, live, {"a": b"1"})
    later = nodes.another()
    later.store.clock_offset = timedelta(hours=23)
    await later.storage.touch_files(live)
    later.store.clock_offset = timedelta(hours=25)
    planned = await later.storage.cleanup_expired(nothing_needed, dry_run=True)
    # The mark of the touch is newer only in the manifest: a candidate, looked at and left.
    assert (planned.scanned, planned.expired, planned.deleted_sets) == (2, 1, 0)
    assert len(await nodes.keys()) == 5
    report = await later.storage.cleanup_expired(nothing_needed)
    assert (report.expired, report.deleted_sets, report.deleted_files) == (1, 1, 2)
    assert report.deleted_bytes == 7
    assert len(await nodes.keys()) == 2
    assert await contents(later, live) == {"a": b"1"}
    assert (await later.storage.cleanup_expired(nothing_needed)).expired == 0


async def test_sweep_spares_what_an_unfinished_run_needs(nodes: Nodes) -> None:
    node, key = nodes.another(), new_key("grupp å")
    first = (await store(node, key, {"a": b"1", "b": b"2"})).files
    await store(node, key, {"c": b"3"}, keep={file.blob_id for file in first})
    asked: list[SessionFilesKey] = []

    async def needed(keys: Sequence[SessionFilesKey]) -> dict[SessionFilesKey, set[str]]:
        asked.extend(keys)
        return {key: {first[0].blob_id} for key in keys}

    node.store.clock_offset = timedelta(hours=2)
    report = await node.storage.cleanup_expired(needed)
    assert (report.orphans, report.orphan_bytes, report.deleted_sets) == (1, 1, 0)
    assert asked == [key]
    assert await read(node, key, first[0]) == b"1"
    assert await contents(node, key) == {"c": b"3"}
    node.store.clock_offset = timedelta(hours=25)
    report = await node.storage.cleanup_expired(needed)
    assert (report.in_use, report.expired) == (1, 0)
    report = await node.storage.cleanup_expired(nothing_needed)
    assert (report.expired, report.deleted_sets) == (1, 1)
    assert await nodes.keys() == []


async def test_sweep_deletes_orphans_older_than_an_hour_only(nodes: Nodes) -> None:
    node, key, lost = nodes.another(), new_key(), new_key("grupp å")
    await store(node, key, {"a": b"1"})
    for prefix in (key.set_key, lost.set_key):
        await nodes.store.put(prefix.blob_key(str(UUID(int=1))), b"123")
    node.store.clock_offset = timedelta(minutes=59)
    assert (await node.storage.cleanup_expired(nothing_needed)).orphans == 0
    node.store.clock_offset = timedelta(minutes=61)
    assert (await node.storage.cleanup_expired(nothing_needed, dry_run=True)).orphans == 2
    report = await node.storage.cleanup_expired(nothing_needed)
    assert (report.orphans, report.orphan_bytes, report.missing_manifests) == (2, 6, 1)
    assert await contents(node, key) == {"a": b"1"}
    await assert_no_leftovers(nodes, node, lost)


async def test_blobs_of_a_lost_manifest_are_kept_for_the_run_that_needs_them(
    nodes: Nodes,
) -> None:
    node, key = nodes.another(), new_key("grupp å")
    files = (await store(node, key, {"a": b"1", "b": b"2"})).files
    await nodes.store.delete([key.set_key.manifest_key])
    asked: list[SessionFilesKey] = []

    async def needed(keys: Sequence[SessionFilesKey]) -> dict[SessionFilesKey, set[str]]:
        asked.extend(keys)
        return {key: {files[1].blob_id} for key in keys}

    node.store.clock_offset = timedelta(hours=2)
    report = await node.storage.cleanup_expired(needed)
    assert (report.orphans, report.missing_manifests) == (1, 1)
    assert asked == [key]
    assert await read(node, key, files[1]) == b"2"


async def test_unreadable_manifest_is_reported_and_its_blobs_kept(nodes: Nodes) -> None:
    node, key, foreign = nodes.another(), new_key(), "sessions/manifests/strange.txt"
    await store(node, key, {"a": b"1"})
    body, _ = await nodes.store.get(key.set_key.manifest_key, max_bytes=100_000)
    future = msgspec.json.decode(body) | {"schema": 99}
    for broken in (b"{", msgspec.json.encode(future), b"", bytes(5_000_000)):
        await nodes.store.put(key.set_key.manifest_key, broken)
        await nodes.store.put(foreign, b"?")
        node.store.clock_offset = timedelta(hours=25)
        report = await node.storage.cleanup_expired(nothing_needed)
        assert report.unreadable == 2
        assert set(report.unreadable_keys) == {key.set_key.manifest_key, foreign}
        assert (report.orphans, report.deleted_sets) == (0, 0)
        assert len(await nodes.keys(key.set_key.blobs_prefix)) == 1
    node.store.clock_offset = timedelta(0)
    await store(node, key, {"b": b"2"})  # The way out for the user: upload again, or clear.
    assert await contents(node, key) == {"b": b"2"}
    await nodes.store.put(key.set_key.manifest_key, b"{")
    await node.storage.clear_session(key)
    assert await nodes.keys() == [foreign]


@pytest.mark.parametrize("how", ["refuse", "lose"])
async def test_sweep_that_broke_off_anywhere_is_finished_by_the_next(
    variant: Variant, how: str
) -> None:
    # Journal, mark, blobs, manifest, journal: five changes, and once none fails.
    steps = [await make_nodes(variant) for _ in range(6)]
    for nodes in steps:
        await store(nodes.another(), new_key(), {"a": b"1", "b": b"2"})
    await asyncio.sleep(3.2)
    outcomes = []
    for step, nodes in enumerate(steps):
        node = nodes.another(session_files_ttl_seconds=1)
        node.store.fault = _dies_at(step, how)
        try:
            await node.storage.cleanup_expired(nothing_needed)
            outcomes.append("done")
        except Unavailable:
            outcomes.append("broke off")
        # What is marked looks freshly written now, so that only the journal tells of it.
        long_lived = nodes.another(session_files_ttl_seconds=3600)
        # Old enough for what it names to have been marked, had anybody still been at it.
        long_lived.store.clock_offset = JOURNAL_AGE + timedelta(seconds=5)
        report = await long_lived.storage.cleanup_expired(nothing_needed)
        unmarked = step == 0 or (step == 1 and how == "refuse")
        assert report.resumed == (1 if not unmarked and _was_marked(step, how) else 0)
        assert await nodes.keys("sessions/expiring/") == []
        if unmarked:
            # Nothing had begun: the set is still whole, and due at the next ordinary sweep.
            assert len(await nodes.keys()) == 3
            node = nodes.another(session_files_ttl_seconds=1)
            await node.storage.cleanup_expired(nothing_needed)
        assert await nodes.keys() == []
    assert outcomes == ["broke off"] * 5 + ["done"]


def _was_marked(step: int, how: str) -> bool:
    """Tell whether a manifest is left at a broken step: after the mark, before the last delete."""
    return step in ({1, 2} if how == "lose" else {2, 3})


def _dies_at(step: int, how: str) -> Callable[[str, dict[str, Any]], str | None]:
    """Fail the change number `step`, and then everything, as if the process were gone."""
    changes = 0

    def fault(operation: str, params: dict[str, Any]) -> str | None:
        nonlocal changes
        is_change = operation in {"put_object", "delete_objects"}
        changes += is_change
        if changes <= step:
            return None
        return how if is_change and changes == step + 1 else "refuse"

    return fault


async def test_clear_that_broke_off_is_finished_by_the_sweep(nodes: Nodes) -> None:
    node, key = nodes.another(), new_key()
    await store(node, key, {"a": b"1"})
    node.store.fault = lambda operation, params: "refuse" if operation == "delete_objects" else None
    with pytest.raises(Unavailable):
        await node.storage.clear_session(key)
    assert await node.storage.get_files(key) is None
    later = nodes.another()
    later.store.clock_offset = timedelta(hours=2)
    assert (await later.storage.cleanup_expired(nothing_needed)).resumed == 1
    assert await nodes.keys() == []


async def test_clear_that_breaks_off_after_a_sweep_began_is_finished_by_the_next(
    nodes: Nodes,
) -> None:
    clearer, key = nodes.another(), new_key()
    await store(clearer, key, {"a": b"1"})
    put = clearer.store.put

    async def sweep_and_put(name: str, body: bytes, **params: Any) -> Any:
        if name == key.set_key.manifest_key:  # the mark
            await nodes.another().storage.cleanup_expired(nothing_needed)
        return await put(name, body, **params)

    clearer.store.put = sweep_and_put  # type: ignore[method-assign]
    clearer.store.fault = lambda operation, _: "refuse" if operation == "delete_objects" else None
    with pytest.raises(Unavailable):
        await clearer.storage.clear_session(key)
    # Marked, it looks freshly written: only the journal tells of it.
    report = await nodes.another().storage.cleanup_expired(nothing_needed)
    assert (report.resumed, await nodes.keys()) == (1, [])


async def test_clear_of_an_unreadable_set_spares_an_upload_under_way(nodes: Nodes) -> None:
    node, key = nodes.another(), new_key()
    await store(node, key, {"a": b"old"})
    await nodes.store.put(key.set_key.manifest_key, b"damaged")
    await asyncio.sleep(0.01)
    async with node.storage.begin_upload(key, LIMITS) as upload:
        await upload.add_file("b", "", pieces(b"new"))
        await upload.settle()
        assert await nodes.another().storage.clear_session(key) == 1
        await node.storage.store_files(upload)
    assert await contents(node, key) == {"b": b"new"}
    await assert_no_leftovers(nodes, node, key)


async def test_two_sweeps_at_once_do_no_harm(nodes: Nodes) -> None:
    node, live = nodes.another(), new_key()
    for n in range(12):
        await store(node, new_key(f"{n}"), {"a": b"1"})
    sweepers = [nodes.another() for _ in range(3)]
    for sweeper in sweepers:
        sweeper.store.clock_offset = timedelta(hours=25)
    fresh = nodes.another()
    fresh.store.clock_offset = timedelta(hours=25)
    await store(fresh, live, {"b": b"2"})
    await asyncio.gather(*(s.storage.cleanup_expired(nothing_needed) for s in sweepers))
    assert len(await nodes.keys()) == 2
    assert await contents(fresh, live) == {"b": b"2"}


async def test_stale_multipart_uploads_are_aborted_after_a_day(nodes: Nodes) -> None:
    node = nodes.another()
    await nodes.store.create_multipart("sessions/files/x/y/z/1", "text/plain", {})
    node.store.clock_offset = timedelta(hours=23)
    assert (await node.storage.cleanup_expired(nothing_needed)).aborted_uploads == 0
    node.store.clock_offset = timedelta(hours=25)
    assert (await node.storage.cleanup_expired(nothing_needed)).aborted_uploads == 1
    assert await nodes.open_uploads() == []
