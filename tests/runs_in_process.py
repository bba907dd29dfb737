"""A worker's runs inside the test's process: over real stores, in a sandbox that a test scripts."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

from databases import make_database

from app.devstack import DevStack
from app.domain.files import StoredFile
from app.domain.ids import new_uuid7
from app.domain.runs import RunKind, ToolSession
from app.domain.tools import ToolCode
from app.settings import Settings, load_settings
from app.store import run_recovery, runs, sessions, tools
from app.store.objects import open_object_store
from app.store.session_files import SessionFilesKey
from app.usecases.accounts import create_user
from app.usecases.tools import create_tool, version_source
from app.wiring import Services, open_services
from workers.abandoned import AbandonedUploads
from workers.readiness import Readiness
from workers.run_tool import RunTool
from workers.sandbox.base import CollectedArtifact, Outcome, SandboxJob, SandboxResult
from workers.sweep import Sweep

RESULT = b'{"contract_version":2,"status":"succeeded","outputs":[],"next_actions":[],"state":null}'
# The shortest there are: whoever does not renew a lease loses it within a test.
SETTINGS = {"RUN_LEASE_SECONDS": "2", "RUN_HEARTBEAT_SECONDS": "1"}

Script = Callable[[SandboxJob, Path, asyncio.Event], Awaitable[SandboxResult]]


def make_result(spool: Path | None = None, artifacts: int = 0) -> SandboxResult:
    """A tool's success, with small artifacts that lie in `spool`."""
    made = []
    for number in range(artifacts):
        assert spool is not None
        path = spool / str(number)
        path.write_bytes(b"x")
        made.append(CollectedArtifact(f"{number}.txt", 1, path))
    return SandboxResult(Outcome.COMPLETED, 0.0, result_json=RESULT, artifacts=made)


@dataclass
class ScriptedSandbox:
    """A sandbox that does what a test says instead of running a tool."""

    script: Script
    name: str = "scripted"
    started: asyncio.Event = field(default_factory=asyncio.Event)
    runs: int = 0

    async def start(self) -> None:
        pass

    async def check(self) -> None:
        pass

    async def aclose(self) -> None:
        pass

    async def run(self, job: SandboxJob, *, spool: Path, stop: Any, **_: Any) -> SandboxResult:
        self.runs += 1
        self.started.set()
        return await self.script(job, spool, stop)


async def add_owners(services: Services) -> SessionFilesKey:
    """Add a user and a tool: the key of a session that they could have."""
    now, name = datetime.now(UTC), f"t{uuid.uuid4().hex}"
    user = await create_user(services.db, name, "user", None, now)
    assert user is not None, "the name is taken"
    texts = {"title": "", "summary": "", "usage_instructions": ""}
    tool = await create_tool(services.db, None, name, texts, now)
    return SessionFilesKey(tool.id, user.id, "default")


@dataclass
class Bench:
    """Queued runs of new users, and workers that do them."""

    services: Services
    settings: Settings

    async def begin_session(self) -> ToolSession:
        """A session of a new user in a new tool."""
        key = await add_owners(self.services)
        async with self.services.db.transaction() as tx:
            return await self.services.initial_runs.claims.lock_session(tx, key, datetime.now(UTC))

    async def queue_run(
        self, session: ToolSession | None = None, files: tuple[StoredFile, ...] = ()
    ) -> UUID:
        """Queue a run as the active one of a session, by default a new one."""
        session, now, db = (
            session or await self.begin_session(),
            datetime.now(UTC),
            self.services.db,
        )
        version = await tools.insert_version(
            db, new_uuid7(now), session.tool_id, ToolCode(""), None, now
        )
        run = runs.NewRun(
            id=new_uuid7(now), source=version_source(version), kind=RunKind.INITIAL, files=files
        )
        async with db.transaction() as tx:
            await runs.insert_run(tx, session, run)
            await sessions.set_active_run(tx, session.id, run.id, now)
            if files:
                await sessions.set_has_files(tx, session.id, True, now)
        return run.id

    def worker(self, script: Script, **adapters: Any) -> tuple[RunTool, ScriptedSandbox]:
        """A worker's runs, with some adapters in place of the real ones."""
        sandbox, services = ScriptedSandbox(script), self.services
        given: dict[str, Any] = {
            "settings": self.settings,
            "db": services.db,
            "session_files": services.session_files,
            "artifacts": services.artifacts,
            "events": services.events,
            "queue": services.queue,
            "sandbox": sandbox,
            "readiness": Readiness(sandbox),
            "abandoned": AbandonedUploads(services.artifacts),
            "worker": "machine:1",
        }
        return RunTool(**given | adapters), sandbox

    def sweep(self, **adapters: Any) -> Sweep:
        services = self.services
        given: dict[str, Any] = {
            "settings": self.settings,
            "db": services.db,
            "queue": services.queue,
            "events": services.events,
            "session_files": services.session_files,
            "artifacts": services.artifacts,
            "deletions": services.deletions,
            "abandoned": AbandonedUploads(services.artifacts),
        }
        return Sweep(**given | adapters)

    async def payload(self, run_id: UUID) -> dict[str, Any]:
        """What a run shows."""
        sql = "SELECT ui_payload FROM tool_runs WHERE id = $1"
        return dict(await self.services.db.fetchval(sql, run_id))

    async def look(self, run_id: UUID) -> dict[str, Any]:
        """How a run stands, and whether its session is held by it."""
        row = await self.services.db.fetchrow(
            """SELECT r.status, r.attempt, r.error_code, r.error_summary,
                s.active_run_id IS NOT DISTINCT FROM r.id AS holds_session
            FROM tool_runs r JOIN tool_sessions s ON s.id = r.session_id WHERE r.id = $1""",
            run_id,
        )
        assert row is not None
        return row

    async def status(self, run_id: UUID) -> tuple[str, int]:
        row = await self.look(run_id)
        return row["status"], row["attempt"]

    async def cancel(self, run_id: UUID) -> None:
        """Ask a run to stop, as its user does."""
        row = await self.services.db.fetchrow(runs.FIND_RUN_SESSION, run_id)
        assert row is not None
        now = datetime.now(UTC)
        assert await runs.request_cancel(self.services.db, run_id, row["session_id"], now)

    async def lose_lease(self, run_id: UUID) -> None:
        """Let a lease run out, as if its worker had stood still."""
        await self.services.db.execute(
            "UPDATE tool_runs SET lease_expires_at = $2 WHERE id = $1",
            run_id,
            datetime.now(UTC) - timedelta(days=1),
        )

    async def recover(self) -> list[run_recovery.RecoveredRun]:
        """Look for lost runs once."""
        attempts, seconds = self.settings.run_max_attempts, 0
        return await run_recovery.recover_lost_runs(
            self.services.db, attempts, seconds, datetime.now(UTC)
        )

    async def has_job(self, run_id: UUID) -> bool:
        """Whether a job of a run waits."""
        waiting = await self.services.queue.arq.zrange(self.settings.queue_name, 0, -1)
        return any(str(run_id) in job.decode() for job in waiting)

    async def uploads(self, run_id: UUID) -> int:
        objects = self.services.objects.list_objects(f"runs/{run_id}/")
        return len([info async for info in objects])


@asynccontextmanager
async def open_bench(devstack: DevStack, **settings: str) -> AsyncIterator[Bench]:
    """Open a database and a queue of the bench's own, and the stack's bucket."""
    async with make_database(devstack) as url:
        queue_name = f"tests:{uuid.uuid4().hex}"
        own = {"DATABASE_URL": url, "QUEUE_NAME": queue_name, **SETTINGS, **settings}
        loaded = load_settings(devstack.environment() | own)
        async with open_object_store(loaded) as objects:
            await objects.create_bucket()
        async with open_services(loaded) as services:
            yield Bench(services, loaded)
