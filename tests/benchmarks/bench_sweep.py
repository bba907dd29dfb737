"""Measure the hourly sweep of a large bucket against a bare listing of its manifests.

    python tests/benchmarks/bench_sweep.py [--sessions N] [--expired PERCENT]

Runs over Ceph's gateway where it is installed, else over the embedded S3 server. Every session has
a file; all blobs count as old enough to be orphans. Prints times with their ratios to the bare
listing, the requests made and the least possible, and how far memory grew. Filling the bucket takes
minutes.
"""

import argparse
import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import msgspec
from machine import CEPH_KEYS, resident_bytes, run_ceph, settings_for

from app.devstack import S3_ACCESS_KEY, S3_SECRET_KEY, run_devstack
from app.domain.files import StoredFile
from app.domain.ids import Uuid7Group, new_uuid7
from app.settings import Settings
from app.store import session_sweep
from app.store.fence import PostgresFence
from app.store.manifests import SCHEMA, Manifest
from app.store.migrate import migrate
from app.store.objects import ObjectStore, open_object_store, require_conditional_writes
from app.store.postgres import open_database
from app.store.session_files import S3SessionFileStorage, SessionFilesKey
from app.usecases.storage_sweep import clean_up_expired

TOOLS = 20
ROUNDS = 3
IN_FLIGHT = 24
# A live manifest must not run out of its time while the sweeps are measured.
MARGIN_SECONDS = 120


def make_keys(count: int, tools: list[UUID]) -> list[SessionFilesKey]:
    """Make sessions of users of their own; ids begin with the time, as real ones do."""
    now = datetime.now(UTC)
    return [SessionFilesKey(tools[n % len(tools)], new_uuid7(now), "default") for n in range(count)]


async def in_parallel(work: Callable[[Any], Awaitable[Any]], items: list[Any]) -> None:
    waiting = iter(items)

    async def do() -> None:
        for item in waiting:
            await work(item)

    await asyncio.gather(*(do() for _ in range(IN_FLIGHT)))


async def fill(objects: ObjectStore, sessions: int, expired: int) -> float:
    """Fill the bucket; returns the TTL in seconds that parts the expired sets from the live."""
    tools = [uuid4() for _ in range(TOOLS)]
    keys = make_keys(sessions, tools)
    # All over the bucket, as time would have it.
    step = sessions // expired
    old, live = keys[::step][:expired], [key for n, key in enumerate(keys) if n % step]
    blobs = {key: str(Uuid7Group().new(datetime.now(UTC))) for key in keys}

    async def put_blob(key: SessionFilesKey) -> None:
        await objects.put(key.set_key.blob_key(blobs[key]), b"x" * 100)

    async def put_manifest(key: SessionFilesKey) -> None:
        now = datetime.now(UTC) - timedelta(days=365)  # LastModified alone decides here.
        file = StoredFile(
            name="klasslista.csv",
            bytes=100,
            sha256="0" * 64,
            content_type="text/csv",
            blob_id=blobs[key],
        )
        manifest = Manifest(
            schema=SCHEMA,
            version=str(uuid4()),
            user_id=str(key.user_id),
            tool_id=str(key.tool_id),
            context=key.context,
            files=(file,),
            created_at=now,
            last_accessed_at=now,
            blobs_written_at=now,
            state="live",
        )
        await objects.put(key.set_key.manifest_key, msgspec.json.encode(manifest))

    await in_parallel(put_blob, old)
    await in_parallel(put_manifest, old)
    old_until = time.monotonic()
    await in_parallel(put_blob, live)
    await asyncio.sleep(max(0, 2 * MARGIN_SECONDS - (time.monotonic() - old_until)))
    live_from = time.monotonic()
    await in_parallel(put_manifest, live)
    return time.monotonic() - live_from + MARGIN_SECONDS


async def list_bare(objects: ObjectStore, settings: Settings) -> float:
    """List all manifests as the driver does it, and nothing else."""
    started = time.perf_counter()
    params: dict[str, Any] = {"Bucket": settings.s3_bucket, "Prefix": "sessions/manifests/"}
    while True:
        answer = await objects._client.list_objects_v2(**params)
        if not answer.get("IsTruncated"):
            return time.perf_counter() - started
        params["ContinuationToken"] = answer["NextContinuationToken"]


async def sweep(settings: Settings) -> dict[str, Any]:
    """Sweep once, between two bare listings, in a process of its own: the figures."""
    session_sweep.ORPHAN_AGE = timedelta(0)
    async with (
        open_object_store(settings) as objects,
        open_database(settings.database_url, size=4) as db,
    ):
        await require_conditional_writes(objects, settings)
        storage = S3SessionFileStorage(objects, PostgresFence(db), settings)
        bare = [await list_bare(objects, settings)]
        before = peak = resident_bytes()
        work = asyncio.create_task(clean_up_expired(db, storage, settings))
        while not work.done():
            peak = max(peak, resident_bytes())
            await asyncio.sleep(0.005)
        report = await work
        assert report is not None
        bare.append(await list_bare(objects, settings))
    return {
        "bare": statistics.mean(bare),
        "grown": peak - before,
        "report": msgspec.to_builtins(report),
    }


def sweep_apart(settings: Settings) -> dict[str, Any]:
    environment = os.environ | {
        name.upper(): str(value)
        for name, value in msgspec.structs.asdict(settings).items()
        if value is not None and value != getattr(Settings(), name)
    }
    command = [sys.executable, __file__, "--sweep"]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
    figures: dict[str, Any] = json.loads(done.stdout)
    return figures


def tell(what: str, figures: dict[str, Any]) -> None:
    report = figures["report"]
    pages = math.ceil(report["scanned"] / 1000)
    least = pages + 2 * report["deleted_sets"] + 2 * math.ceil(report["deleted_sets"] / 1000)
    made = sum(report["requests"].values())
    seconds, bare = report["duration_seconds"], figures["bare"]
    print(f"{what}: {report['scanned']} sets, {report['deleted_sets']} deleted")
    print(f"  sweep {seconds:.2f} s, bare listing {bare:.2f} s, ratio {seconds / bare:.2f}")
    print(f"  requests {made}, least possible {least}: {report['requests']}")
    print(f"  blobs walked of {report['walked_sets']} sets; orphans {report['orphans']}")
    print(f"  resident memory +{figures['grown'] / 1024 / 1024:.0f} MiB", flush=True)


@contextmanager
def server(root: Path, embedded: Settings) -> Iterator[Settings]:
    with run_ceph(root / "ceph") as endpoint:
        yield embedded if endpoint is None else settings_for(endpoint, *CEPH_KEYS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sessions", type=int, default=100_000)
    parser.add_argument("--expired", type=float, default=1.0, help="percent")
    parser.add_argument("--sweep", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.sweep:
        from app.settings import load_settings

        print(json.dumps(asyncio.run(sweep(load_settings()))))
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        root = Path(directory)
        root.chmod(0o755)
        with run_devstack(root / "stack") as stack:
            migrate(stack.database_url)
            embedded = Settings(
                s3_endpoint_url=stack.s3_endpoint,
                s3_access_key=S3_ACCESS_KEY,
                s3_secret_key=S3_SECRET_KEY,
                s3_addressing="path",
                s3_bucket="bench",
            )
            with server(root, embedded) as where:
                settings = msgspec.structs.replace(
                    where, database_url=stack.database_url, sweep_requests_per_second=2_000
                )
                measure(settings, arguments)


def measure(settings: Settings, arguments: argparse.Namespace) -> None:
    expired = max(1, round(arguments.sessions * arguments.expired / 100))

    async def prepare() -> float:
        async with open_object_store(settings) as objects:
            await objects.create_bucket()
            return await fill(objects, arguments.sessions, expired)

    started = time.monotonic()
    ttl_seconds = asyncio.run(prepare())
    print(f"filled in {time.monotonic() - started:.0f} s", flush=True)
    tell("the first sweep of a bucket, all of it walked", sweep_apart(settings))
    due = msgspec.structs.replace(settings, session_files_ttl_seconds=int(ttl_seconds))
    tell("an ordinary hour", sweep_apart(due))
    for _ in range(ROUNDS):
        tell("an hour in which nothing expires", sweep_apart(settings))


if __name__ == "__main__":
    main()
