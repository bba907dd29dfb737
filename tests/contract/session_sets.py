"""Steps that the suites of file sets and session files share."""

from collections.abc import AsyncIterator, Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

from s3_servers import Node, Nodes

from app.domain.files import StoredFile, UploadLimits
from app.store.session_files import SessionFilesKey, StoredSet

LIMITS = UploadLimits(max_files=20, max_file_bytes=20_000_000, max_total_bytes=50_000_000)
TTL = timedelta(days=1)


def new_key(context: str = "default") -> SessionFilesKey:
    return SessionFilesKey(uuid4(), uuid4(), context)


async def pieces(data: bytes, size: int = 64 * 1024) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def store(
    node: Node, key: SessionFilesKey, files: dict[str, bytes], *, keep: Any = ()
) -> StoredSet:
    """Upload as the service does: blobs, the commit, then the replaced blobs go."""
    async with node.storage.begin_upload(key, LIMITS) as upload:
        for name, data in files.items():
            await upload.add_file(name, "text/plain", pieces(data))
        stored = await node.storage.store_files(upload)
    await node.storage.discard_replaced(stored, needed=keep)
    return stored


async def read(node: Node, key: SessionFilesKey, file: StoredFile) -> bytes:
    async with node.storage.open_file(key, file) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def contents(node: Node, key: SessionFilesKey) -> dict[str, bytes] | None:
    snapshot = await node.storage.get_files(key)
    if snapshot is None:
        return None
    return {file.name: await read(node, key, file) for file in snapshot.files}


async def nothing_needed(keys: Sequence[SessionFilesKey]) -> dict[SessionFilesKey, set[str]]:
    return {}


async def assert_no_leftovers(nodes: Nodes, node: Node, key: SessionFilesKey) -> None:
    """The manifest names all blobs of its set, and nothing is half-uploaded."""
    snapshot = await node.storage.get_files(key)
    named = {file.blob_id for file in snapshot.files} if snapshot else set()
    prefix = key.set_key.blobs_prefix
    assert {name.removeprefix(prefix) for name in await nodes.keys(prefix)} == named
    assert await nodes.open_uploads() == []
