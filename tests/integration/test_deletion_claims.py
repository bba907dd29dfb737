"""Deletions and the claims that are under way: each is wholly before the other."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from uuid import UUID

import pytest
from databases import make_database
from runs_in_process import add_owners

from app.devstack import DevStack
from app.domain.ids import new_uuid7
from app.domain.runs import FinishedRun, RunKind, RunStatus
from app.domain.tools import ToolCode
from app.errors import Conflict, NotAuthenticated, NotFound
from app.settings import load_settings
from app.store import deletions, runs, tools
from app.store.object_types import ObjectInfo
from app.store.objects import open_object_store
from app.store.session_files import SessionFilesKey
from app.usecases.accounts import create_user
from app.usecases.tools import version_source
from app.wiring import Services, open_services

NOW = datetime.now(UTC)


@pytest.fixture(scope="module")
async def services(devstack: DevStack) -> AsyncIterator[Services]:
    async with make_database(devstack) as url:
        environment = devstack.environment() | {"DATABASE_URL": url}
        settings = load_settings(environment)
        async with open_object_store(settings) as objects:
            await objects.create_bucket()
        async with open_services(settings) as services:
            yield services


async def find_objects(services: Services, key: SessionFilesKey) -> list[ObjectInfo]:
    every = services.objects.list_objects("sessions/")
    return [info async for info in every if str(key.tool_id) in info.key]


async def count_rows(services: Services, key: SessionFilesKey) -> int:
    sql = "SELECT count(*) FROM tool_runs WHERE tool_id = $1"
    count: int = await services.db.fetchval(sql, key.tool_id)
    return count


async def one_chunk() -> AsyncIterator[bytes]:
    yield b"aaaa"


async def mark(services: Services, key: SessionFilesKey, kind: str) -> None:
    if kind == "user":
        await services.deletions.mark_user(key.user_id, asked_by=None)
    else:
        await services.deletions.mark_tool(key.tool_id)


async def exists(services: Services, kind: str, id: UUID) -> bool:
    return bool(await services.db.fetchval(f"SELECT id FROM {kind}s WHERE id = $1", id))


@pytest.mark.parametrize("kind", ["user", "tool"])
async def test_a_claim_under_way_is_waited_for_and_what_it_adds_is_deleted(
    services: Services, kind: str
) -> None:
    key = await add_owners(services)
    owner_id = key.user_id if kind == "user" else key.tool_id
    code = ToolCode("")
    version = await tools.insert_version(services.db, new_uuid7(NOW), key.tool_id, code, None, NOW)
    claims = services.initial_runs.claims
    async with services.session_files.begin_upload(key, services.upload_limits) as upload:
        await upload.add_file("a.txt", "text/plain", one_chunk())
        async with services.db.transaction() as tx:
            session = await claims.lock_session(tx, key, NOW)
            source = version_source(version)
            run = runs.NewRun(id=new_uuid7(NOW), source=source, kind=RunKind.INITIAL)
            await runs.insert_run(tx, session, run)
            marking = asyncio.create_task(mark(services, key, kind))
            await asyncio.sleep(0.3)
            # A user's mark waits for the claim. A tool's is there at once, but nobody is told
            # before the claim has ended, and the purge waits too.
            is_marked = bool(await deletions.list_marked(services.db))
            assert is_marked == (kind == "tool")
            purging = asyncio.create_task(services.deletions.finish_all())
            await asyncio.sleep(0.3)
            assert purging.done() == (kind == "user")
            assert not marking.done()
            await services.session_files.store_files(upload)
    await marking
    await purging
    await services.deletions.finish_all()
    assert not await exists(services, kind, owner_id)
    assert await count_rows(services, key) == 0
    assert await find_objects(services, key) == []


@pytest.mark.parametrize(("kind", "refusal"), [("user", NotAuthenticated), ("tool", NotFound)])
async def test_a_claim_after_the_mark_is_refused(
    services: Services, kind: str, refusal: type[Exception]
) -> None:
    key = await add_owners(services)
    claims = services.initial_runs.claims
    async with services.db.transaction() as tx:
        await claims.lock_session(tx, key, NOW)
    await mark(services, key, kind)
    for _ in ("marked", "gone"):
        with pytest.raises(refusal):
            async with services.db.transaction() as tx:
                await claims.lock_session(tx, key, NOW)
        await services.deletions.finish_all()


async def test_of_two_admins_who_delete_each_other_one_is_told(services: Services) -> None:
    admins = [await create_user(services.db, name, "admin", None, NOW) for name in "xy"]
    one, other = (admin.id for admin in admins if admin is not None)
    async with services.db.transaction() as tx:
        assert await deletions.lock_admins(tx) == sorted([one, other])
        assert await deletions.mark_user(tx, one, NOW)
        late = asyncio.create_task(services.deletions.mark_user(other, asked_by=one))
        await asyncio.sleep(0.3)
        assert not late.done(), "it waits to see who is left"
    with pytest.raises(Conflict):
        await late


async def test_nothing_is_purged_while_a_run_goes_on(services: Services) -> None:
    key = await add_owners(services)
    code = ToolCode("")
    version = await tools.insert_version(services.db, new_uuid7(NOW), key.tool_id, code, None, NOW)
    run = runs.NewRun(id=new_uuid7(NOW), source=version_source(version), kind=RunKind.INITIAL)
    async with services.db.transaction() as tx:
        session = await services.initial_runs.claims.lock_session(tx, key, NOW)
        await runs.insert_run(tx, session, run)
    assert await runs.claim_run(services.db, run.id, 0, "worker", 60) is not None
    await mark(services, key, "tool")
    await services.deletions.finish_all()
    assert await runs.renew_lease(services.db, run.id, "worker", 60) is True, "asked to stop"
    assert await exists(services, "tool", key.tool_id)
    assert await services.db.fetchval("SELECT id FROM tool_sessions WHERE id = $1", session.id)
    ended = FinishedRun(status=RunStatus.CANCELLED)
    assert await runs.finish_run(services.db, run.id, "worker", ended, NOW)
    await services.deletions.finish_all()
    assert not await exists(services, "tool", key.tool_id)
    assert await count_rows(services, key) == 0


async def test_nothing_to_delete_costs_one_query(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    await services.deletions.finish_all()
    seen: list[str] = []
    fetch = type(services.db).fetch

    async def counted(self: object, query: str, *args: object) -> object:
        seen.append(query)
        return await fetch(self, query, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(type(services.db), "fetch", counted)
    await services.deletions.finish_all()
    assert len(seen) == 1
