"""Who may end a run, and that somebody does: leases, cancels, drains and outages, step by step."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn
from uuid import UUID

import msgspec
import pytest
from runs_in_process import Bench, make_result, open_bench

from app.devstack import DevStack
from app.domain.files import StoredFile
from app.domain.policy import DEFAULT_POLICY, UiPolicy
from app.domain.runs import ClaimedRun, SourceKind
from app.errors import Unavailable
from app.store import runs, sessions
from workers import lease, run_tool, snapshot
from workers.abandoned import AbandonedUploads
from workers.results import ResultReader
from workers.sandbox import directories
from workers.sandbox.base import Outcome, SandboxJob, SandboxLost, SandboxResult

FILE = StoredFile("a.txt", 1, "", "text/plain", "blob")


@pytest.fixture(scope="module")
async def bench(devstack: DevStack) -> AsyncIterator[Bench]:
    async with open_bench(devstack) as bench:
        yield bench


async def eventually(look: Callable[[], Awaitable[Any]], *, seconds: float = 10) -> None:
    end = time.monotonic() + seconds
    while not await look():
        assert time.monotonic() < end, f"not within {seconds} s"
        await asyncio.sleep(0.02)


async def ends(work: asyncio.Task[None]) -> None:
    async with asyncio.timeout(20):
        await work


async def drain(work: asyncio.Task[None]) -> None:
    """Tell a run's worker to end."""
    work.cancel()
    with pytest.raises(asyncio.CancelledError):
        await ends(work)


async def succeed(job: SandboxJob, spool: Path, stop: asyncio.Event) -> SandboxResult:
    return make_result(spool)


async def make_artifacts(job: SandboxJob, spool: Path, stop: asyncio.Event) -> SandboxResult:
    return make_result(spool, artifacts=2)


async def hang(job: SandboxJob, spool: Path, stop: asyncio.Event) -> NoReturn:
    await asyncio.Event().wait()
    raise AssertionError


# --- leases -----------------------------------------------------------------------------------


async def test_first_attempt_ends_when_the_same_worker_claims_the_run_again(bench: Bench) -> None:
    goes_on = asyncio.Event()

    async def hang_once(job: SandboxJob, spool: Path, stop: asyncio.Event) -> SandboxResult:
        if sandbox.runs == 1:
            await hang(job, spool, stop)
        await goes_on.wait()
        return make_result(spool)

    do_run, sandbox = bench.worker(hang_once)
    run_id = await bench.queue_run()
    first = asyncio.create_task(do_run(run_id, 0))
    await sandbox.started.wait()
    await asyncio.sleep(0.5)  # its first heartbeats: the next one comes after the second claim
    # What a pause of this worker looks like to the others.
    await bench.lose_lease(run_id)
    assert [run.id for run in await bench.recover()] == [run_id]
    second = asyncio.create_task(do_run(run_id, 1))
    await ends(first)
    assert await bench.status(run_id) == ("running", 2)
    goes_on.set()
    await ends(second)
    assert await bench.status(run_id) == ("succeeded", 2)
    assert sandbox.runs == 2


async def test_lease_is_held_while_a_cancelled_run_is_cleaned_up(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "STOP_GRACE_SECONDS", 0.1)

    async def clean_up_slowly(job: SandboxJob, spool: Path, stop: asyncio.Event) -> NoReturn:
        try:
            await hang(job, spool, stop)
        finally:
            await asyncio.sleep(2.5)  # longer than the lease

    do_run, sandbox = bench.worker(clean_up_slowly)
    run_id = await bench.queue_run()
    work = asyncio.create_task(do_run(run_id, 0))
    await sandbox.started.wait()
    await bench.cancel(run_id)
    while not work.done():
        assert await bench.recover() == []
        await asyncio.sleep(0.1)
    await work
    assert await bench.look(run_id) == {
        "status": "cancelled",
        "attempt": 1,
        "error_code": "cancelled",
        "error_summary": "Körningen avbröts.",
        "holds_session": False,
    }


async def test_lease_is_held_until_the_end_is_written(bench: Bench) -> None:
    do_run, sandbox = bench.worker(succeed)
    session = await bench.begin_session()
    run_id = await bench.queue_run(session)
    async with bench.services.db.transaction() as tx:
        # As an upload does while S3 takes its time for the manifest.
        await sessions.lock_session_by_id(tx, session.id)
        work = asyncio.create_task(do_run(run_id, 0))
        await sandbox.started.wait()
        await asyncio.sleep(2.5)  # longer than the lease
        assert not work.done()
        is_lost = "SELECT lease_expires_at < now() FROM tool_runs WHERE id = $1"
        assert await bench.services.db.fetchval(is_lost, run_id) is False
    await ends(work)
    assert await bench.status(run_id) == ("succeeded", 1)


# --- cancels ----------------------------------------------------------------------------------


async def test_cancelled_run_of_a_dead_worker_ends_instead_of_being_executed_again(
    bench: Bench,
) -> None:
    run_id = await bench.queue_run()
    assert await runs.claim_run(bench.services.db, run_id, 0, "dead", 60)
    await bench.cancel(run_id)
    await bench.lose_lease(run_id)
    async with bench.services.events.subscribe(run_id, ready_seconds=5) as told:
        await bench.sweep().recover_runs()
        assert (await asyncio.wait_for(told.get(), 5)).status == "cancelled"
    row = await bench.look(run_id)
    assert (row["status"], row["error_code"], row["attempt"]) == ("cancelled", "cancelled", 1)
    assert row["error_summary"] == "Körningen avbröts."
    assert not row["holds_session"]


async def test_cancelled_run_is_not_claimed(bench: Bench) -> None:
    run_id = await bench.queue_run()
    sql = "UPDATE tool_runs SET cancel_requested = true WHERE id = $1"
    await bench.services.db.execute(sql, run_id)
    assert await runs.claim_run(bench.services.db, run_id, 0, "worker", 60) is None


async def test_stopped_worker_ends_a_cancelled_run_instead_of_handing_it_back(
    bench: Bench,
) -> None:
    do_run, sandbox = bench.worker(hang)
    run_id = await bench.queue_run()
    work = asyncio.create_task(do_run(run_id, 0))
    await sandbox.started.wait()
    await bench.cancel(run_id)
    await drain(work)
    assert await bench.status(run_id) == ("cancelled", 1)
    assert not (await bench.look(run_id))["holds_session"]


async def test_cancelled_run_whose_sandbox_goes_away_is_not_handed_back(bench: Bench) -> None:
    async def lose(job: SandboxJob, spool: Path, stop: asyncio.Event) -> NoReturn:
        await stop.wait()
        raise SandboxLost

    do_run, sandbox = bench.worker(lose)
    run_id = await bench.queue_run()
    work = asyncio.create_task(do_run(run_id, 0))
    await sandbox.started.wait()
    await bench.cancel(run_id)
    await ends(work)
    assert await bench.status(run_id) == ("cancelled", 1)


# --- a worker that is told to end -------------------------------------------------------------


async def test_run_is_handed_back_while_its_tool_goes_on(bench: Bench) -> None:
    do_run, sandbox = bench.worker(hang)
    run_id = await bench.queue_run()
    for _ in range(2):  # the second time, too, its own job is the one that has not ended
        sandbox.started.clear()
        work = asyncio.create_task(do_run(run_id, 0))
        await sandbox.started.wait()
        await drain(work)
        assert await bench.status(run_id) == ("queued", 0)
        assert await bench.has_job(run_id)
        await bench.services.queue.arq.zremrangebyrank(bench.settings.queue_name, 0, -1)


class SlowDatabase:
    """A database whose answers take a moment to arrive."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.has_answered = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    async def fetchrow(self, *args: Any) -> Any:
        row = await self._inner.fetchrow(*args)
        self.has_answered.set()
        await asyncio.sleep(0.2)
        return row


async def test_run_whose_claim_was_under_way_is_handed_back(bench: Bench) -> None:
    db = SlowDatabase(bench.services.db)
    do_run, sandbox = bench.worker(succeed, db=db)
    run_id = await bench.queue_run()
    work = asyncio.create_task(do_run(run_id, 0))
    await db.has_answered.wait()
    await drain(work)
    assert await bench.status(run_id) == ("queued", 0)
    assert sandbox.runs == 0


async def test_result_is_kept_while_the_runs_directory_is_removed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_removing = asyncio.Event()
    remove = directories.remove_directory

    async def remove_slowly(path: Path) -> None:
        is_removing.set()
        await asyncio.sleep(0.3)
        await remove(path)

    monkeypatch.setattr(directories, "remove_directory", remove_slowly)
    do_run, sandbox = bench.worker(succeed)
    run_id = await bench.queue_run()
    work = asyncio.create_task(do_run(run_id, 0))
    await is_removing.wait()
    await drain(work)
    assert await bench.status(run_id) == ("succeeded", 1)
    assert sandbox.runs == 1


async def test_run_that_takes_longer_than_any_may_uses_its_attempts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_tool, "longest_seconds", lambda _: 0.2)
    do_run, _ = bench.worker(hang)
    run_id = await bench.queue_run()
    await ends(asyncio.create_task(do_run(run_id, 0)))
    assert await bench.status(run_id) == ("queued", 1)
    await ends(asyncio.create_task(do_run(run_id, 1)))
    assert await bench.status(run_id) == ("failed", 2)
    assert (await bench.look(run_id))["error_code"] == "sandbox_lost"


# --- an object store that is away or slow -----------------------------------------------------


class Files:
    """Session files that cannot be downloaded."""

    def __init__(self, how: str) -> None:
        self._how = how

    @asynccontextmanager
    async def open_file(self, *_: Any) -> AsyncIterator[AsyncIterator[bytes]]:
        if self._how == "away":
            raise Unavailable("s3")
        yield self._trickle()

    async def _trickle(self) -> AsyncIterator[bytes]:
        while True:
            yield b""
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("how", ["away", "slow"])
async def test_run_whose_files_cannot_be_downloaded_is_handed_back_for_as_long_as_runs_wait(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(snapshot, "PATIENCE_SECONDS", 0.2)
    monkeypatch.setattr(snapshot, "STAGING_SECONDS", 0.5)
    do_run, sandbox = bench.worker(succeed, session_files=Files(how))
    run_id = await bench.queue_run(files=(FILE,))
    await ends(asyncio.create_task(do_run(run_id, 0)))
    assert await bench.status(run_id) == ("queued", 0), "it was no attempt"
    assert await bench.has_job(run_id)
    sql = "UPDATE tool_runs SET started_at = started_at - interval '1 hour' WHERE id = $1"
    await bench.services.db.execute(sql, run_id)
    await ends(asyncio.create_task(do_run(run_id, 0)))
    row = await bench.look(run_id)
    assert (row["status"], row["error_code"]) == ("failed", "storage_unavailable")
    assert row["error_summary"].startswith("Filerna kunde inte hämtas")
    assert not row["holds_session"]
    assert sandbox.runs == 0


class Artifacts:
    """Artifacts of which the second cannot be uploaded: S3 goes away, or hangs."""

    def __init__(self, bench: Bench, how: str) -> None:
        self._store, self._how = bench.services.artifacts, how
        self.is_hanging = asyncio.Event()

    async def put_path(self, run_id: UUID, number: int, path: Path) -> None:
        if number == 0:
            await self._store.put_path(run_id, number, path)
        elif self._how == "away":
            raise Unavailable("s3")
        else:
            self.is_hanging.set()
            await asyncio.Event().wait()


async def test_run_whose_artifacts_cannot_be_uploaded_says_so_and_leaves_none(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_tool, "UPLOAD_SECONDS", 0.2)
    abandoned = AbandonedUploads(bench.services.artifacts)
    do_run, _ = bench.worker(
        make_artifacts, artifacts=Artifacts(bench, "away"), abandoned=abandoned
    )
    run_id = await bench.queue_run()
    await ends(asyncio.create_task(do_run(run_id, 0)))
    row = await bench.look(run_id)
    assert (row["status"], row["error_code"]) == ("failed", "storage_unavailable")
    assert row["error_summary"].startswith("Filerna som verktyget skapade kunde inte sparas")
    assert await bench.uploads(run_id) == 1
    await bench.sweep(abandoned=abandoned).recover_runs()
    assert await bench.uploads(run_id) == 0


@pytest.mark.parametrize("how", ["cancelled", "lost"])
async def test_what_a_run_uploaded_before_its_end_came_is_deleted(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setattr(lease, "STOP_GRACE_SECONDS", 0.1)
    artifacts = Artifacts(bench, "hangs")
    abandoned = AbandonedUploads(bench.services.artifacts)
    do_run, _ = bench.worker(make_artifacts, artifacts=artifacts, abandoned=abandoned)
    run_id = await bench.queue_run()
    work = asyncio.create_task(do_run(run_id, 0))
    await artifacts.is_hanging.wait()
    if how == "cancelled":
        await bench.cancel(run_id)
    else:
        await bench.lose_lease(run_id)
        assert [run.status for run in await bench.recover()] == ["failed"]
    await ends(work)
    assert await bench.status(run_id) == ("cancelled" if how == "cancelled" else "failed", 1)
    assert await bench.uploads(run_id) == 1
    await abandoned.delete()
    assert await bench.uploads(run_id) == 0


async def test_uploads_are_kept_of_a_run_that_names_them(bench: Bench) -> None:
    abandoned = AbandonedUploads(bench.services.artifacts)
    do_run, _ = bench.worker(make_artifacts, abandoned=abandoned)
    run_id = await bench.queue_run()
    await ends(asyncio.create_task(do_run(run_id, 0)))
    await abandoned.delete()
    assert await bench.status(run_id) == ("succeeded", 1)
    assert await bench.uploads(run_id) == 2


# --- results ----------------------------------------------------------------------------------


async def test_a_result_that_takes_long_to_read_keeps_nobody_waiting(
    bench: Bench,
) -> None:
    is_reading, may_end = threading.Event(), threading.Event()

    def find_policy_slowly(source_kind: SourceKind, /) -> UiPolicy:
        is_reading.set()
        assert may_end.wait(5), "nothing else was done meanwhile"
        return DEFAULT_POLICY

    do_run, _ = bench.worker(succeed, read_result=ResultReader(find_policy=find_policy_slowly))
    run_id = await bench.queue_run()
    work = asyncio.create_task(do_run(run_id, 0))
    await eventually(lambda: asyncio.sleep(0, is_reading.is_set()))
    may_end.set()
    await ends(work)
    assert await bench.status(run_id) == ("succeeded", 1)


async def test_what_a_result_means_is_told_by_the_seams_that_a_worker_is_given(
    bench: Bench,
) -> None:
    """ADR-0024, protocol seams: budgets, backend actions and normalizer are the installer's."""
    action = {"action_id": "installer:help", "label": "Hjälp", "kind": "form", "fields": []}

    def find_policy(source_kind: SourceKind, /) -> UiPolicy:
        assert source_kind == "tool_version"
        return msgspec.structs.replace(DEFAULT_POLICY, max_outputs=1)

    def offer(run: ClaimedRun, raw: Any, policy: UiPolicy, /) -> tuple[dict[str, Any], ...]:
        assert (policy.max_outputs, raw["status"]) == (1, "succeeded")
        return (action,)

    async def write_two(job: SandboxJob, spool: Path, stop: asyncio.Event) -> SandboxResult:
        outputs = [{"kind": "markdown", "markdown": word} for word in ("ett", "två")]
        raw = {"contract_version": 2, "status": "succeeded", "outputs": outputs}
        return SandboxResult(Outcome.COMPLETED, 0.0, result_json=msgspec.json.encode(raw))

    read_result = ResultReader(find_policy=find_policy, offer_actions=offer)
    do_run, _ = bench.worker(write_two, read_result=read_result)
    run_id = await bench.queue_run()
    await do_run(run_id, 0)
    payload = await bench.payload(run_id)
    assert [output["kind"] for output in payload["outputs"]] == ["notice"]
    assert [one["action_id"] for one in payload["next_actions"]] == ["installer:help"]
