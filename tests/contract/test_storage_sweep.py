"""The sweep of a whole bucket, shard by shard, over a real PostgreSQL and every S3 server."""

import asyncio
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import pytest
from databases import make_database
from s3_drivers import lock_objects, refusal, take_over
from s3_servers import Node, Nodes
from session_sets import contents, new_key, store

from app.devstack import DevStack
from app.domain.users import User
from app.errors import Unavailable
from app.settings import Settings
from app.store import session_sweep, sweep_ledger, users
from app.store.postgres import Database, open_database
from app.store.session_files import SessionFilesKey
from app.store.set_listing import BLOBS
from app.store.sweep_types import SweepReport
from app.usecases.storage_sweep import LOCK, clean_up_expired, survey_session_files

NOW = datetime(2026, 1, 16, tzinfo=UTC)
# The connections that hold a fence: a commit's, or a sweep's over the sets that it deletes.
END_FENCES = """
SELECT count(pg_terminate_backend(pid)) FROM pg_locks
WHERE locktype = 'advisory' AND granted
    AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
EndFences = Callable[[], Awaitable[int]]
EMPTY = "TRUNCATE sweep_shards, sweep_status, users, tools CASCADE"


@pytest.fixture(scope="module")
async def database_url(devstack: DevStack) -> AsyncIterator[str]:
    """A database of the module's own."""
    async with make_database(devstack) as url:
        yield url


@pytest.fixture
async def db(database_url: str) -> AsyncIterator[Database]:
    async with open_database(database_url, size=3) as db:
        await db.execute(EMPTY)
        yield db


@pytest.fixture
async def end_fences(devstack: DevStack) -> AsyncIterator[EndFences]:
    """Take away all fences that are held; returns how many."""
    server = await asyncpg.connect(devstack.database_url)

    async def end() -> int:
        return int(await server.fetchval(END_FENCES))

    yield end
    await server.close()


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> int:
    """Shards of so many sets."""
    monkeypatch.setattr(session_sweep, "SHARD_SETS", 4)
    monkeypatch.setattr(sweep_ledger, "SHARD_SETS", 4)
    return 4


async def sweep(node: Node, db: Database, **settings: Any) -> SweepReport:
    report = await clean_up_expired(db, node.storage, Settings(**settings))
    assert report is not None
    return report


async def fill(nodes: Nodes, count: int) -> list[SessionFilesKey]:
    """Store sets of two files, 5 bytes together; in the order of the bucket."""
    keys = [new_key(f"{n}") for n in range(count)]
    for key in keys:
        await store(nodes.another(), key, {"a": b"12", "b": b"345"})
    return sorted(keys, key=lambda key: key.set_key.path)


def later(nodes: Nodes, **ahead: float) -> Node:
    node = nodes.another()
    node.store.clock_offset = timedelta(**ahead)
    return node


# --- Shards -----------------------------------------------------------------------------------


async def test_a_large_bucket_is_cut_into_shards_that_cover_all_of_it(
    nodes: Nodes, db: Database, small_shards: int
) -> None:
    keys = await fill(nodes, 10)
    assert [s.first_path for s in await sweep_ledger.list_shards(db)] == [""]
    first = await sweep(nodes.another(), db)
    assert (first.scanned, first.walked_sets, first.files, first.bytes) == (10, 10, 20, 50)
    shards = await sweep_ledger.list_shards(db)
    cuts = [keys[small_shards].set_key.path, keys[2 * small_shards].set_key.path]
    assert [s.first_path for s in shards] == ["", *cuts]
    assert [s.end_path for s in shards] == [*cuts, None]
    assert [s.sets for s in shards] == [4, 4, 2]
    # What comes later falls into one of them, and what expires is found in each.
    await fill(nodes, 3)
    assert (await sweep(nodes.another(), db)).scanned == 13
    over = await sweep(later(nodes, hours=25), db)
    assert (over.scanned, over.expired, over.deleted_sets, over.deleted_bytes) == (13, 13, 13, 65)
    assert await nodes.keys() == []
    # Empty shards are joined again.
    assert (await sweep(nodes.another(), db)).scanned == 0
    assert [s.first_path for s in await sweep_ledger.list_shards(db)] == [""]


async def test_live_sets_cost_no_request_of_their_own(
    nodes: Nodes, db: Database, small_shards: int
) -> None:
    await fill(nodes, 10)
    await sweep(nodes.another(), db)
    # Journals, the blobs of one shard, and manifests: of that shard, and of what lies before and
    # behind it in one go.
    for ahead, lists in ((0.5, 1 + 1 + 2), (2, 1 + 1 + 3), (23, 1 + 1 + 2)):
        node = later(nodes, hours=ahead)
        report = await sweep(node, db)
        assert (report.scanned, report.expired, report.orphans) == (10, 0, 0)
        assert report.requests == {"list_objects_v2": lists, "list_multipart_uploads": 1}


async def test_an_expired_set_costs_a_read_and_a_mark(nodes: Nodes, db: Database) -> None:
    if nodes.variant.fenced:
        pytest.skip("without conditions every commit is read again")
    await fill(nodes, 10)
    report = await sweep(later(nodes, hours=25), db)
    assert report.deleted_sets == 10
    assert report.requests == {
        "list_objects_v2": 3,
        "list_multipart_uploads": 1,
        "get_object": 10,
        "put_object": 10 + 1,  # the journal
        "delete_objects": 1 + 1 + 1,  # blobs, manifests, the journal
    }


async def test_each_shard_is_walked_once_before_any_is_walked_again(
    nodes: Nodes, db: Database, small_shards: int
) -> None:
    await fill(nodes, 10)
    await sweep(nodes.another(), db)
    await db.execute("UPDATE sweep_shards SET walked_at = NULL, files = 0, bytes = 0")
    walked = Counter([(await sweep(nodes.another(), db)).walked_sets for _ in range(3)])
    assert walked == Counter([4, 4, 2])
    status = await sweep_ledger.get_status(db)
    assert (status.sets, status.files, status.bytes) == (10, 20, 50)
    assert status.walked_at is not None


async def test_shard_that_is_split_keeps_what_was_counted_when_it_was_walked(
    nodes: Nodes, db: Database, small_shards: int
) -> None:
    await fill(nodes, 8)
    await sweep(nodes.another(), db)
    before = await sweep_ledger.get_status(db)
    assert (before.files, before.bytes) == (16, 40)
    assert before.walked_at is not None
    # The second of two shards grows, while it is the first one's turn to be walked.
    _, second = await sweep_ledger.list_shards(db)
    last = uuid.UUID("ffffffff-ffff-4fff-8fff-ffffffffffff")
    for number in range(5):
        await store(nodes.another(), SessionFilesKey(last, uuid.uuid4(), f"{number}"), {"a": b"1"})
    await db.execute("UPDATE sweep_shards SET walked_at = walked_at - interval '1 hour'")
    await db.execute(
        "UPDATE sweep_shards SET walked_at = walked_at - interval '1 hour' WHERE first_path = ''"
    )
    assert (await sweep(nodes.another(), db)).walked_sets == 4
    assert len(await sweep_ledger.list_shards(db)) > 2
    split = await sweep_ledger.get_status(db)
    assert split.walked_at == second.walked_at - timedelta(hours=1)
    assert (split.sets, split.files, split.bytes) == (13, 16, 40)
    # Walked at last, all of it is counted, once.
    for _ in range(3):
        await sweep(nodes.another(), db)
    walked = await sweep_ledger.get_status(db)
    assert (walked.sets, walked.files, walked.bytes) == (13, 21, 45)


async def test_a_sweep_ends_in_time_also_where_no_set_stays(
    nodes: Nodes, db: Database, small_shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(nodes, 10)
    monkeypatch.setattr("app.usecases.storage_sweep.monotonic", _Clock(1))
    partly = await sweep(later(nodes, hours=25), db, sweep_max_seconds=1)
    assert (partly.scanned, partly.deleted_sets, partly.is_complete) == (4, 4, False)
    monkeypatch.setattr("app.usecases.storage_sweep.monotonic", _Clock(0))
    rest = await sweep(later(nodes, hours=25), db)
    assert (rest.scanned, rest.deleted_sets, rest.is_complete) == (6, 6, True)


async def test_what_a_sweep_had_no_time_for_comes_first_in_the_next(
    nodes: Nodes, db: Database, small_shards: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = await fill(nodes, 10)
    monkeypatch.setattr("app.usecases.storage_sweep.monotonic", _Clock(1))
    partly = await sweep(nodes.another(), db, sweep_max_seconds=1)
    assert (partly.scanned, partly.is_complete) == (4, False)
    node = nodes.another()
    started: list[str] = []

    def listen(operation: str, params: dict[str, Any]) -> None:
        if params.get("Prefix") == "sessions/manifests/":
            started.append(params.get("StartAfter", ""))

    node.store.fault = listen
    monkeypatch.setattr("app.usecases.storage_sweep.monotonic", _Clock(0))
    whole = await sweep(node, db)
    assert (whole.scanned, whole.is_complete) == (10, True)
    rest = f"sessions/manifests/{keys[small_shards].set_key.path}"
    assert started == [rest, ""]


class _Clock:
    """A clock that goes on by so much each time it is read."""

    def __init__(self, step_seconds: float) -> None:
        self._now, self._step_seconds = 0.0, step_seconds

    def __call__(self) -> float:
        self._now += self._step_seconds
        return self._now


async def test_a_sweep_asks_no_faster_than_it_may(nodes: Nodes, db: Database) -> None:
    await fill(nodes, 10)
    report = await sweep(later(nodes, hours=25), db, sweep_requests_per_second=20)
    assert report.duration_seconds >= (sum(report.requests.values()) - 1) / 20


async def test_a_sweep_has_as_many_requests_under_way_as_its_pace_takes(
    nodes: Nodes, db: Database
) -> None:
    # Half of the connections are for others.
    for rate, connections, parallel in ((20, 64, 2), (120, 64, 12), (100_000, 12, 6)):
        await fill(nodes, parallel + 3)
        node = nodes.another(s3_max_connections=connections)
        node.store.clock_offset = timedelta(hours=25)
        under_way, most = 0, 0

        async def get_slowly(node: Node = node, **params: Any) -> Any:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            await asyncio.sleep(0.2)
            under_way -= 1
            return await nodes.variant.client.get_object(**params)

        take_over(node, get_object=get_slowly)
        report = await sweep(node, db, sweep_requests_per_second=rate)
        assert (report.failed, len(await nodes.keys())) == (0, 0)
        assert most == parallel


# --- What S3 refuses --------------------------------------------------------------------------


@pytest.mark.parametrize("locked", ["blob", "manifest"])
async def test_set_that_cannot_be_deleted_keeps_no_other_from_its_end(
    nodes: Nodes, db: Database, locked: str
) -> None:
    stuck, *_ = await fill(nodes, 3)
    manifest_key = stuck.set_key.manifest_key
    keys = [manifest_key]
    if locked == "blob":
        keys = await nodes.keys(stuck.set_key.blobs_prefix)
    # Again when it has come to its time once more, and beside sets that have come since.
    for hours, others in ((25, 2), (26, 0), (51, 3), (52, 1)):
        node = later(nodes, hours=hours)
        lock_objects(node, keys)
        report = await sweep(node, db)
        assert (report.deleted_sets, report.failed, report.failed_keys) == (
            others,
            1,
            [manifest_key],
        )
        assert report.is_complete
        assert len(await nodes.keys("sessions/expiring/")) == 1
        status = await sweep_ledger.get_status(db)
        assert (status.sets, status.error, status.succeeded_at) == (1, "parts_refused", None)
        assert status.report is not None
        assert status.report.failed_keys == [manifest_key]
        assert await nodes.another().storage.get_files(stuck) is None
        await fill(nodes, {25: 0, 26: 3, 51: 1}.get(hours, 0))
    assert status.failures_total == 4
    report = await sweep(later(nodes, hours=52), db)
    assert (report.deleted_sets, report.resumed, report.failed) == (1, 1, 0)
    assert await nodes.keys() == []
    assert (await sweep_ledger.get_status(db)).failures_total == 4


async def test_orphan_that_cannot_be_deleted_keeps_no_other_from_its_end(
    nodes: Nodes, db: Database
) -> None:
    stray = [new_key().set_key.blob_key(str(uuid.UUID(int=1))) for _ in range(3)]
    for key in stray:
        await nodes.store.put(key, b"123")
    await fill(nodes, 2)
    node = later(nodes, hours=25)
    lock_objects(node, stray[:1])
    report = await sweep(node, db)
    assert (report.orphans, report.deleted_sets, report.failed_keys) == (3, 2, stray[:1])
    assert await nodes.keys() == stray[:1]
    assert (await sweep_ledger.get_status(db)).files == 1


async def test_manifest_or_journal_that_cannot_be_read_keeps_no_set_from_its_end(
    nodes: Nodes, db: Database
) -> None:
    stuck, *_ = await fill(nodes, 3)
    # The marker of a folder, half a journal, one of another kind, a huge one, and a locked one.
    journals = {"": b"", "a.json": b'["', "b.json": b"{}", "c.json": bytes(5_000_000)}
    for name, body in journals.items():
        await nodes.store.put(f"sessions/expiring/{name}", body)
    await nodes.store.put("sessions/expiring/d.json", b"[]")
    kept = await nodes.keys("sessions/expiring/")
    refused = [stuck.set_key.manifest_key, kept[-1]]
    node = later(nodes, hours=25)

    async def get_object(**params: Any) -> Any:
        if params["Key"] in refused:
            raise refusal("GetObject", 400, "InvalidRequest")
        return await driver.get_object(**params)

    driver = take_over(node, get_object=get_object)
    report = await sweep(node, db)
    assert (report.deleted_sets, report.failed_keys) == (2, refused[::-1])
    assert (report.unreadable, report.unreadable_keys) == (4, kept[:-1])
    # What was not marked needs no journal.
    assert await nodes.keys("sessions/expiring/") == kept
    assert await contents(nodes.another(), stuck) == {"a": b"12", "b": b"345"}


async def test_uploads_that_the_server_does_not_list_or_abort_are_no_matter_of_sets(
    nodes: Nodes, db: Database
) -> None:
    await nodes.store.create_multipart("sessions/files/x/y/z/1", "text/plain", {})
    for operation, refused, failed in (
        ("list_multipart_uploads", (501, "NotImplemented"), []),
        ("list_multipart_uploads", (403, "AccessDenied"), ["multipart uploads"]),
        ("abort_multipart_upload", (403, "AccessDenied"), ["sessions/files/x/y/z/1"]),
    ):
        await fill(nodes, 2)
        node = later(nodes, hours=25)

        async def refuse(refused: Any = refused, **params: Any) -> Any:
            raise refusal("the call", *refused)

        take_over(node, **{operation: refuse})
        report = await sweep(node, db)
        assert (report.deleted_sets, report.failed_keys) == (2, failed)
        assert report.aborted_uploads == 0


# --- What it leaves alone ---------------------------------------------------------------------


async def test_blobs_that_an_undone_commit_would_need_are_spared(
    nodes: Nodes, db: Database
) -> None:
    key = new_key()
    first = await store(nodes.another(), key, {"a": b"1"})
    writer = later(nodes, minutes=61)
    # Committed, and stopped before the replaced files were deleted or put back in force.
    replaced = await store(writer, key, {"b": b"2"}, keep={f.blob_id for f in first.files})
    assert (await sweep(later(nodes, minutes=62), db)).orphans == 0
    await writer.storage.restore_files(replaced)
    assert await contents(writer, key) == {"a": b"1"}
    await store(writer, key, {"c": b"3"}, keep={f.blob_id for f in first.files})
    assert (await sweep(later(nodes, minutes=123), db)).orphans == 1
    assert await contents(writer, key) == {"c": b"3"}


async def test_an_upload_that_comes_in_where_a_fence_was_lost_is_not_deleted(
    nodes: Nodes, db: Database, end_fences: EndFences
) -> None:
    key, sweeper = new_key(), later(nodes, hours=25)
    await store(nodes.another(), key, {"a": b"old"})
    delete = sweeper.store.delete

    async def lose_fence_and_delete(keys: Iterable[str]) -> int:
        keys = list(keys)
        if all(key.startswith(BLOBS) for key in keys):
            assert await end_fences() == 1
            await store(later(nodes, hours=25), key, {"b": b"new"})
        return await delete(keys)

    sweeper.store.delete = lose_fence_and_delete  # type: ignore[method-assign]
    with pytest.raises(Unavailable):
        await sweep(sweeper, db)
    assert await contents(later(nodes, hours=25), key) == {"b": b"new"}
    await sweep(later(nodes, hours=25), db)
    assert await contents(later(nodes, hours=25), key) == {"b": b"new"}
    assert await nodes.keys("sessions/expiring/") == []


@pytest.mark.parametrize("variant", ["embedded-fenced"], indirect=True, scope="session")
async def test_mark_does_not_overwrite_an_upload_that_came_in_where_a_fence_was_lost(
    nodes: Nodes, end_fences: EndFences
) -> None:
    key, sweeper = new_key(), later(nodes, hours=25)
    await store(nodes.another(), key, {"a": b"old"})

    async def lose_fence(keys: Sequence[SessionFilesKey]) -> dict[SessionFilesKey, set[str]]:
        assert await end_fences() == 1
        await store(later(nodes, hours=25), key, {"b": b"new"})
        return {}

    with pytest.raises(Unavailable):
        await sweeper.storage.cleanup_expired(lose_fence)
    assert await contents(later(nodes, hours=25), key) == {"b": b"new"}


@pytest.mark.parametrize("variant", ["embedded-fenced"], indirect=True, scope="session")
async def test_touch_does_not_overwrite_an_upload_that_came_in_where_its_fence_was_lost(
    nodes: Nodes, end_fences: EndFences
) -> None:
    key, node = new_key(), nodes.another()
    await store(node, key, {"a": b"old"})
    get, reads = node.store.get, 0

    async def get_and_lose_fence(name: str, *, max_bytes: int) -> Any:
        nonlocal reads
        reads += 1
        found = await get(name, max_bytes=max_bytes)
        if reads == 2:  # under the fence
            assert await end_fences() == 1
            await store(nodes.another(), key, {"b": b"new"})
        return found

    node.store.get = get_and_lose_fence  # type: ignore[method-assign]
    touched = await node.storage.touch_files(key)
    assert touched is not None
    assert [file.name for file in touched.files] == ["b"]
    assert await contents(nodes.another(), key) == {"b": b"new"}


@pytest.mark.parametrize("how", ["sweep", "clear"])
async def test_delete_is_not_repeated_where_a_fence_was_lost(
    nodes: Nodes, db: Database, end_fences: EndFences, how: str
) -> None:
    key, node = new_key(), later(nodes, hours=25)
    await store(nodes.another(), key, {"a": b"old"})

    async def lose_fence_and_fail(**params: Any) -> Any:
        if params["Delete"]["Objects"][0]["Key"] != key.set_key.manifest_key:
            return await driver.delete_objects(**params)
        if await end_fences():
            await store(later(nodes, hours=25), key, {"b": b"new"})
            raise refusal("DeleteObjects", 503, "SlowDown")
        return await driver.delete_objects(**params)

    driver = take_over(node, delete_objects=lose_fence_and_fail)
    with pytest.raises(Unavailable):
        await (sweep(node, db) if how == "sweep" else node.storage.clear_session(key))
    assert await contents(later(nodes, hours=25), key) == {"b": b"new"}


async def test_sets_that_the_database_does_not_explain_are_counted_and_kept(
    nodes: Nodes, db: Database
) -> None:
    known, foreign_tool, foreign_user = await fill(nodes, 3)
    for key in (known, foreign_tool):
        user = User(id=key.user_id, username=f"u{key.user_id.hex}", display_name="", role="user")
        await users.ensure_user(db, user, "", NOW)
    for key in (known, foreign_user):
        await db.execute(
            "INSERT INTO tools (id, slug, title, summary, usage_instructions, created_at,"
            " updated_at) VALUES ($1, $2, '', '', '', $3, $3)",
            key.tool_id,
            key.tool_id.hex,
            NOW,
        )
    report = await sweep(nodes.another(), db)
    assert (report.unexplained, report.deleted_sets, report.orphans) == (2, 0, 0)
    assert (await sweep_ledger.get_status(db)).unexplained == 2
    for key in (known, foreign_tool, foreign_user):
        assert await contents(nodes.another(), key) == {"a": b"12", "b": b"345"}


async def test_a_survey_changes_nothing_and_waits_for_nobody(nodes: Nodes, db: Database) -> None:
    await fill(nodes, 3)
    lost = new_key()
    await nodes.store.put(lost.set_key.blob_key(str(uuid.UUID(int=1))), b"123")
    node, before = later(nodes, hours=25), await nodes.keys()
    async with db.try_lock(LOCK) as is_ours:
        assert is_ours
        assert await clean_up_expired(db, node.storage, Settings()) is None
        seen = await survey_session_files(db, node.storage, Settings())
    assert (seen.dry_run, seen.scanned, seen.expired, seen.files, seen.bytes) == (True, 3, 3, 7, 18)
    assert (seen.orphans, seen.orphan_bytes, seen.deleted_sets) == (1, 3, 0)
    assert seen.oldest_access is not None
    assert await nodes.keys() == before
    assert (await sweep_ledger.get_status(db)).started_at is None
    assert (await sweep(node, db)).deleted_sets == seen.expired
    assert await nodes.keys() == []


# --- The ledger -------------------------------------------------------------------------------


async def test_the_ledger_tells_successes_failures_and_kills_apart(
    nodes: Nodes, db: Database
) -> None:
    assert (await sweep_ledger.get_status(db)).sweeps_total == 0
    await sweep(nodes.another(), db)
    status = await sweep_ledger.get_status(db)
    assert (status.sweeps_total, status.failures_total, status.error) == (1, 0, None)
    assert status.succeeded_at == status.ended_at
    assert status.report is not None
    assert status.report.scanned == 0

    broken = nodes.another()
    broken.store.fault = lambda operation, params: "refuse"
    with pytest.raises(Unavailable):
        await sweep(broken, db)
    failed = await sweep_ledger.get_status(db)
    assert (failed.sweeps_total, failed.failures_total) == (2, 1)
    assert failed.error is not None
    assert failed.succeeded_at == status.succeeded_at

    await sweep_ledger.begin_sweep(db, sweep_ledger.SESSION_FILES)  # and then it was killed
    await sweep(nodes.another(), db)
    killed = await sweep_ledger.get_status(db)
    assert (killed.sweeps_total, killed.failures_total, killed.error) == (4, 2, None)


async def test_a_sweep_that_is_told_to_stop_is_no_failure(nodes: Nodes, db: Database) -> None:
    node, begun = nodes.another(), asyncio.Event()
    node.store.fault = lambda operation, params: begun.set()
    task = asyncio.create_task(sweep(node, db, sweep_requests_per_second=1))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    status = await sweep_ledger.get_status(db)
    assert (status.error, status.failures_total, status.succeeded_at) == ("interrupted", 0, None)
    await sweep(nodes.another(), db)
    assert (await sweep_ledger.get_status(db)).failures_total == 0
