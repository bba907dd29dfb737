"""How long runs and artifacts are kept, to the day, and what a session loses with its run."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any
from uuid import UUID

import asyncpg
import msgspec
import pytest
from databases import make_database

from app.devstack import DevStack
from app.domain.ids import new_uuid7
from app.domain.users import User
from app.errors import Unavailable
from app.settings import Settings, load_settings
from app.store import run_purge
from app.store.artifacts import ArtifactStore, artifact_key
from app.store.objects import ObjectStore, open_object_store
from app.store.postgres import Database, open_database
from app.store.session_files import SessionFilesKey
from app.store.upkeep import Upkeep, get_upkeep
from app.usecases import retention
from app.usecases.retention import RetentionReport, apply_retention
from app.usecases.sessions import SessionView, view_session

DAY = timedelta(days=1)
# PostgreSQL's clock is what counts: it goes on while a test runs, hence ages to the minute.
MINUTE = timedelta(minutes=1)
NOW = datetime.now(UTC)


class AgingStore(ObjectStore):
    """A bucket whose server's clock may be ahead of when its objects were written."""

    ahead = timedelta(0)
    is_down = False

    async def _call(self, operation: str, **params: Any) -> dict[str, Any]:
        if self.is_down and operation == "delete_objects":
            raise Unavailable("s3")
        answer = await super()._call(operation, **params)
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        served_at = parsedate_to_datetime(headers["date"]) + self.ahead
        headers["date"] = format_datetime(served_at, usegmt=True)
        return answer


@dataclass
class Keeper:
    """A database and a bucket, and runs in them of whatever age."""

    raw: Any
    db: Database
    objects: AgingStore
    settings: Settings
    user: UUID = field(default_factory=uuid.uuid4)
    tool: UUID = field(default_factory=uuid.uuid4)
    version: UUID = field(default_factory=uuid.uuid4)

    @property
    def artifacts(self) -> ArtifactStore:
        return ArtifactStore(self.objects)

    async def begin(self) -> None:
        await self.raw.execute(
            "INSERT INTO users (id, username, display_name, role, password_hash, created_at)"
            " VALUES ($1, 'anna', '', 'user', '', $2)",
            self.user,
            NOW,
        )
        await self.raw.execute(
            "INSERT INTO tools (id, slug, title, summary, usage_instructions, created_at,"
            " updated_at) VALUES ($1, 'prov', '', '', '', $2, $2)",
            self.tool,
            NOW,
        )
        await self.raw.execute(
            "INSERT INTO tool_versions (id, tool_id, number, status, source, entrypoint,"
            " input_schema, created_at, updated_at)"
            " VALUES ($1, $2, 1, 'draft', '', 'x', '[]', $3, $3)",
            self.version,
            self.tool,
            NOW,
        )

    async def session(self, context: str) -> UUID:
        session_id = uuid.uuid4()
        await self.raw.execute(
            "INSERT INTO tool_sessions (id, tool_id, user_id, context, state, state_rev,"
            " created_at, updated_at) VALUES ($1, $2, $3, $4, '{\"n\": 1}', 3, $5, $5)",
            session_id,
            self.tool,
            self.user,
            context,
            NOW,
        )
        return session_id

    async def run(
        self,
        session_id: UUID,
        age: timedelta,
        *,
        artifacts: int = 0,
        status: str = "succeeded",
    ) -> UUID:
        created_at = datetime.now(UTC) - age
        run_id = new_uuid7(created_at)
        finished_at = None if status == "queued" else created_at
        await self.raw.execute(
            "INSERT INTO tool_runs (id, tool_id, source_kind, version_id, user_id, session_id,"
            " context, kind, status, has_result, created_at, finished_at)"
            " VALUES ($1, $2, 'tool_version', $3, $4, $5, 'x', 'initial', $6, $7, $8, $9)",
            run_id,
            self.tool,
            self.version,
            self.user,
            session_id,
            status,
            artifacts > 0,
            created_at,
            finished_at,
        )
        for number in range(artifacts):
            await self.objects.put(artifact_key(run_id, number), b"12345")
        return run_id

    async def runs(self) -> set[UUID]:
        return {row["id"] for row in await self.raw.fetch("SELECT id FROM tool_runs")}

    async def keys(self) -> list[str]:
        return [info.key async for info in self.objects.list_objects("runs/")]

    async def view(self, context: str) -> SessionView:
        user = User(id=self.user, username="anna", display_name="", role="user")
        return await view_session(self.db, user, SessionFilesKey(self.tool, self.user, context))

    async def upkeep(self) -> Upkeep:
        return await get_upkeep(self.db)

    async def apply(self, *, dry_run: bool = False) -> RetentionReport:
        report = await apply_retention(self.db, self.artifacts, self.settings, dry_run=dry_run)
        assert report is not None, "nobody else is at it"
        return msgspec.structs.replace(report, duration_seconds=0.0)


@pytest.fixture(scope="module")
async def adapters(devstack: DevStack) -> AsyncIterator[tuple[Any, Database, AgingStore, Settings]]:
    async with make_database(devstack) as url:
        environment = devstack.environment() | {
            "DATABASE_URL": url,
            "S3_BUCKET": f"retention-{uuid.uuid4().hex[:8]}",
        }
        settings = load_settings(environment)
        async with (
            open_database(url, size=4) as db,
            open_object_store(settings) as real,
        ):
            objects = AgingStore(real._client, settings)
            await objects.create_bucket()
            raw = await asyncpg.connect(url)
            yield raw, db, objects, settings
            await raw.close()


@pytest.fixture
async def keeper(adapters: tuple[Any, Database, AgingStore, Settings]) -> AsyncIterator[Keeper]:
    raw, db, objects, settings = adapters
    await raw.execute("TRUNCATE users, tools CASCADE")
    objects.ahead, objects.is_down = timedelta(0), False
    await objects.delete([info.key async for info in objects.list_objects("")])
    keeper = Keeper(raw, db, objects, settings)
    await keeper.begin()
    yield keeper


# --- Runs -------------------------------------------------------------------------------------


async def test_a_run_lives_for_its_days_and_not_a_day_more(keeper: Keeper) -> None:
    assert keeper.settings.run_retention_days == 180
    session = await keeper.session("a")
    dead = {
        await keeper.run(session, 181 * DAY, artifacts=2),
        await keeper.run(session, 180 * DAY + MINUTE, status="failed"),
        await keeper.run(session, 400 * DAY),
    }
    alive = {
        await keeper.run(session, 179 * DAY, artifacts=1),
        await keeper.run(session, 180 * DAY - MINUTE),
        await keeper.run(session, 181 * DAY, status="queued"),
        await keeper.run(session, timedelta(0)),
    }
    dry = await keeper.apply(dry_run=True)
    assert await keeper.runs() == dead | alive
    report = await keeper.apply()
    assert report == RetentionReport(
        purged_runs=3, deleted_artifacts=2, artifact_bytes=10, is_complete=True
    )
    # A dry run counts artifacts by their own age alone, which these do not have.
    assert dry == msgspec.structs.replace(
        report, dry_run=True, deleted_artifacts=0, artifact_bytes=0
    )
    assert await keeper.runs() == alive
    assert len(await keeper.keys()) == 1
    assert (await keeper.apply()).purged_runs == 0


async def test_a_run_of_a_node_far_behind_lives_on(keeper: Keeper) -> None:
    """Created long ago by a node's broken clock, but ended just now by PostgreSQL's."""
    run = await keeper.run(await keeper.session("a"), 400 * DAY, artifacts=1)
    await keeper.raw.execute("UPDATE tool_runs SET finished_at = now()")
    assert (await keeper.apply()).purged_runs == 0
    assert await keeper.runs() == {run}
    assert len(await keeper.keys()) == 1


async def test_a_session_outlives_the_run_that_made_its_offer(keeper: Keeper) -> None:
    sessions = [await keeper.session(context) for context in ("old", "mixed", "new")]
    old = [await keeper.run(session, 200 * DAY) for session in sessions]
    new = [await keeper.run(session, DAY, status="failed") for session in sessions]
    point = "UPDATE tool_sessions SET offer_run_id = $2, latest_run_id = $3 WHERE id = $1"
    await keeper.raw.execute(point, sessions[0], old[0], old[0])
    await keeper.raw.execute(point, sessions[1], old[1], new[1])
    await keeper.raw.execute(point, sessions[2], new[2], new[2])
    await keeper.apply()
    look = "SELECT offer_run_id, latest_run_id, state, state_rev FROM tool_sessions WHERE id = $1"
    rows = [tuple(await keeper.raw.fetchrow(look, session)) for session in sessions]
    kept = ('{"n": 1}', 3)
    assert rows == [(None, None, *kept), (None, new[1], *kept), (new[2], new[2], *kept)]
    view = await keeper.view("old")
    assert (view.state, view.state_rev, view.next_actions) == ({"n": 1}, 3, [])


async def test_an_offer_that_went_meanwhile_is_no_offer(keeper: Keeper) -> None:
    """Read between the session and its run, the purge committed: nothing breaks."""
    session = await keeper.session("a")
    await keeper.raw.execute(
        "UPDATE tool_sessions SET offer_run_id = $2 WHERE id = $1", session, uuid.uuid4()
    )
    view = await keeper.view("a")
    assert (view.state_rev, view.next_actions) == (3, [])


async def test_what_s3_did_not_delete_keeps_its_row_and_goes_the_next_time(keeper: Keeper) -> None:
    run = await keeper.run(await keeper.session("a"), 200 * DAY, artifacts=2)
    keeper.objects.is_down = True
    with pytest.raises(Unavailable):
        await keeper.apply()
    assert await keeper.runs() == {run}
    keeper.objects.is_down = False
    assert (await keeper.apply()).deleted_artifacts == 2
    assert await keeper.runs() == set()


async def test_how_it_went_is_told_to_operators(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    await keeper.raw.execute("TRUNCATE sweep_status")
    run = await keeper.run(await keeper.session("a"), 200 * DAY, artifacts=1)
    assert await keeper.upkeep() == Upkeep()
    await keeper.apply(dry_run=True)
    assert await keeper.upkeep() == Upkeep(), "a dry run is no go"
    keeper.objects.is_down = True
    with pytest.raises(Unavailable):
        await keeper.apply()
    assert await keeper.upkeep() == Upkeep(retentions_total=1, retention_failures_total=1)
    keeper.objects.is_down = False
    before = datetime.now(UTC)
    await keeper.apply()
    upkeep = await keeper.upkeep()
    assert upkeep.retention_succeeded_at is not None
    assert before <= upkeep.retention_succeeded_at <= datetime.now(UTC)
    assert upkeep.retention_is_complete is True
    assert (upkeep.retentions_total, upkeep.retention_failures_total) == (2, 1)
    # As a kill leaves it: counted when the next begins. A stop is no failure.
    await keeper.raw.execute("UPDATE sweep_status SET ended_at = NULL WHERE job = 'retention'")
    deleting = asyncio.Event()

    async def hang(*_: Any, **__: Any) -> None:
        deleting.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patch:
        patch.setattr(ArtifactStore, "delete_older", hang)
        stopped = asyncio.create_task(keeper.apply())
        await deleting.wait()
        stopped.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopped
    assert (await keeper.upkeep()).retention_failures_total == 2
    await keeper.apply()
    upkeep = await keeper.upkeep()
    assert (upkeep.retentions_total, upkeep.retention_failures_total) == (4, 2)
    assert run not in await keeper.runs()


async def test_what_is_deleted_and_not_gone_is_told_to_operators(keeper: Keeper) -> None:
    assert (await keeper.upkeep()).pending_deletions == 0
    marked_at = NOW - 3 * DAY
    await keeper.raw.execute("UPDATE tools SET deleted_at = $1", NOW)
    await keeper.raw.execute("UPDATE users SET deleted_at = $1, is_active = false", marked_at)
    upkeep = await keeper.upkeep()
    assert (upkeep.pending_deletions, upkeep.oldest_deletion_at) == (2, marked_at)


async def test_one_go_is_bounded_and_the_next_goes_on(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await keeper.session("a")
    stuck = await keeper.run(session, 300 * DAY, status="queued")
    for number in range(5):
        await keeper.run(session, (200 + number) * DAY, artifacts=number % 2)
    monkeypatch.setattr(run_purge, "BATCH_RUNS", 2)
    monkeypatch.setattr(retention, "MAX_SECONDS", 0.0)
    goes = [await keeper.apply() for _ in range(4)]
    assert [go.purged_runs for go in goes] == [2, 2, 1, 0]
    assert [go.is_complete for go in goes] == [False, False, False, True]
    assert (await keeper.upkeep()).retention_is_complete is True
    assert await keeper.runs() == {stuck}
    assert await keeper.keys() == []


async def test_two_at_once_share_the_work_or_leave_it(keeper: Keeper) -> None:
    session = await keeper.session("a")
    ids = [await keeper.run(session, 200 * DAY, artifacts=1) for _ in range(30)]
    both = await asyncio.gather(
        *(apply_retention(keeper.db, keeper.artifacts, keeper.settings) for _ in range(2))
    )
    assert sum(report is None for report in both) <= 1
    assert sum(report.purged_runs for report in both if report is not None) == 30
    # Also without the lock between them: the same rows, from both ends.
    again = [await keeper.run(session, 200 * DAY) for _ in range(30)]
    counts = await asyncio.gather(
        run_purge.delete_runs(keeper.db, again), run_purge.delete_runs(keeper.db, again[::-1])
    )
    assert sum(counts) == 30
    assert not {*ids, *again} & await keeper.runs()


# --- Artifacts --------------------------------------------------------------------------------


@pytest.mark.parametrize(("days", "is_kept"), [(29, True), (31, False)])
async def test_an_artifact_lives_for_its_days_by_the_buckets_clock(
    keeper: Keeper, days: int, is_kept: bool
) -> None:
    """Without any lifecycle rule, and whether or not there is a run that it is of."""
    assert keeper.settings.artifact_retention_days == 30
    run = await keeper.run(await keeper.session("a"), timedelta(0), artifacts=2)
    lost = artifact_key(new_uuid7(NOW), 0)
    await keeper.objects.put(lost, b"123")
    keeper.objects.ahead = days * DAY
    dry = await keeper.apply(dry_run=True)
    assert len(await keeper.keys()) == 3
    report = await keeper.apply()
    assert report == msgspec.structs.replace(dry, dry_run=False)
    assert report == RetentionReport(
        deleted_artifacts=0 if is_kept else 3, artifact_bytes=0 if is_kept else 13, is_complete=True
    )
    assert len(await keeper.keys()) == (3 if is_kept else 0)
    assert await keeper.runs() == {run}, "the run itself is kept longer"


async def test_with_nothing_to_do_one_listing_is_all_that_it_costs(
    keeper: Keeper, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = await keeper.session("a")
    for _ in range(5):
        await keeper.run(session, timedelta(0), artifacts=1)
    list_pages = ObjectStore.list_pages

    def list_small_pages(self: Any, prefix: str, **rest: Any) -> Any:
        return list_pages(self, prefix, **rest | {"page_keys": 2})

    monkeypatch.setattr(ObjectStore, "list_pages", list_small_pages)
    keeper.objects.requests.clear()
    assert (await keeper.apply()).is_complete
    assert dict(keeper.objects.requests) == {"list_objects_v2": 1}
    # And with all to do, a listing and a deletion for each page.
    keeper.objects.ahead = 31 * DAY
    keeper.objects.requests.clear()
    assert (await keeper.apply()).deleted_artifacts == 5
    assert dict(keeper.objects.requests) == {"list_objects_v2": 3, "delete_objects": 3}
