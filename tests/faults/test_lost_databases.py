"""The sweep with a database that knows nothing, or what was true some time ago: S3 alone decides.

What lives stays, what is past its time goes, and what the database does not explain is counted.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

import pytest
from places import (
    Node,
    Places,
    hashes,
    open_node,
    open_places,
    take_stock,
)
from s3_servers import embedded_server

from app.devstack import DevStack
from app.store import session_sweep, sessions, sweep_ledger
from app.store.session_files import SessionFilesKey
from app.usecases.claims import Claims

TOUCHED_AT, SWEPT_AT = timedelta(hours=20), timedelta(hours=25)
FILES = {"a.txt": b"levande", "b.bin": bytes(1000)}
OLD_FILES = {"a.txt": b"gammal"}
EACH = 3  # sets of a kind


@pytest.fixture(scope="module")
async def places(devstack: DevStack) -> AsyncIterator[Places]:
    async with open_places(devstack, embedded_server(devstack)) as places:
        yield places


async def fill(node: Node) -> tuple[list[SessionFilesKey], list[SessionFilesKey]]:
    """Save live and expired sets of a new user with a new tool, each in a session."""
    user, (tool_id, _) = await node.add_user(), await node.add_tool()
    live, expired = (
        [SessionFilesKey(tool_id, user.id, f"{word} {number}") for number in range(EACH)]
        for word in ("levande", "gammal")
    )
    await asyncio.gather(*(save(node, key, FILES) for key in live))
    await asyncio.gather(*(save(node, key, OLD_FILES) for key in expired))
    await asyncio.gather(*(node.at(TOUCHED_AT).storage.touch_files(key) for key in live))
    return live, expired


async def save(node: Node, key: SessionFilesKey, files: dict[str, bytes]) -> None:
    await node.upload(key, files)
    await node.add_session(key)


async def assert_only_these_live(node: Node, keys: Sequence[SessionFilesKey]) -> None:
    stock = await take_stock(node.store)
    stock.assert_whole()
    assert set(stock.manifests) == {key.set_key.manifest_key for key in keys}
    for key in keys:
        assert await node.read(key) == hashes(FILES)


async def test_empty_database_costs_no_live_set_and_keeps_no_expired_one(places: Places) -> None:
    place = await places.make()
    async with open_node(place) as node:
        live, _ = await fill(node)
    empty = place.but(database_url=await places.make_database())
    async with open_node(empty) as real_node:
        node = real_node.at(SWEPT_AT)
        report = await node.sweep()
        assert (report.scanned, report.deleted_sets) == (2 * EACH, EACH)
        assert (report.orphans, report.missing_manifests, report.unreadable) == (0, 0, 0)
        assert report.unexplained == report.walked_sets == EACH
        assert (await node.get_status()).unexplained == EACH
        await assert_only_these_live(node, live)
        report = await node.sweep()
        assert (report.unexplained, report.deleted_sets) == (EACH, 0)
        await assert_only_these_live(node, live)
        # Whose files they are is still in the bucket: only the sessions are gone.
        for key in live:
            assert (await Claims(node.db, node.storage, 10).access_files(key))[1]


async def test_database_from_a_backup_explains_what_it_knows(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = await places.make()
    async with open_node(place) as node:
        live, _ = await fill(node)
        with monkeypatch.context() as patch:
            # So that the ledger of the backup has ranges that end where nothing will be.
            patch.setattr(session_sweep, "SHARD_SETS", 2)
            patch.setattr(sweep_ledger, "SHARD_SETS", 2)
            await node.at(TOUCHED_AT).sweep()
            assert len(await sweep_ledger.list_shards(node.db)) > 2
    backup = await places.make_database(like=place.settings().database_url)
    async with open_node(place) as node:
        # After the backup: sessions and runs of users and tools that it knows, and new ones.
        known = [SessionFilesKey(live[0].tool_id, live[0].user_id, f"ny {n}") for n in range(EACH)]
        await asyncio.gather(*(save(node, key, FILES) for key in known))
        await asyncio.gather(*(node.at(TOUCHED_AT).storage.touch_files(key) for key in known))
        unknown, _ = await fill(node)
        await node.at(TOUCHED_AT).sweep()
    async with open_node(place.but(database_url=backup)) as real_node:
        node = real_node.at(SWEPT_AT)
        assert (await node.get_status()).sweeps_total == 1
        report = await node.sweep()
        assert (report.scanned, report.deleted_sets) == (5 * EACH, 2 * EACH)
        assert (report.orphans, report.missing_manifests, report.unreadable) == (0, 0, 0)
        await assert_only_these_live(node, [*live, *known, *unknown])
        report = await node.sweep()
        assert (report.walked_sets, report.unexplained) == (3 * EACH, EACH)
        await assert_only_these_live(node, [*live, *known, *unknown])
        for key in known:
            assert await sessions.find_session(node.db, *key.parts) is None
            assert (await Claims(node.db, node.storage, 10).access_files(key))[1]
