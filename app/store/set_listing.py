"""Walking the sets of a bucket in order, a range at a time, by listings alone.

Manifests and blobs are listed side by side: the paths of both come in the same order, since those
of real sets are all of one length. What lies there under other keys is told apart (`is_real`).
"""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final, TypeVar
from uuid import UUID

import msgspec

from app.store.manifests import blobs_prefix, find_session_key, manifests_prefix
from app.store.object_types import ObjectInfo
from app.store.objects import ObjectStore

MANIFESTS: Final = manifests_prefix("sessions")
BLOBS: Final = blobs_prefix("sessions")
# A set may hold a few dozen files; of one with far more, a part at a time is looked at.
GROUP_BLOBS = 5_000

T = TypeVar("T")


class ListedSet(msgspec.Struct):
    """What the listings say of one set: its manifest, and its blobs if they were asked for.

    A set is seen at two moments: whoever acts on a missing manifest reads it before.
    """

    path: str
    manifest: ObjectInfo | None
    blobs: list[ObjectInfo]

    @property
    def manifest_key(self) -> str:
        """Where the manifest lies, or would have to."""
        return f"{MANIFESTS}{self.path}.json" if self.manifest is None else self.manifest.key

    @property
    def is_real(self) -> bool:
        """Whether a session's set can lie here at all."""
        return find_session_key(self.manifest_key) is not None

    @property
    def owner(self) -> tuple[UUID, UUID]:
        """Tool and user of a real set."""
        tool_id, user_id, _ = self.path.split("/")
        return UUID(tool_id), UUID(user_id)


async def walk_sets(
    objects: ObjectStore, first_path: str, end_path: str | None, *, with_blobs: bool
) -> AsyncGenerator[ListedSet, None]:
    """Yield the sets from `first_path` up to, not including, `end_path` (None: the last)."""
    async with (
        aclosing(_list_range(objects, MANIFESTS, first_path, end_path)) as manifests,
        aclosing(_group_blobs(objects, first_path, end_path, with_blobs)) as groups,
    ):
        manifest, group = await anext(manifests, None), await anext(groups, None)
        while manifest is not None or group is not None:
            path = None if manifest is None else _path_of(manifest)
            if group is None or (path is not None and path < group.path):
                assert path is not None, "one of the two is there"
                yield ListedSet(path, manifest, [])
                manifest = await anext(manifests, None)
            elif path is None or group.path < path:
                yield group
                group = await anext(groups, None)
            else:
                group.manifest = manifest
                yield group
                manifest, group = await anext(manifests, None), await anext(groups, None)


def _path_of(manifest: ObjectInfo) -> str:
    path = manifest.key.removeprefix(MANIFESTS)
    # What is named otherwise is no manifest, and is not to be taken for that of its neighbour.
    return path.removesuffix(".json") if path.endswith(".json") else f"{path}/"


async def _group_blobs(
    objects: ObjectStore, first_path: str, end_path: str | None, with_blobs: bool
) -> AsyncGenerator[ListedSet, None]:
    if not with_blobs:
        return
    group: ListedSet | None = None
    async with aclosing(_list_range(objects, BLOBS, first_path, end_path)) as blobs:
        async for info in blobs:
            path = info.key.removeprefix(BLOBS).rpartition("/")[0]
            if group is not None and (group.path != path or len(group.blobs) >= GROUP_BLOBS):
                yield group
                group = None
            if group is None:
                group = ListedSet(path, None, [])
            group.blobs.append(info)
    if group is not None:
        yield group


async def _list_range(
    objects: ObjectStore, prefix: str, first_path: str, end_path: str | None
) -> AsyncGenerator[ObjectInfo, None]:
    start_after = f"{prefix}{first_path}" if first_path else ""
    end = None if end_path is None else f"{prefix}{end_path}"
    async with aclosing(_read_ahead(objects.list_pages(prefix, start_after=start_after))) as pages:
        async for page in pages:
            for info in page:
                if end is not None and info.key >= end:
                    return
                yield info


async def _read_ahead(pages: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """Pass pages on, fetching the next one while the caller looks at this one."""

    async def fetch() -> T | None:
        return await anext(pages, None)

    coming = asyncio.create_task(fetch())
    try:
        while (page := await coming) is not None:
            coming = asyncio.create_task(fetch())
            yield page
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)
