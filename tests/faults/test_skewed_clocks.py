"""A node whose clock is off, ahead or behind: nothing dies early, nor lives for longer.

The node is a process of its own under libfaketime. Some servers refuse it, since its signatures
are too old or not valid yet: then it does nothing, and says so. Others, and all of them when it is
some minutes off, serve it: then the server's clock is what counts.
"""

import asyncio
import os
import re
import shutil
import sys
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import msgspec
import pytest
from places import (
    Node,
    Place,
    Places,
    hashes,
    open_node,
    take_stock,
)
from requirements import skip_for_want_of
from session_sets import LIMITS, new_key, pieces
from skewed_node import Told

from app.domain.ids import new_uuid7
from app.domain.runs import RunSource, ToolSession
from app.store import sessions
from app.store.artifacts import artifact_key
from app.store.session_files import SessionFilesKey
from app.store.sweep_types import SweepReport
from app.usecases.retention import RetentionReport

FILES = {"a.txt": "räksmörgås".encode(), "b.bin": os.urandom(3000)}
# Less than any node here is off, so that one that trusted its own clock would delete all.
TTL_SECONDS = 300
SOON_SECONDS = 1
# What the server may take for a request, and whole seconds.
SLACK = timedelta(seconds=3)


@pytest.fixture(scope="module")
def faketime() -> str:
    path = shutil.which("faketime")
    if path is None:
        skip_for_want_of("FAKETIME", "faketime is not installed")
    return path


async def run_under(
    faketime: str, offset: str, place: Place, *program: str, **environment: str
) -> tuple[int, bytes, str]:
    """Run a Python program under another clock: its exit code, output and errors."""
    environment |= {
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    process = await asyncio.create_subprocess_exec(
        *(faketime, "-m", "-f", offset, sys.executable, *program),
        env=os.environ | place.environment | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out, errors.decode()


@dataclass(frozen=True)
class Ended:
    """What a skewed node said and did."""

    code: int
    told: Told
    report: SweepReport | None
    errors: str


async def run_skewed(faketime: str, offset: str, place: Place, key: SessionFilesKey) -> Ended:
    program = str(Path(__file__).with_name("skewed_node.py"))
    touched = "/".join(map(str, key.parts))
    code, out, errors = await run_under(faketime, offset, place, program, TOUCHED=touched)
    told, _, rest = out.partition(b"\n")
    assert told, errors
    report = msgspec.json.decode(rest, type=SweepReport) if code == 0 else None
    return Ended(code, msgspec.json.decode(told, type=Told), report, errors)


@pytest.mark.parametrize(
    ("places", "offset", "is_served"),
    [
        ("embedded", "+3600s", True),
        ("embedded", "-3600s", True),
        pytest.param("ceph", "+600s", True, marks=[pytest.mark.ceph, pytest.mark.soak]),
        pytest.param("ceph", "+3600s", False, marks=pytest.mark.ceph),
        pytest.param("ceph", "-3600s", False, marks=[pytest.mark.ceph, pytest.mark.soak]),
    ],
    indirect=["places"],
    scope="module",
)
async def test_skewed_node_judges_by_the_servers_clock_or_does_nothing(
    places: Places, faketime: str, offset: str, is_served: bool
) -> None:
    place = await places.make(session_files_ttl_seconds=TTL_SECONDS)
    used, idle, coming = new_key("används"), new_key("vilar"), new_key("på väg")
    async with open_node(place) as node:
        for key in (used, idle):
            await node.upload(key, FILES)
        async with node.storage.begin_upload(coming, LIMITS) as upload:
            # One blob stands, and parts of the next one: what an upload in progress has so far.
            await upload.add_file("a.txt", "", pieces(FILES["a.txt"]))
            await upload._finishing[0]
            parts = await node.store.create_multipart(coming.set_key.blob_key("x"), "", {})
            before = await take_stock(node.store)
            ended = await run_skewed(faketime, offset, place, used)
            real_time = datetime.now(UTC)
            off = ended.told.clock - real_time
            assert abs(off - timedelta(seconds=int(offset[:-1]))) < timedelta(minutes=1)
            # Nothing is gone, whether it was served or not.
            left = await take_stock(node.store)
            assert (left.blobs, left.open_uploads) == (before.blobs, before.open_uploads)
            assert left.manifests.keys() == before.manifests.keys()
            assert left.journals == []
            for key in (used, idle):
                assert await node.read(key) == hashes(FILES)
            if is_served:
                assert_served(ended)
                await assert_touched_now(node, used, ended, real_time)
                assert (
                    left.manifests[idle.set_key.manifest_key]
                    == (before.manifests[idle.set_key.manifest_key])
                )
            else:
                assert_refused(ended)
                assert left == before
            if is_served and offset.startswith("-"):
                # By its own clock nothing is ever due. By the server's all is, but for the upload.
                await asyncio.sleep(SOON_SECONDS + 2.2)
                late = place.but(session_files_ttl_seconds=SOON_SECONDS)
                ended = await run_skewed(faketime, offset, late, used)
                assert "SessionFilesExpired" in str(ended.told.error)
                assert ended.report is not None
                assert (ended.report.deleted_sets, ended.report.orphans) == (2, 0)
                stock = await take_stock(node.store)
                assert (stock.manifests, len(stock.blobs)) == ({}, 1)
            await node.store.abort_multipart(coming.set_key.blob_key("x"), parts)
            await upload.add_file("b.bin", "", pieces(FILES["b.bin"]))
            await node.storage.store_files(upload)
        assert await node.read(coming) == hashes(FILES)
        (await take_stock(node.store)).assert_whole()


@pytest.mark.parametrize("places", ["embedded"], indirect=True, scope="module")
@pytest.mark.parametrize("offset", ["+365d", pytest.param("-365d", marks=pytest.mark.soak)])
async def test_retention_goes_by_the_clocks_of_the_servers(
    places: Places, faketime: str, offset: str
) -> None:
    """A year off, runs and artifacts of today would all be past their time, or none ever."""
    place = await places.make()
    async with open_node(place) as node:
        user, (tool, source) = await node.add_user(), await node.add_tool()
        async with node.db.transaction() as tx:
            now = datetime.now(UTC)
            parts = (tool, user.id, "default")
            session = await sessions.ensure_and_lock_session(tx, new_uuid7(now), parts, now)
        kept, due = [await add_run(node, session, source, age) for age in (1, 200)]
        command = ("-m", "app.cli", "apply_retention", "--json")
        code, out, errors = await run_under(faketime, offset, place, *command)
        assert code == 0, errors
        report = msgspec.json.decode(out, type=RetentionReport)
        assert (report.purged_runs, report.deleted_artifacts, report.is_complete) == (1, 1, True)
        left = [row["id"] for row in await node.db.fetch("SELECT id FROM tool_runs")]
        keys = [info.key async for info in node.store.list_objects("runs/")]
    assert (left, keys) == ([kept], [artifact_key(kept, 0)])
    assert due not in left


async def add_run(node: Node, session: ToolSession, source: RunSource, days: int) -> UUID:
    """Add a run that ended some days ago, with an artifact."""
    created_at = datetime.now(UTC) - timedelta(days=days)
    run_id = new_uuid7(created_at)
    await node.db.execute(
        "INSERT INTO tool_runs (id, tool_id, source_kind, version_id, user_id, session_id, context,"
        " kind, status, has_result, created_at, finished_at) VALUES"
        " ($1, $2, 'tool_version', $3, $4, $5, 'x', 'initial', 'succeeded', true, $6, $6)",
        *(run_id, session.tool_id, source.version_id, session.user_id, session.id, created_at),
    )
    await node.store.put(artifact_key(run_id, 0), b"12345")
    return run_id


def assert_served(ended: Ended) -> None:
    assert ended.code == 0, ended.errors
    report = ended.report
    assert report is not None
    assert report.scanned == 2
    assert (report.deleted_sets, report.orphans, report.aborted_uploads) == (0, 0, 0)


async def assert_touched_now(
    node: Node, key: SessionFilesKey, ended: Ended, real_time: datetime
) -> None:
    """The touch neither shortens a set's life nor makes it longer than any other would."""
    assert ended.told.last_accessed_at is not None, ended.told.error
    snapshot = await node.storage.get_files(key)
    manifest = (await take_stock(node.store)).manifests[key.set_key.manifest_key]
    assert snapshot is not None
    for accessed_at in (
        ended.told.last_accessed_at,
        manifest.last_accessed_at,
        snapshot.last_accessed_at,
    ):
        assert manifest.created_at <= accessed_at <= real_time + SLACK
    assert abs(snapshot.last_accessed_at - manifest.last_accessed_at) < SLACK
    assert snapshot.expires_at - snapshot.last_accessed_at == timedelta(seconds=TTL_SECONDS)


def assert_refused(ended: Ended) -> None:
    assert ended.code == 1
    assert "Unavailable" in str(ended.told.error)
    # One line for a person, and why in the log before it.
    assert re.search(r"^skriptoteket: .+$", ended.errors, re.MULTILINE), ended.errors
    assert "RequestTimeTooSkewed" in ended.errors
    assert "Traceback" not in ended.errors
