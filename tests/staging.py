"""What the tests and the benchmark of staging share: stored files, and runs that need them."""

import asyncio
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from app.devstack import S3_ACCESS_KEY, S3_SECRET_KEY
from app.domain.files import StoredFile, UploadLimits
from app.domain.runs import ClaimedRun, RunKind
from app.settings import Settings
from app.store.fence import PostgresFence
from app.store.objects import ObjectStore, open_object_store
from app.store.postgres import open_database
from app.store.session_files import S3SessionFileStorage, SessionFilesKey
from workers.blob_cache import BlobCache
from workers.snapshot import stage_snapshot

LIMITS = UploadLimits(max_files=100, max_file_bytes=50_000_000, max_total_bytes=100_000_000)


class CountingStore(ObjectStore):
    """A bucket that counts what is asked of it."""

    def __init__(self, client: Any, settings: Settings) -> None:
        super().__init__(client, settings)
        self.calls: list[str] = []

    async def _call(self, operation: str, **params: Any) -> dict[str, Any]:
        self.calls.append(operation)
        return await super()._call(operation, **params)

    @property
    def downloads(self) -> int:
        return self.calls.count("get_object")


@dataclass
class Stage:
    """A bucket of session files, and a directory where runs find them."""

    store: CountingStore
    storage: S3SessionFileStorage
    directory: Path

    async def upload(self, files: dict[str, bytes]) -> ClaimedRun:
        """Store files as those of a new session: a run that was started with them."""
        key = SessionFilesKey(uuid4(), uuid4(), "default")
        async with self.storage.begin_upload(key, LIMITS) as upload:
            for name, data in files.items():
                await upload.add_file(name, "application/octet-stream", _pieces(data))
            stored = await self.storage.store_files(upload)
        return make_run(key, stored.files)

    async def delete(self, run: ClaimedRun) -> None:
        """Delete a run's blobs past the service."""
        await self.store.delete([_blob_key(run, file) for file in run.files])

    async def overwrite(self, run: ClaimedRun, data: bytes) -> None:
        """Damage a run's first blob past the service."""
        await self.store.put(_blob_key(run, run.files[0]), data)

    async def stage(self, run: ClaimedRun, cache: BlobCache | None = None) -> dict[str, bytes]:
        """Stage a run's files and return what a tool would find."""
        directory = self.directory / uuid4().hex
        await asyncio.to_thread(directory.mkdir)
        async with stage_snapshot(self.storage, run, directory, cache) as files:
            return {file.name: file.path.read_bytes() for file in files}


@asynccontextmanager
async def open_stage(database_url: str, s3_endpoint: str, directory: Path) -> AsyncIterator[Stage]:
    """Open a bucket of its own on a running server."""
    settings = Settings(
        s3_endpoint_url=s3_endpoint,
        s3_access_key=S3_ACCESS_KEY,
        s3_secret_key=S3_SECRET_KEY,
        s3_bucket=f"staging-{uuid4()}",
        s3_addressing="path",
    )
    async with (
        open_database(database_url, size=2) as database,
        open_object_store(settings) as opened,
    ):
        store = CountingStore(opened._client, settings)
        await store.create_bucket()
        storage = S3SessionFileStorage(store, PostgresFence(database), settings)
        yield Stage(store, storage, directory)


def make_run(key: SessionFilesKey, files: Sequence[StoredFile], **fields: Any) -> ClaimedRun:
    """A run as its worker sees it, whose files stand unless `fields` say otherwise."""
    return ClaimedRun(
        **{
            "id": uuid4(),
            "tool_id": key.tool_id,
            "user_id": key.user_id,
            "session_id": uuid4(),
            "context": key.context,
            "kind": RunKind.INITIAL,
            "source_kind": "tool_version",
            "attempt": 1,
            "lease_owner": "test",
            "superseded": False,
            "inputs": None,
            "action": None,
            "files": tuple(files),
            "session_has_files": True,
            "source": "",
            "entrypoint": "run_tool",
            **fields,
        }
    )


def random_files(count: int, size_bytes: int) -> dict[str, bytes]:
    return {f"{number}.bin": os.urandom(size_bytes) for number in range(count)}


def _blob_key(run: ClaimedRun, file: StoredFile) -> str:
    return SessionFilesKey(run.tool_id, run.user_id, run.context).set_key.blob_key(file.blob_id)


async def _pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 64 * 1024):
        yield data[start : start + 64 * 1024]
