"""The S3 servers of the contract tests, and stores that can be made to fail on purpose."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Any

import pytest
from requirements import skip_for_want_of

from app.devstack import S3_ACCESS_KEY, S3_SECRET_KEY, DevStack, free_port
from app.errors import Unavailable
from app.settings import Settings
from app.store.fence import PostgresFence
from app.store.object_types import ConditionalWrites, ObjectMissing
from app.store.objects import ObjectStore, open_object_store
from app.store.postgres import open_database
from app.store.session_files import S3SessionFileStorage

INFRA = Path(__file__).resolve().parents[2] / "infra" / "s3"
CEPH_PROGRAMS = ("radosgw", "ceph-mon", "ceph-osd", "radosgw-admin")


@dataclass(frozen=True)
class S3Server:
    """A running server, and the settings that point at it."""

    name: str
    endpoint: str
    access_key: str
    secret_key: str

    def settings(self, **overrides: Any) -> Settings:
        fields: dict[str, Any] = {
            "app_env": "test",
            "s3_endpoint_url": self.endpoint,
            "s3_access_key": self.access_key,
            "s3_secret_key": self.secret_key,
            "s3_addressing": "path",
            "s3_max_connections": 64,
            **overrides,
        }
        return Settings(**fields)


class TestStore(ObjectStore):
    """A bucket whose clock can be off, whose calls can fail, and which can ignore conditions.

    `fault` is asked before each call: "refuse" (never applied), "lose" (applied, unanswered).
    """

    __test__ = False

    def __init__(self, client: Any, settings: Settings) -> None:
        super().__init__(client, settings)
        self.client = client
        self.clock_offset = timedelta(0)
        self.ignores_conditions = False
        self.fault: Callable[[str, dict[str, Any]], str | None] = lambda operation, params: None
        self.calls: list[str] = []

    async def _call(self, operation: str, **params: Any) -> dict[str, Any]:
        self.calls.append(operation)
        if self.ignores_conditions:
            params.pop("IfMatch", None)
            params.pop("IfNoneMatch", None)
        fault = self.fault(operation, params)
        if fault == "refuse":
            raise Unavailable("s3")
        try:
            answer = await super()._call(operation, **params)
        except ObjectMissing as missing:
            raise ObjectMissing(missing.key, missing.served_at + self.clock_offset) from missing
        if fault == "lose":
            raise Unavailable("s3")
        if self.clock_offset:
            headers = answer["ResponseMetadata"]["HTTPHeaders"]
            served_at = parsedate_to_datetime(headers["date"]) + self.clock_offset
            headers["date"] = format_datetime(served_at, usegmt=True)
        return answer


@dataclass(frozen=True)
class Variant:
    """What one pass of the suite runs over: a server, and how commits are guarded."""

    server: S3Server
    client: Any
    fence: PostgresFence
    fenced: bool
    conditional: ConditionalWrites

    def settings(self, bucket: str, **overrides: Any) -> Settings:
        guard = "postgres" if self.fenced else "none"
        return self.server.settings(s3_bucket=bucket, storage_fence=guard, **overrides)


@dataclass(frozen=True)
class Nodes:
    """Makes nodes: storages with a store of their own over one bucket of their own."""

    variant: Variant
    bucket: str
    store: TestStore

    def another(self, **overrides: Any) -> "Node":
        settings = self.variant.settings(self.bucket, **overrides)
        store = TestStore(self.variant.client, settings)
        store.ignores_conditions = self.variant.fenced
        store._conditional = self.variant.conditional  # As after the probe at start.
        return Node(store, S3SessionFileStorage(store, self.variant.fence, settings))

    async def keys(self, prefix: str = "") -> list[str]:
        return [info.key async for info in self.store.list_objects(prefix)]

    async def open_uploads(self) -> list[str]:
        return [upload.key async for upload in self.store.list_multipart("")]


@dataclass(frozen=True)
class Node:
    store: TestStore
    storage: S3SessionFileStorage


def embedded_server(devstack: DevStack) -> S3Server:
    return S3Server("embedded", devstack.s3_endpoint, S3_ACCESS_KEY, S3_SECRET_KEY)


@pytest.fixture(scope="session")
def embedded_s3(devstack: DevStack) -> S3Server:
    return embedded_server(devstack)


@pytest.fixture(scope="session")
def ceph_s3() -> Iterator[S3Server]:
    """Ceph's gateway; skips where it is not installed, unless it is required."""
    with run_ceph() as server:
        yield server


class run_ceph:
    """Start a throw-away Ceph cluster; `lc_seconds` is the length of a lifecycle day."""

    def __init__(self, lc_seconds: int = 0) -> None:
        self._lc_seconds = lc_seconds
        self._directory: Path | None = None

    def __enter__(self) -> S3Server:
        path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        missing = [name for name in CEPH_PROGRAMS if shutil.which(name, path=path) is None]
        if missing:
            reason = f"Ceph's S3 gateway is not installed ({', '.join(missing)})"
            skip_for_want_of("CEPH", reason)
        self._directory = Path(tempfile.mkdtemp(prefix="ceph-"))
        port = free_port()
        environment = os.environ | {"LC_SECONDS": str(self._lc_seconds), "OSD_STORE": "memstore"}
        started = subprocess.run(
            [str(INFRA / "ceph-start.sh"), str(self._directory), str(port)],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=170,
        )
        if started.returncode != 0:
            pytest.fail(f"Ceph did not start: {started.stderr.strip()[-2000:]}")
        return S3Server("ceph", f"http://127.0.0.1:{port}", "test", "testsecret")

    def __exit__(self, *error: object) -> None:
        subprocess.run(
            [str(INFRA / "ceph-stop.sh"), str(self._directory), "--delete"],
            stdin=subprocess.DEVNULL,
            check=True,
            timeout=60,
        )


# A suite that shall also run over a server without conditions says so by its own parameters.
@pytest.fixture(
    scope="session",
    params=["embedded", pytest.param("ceph", marks=pytest.mark.ceph)],
)
async def variant(request: pytest.FixtureRequest, devstack: DevStack) -> AsyncIterator[Variant]:
    """A server; `-fenced` is one that ignores conditions, where PostgreSQL guards the commits."""
    name, _, fenced = str(request.param).partition("-")
    server: S3Server = request.getfixturevalue(f"{name}_s3")
    async with (
        open_database(devstack.database_url, size=4) as database,
        open_object_store(server.settings()) as store,
    ):
        await store.create_bucket()
        conditional = await store.probe_conditional_writes()
        fence = PostgresFence(database)
        yield Variant(server, store._client, fence, bool(fenced), conditional)


async def make_nodes(variant: Variant) -> Nodes:
    """Make an empty bucket and a way to make nodes that share it."""
    bucket = f"test-{uuid.uuid4()}"
    store = TestStore(variant.client, variant.settings(bucket))
    await store.create_bucket()
    return Nodes(variant, bucket, store)


@pytest.fixture
async def nodes(variant: Variant) -> Nodes:
    return await make_nodes(variant)
