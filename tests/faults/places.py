"""Places of session files, a test's own: a bucket and a database, on real servers.

Invariant: nothing in here looks at the node's clock. `Node.at` moves the S3 server's, as the node
reads it; what the server writes into `LastModified` is its real time.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

import asyncpg
import msgspec
from s3_servers import S3Server, TestStore
from session_sets import LIMITS, pieces

from app.devstack import DevStack
from app.domain.ids import new_uuid7
from app.domain.runs import RunSource
from app.domain.tools import ToolCode
from app.domain.users import User
from app.settings import Settings, load_settings
from app.store import sessions, sweep_ledger
from app.store.fence import PostgresFence
from app.store.manifests import Manifest
from app.store.migrate import migrate
from app.store.objects import ObjectStore, open_object_store
from app.store.postgres import Database, open_database
from app.store.session_files import FileSnapshot, S3SessionFileStorage, SessionFilesKey
from app.store.sweep_ledger import StorageStatus
from app.store.sweep_types import SweepReport
from app.usecases import tools
from app.usecases.accounts import create_user
from app.usecases.storage_sweep import clean_up_expired

Files = Mapping[str, bytes]
SOURCE = "def run_tool(input_dir, output_dir):\n    return None\n"


@dataclass(frozen=True)
class Place:
    """Where session files lie, and their database, as a process is told of them."""

    environment: dict[str, str]
    base: TestStore  # Of the same server: its driver and what was found out of it are shared.

    def settings(self) -> Settings:
        return load_settings(self.environment)

    def but(self, **settings: Any) -> "Place":
        """The same place under other settings."""
        others = {name.upper(): str(value) for name, value in settings.items()}
        return Place(self.environment | others, self.base)

    def open_store(self) -> TestStore:
        store = TestStore(self.base.client, self.settings())
        store._conditional = self.base._conditional
        return store


class Places:
    """Makes places of one S3 server; their databases are copies of one that was migrated once."""

    def __init__(self, devstack: DevStack, server: S3Server, base: TestStore) -> None:
        self.server = server
        self._devstack, self._base, self._template = devstack, base, ""

    async def make(self, *, database_url: str = "", **settings: Any) -> Place:
        """Make an empty bucket without rules, and a database unless one is given."""
        environment = self._devstack.environment() | {
            "APP_ENV": "test",
            "LOG_LEVEL": "warning",
            "S3_ENDPOINT_URL": self.server.endpoint,
            "S3_ACCESS_KEY": self.server.access_key,
            "S3_SECRET_KEY": self.server.secret_key,
            "S3_BUCKET": f"test-{uuid.uuid4()}",
            "QUEUE_NAME": f"test-{uuid.uuid4()}",
            "DATABASE_URL": database_url or await self.make_database(),
            # Tests wait for the sweep; its pace is another's to test.
            "SWEEP_REQUESTS_PER_SECOND": "100000",
        }
        place = Place(environment, self._base).but(**settings)
        await place.open_store().create_bucket()
        return place

    async def make_database(self, like: str = "") -> str:
        """Make a database: freshly migrated, or as a backup of another, which nobody may use."""
        if not like and not self._template:
            self._template = await self._create("template0")
            await asyncio.to_thread(migrate, self._template)
        return await self._create(_name_of(like or self._template))

    async def _create(self, template: str) -> str:
        name = f"place_{uuid.uuid4().hex[:12]}"
        server = await asyncpg.connect(self._devstack.database_url)
        try:
            await server.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        finally:
            await server.close()
        base, mark, query = self._devstack.database_url.partition("?")
        return f"{base.rpartition('/')[0]}/{name}{mark}{query}"


def _name_of(database_url: str) -> str:
    return database_url.partition("?")[0].rpartition("/")[2]


@asynccontextmanager
async def open_places(devstack: DevStack, server: S3Server) -> AsyncIterator[Places]:
    async with open_object_store(server.settings()) as objects:
        base = TestStore(objects._client, server.settings())
        await base.create_bucket()
        await base.conditional_writes()
        yield Places(devstack, server, base)


@dataclass(frozen=True)
class Node:
    """What a process has open at a place."""

    settings: Settings
    db: Database
    store: TestStore
    storage: S3SessionFileStorage
    fence: PostgresFence

    def at(self, ahead: timedelta) -> "Node":
        """Return the same node with the S3 server's clock ahead of what it is."""
        store = TestStore(self.store.client, self.settings)
        store._conditional, store.clock_offset = self.store._conditional, ahead
        storage = S3SessionFileStorage(store, self.fence, self.settings)
        return replace(self, store=store, storage=storage)

    # --- what a service does --------------------------------------------------------------

    async def upload(self, key: SessionFilesKey, files: Files) -> None:
        async with self.storage.begin_upload(key, LIMITS) as upload:
            for name, data in files.items():
                await upload.add_file(name, "text/plain", pieces(data))
            stored = await self.storage.store_files(upload)
        await self.storage.discard_replaced(stored, needed=())

    async def read(self, key: SessionFilesKey) -> dict[str, str] | None:
        """Return the SHA-256 of each file as the storage hands it out; None: none are left."""
        snapshot = await self.storage.get_files(key)
        return None if snapshot is None else await self.read_all(key, snapshot)

    async def read_all(self, key: SessionFilesKey, snapshot: FileSnapshot) -> dict[str, str]:
        found = {}
        for file in snapshot.files:
            digest = sha256()
            async with self.storage.open_file(key, file) as chunks:
                async for chunk in chunks:
                    digest.update(chunk)
            found[file.name] = digest.hexdigest()
        return found

    async def try_sweep(self) -> SweepReport | None:
        """Sweep as the command does; None while another does."""
        return await clean_up_expired(self.db, self.storage, self.settings)

    async def sweep(self) -> SweepReport:
        report = await self.try_sweep()
        assert report is not None, "another sweep is running"
        return report

    async def get_status(self) -> StorageStatus:
        return await sweep_ledger.get_status(self.db)

    # --- people and tools -----------------------------------------------------------------

    async def add_user(self) -> User:
        name = f"u{uuid.uuid4().hex[:12]}"
        user = await create_user(self.db, name, "user", None, datetime.now(UTC))
        assert user is not None, "the name is taken"
        return user

    async def add_tool(self) -> tuple[uuid.UUID, RunSource]:
        """Add a tool with one version: its id, and what a run of it executes."""
        now = datetime.now(UTC)
        slug = f"t{uuid.uuid4().hex[:12]}"
        texts = {"title": slug, "summary": "", "usage_instructions": ""}
        tool = await tools.create_tool(self.db, None, slug, texts, now)
        version = await tools.create_version(self.db, tool, None, ToolCode(SOURCE), now)
        return tool.id, tools.version_source(version)

    async def add_session(self, key: SessionFilesKey) -> None:
        """Add the session of some files, as their upload would have."""
        now = datetime.now(UTC)
        async with self.db.transaction() as tx:
            session = await sessions.ensure_and_lock_session(tx, new_uuid7(now), key.parts, now)
            await sessions.set_has_files(tx, session.id, True, now)


@asynccontextmanager
async def open_node(place: Place) -> AsyncIterator[Node]:
    settings = place.settings()
    async with (
        open_database(settings.database_url, size=6) as db,
        open_database(settings.database_url, size=4) as fence_db,
    ):
        store = place.open_store()
        fence = PostgresFence(fence_db)
        storage = S3SessionFileStorage(store, fence, settings)
        try:
            yield Node(settings, db, store, storage, fence)
        finally:
            await storage.aclose()


def hashes(files: Files) -> dict[str, str]:
    return {name: sha256(data).hexdigest() for name, data in files.items()}


class Stock(msgspec.Struct, frozen=True):
    """What lies in a bucket: manifests and blobs (bytes) by key, and the journals' keys."""

    manifests: dict[str, Manifest]
    blobs: dict[str, int]
    journals: list[str]
    open_uploads: list[str]

    def named(self) -> set[str]:
        """The keys of all blobs that manifests name."""
        return {
            f"{_blobs_of(key)}/{file.blob_id}"
            for key, manifest in self.manifests.items()
            for file in manifest.files
        }

    def orphans(self) -> dict[str, int]:
        named = self.named()
        return {key: size for key, size in self.blobs.items() if key not in named}

    def assert_whole(self) -> None:
        """What is named is there, what is there is named, and nothing is half done."""
        assert self.named() == set(self.blobs)
        assert {manifest.state for manifest in self.manifests.values()} <= {"live"}
        assert (self.journals, self.open_uploads) == ([], [])


async def take_stock(store: ObjectStore) -> Stock:
    """Look at all of a bucket's session files, past what the sweep looks at them by."""
    manifests, blobs, journals = {}, {}, []
    async for info in store.list_objects("sessions/"):
        match info.key.split("/")[1]:
            case "manifests":
                body, _ = await store.get(info.key, max_bytes=1_000_000)
                manifests[info.key] = msgspec.json.decode(body, type=Manifest)
            case "files":
                blobs[info.key] = info.bytes
            case "expiring":
                journals.append(info.key)
            case other:
                raise AssertionError(f"nobody writes there: {other}")
    uploads = [upload.key async for upload in store.list_multipart("")]
    return Stock(manifests, blobs, journals, uploads)


def _blobs_of(manifest_key: str) -> str:
    return manifest_key.replace("/manifests/", "/files/", 1).removesuffix(".json")
