"""A sweep may be killed at any stage: the next one finishes its work, and their figures add up.

Victims run the real command and come to a halt at a stage each (`sweep_processes`), then are
killed. A set counts as deleted by the sweep that deleted its manifest.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from places import (
    Files,
    Node,
    Place,
    Stock,
    hashes,
    open_node,
    open_places,
    take_stock,
)
from s3_servers import embedded_server
from session_sets import new_key, nothing_needed
from sweep_processes import Command, Stage, Sweeper, run_sweeps

from app.devstack import DevStack
from app.domain.ids import new_uuid7
from app.errors import Unavailable
from app.store.session_files import SessionFilesKey
from app.store.sweep_types import SHARD_SETS, SweepReport

EXPIRED, LIVE = 5, 2
# Sets that were not touched a little before the end of their time are past it.
TOUCHED_AT, SWEPT_AT = timedelta(hours=20), timedelta(hours=25)
SMALL_SHARD = 1  # live sets

STAGES = [
    Stage("begin_sweep"),
    Stage("put expiring"),
    Stage("put manifests", number=EXPIRED // 2),
    Stage("put manifests", number=EXPIRED),
    Stage("delete files", when="half"),
    Stage("delete files"),
    Stage("delete manifests", when="half"),
    Stage("delete manifests"),
    Stage("delete expiring"),
    # What was not named by a manifest comes after the sets.
    Stage("delete files", number=2, when="half"),
    Stage("delete files", number=2),
    Stage("save_shard"),
    Stage("end_sweep", when="before"),
]
# While it goes on with a set that a sweep before it had marked.
STAGES_OF_RESUMING = [
    Stage("delete files", number=1, when="half"),
    Stage("delete files", number=2),
    Stage("delete manifests", number=2),
    Stage("delete expiring"),
]
CASES = [(stage, False) for stage in STAGES] + [(stage, True) for stage in STAGES_OF_RESUMING]


@dataclass
class Scene:
    """A bucket with live and expired sets and orphans, and the sweep that is killed there."""

    place: Place
    contents: dict[SessionFilesKey, Files] = field(default_factory=dict)
    victim: Sweeper | None = None
    before: Stock | None = None

    async def prepare(self, *, half_swept: bool) -> None:
        async with open_node(self.place) as node:
            expired = [new_key(f"gammal {n}") for n in range(EXPIRED)]
            live = [new_key(f"levande {n}") for n in range(LIVE)]
            for number, key in enumerate(expired):
                await node.upload(key, {"a.txt": b"gammal", "b.bin": bytes(number)})
            for number, key in enumerate(live):
                self.contents[key] = {"a.txt": b"levande %d" % number, "b.bin": bytes(1000)}
                await node.upload(key, self.contents[key])
                assert await node.at(TOUCHED_AT).storage.touch_files(key) is not None
            # One that was replaced and left behind, and an upload that ended half-way.
            for key in (live[0], new_key("inget manifest")):
                stray = key.set_key.blob_key(str(new_uuid7(datetime.now(UTC))))
                await node.store.put(stray, b"orphan")
            if half_swept:
                await break_off_sweep(node.at(SWEPT_AT))
            self.before = await take_stock(node.store)


async def break_off_sweep(node: Node) -> None:
    """Sweep until all sets are marked; then S3 goes away. No ledger knows of this one."""
    is_away = False

    def go_away(operation: str, params: dict[str, Any]) -> str | None:
        nonlocal is_away
        is_away = is_away or operation == "delete_objects"
        return "refuse" if is_away else None

    node.store.fault = go_away
    with pytest.raises(Unavailable):
        await node.storage.cleanup_expired(nothing_needed)


@pytest.fixture(scope="module")
async def scenes(
    devstack: DevStack, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[dict[str, Scene]]:
    """All victims at work at once, each in a place of its own."""
    scenes, commands = {}, {}
    async with open_places(devstack, embedded_server(devstack)) as places:
        for stage, half_swept in CASES:
            name = name_case(stage, half_swept)
            scene = scenes[name] = Scene(await places.make())
            await scene.prepare(half_swept=half_swept)
            shard_sets = SMALL_SHARD if stage.step == "save_shard" else SHARD_SETS
            commands[name] = Command(scene.place, stage, SWEPT_AT.total_seconds(), shard_sets)
        directory = tmp_path_factory.mktemp("sweeps") / "victims"
        with run_sweeps(directory, commands) as victims:
            for name, victim in victims.items():
                scenes[name].victim = victim
            yield scenes


def name_case(stage: Stage, half_swept: bool) -> str:
    return f"{stage} of a sweep that resumes" if half_swept else str(stage)


@pytest.mark.parametrize("name", [name_case(*case) for case in CASES])
async def test_sweep_that_was_killed_is_finished_by_the_next(
    scenes: dict[str, Scene], name: str
) -> None:
    scene = scenes[name]
    assert scene.victim is not None
    assert scene.before is not None
    await asyncio.to_thread(scene.victim.kill)
    async with open_node(scene.place) as real_node:
        node = real_node.at(SWEPT_AT)
        left = await take_stock(node.store)
        assert_nothing_live_is_touched(scene, left)
        report = await sweep_soon(node)
        after = await take_stock(node.store)
        # The live sets are all that is left, and whole.
        after.assert_whole()
        assert set(after.manifests) == {key.set_key.manifest_key for key in scene.contents}
        for key, files in scene.contents.items():
            assert await node.read(key) == hashes(files)
        # Both sweeps together deleted what was there and is no more, each thing once.
        by_victim, by_next = deleted(scene.before, left), deleted(left, after)
        assert (report.deleted_sets, report.deleted_files, report.deleted_bytes) == by_next
        assert add(by_victim, by_next) == deleted(scene.before, after)
        assert add(by_victim, by_next)[0] == EXPIRED
        orphans = left.orphans()
        assert (report.orphans, report.orphan_bytes) == (len(orphans), sum(orphans.values()))
        marked = [m for m in left.manifests.values() if m.state == "expiring"]
        assert report.resumed == len(marked)
        # The ledger knows that one was killed, and the next one's report.
        status = await node.get_status()
        assert (status.sweeps_total, status.failures_total) == (2, 1)
        assert status.report is not None
        assert status.error is None
        assert status.ended_at is not None
        assert without_time(status.report) == without_time(report)
        # With nothing left to do the figures are those of the bucket.
        again = await node.sweep()
        assert (again.deleted_sets, again.orphans, again.resumed) == (0, 0, 0)
        assert (again.scanned, again.files) == (LIVE, len(after.blobs))
        status = await node.get_status()
        assert (status.sets, status.files, status.orphans) == (LIVE, len(after.blobs), 0)
        assert status.bytes == sum(after.blobs.values())
        assert status.failures_total == 1


async def sweep_soon(node: Node) -> SweepReport:
    """Sweep as soon as PostgreSQL has noticed that the victim is gone."""
    for _ in range(200):
        if (report := await node.try_sweep()) is not None:
            return report
        await asyncio.sleep(0.02)
    raise AssertionError("the victim's lock is still held")


def assert_nothing_live_is_touched(scene: Scene, left: Stock) -> None:
    assert scene.before is not None
    for key in scene.contents:
        manifest_key = key.set_key.manifest_key
        assert left.manifests[manifest_key] == scene.before.manifests[manifest_key]
        for file in left.manifests[manifest_key].files:
            assert key.set_key.blob_key(file.blob_id) in left.blobs


def deleted(earlier: Stock, later: Stock) -> tuple[int, int, int]:
    """Sets, and the files and bytes that they named, that are no more."""
    gone = [earlier.manifests[key] for key in earlier.manifests.keys() - later.manifests.keys()]
    files = [file for manifest in gone for file in manifest.files]
    return len(gone), len(files), sum(file.bytes for file in files)


def add(one: tuple[int, int, int], other: tuple[int, int, int]) -> tuple[int, int, int]:
    return one[0] + other[0], one[1] + other[1], one[2] + other[2]


def without_time(report: SweepReport) -> SweepReport:
    """A report counts its own seconds until it is looked at."""
    return msgspec.structs.replace(report, duration_seconds=0.0)
