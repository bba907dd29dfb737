"""Runs that ask for a session's files at the moment at which the sweep takes them: never half.

And sweeps at the same moment: one works, the others say so.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from places import (
    Files,
    Node,
    Places,
    Stock,
    hashes,
    open_node,
    take_stock,
)
from session_sets import LIMITS, new_key
from sweep_processes import Command, run_sweeps

from app.cli import EXIT_TRY_LATER
from app.domain.runs import RunSource
from app.domain.users import User
from app.errors import SessionFilesExpired
from app.store import runs
from app.store.session_files import SessionFilesKey
from app.store.sweep_types import SweepReport
from app.usecases.claims import Claims
from app.usecases.initial_runs import InitialRuns
from app.usecases.run_form import RunTarget
from workers.snapshot import stage_snapshot

SESSIONS_AT_ONCE = 20
FEW_RACES, MANY_RACES = 100, 500
PAIRS = 15
TTL = timedelta(days=1)
# A few seconds apart the same clock says "not yet" to one and "over" to the other.
JUST_BEFORE, JUST_AFTER = TTL - timedelta(seconds=10), TTL + timedelta(seconds=10)


@dataclass(frozen=True)
class Field:
    """A field of the form that starts a run."""

    name: str
    value: str
    filename: None = None
    content_type: str = ""

    async def text(self) -> str:
        return self.value

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self.value.encode()


class NoQueue:
    """Takes jobs for workers that there are not."""

    async def enqueue_run(self, run_id: UUID, attempt: int) -> None:
        pass


@dataclass(frozen=True)
class Racer:
    """Somebody with a tool session, and what is saved in it."""

    user: User
    tool_id: UUID
    source: RunSource
    context: str
    files: Files

    @property
    def key(self) -> SessionFilesKey:
        return SessionFilesKey(self.tool_id, self.user.id, self.context)

    async def save(self, node: Node) -> None:
        await node.upload(self.key, self.files)
        await node.add_session(self.key)

    async def start_run(self, node: Node, signal: asyncio.Event) -> UUID | None:
        """Start the tool with the saved files, as a POST would; None: 410, they have expired."""
        await signal.wait()
        claims = Claims(node.db, node.storage, max_unfinished=1000)
        initial_runs = InitialRuns(node.db, node.storage, NoQueue(), claims, LIMITS)  # type: ignore[arg-type]
        target = RunTarget(self.tool_id, self.source, ())
        try:
            return await initial_runs.start(self.user, target, self._form())
        except SessionFilesExpired:
            return None

    async def _form(self) -> AsyncIterator[Field]:
        yield Field("session_context", self.context)
        yield Field("session_files_mode", "reuse")

    async def check_outcome(self, node: Node, run_id: UUID | None, directory: Path) -> str:
        """Whole or not at all: what the run's worker gets, and what is left in the bucket."""
        saved = await node.at(JUST_AFTER).storage.get_files(self.key)
        if run_id is None:
            assert saved is None
            return "expired"
        assert saved is not None
        claimed = await runs.claim_run(node.db, run_id, 0, "test", 60)
        assert claimed is not None
        directory = directory / str(run_id)
        directory.mkdir()
        async with stage_snapshot(node.storage, claimed, directory) as staged:
            given = {file.name: sha256(file.path.read_bytes()).hexdigest() for file in staged}
        assert given == hashes(self.files)
        return "in time"


@pytest.mark.parametrize(
    ("places", "races"),
    [
        ("embedded", FEW_RACES),
        pytest.param("ceph", FEW_RACES, marks=pytest.mark.ceph),
        pytest.param("embedded", MANY_RACES, marks=pytest.mark.soak),
        pytest.param(
            "ceph",
            MANY_RACES,
            marks=[pytest.mark.ceph, pytest.mark.soak, pytest.mark.timeout(600)],
        ),
    ],
    indirect=["places"],
    scope="module",
)
async def test_run_that_races_with_expiry_gets_all_its_files_or_none(
    places: Places, tmp_path: Path, races: int
) -> None:
    place = await places.make()
    outcomes: Counter[str] = Counter()
    mixed, rounds = 0, races // SESSIONS_AT_ONCE
    async with open_node(place) as node, open_node(place) as sweeper:
        users = [await node.add_user() for _ in range(SESSIONS_AT_ONCE)]
        tool_id, source = await node.add_tool()
        shift = 0
        for number in range(rounds):
            racers = [
                Racer(user, tool_id, source, f"{number}", new_files(number)) for user in users
            ]
            await asyncio.gather(*(racer.save(node) for racer in racers))
            early, late = node.at(JUST_BEFORE), sweeper.at(JUST_AFTER)
            signals = Signals(late, len(racers), shift, shift + 2 * SESSIONS_AT_ONCE)

            async def sweep(late: Node = late, signals: Signals = signals) -> SweepReport:
                try:
                    return await late.sweep()
                finally:
                    signals.start_all()

            report, *run_ids = await asyncio.gather(
                sweep(),
                *(
                    racer.start_run(early, signal)
                    for racer, signal in zip(racers, signals.events, strict=True)
                ),
            )
            ends = await asyncio.gather(
                *(
                    racer.check_outcome(node, run_id, tmp_path)
                    for racer, run_id in zip(racers, run_ids, strict=True)
                )
            )
            expired, in_time = ends.count("expired"), ends.count("in time")
            # What came in time is no longer due, or was changed before it could be marked.
            assert (report.deleted_sets, report.deleted_files) == (expired, 2 * expired)
            stock = await take_stock(node.store)
            stock.assert_whole()
            assert len(stock.manifests) == in_time
            outcomes.update(ends)
            mixed += bool(expired and in_time)
            # Closer to the moment at which it turns.
            shift += 5 if in_time > expired else -5
            if number < rounds - 1:
                await node.store.delete([*stock.manifests, *stock.blobs])
        survivors = ends.count("in time")
        # Hours later the sweep finds nothing that the races left behind.
        report = await sweeper.at(JUST_BEFORE + timedelta(hours=3)).sweep()
        assert (report.orphans, report.missing_manifests, report.resumed) == (0, 0, 0)
        assert report.scanned == survivors
        stock = await take_stock(node.store)
        stock.assert_whole()
        assert len(stock.manifests) == survivors
    print(f"{places.server.name}: {dict(outcomes)}, both in {mixed} of {rounds} sweeps")
    assert outcomes.total() == races
    assert min(outcomes["expired"], outcomes["in time"]) > races / 20
    assert mixed > 0


class Signals:
    """Starts racers as a sweep goes on, each at some call that it makes to S3.

    Were they started by the clock, a busy machine would decide who wins.
    """

    def __init__(self, sweeper: Node, count: int, begin: float, end: float) -> None:
        self.events = [asyncio.Event() for _ in range(count)]
        self._waiting = [(random.uniform(begin, end), event) for event in self.events]
        self._calls = 0
        sweeper.store.fault = self._note_call
        self._start_due()

    def _note_call(self, operation: str, params: dict[str, Any]) -> None:
        self._calls += 1
        self._start_due()

    def _start_due(self) -> None:
        for at_call, event in self._waiting:
            if at_call <= self._calls:
                event.set()

    def start_all(self) -> None:
        for event in self.events:
            event.set()


def new_files(number: int) -> dict[str, bytes]:
    return {"a.txt": f"{number} {uuid4()}".encode(), "b.bin": uuid4().bytes * 100}


# --- Two sweeps at once -----------------------------------------------------------------------


async def test_of_sweeps_that_begin_together_one_works(places: Places) -> None:
    place = await places.make()
    alone = 0
    async with open_node(place) as node, open_node(place) as other:
        await node.at(JUST_AFTER).sweep()  # So that nobody waits for a connection later.
        await other.at(JUST_AFTER).sweep()
        for number in range(1, PAIRS + 1):
            keys = [new_key() for _ in range(4)]
            await asyncio.gather(*(node.upload(key, new_files(number)) for key in keys))
            reports = await asyncio.gather(
                *(one.at(JUST_AFTER).try_sweep() for one in (node, other))
            )
            worked = [report for report in reports if report is not None]
            alone += len(worked) == 1
            assert sum(report.deleted_sets for report in worked) == 4
            assert sum(report.deleted_files for report in worked) == 8
            assert (await take_stock(node.store)) == Stock({}, {}, [], [])
        status = await node.get_status()
    assert status.failures_total == 0
    # On a busy machine one may be over before the other has looked.
    assert alone > PAIRS * 0.8, alone


@pytest.mark.parametrize("places", ["embedded"], indirect=True, scope="module")
async def test_second_command_says_that_another_sweeps(places: Places, tmp_path: Path) -> None:
    """Commands as a person types them; slow enough that both are at it together."""
    pairs = {}
    for number in range(2):
        place = await places.make(sweep_requests_per_second=10)
        async with open_node(place) as node:
            keys = [new_key() for _ in range(4)]
            await asyncio.gather(*(node.upload(key, new_files(number)) for key in keys))
        pairs[number] = place
    seconds = JUST_AFTER.total_seconds()
    commands = {
        f"{number}-{which}": Command(place, ahead_seconds=seconds)
        for number, place in pairs.items()
        for which in ("one", "other")
    }
    with run_sweeps(tmp_path / "pairs", commands) as sweepers:
        for number, place in pairs.items():
            both = [sweepers[f"{number}-one"], sweepers[f"{number}-other"]]
            codes = [await asyncio.to_thread(sweeper.wait) for sweeper in both]
            assert sorted(codes) == [0, EXIT_TRY_LATER], [sweeper.output for sweeper in both]
            refused = both[codes.index(EXIT_TRY_LATER)]
            assert refused.output == "another process is sweeping\n"
            async with open_node(place) as node:
                status = await node.get_status()
                assert (status.sweeps_total, status.failures_total) == (1, 0)
                assert status.report is not None
                assert status.report.deleted_sets == 4
                assert (await take_stock(node.store)) == Stock({}, {}, [], [])
