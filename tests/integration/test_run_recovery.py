"""The clock's look at runs goes on whatever hangs: S3 under a claim, Redis, or the other runs."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest
from runs_in_process import Bench, open_bench

from app.devstack import DevStack
from app.domain.runs import RunSource
from app.domain.tools import parse_input_schema
from app.domain.users import User
from app.jobs import Queue, make_queue
from app.store import run_recovery, runs
from app.usecases.initial_runs import InitialRuns
from app.usecases.run_form import RunTarget
from workers import main, sweep


@pytest.fixture(scope="module")
async def bench(devstack: DevStack) -> AsyncIterator[Bench]:
    async with open_bench(devstack) as bench:
        yield bench


# --- S3 ---------------------------------------------------------------------------------------


class HangingCommit:
    """Session files whose manifest is written only when it may be."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.is_hanging, self.may_go_on = asyncio.Event(), asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def store_files(self, upload: Any) -> Any:
        self.is_hanging.set()
        await self.may_go_on.wait()
        return await self._inner.store_files(upload)


@dataclasses.dataclass
class UploadPart:
    """A file in a form."""

    name: str = "files"
    filename: str = "a.txt"
    content_type: str = "text/plain"

    async def chunks(self) -> AsyncIterator[bytes]:
        yield b"a"

    async def text(self) -> str:
        raise AssertionError


async def make_old(bench: Bench, *run_ids: UUID) -> None:
    """Let queued runs have waited for an hour."""
    sql = "UPDATE tool_runs SET created_at = created_at - interval '1 hour' WHERE id = ANY($1)"
    await bench.services.db.execute(sql, run_ids)


async def fail_overdue(bench: Bench) -> list[UUID]:
    return await run_recovery.fail_overdue_runs(bench.services.db, 600, 120, datetime.now(UTC))


async def parts() -> AsyncIterator[UploadPart]:
    yield UploadPart()


async def test_upload_whose_commit_hangs_keeps_no_other_run_waiting(bench: Bench) -> None:
    db = bench.services.db
    session = await bench.begin_session()
    running, queued, lost = [await bench.queue_run(session) for _ in range(3)]
    elsewhere = await bench.queue_run()
    for run_id in (running, lost, elsewhere):
        assert await runs.claim_run(db, run_id, 0, f"of {run_id}", 60)
    files = HangingCommit(bench.services.session_files)
    starts: InitialRuns = dataclasses.replace(bench.services.initial_runs, session_files=files)
    version_id = await db.fetchval("SELECT version_id FROM tool_runs WHERE id = $1", running)
    target = RunTarget(
        tool_id=session.tool_id,
        source=RunSource(source_kind="tool_version", version_id=version_id),
        input_schema=parse_input_schema([{"kind": "file", "name": "files", "label": "Filer"}]),
    )
    user = User(id=session.user_id, username="", display_name="", role="user")
    starting = asyncio.create_task(starts.start(user, target, parts()))
    await files.is_hanging.wait()
    for run_id in (lost, elsewhere):
        await bench.lose_lease(run_id)
    await make_old(bench, queued)
    async with asyncio.timeout(5):
        assert await runs.renew_lease(db, running, f"of {running}", 60) is False
        # What is in the claim's hands is left for later; the rest is done.
        assert [run.id for run in await bench.recover()] == [elsewhere]
        assert await fail_overdue(bench) == []
    files.may_go_on.set()
    started = await starting
    assert [run.id for run in await bench.recover()] == [lost]
    assert await fail_overdue(bench) == [queued]
    superseded = "SELECT superseded FROM tool_runs WHERE id = $1"
    for run_id, is_superseded in ((running, True), (queued, True), (lost, True), (started, False)):
        assert await db.fetchval(superseded, run_id) is is_superseded
    active = "SELECT active_run_id FROM tool_sessions WHERE id = $1"
    assert await db.fetchval(active, session.id) == started


# --- Redis ------------------------------------------------------------------------------------


@asynccontextmanager
async def open_hanging_queue(bench: Bench) -> AsyncIterator[Queue]:
    """Open a queue on a server that takes connections and never answers."""
    kept = []

    async def never_answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kept.append(writer)

    server = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    settings = msgspec.structs.replace(bench.settings, redis_url=f"redis://127.0.0.1:{port}/0")
    queue = make_queue(settings)
    try:
        yield queue
    finally:
        await queue.arq.aclose(close_connection_pool=True)
        server.close()
        for writer in kept:
            writer.close()


async def test_redis_that_hangs_keeps_no_run_from_being_recovered(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "TELL_SECONDS", 1.0)
    unsent = [await bench.queue_run() for _ in range(4)]
    sql = "UPDATE tool_runs SET created_at = created_at - interval '1 minute' WHERE id = ANY($1)"
    await bench.services.db.execute(sql, unsent)
    lost = await bench.queue_run()
    assert await runs.claim_run(bench.services.db, lost, 0, "dead", 60)
    async with open_hanging_queue(bench) as queue:
        sweeping = bench.sweep(queue=queue)
        round_of_another = asyncio.create_task(sweeping.recover_runs())
        await asyncio.sleep(0.3)
        assert not round_of_another.done()
        await bench.lose_lease(lost)
        async with asyncio.timeout(4):
            # Nobody waits for the round that hangs, and that ends soon too.
            await sweeping.recover_runs()
            await round_of_another
    assert await bench.status(lost) == ("queued", 1)
    assert not await bench.has_job(lost)
    # What could not be sent is sent as soon as there is somebody to send it to.
    await bench.services.db.execute(sql, [lost])
    await bench.sweep().recover_runs()
    for run_id in (*unsent, lost):
        assert await bench.has_job(run_id)


# --- what the clock starts --------------------------------------------------------------------


async def test_a_sweep_of_session_files_is_not_cut_off_before_its_time(bench: Bench) -> None:
    settings = msgspec.structs.replace(bench.settings, sweep_max_seconds=10_000)
    do_run, _ = bench.worker(lambda *_: None)
    worker = main._make_worker(settings, bench.services.queue.arq, do_run, bench.sweep())
    (timeout,) = {
        job.timeout_s for job in worker.cron_jobs or () if "expired_session_files" in job.name
    }
    assert timeout == 10_300
