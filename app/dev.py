"""`skriptoteket dev`: the embedded stack, API nodes and workers as processes of their own.

What `demo` and the end-to-end tests use too: `run_service()` yields a running, seeded service.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from app.devstack import (
    S3_ACCESS_KEY,
    S3_SECRET_KEY,
    DevStack,
    DevStackError,
    end_with_parent,
    free_port,
    run_devstack,
)
from app.domain.users import Role
from app.settings import load_settings
from app.store import users
from app.store.lifecycle import init_storage
from app.store.migrate import migrate
from app.store.objects import open_object_store
from app.store.postgres import open_database
from app.usecases.accounts import create_user
from app.usecases.seed import seed_catalogue

START_TIMEOUT_SECONDS = 60
STOP_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class DevUser:
    """A login of the development service."""

    username: str
    password: str
    role: Role
    display_name: str


DEV_USERS: tuple[DevUser, ...] = (
    DevUser("anna", "anna-hemligt", "user", "Anna Ek"),
    DevUser("bo", "bo-hemligt", "user", "Bo Åberg"),
    DevUser("carin", "carin-hemligt", "contributor", "Carin Öst"),
    DevUser("admin", "admin-hemligt", "admin", "Administratör"),
)


@dataclass(frozen=True)
class DevService:
    """A running service: where its API nodes answer, and its processes."""

    stack: DevStack
    urls: list[str]
    environment: dict[str, str]
    api: list["subprocess.Popen[bytes]"]
    workers: list["subprocess.Popen[bytes]"]

    def describe(self) -> dict[str, Any]:
        """Return what a test or a tool needs to use the service, as JSON values."""
        return {
            "urls": self.urls,
            "users": [
                {"username": u.username, "password": u.password, "role": u.role} for u in DEV_USERS
            ],
            "s3": {
                "endpoint": self.stack.s3_endpoint,
                "access_key": S3_ACCESS_KEY,
                "secret_key": S3_SECRET_KEY,
                "bucket": self.stack.s3_bucket,
            },
            "database_url": self.stack.database_url,
            "redis_url": self.stack.redis_url,
            "api_pids": [process.pid for process in self.api],
            "worker_pids": [process.pid for process in self.workers],
        }


@contextmanager
def run_service(
    data_dir: Path,
    *,
    ports: Sequence[int],
    workers: int,
    overrides: dict[str, str] | None = None,
) -> Iterator[DevService]:
    """Run embedded servers, an API node on each port and workers; stop all of it at the end.

    `overrides` are settings for the nodes and workers. Logs go to `data_dir/logs`.

    Raises:
        DevStackError: something did not start; the message names its log.
    """
    with ExitStack() as stack:
        devstack = stack.enter_context(run_devstack(data_dir))
        ours = {"WORKER_CACHE_DIR": str(data_dir / "cache")} | devstack.environment()
        environment = os.environ | ours | (overrides or {})
        asyncio.run(_prepare(environment))
        logs = devstack.data_dir / "logs"
        logs.mkdir(exist_ok=True)
        api, worker_processes = [], []
        for index, port in enumerate(ports):
            command = ["app.cli", "api", "--port", str(port)]
            api.append(_spawn(stack, command, environment, logs / f"api-{index}.log"))
        for index in range(workers):
            ready_file = logs / f"worker-{index}.ready"
            ready_file.unlink(missing_ok=True)
            own = environment | {"WORKER_READY_FILE": str(ready_file)}
            log_path = ready_file.with_suffix(".log")
            worker_processes.append(_spawn(stack, ["workers.main"], own, log_path))
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        for url, process in zip(urls, api, strict=True):
            _wait_until_ready(f"{url}/api/v1/health/ready", process, logs)
        for index, process in enumerate(worker_processes):
            _wait_for_file(logs / f"worker-{index}.ready", process)
        yield DevService(devstack, urls, environment, api, worker_processes)


def run_dev(
    *, data_dir: Path, port: int, api_nodes: int, workers: int, ready_file: Path | None
) -> int:
    """Run the service until SIGTERM or SIGINT. Port 0 takes free ones."""
    signal.signal(signal.SIGTERM, _raise_interrupt)
    ports = [port + index if port else free_port() for index in range(api_nodes)]
    try:
        with run_service(data_dir, ports=ports, workers=workers) as service:
            _tell(service)
            if ready_file is not None:
                _write_whole(ready_file, json.dumps(service.describe()))
            while True:
                signal.pause()
    except KeyboardInterrupt:
        return 0
    except DevStackError as error:
        print(f"skriptoteket: {error}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        if ready_file is not None:
            ready_file.unlink(missing_ok=True)


async def _prepare(environment: dict[str, str]) -> None:
    """Schema, bucket, tools and users; all of it idempotent."""
    settings = load_settings(environment)
    await asyncio.to_thread(migrate, settings.database_url)
    async with open_object_store(settings) as objects:
        await init_storage(objects, settings)
    now = datetime.now(UTC)
    async with open_database(settings.database_url, size=1) as db:
        await seed_catalogue(db, now)
        for dev in DEV_USERS:
            if await users.find_login(db, dev.username) is None:
                name, password, title = dev.username, dev.password, dev.display_name
                await create_user(db, name, dev.role, password, now, display_name=title)


def _spawn(
    stack: ExitStack, module: list[str], environment: dict[str, str], log_path: Path
) -> "subprocess.Popen[bytes]":
    with log_path.open("wb") as log:
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-m", *module],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Not our terminal's Ctrl-C: we stop the processes in order ourselves.
            start_new_session=True,
            preexec_fn=end_with_parent,
        )
    stack.callback(_stop, process)
    return process


def _stop(process: "subprocess.Popen[bytes]") -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", logs: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(url, timeout=5).close()  # noqa: S310
        except urllib.error.HTTPError as refusal:
            refusal.close()
            time.sleep(0.05)
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise DevStackError(f"an API node did not start; logs are in {logs}")


def _wait_for_file(ready_file: Path, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        if ready_file.exists():
            return
        time.sleep(0.05)
    raise DevStackError(f"a worker did not start; its log is beside {ready_file}")


def _tell(service: DevService) -> None:
    print("Skriptoteket is running. Stop it with Ctrl-C.\n")  # noqa: T201
    for url in service.urls:
        print(f"  API      {url}/api/v1   (documentation: {url}/schema)")  # noqa: T201
    print(f"  S3       {service.stack.s3_endpoint}   bucket {service.stack.s3_bucket}")  # noqa: T201
    print(f"  Data     {service.stack.data_dir}\n")  # noqa: T201
    for user in DEV_USERS:
        print(f"  {user.role:<12} {user.username} / {user.password}", flush=True)  # noqa: T201


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, "utf-8")
    partial.replace(path)


def _raise_interrupt(*_: Any) -> None:
    raise KeyboardInterrupt
