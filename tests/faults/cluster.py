"""A service whose parts may be killed, stalled and started again; direct looks at its stores."""

import asyncio
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg
import httpx
from redis import Redis
from redis.exceptions import RedisError
from service import Client, Service

from app.dev import DEV_USERS, DevService, run_service
from app.devstack import end_with_parent, free_port
from app.settings import load_settings
from app.store.fence import PostgresFence
from app.store.objects import ObjectStore, open_object_store
from app.store.postgres import open_database
from app.store.session_files import S3SessionFileStorage
from app.store.sweep_types import SweepReport
from app.usecases.storage_sweep import clean_up_expired

T = TypeVar("T")
PATIENCE_SECONDS = 30
SETTINGS = {
    "SANDBOX": "process",
    "LOG_LEVEL": "info",
    "RUN_MAX_UNFINISHED": "1000",
    "LOGIN_ATTEMPTS": "100000",
    # So that what waits for a lease or the clock waits for seconds.
    "RUN_LEASE_SECONDS": "4",
    "RUN_HEARTBEAT_SECONDS": "1",
    "RUN_SWEEP_SECONDS": "1",
}

# The run's own columns tell how it stands; that it ended once only every change can tell.
_HISTORY = """
CREATE TABLE run_history (
    number bigint GENERATED ALWAYS AS IDENTITY, run_id uuid NOT NULL, status text NOT NULL
);
CREATE FUNCTION note_run_history() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO run_history (run_id, status) VALUES (NEW.id, NEW.status);
    RETURN NULL;
END $$;
CREATE TRIGGER note_run_history AFTER UPDATE ON tool_runs FOR EACH ROW
WHEN (OLD.status <> NEW.status OR OLD.finished_at IS DISTINCT FROM NEW.finished_at)
EXECUTE FUNCTION note_run_history();
"""


def eventually(look: Callable[[], T], *, seconds: float = PATIENCE_SECONDS) -> T:
    """Return the first true thing that `look` gives; fails with the last one when time is up."""
    deadline = time.monotonic() + seconds
    while not (seen := look()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {seen!r}"
        time.sleep(0.05)
    return seen


@contextmanager
def run_cluster(data_dir: Path, **settings: str) -> Iterator["Cluster"]:
    """Run the servers alone; nodes and workers are started as tests need them."""
    overrides = SETTINGS | settings
    with (
        run_service(data_dir, ports=[], workers=0, overrides=overrides) as service,
        closing(Cluster(service)) as cluster,
    ):
        yield cluster


@contextmanager
def paused(workers: list["Process"]) -> Iterator[None]:
    """Let workers do nothing for a while, so that what is queued stays so."""
    for worker in workers:
        os.kill(worker.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for worker in workers:
            os.kill(worker.pid, signal.SIGCONT)


@dataclass
class Process:
    """A node or worker of the cluster."""

    popen: "subprocess.Popen[bytes]"
    log_path: Path
    url: str = ""

    @property
    def pid(self) -> int:
        return self.popen.pid

    def kill(self) -> None:
        """End it as a power cut would."""
        self.popen.kill()
        self.popen.wait()

    def stop(self) -> None:
        self.popen.terminate()
        try:
            self.popen.wait(30)
        except subprocess.TimeoutExpired:
            self.kill()

    def has_logged(self, event: str, **fields: Any) -> bool:
        lines = [line for line in self.log_path.read_text("utf-8").splitlines() if event in line]
        return any(all(str(value) in line for value in fields.values()) for line in lines)


@dataclass
class Cluster:
    """A stack of servers, and nodes and workers that are started as a test needs them."""

    service: DevService
    _tokens: dict[str, str] = field(default_factory=dict)
    # Servers that were started again, by name: their first processes are no more.
    _restarted: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    # --- parts ----------------------------------------------------------------------------

    @contextmanager
    def node(self, **settings: str) -> Iterator[Process]:
        """Run another API node with settings of its own; ready when the block begins."""
        with self.nodes(1, **settings) as processes:
            yield processes[0]

    @contextmanager
    def nodes(self, count: int, **settings: str) -> Iterator[list[Process]]:
        processes = []
        with ExitStack() as stack:
            for _ in range(count):
                port = free_port()
                process = self._spawn(["app.cli", "api", "--port", str(port)], settings)
                stack.callback(process.stop)
                process.url = f"http://127.0.0.1:{port}"
                processes.append(process)
            eventually(lambda: all(_is_ready(process) for process in processes), seconds=60)
            yield processes

    @contextmanager
    def worker(self, **settings: str) -> Iterator[Process]:
        """Run another worker with settings of its own; it takes jobs when the block begins."""
        with self.workers(1, **settings) as processes:
            yield processes[0]

    @contextmanager
    def workers(
        self, count: int, *, module: str = "workers.main", **settings: str
    ) -> Iterator[list[Process]]:
        """Run workers, by another program than the product's if `module` names one."""
        processes = []
        settings = {"PYTHONPATH": str(Path(__file__).parent)} | settings
        with ExitStack() as stack:
            for _ in range(count):
                process = self._spawn([module], settings)
                stack.callback(process.stop)
                processes.append(process)
            eventually(lambda: all(_takes_jobs(process) for process in processes), seconds=60)
            yield processes

    def _spawn(self, module: list[str], settings: dict[str, str]) -> Process:
        log_path = self.service.stack.data_dir / "logs" / f"{uuid4()}.log"
        with log_path.open("wb") as log:
            popen = subprocess.Popen(
                [sys.executable, "-m", *module],
                env=self.service.environment | settings,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=end_with_parent,
            )
        return Process(popen, log_path)

    # --- people ---------------------------------------------------------------------------

    def client(self, node: Process, username: str = "anna") -> Client:
        """Speak to a node as a program with an API token, which outlives the loss of Redis."""
        client = Client(base_url=f"{node.url}/api/v1", timeout=60)
        client.headers["authorization"] = f"Bearer {self.token(node, username)}"
        return client

    def token(self, node: Process, username: str = "anna") -> str:
        if username not in self._tokens:
            with httpx.Client(base_url=f"{node.url}/api/v1", timeout=60) as browser:
                user = next(user for user in DEV_USERS if user.username == username)
                login = {"username": user.username, "password": user.password}
                browser.post("/auth/login", json=login).raise_for_status()
                csrf = {"x-csrftoken": browser.cookies["csrftoken"]}
                answer = browser.post("/auth/tokens", json={"name": "tests"}, headers=csrf)
                self._tokens[username] = answer.raise_for_status().json()["token"]
        return self._tokens[username]

    def publish(
        self, node: Process, slug: str, source: str, schema: list[dict[str, Any]] | None = None
    ) -> dict[str, Any]:
        running = DevService(self.service.stack, [node.url], self.service.environment, [], [])
        return Service(running).publish(slug, source, schema)

    # --- direct looks ---------------------------------------------------------------------

    def query(self, sql: str, *args: Any) -> list[dict[str, Any]]:
        """Ask PostgreSQL, past the service."""

        async def fetch() -> list[dict[str, Any]]:
            connection = await asyncpg.connect(self.service.stack.database_url)
            try:
                return [dict(row) for row in await connection.fetch(sql, *args)]
            finally:
                await connection.close()

        return asyncio.run(fetch())

    def keys(self, prefix: str) -> list[str]:
        """The objects in the bucket under a prefix, past the service."""

        async def list_keys(objects: ObjectStore) -> list[str]:
            return [info.key async for info in objects.list_objects(prefix)]

        return self._in_bucket(list_keys)

    def open_uploads(self) -> list[str]:
        """The multipart uploads that were neither completed nor aborted."""

        async def list_uploads(objects: ObjectStore) -> list[str]:
            return [upload.key async for upload in objects.list_multipart("")]

        return self._in_bucket(list_uploads)

    def delete_objects(self, keys: list[str]) -> None:
        """Delete objects past the service."""
        self._in_bucket(lambda objects: objects.delete(keys))

    def put_object(self, key: str, body: bytes) -> None:
        """Write an object past the service."""
        self._in_bucket(lambda objects: objects.put(key, body))

    def _in_bucket(self, work: Callable[[ObjectStore], Any]) -> Any:
        async def run() -> Any:
            async with open_object_store(load_settings(self.service.environment)) as objects:
                return await work(objects)

        return asyncio.run(run())

    def sweep(self, *, hours_ahead: float) -> SweepReport:
        """Sweep the session files as if the S3 server's clock were ahead; no set is so old."""
        environment = self.service.environment | {"SESSION_FILES_TTL_SECONDS": str(3 * 86_400)}
        settings = load_settings(environment)

        async def run() -> SweepReport:
            async with (
                open_database(settings.database_url, size=4) as db,
                open_object_store(settings) as real,
            ):
                objects = _AheadStore(real._client, settings)
                objects.ahead = timedelta(hours=hours_ahead)
                storage = S3SessionFileStorage(objects, PostgresFence(db), settings)
                report = await clean_up_expired(db, storage, settings)
            assert report is not None, "another sweep is running"
            return report

        return asyncio.run(run())

    def record_history(self) -> None:
        """From now on have PostgreSQL itself note every change of a run's status or end."""
        asyncio.run(self._execute(_HISTORY))

    def history(self, run_id: str) -> list[str]:
        """The statuses that a run has had after it was queued; an end that is repeated too."""
        rows = self.query(
            "SELECT status FROM run_history WHERE run_id = $1 ORDER BY number", run_id
        )
        return [row["status"] for row in rows]

    async def _execute(self, script: str) -> None:
        connection = await asyncpg.connect(self.service.stack.database_url)
        try:
            await connection.execute(script)
        finally:
            await connection.close()

    def blobs(self, tool_id: str) -> list[str]:
        return self.keys(f"sessions/files/{tool_id}/")

    def redis(self) -> "Redis[bytes]":
        return Redis.from_url(self.service.stack.redis_url)

    # --- servers --------------------------------------------------------------------------

    def server_pid(self, name: str) -> int:
        stack = self.service.stack
        if name in self._restarted:
            return self._restarted[name].pid
        match name:
            case "s3":
                return stack.s3_pid
            case "redis":
                with self.redis() as redis:
                    return int(redis.info("server")["process_id"])
            case "postgres":
                return int((stack.data_dir / "postgres" / "postmaster.pid").read_text().split()[0])
        raise ValueError(name)

    @contextmanager
    def stalled(self, name: str) -> Iterator[None]:
        """Let a server hang: it holds its connections and answers nothing."""
        pid = self.server_pid(name)
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    @contextmanager
    def down(self, name: str) -> Iterator[None]:
        """Kill a server, and start it again at the end of the block as it was started first."""
        pid = self.server_pid(name)
        process = Path(f"/proc/{pid}")
        command = process.joinpath("cmdline").read_bytes().split(b"\0")[:-1]
        environment: Any = dict(
            item.split(b"=", 1)
            for item in process.joinpath("environ").read_bytes().split(b"\0")
            if b"=" in item
        )
        directory, owner = process.joinpath("cwd").readlink(), process.stat()
        if name == "redis":
            # It writes its title over its command line and environment.
            command = [os.fsencode(process.joinpath("exe").readlink()), b"valkey.conf"]
            environment = None
        # PostgreSQL's children outlive a SIGKILL for a moment; this is its own sudden end.
        os.kill(pid, signal.SIGQUIT if name == "postgres" else signal.SIGKILL)
        eventually(lambda: not _is_alive(pid))
        if name in self._restarted:
            self._restarted[name].wait()
        try:
            yield
        finally:
            self._restarted[name] = subprocess.Popen(
                command,
                env=environment,
                cwd=directory,
                user=owner.st_uid,
                group=owner.st_gid,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=end_with_parent,
            )
            eventually(self._all_answer)

    def close(self) -> None:
        """End the servers that were started again: their first owners do not know them."""
        for process in self._restarted.values():
            process.terminate()
            process.wait()

    def _all_answer(self) -> bool:
        try:
            self.query("SELECT 1")
            with self.redis() as redis:
                redis.ping()
            urllib.request.urlopen(self.service.stack.s3_endpoint, timeout=5).close()
        except urllib.error.HTTPError:
            return True  # S3 refuses an unsigned request: it answers.
        except (OSError, asyncpg.PostgresError, RedisError):
            return False
        return True


class _AheadStore(ObjectStore):
    """A bucket whose server's clock is ahead of when its objects were written."""

    ahead = timedelta(0)

    async def _call(self, operation: str, **params: Any) -> dict[str, Any]:
        answer = await super()._call(operation, **params)
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        served_at = parsedate_to_datetime(headers["date"]) + self.ahead
        headers["date"] = format_datetime(served_at, usegmt=True)
        return answer


def _is_ready(process: Process) -> bool:
    assert process.popen.poll() is None, process.log_path.read_text("utf-8")[-2000:]
    try:
        urllib.request.urlopen(f"{process.url}/api/v1/health/ready", timeout=5).close()
    except (OSError, urllib.error.HTTPError):
        return False
    return True


def _takes_jobs(process: Process) -> bool:
    assert process.popen.poll() is None, process.log_path.read_text("utf-8")[-2000:]
    return process.has_logged("worker.started")


def _is_alive(pid: int) -> bool:
    """A process that ended but was not waited for is no more."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text("utf-8")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"
