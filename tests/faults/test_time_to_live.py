"""Time to live with everything shortened, on a server whose lifecycle rules really run.

A lifecycle "day" lasts seconds here. A session in use outlives many periods of the rules, its
neighbour goes with its time; and without a sweep the rules alone take what nobody uses.
"""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from places import Node, Place, Places, hashes, open_node, open_places, take_stock
from s3_servers import run_ceph
from session_sets import new_key

from app.devstack import DevStack
from app.store.lifecycle import (
    ABORT_RULE,
    RULE_PREFIX,
    LifecycleReport,
    LifecycleWatch,
    check_lifecycle,
    init_storage,
    wanted_rules,
)
from app.store.session_files import SessionFilesKey
from app.store.upload_buffers import PART_BYTES

pytestmark = pytest.mark.ceph

DAY_SECONDS, DAYS, TTL_SECONDS = 2, 5, 4
PERIOD_SECONDS = DAYS * DAY_SECONDS
LIVES_SECONDS = 3 * PERIOD_SECONDS + DAY_SECONDS
TOUCH_SECONDS = SWEEP_SECONDS = 1
# The server's clock is read in whole seconds, by the sweep and by what it compares with; and the
# sweep itself, and the look whether all is gone, take their time.
GRAIN_SECONDS = 3
# The rules count in whole seconds too, from the beginning of the one in which an object came; and
# the server looks at them once a "day".
RULED_EARLIEST_SECONDS = PERIOD_SECONDS - 1
RULED_LATEST_SECONDS = PERIOD_SECONDS + 5 * DAY_SECONDS
SETTINGS = {
    "session_files_ttl_seconds": TTL_SECONDS,
    "lifecycle_days": DAYS,
    "lifecycle_day_seconds": DAY_SECONDS,
}
FILES = {
    "a.txt": "räksmörgås".encode(),
    "tom.txt": b"",
    "stor.bin": os.urandom(PART_BYTES + 1),
}


@pytest.fixture(scope="module")
async def places(devstack: DevStack) -> AsyncIterator[Places]:
    with run_ceph(lc_seconds=DAY_SECONDS) as server:
        async with open_places(devstack, server) as places:
            yield places


@dataclass
class Watched:
    """A place with a session in use and one that nobody uses, and when that one was gone."""

    node: Node
    is_swept: bool
    used: SessionFilesKey = field(default_factory=lambda: new_key("används"))
    idle: SessionFilesKey = field(default_factory=lambda: new_key("vilar"))
    uploaded_at: float = 0.0
    idle_seconds: float | None = None
    sweep_distance_seconds: float = 0.0  # the longest between two sweeps' beginnings

    async def live(self, seconds: float) -> None:
        await self.node.upload(self.used, FILES)
        # The time of a set begins with its commit: not before this, by any clock.
        self.uploaded_at = time.monotonic()
        await self.node.upload(self.idle, FILES)
        tasks = [self._use, self._watch_idle] + ([self._sweep] if self.is_swept else [])
        end = self.uploaded_at + seconds
        async with asyncio.TaskGroup() as group:
            for task in tasks:
                group.create_task(task(end))

    async def _use(self, end: float) -> None:
        """Inject the files into runs, and read them as their workers would."""
        while time.monotonic() < end:
            snapshot = await self.node.storage.touch_files(self.used)
            assert snapshot is not None
            assert await self.node.read_all(self.used, snapshot) == hashes(FILES)
            await asyncio.sleep(TOUCH_SECONDS)

    async def _watch_idle(self, end: float) -> None:
        """Note when manifest and blobs are all gone; before its time none of them is."""
        key = self.idle.set_key
        whole = len(FILES) + 1
        while time.monotonic() < end and self.idle_seconds is None:
            left = [
                info.key
                for prefix in (key.manifest_key, key.blobs_prefix)
                async for info in self.node.store.list_objects(prefix)
            ]
            seconds = time.monotonic() - self.uploaded_at
            if not left:
                self.idle_seconds = seconds
            elif len(left) < whole:
                earliest = TTL_SECONDS if self.is_swept else RULED_EARLIEST_SECONDS
                assert seconds >= earliest, left
            await asyncio.sleep(0.2)

    async def _sweep(self, end: float) -> None:
        while (began_at := time.monotonic()) < end:
            await self.node.sweep()
            await asyncio.sleep(SWEEP_SECONDS)
            distance = time.monotonic() - began_at
            self.sweep_distance_seconds = max(self.sweep_distance_seconds, distance)


async def test_session_in_use_outlives_the_rules_and_its_idle_neighbour_does_not(
    places: Places,
) -> None:
    async with AsyncExitStack() as stack:
        swept, ruled = [
            Watched(
                await stack.enter_async_context(open_node(await places.make(**SETTINGS))), is_swept
            )
            for is_swept in (True, False)
        ]
        for watched in (swept, ruled):
            await init_storage(watched.node.store, watched.node.settings)
        await asyncio.gather(swept.live(LIVES_SECONDS), ruled.live(LIVES_SECONDS))
        print(f"gone by the sweep after {swept.idle_seconds}, by rules after {ruled.idle_seconds}")
        # By the sweep: with the time to live, and at most a sweep's distance later.
        assert swept.idle_seconds is not None
        assert swept.idle_seconds >= TTL_SECONDS
        distance = swept.sweep_distance_seconds
        assert swept.idle_seconds <= TTL_SECONDS + distance + GRAIN_SECONDS
        # By the rules alone: later, as a safety net, but all of it.
        assert ruled.idle_seconds is not None
        assert RULED_EARLIEST_SECONDS <= ruled.idle_seconds <= RULED_LATEST_SECONDS
        for watched in (swept, ruled):
            assert await watched.node.read(watched.used) == hashes(FILES)
            stock = await take_stock(watched.node.store)
            stock.assert_whole()
            assert set(stock.manifests) == {watched.used.set_key.manifest_key}


async def test_rules_are_found_and_drift_is_seen_and_put_right(places: Places) -> None:
    """By the command and by the readiness check, as an operator meets them."""
    place = await places.make(**SETTINGS)
    foreign = {
        "ID": "somebody-elses",
        "Status": "Enabled",
        "Filter": {"Prefix": "elsewhere/"},
        "Expiration": {"Days": 3},
    }
    ours = tuple(sorted(str(rule["ID"]) for rule in wanted_rules(place.settings())))
    async with open_node(place) as node:
        objects, settings = node.store, node.settings
        assert await check_lifecycle(objects, settings) == LifecycleReport("drifted", ours)
        assert (await run_storage_init(place))["lifecycle"] == {
            "state": "complete",
            "differences": [],
        }
        assert await check_lifecycle(objects, settings) == LifecycleReport("complete")
        # Idempotent, also beside rules of others.
        await objects.put_lifecycle_rules([*await objects.lifecycle_rules(), foreign])
        assert (await init_storage(objects, settings)).lifecycle == LifecycleReport("complete")
        longer = msgspec.structs.replace(settings, lifecycle_days=DAYS + 1)
        changed = (f"{RULE_PREFIX}sessions", f"{RULE_PREFIX}workspaces")
        assert await check_lifecycle(objects, longer) == LifecycleReport("drifted", changed)
        # Somebody removes what is ours, by hand: all of it, one rule, and the one for uploads.
        for removed, state in (
            (ours, "drifted"),
            (ours[-1:], "drifted"),
            ((ABORT_RULE,), "without_abort"),
        ):
            rules = await objects.lifecycle_rules()
            await objects.put_lifecycle_rules([r for r in rules if r["ID"] not in removed])
            assert await check_lifecycle(objects, settings) == LifecycleReport(state, removed)
            assert await LifecycleWatch(objects, settings).find_state() == state
            report = await init_storage(objects, settings)
            assert (report.created, report.lifecycle) == (False, LifecycleReport("complete"))
            assert await check_lifecycle(objects, settings) == LifecycleReport("complete")
        assert foreign["ID"] in [rule["ID"] for rule in await objects.lifecycle_rules()]


async def run_storage_init(place: Place) -> dict[str, Any]:
    command = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "app.cli", "storage-init"),
        env=os.environ | place.environment,
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await command.communicate()
    assert command.returncode == 0
    report: dict[str, Any] = json.loads(out)
    return report
