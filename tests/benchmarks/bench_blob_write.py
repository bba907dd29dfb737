"""Measure the streaming writer: 50 MB against plain aioboto3, and memory of ten uploads at once.

    python tests/benchmarks/bench_blob_write.py [--rounds N]

Runs over the embedded S3 server and, where installed, Ceph's gateway. Prints medians. The two
writes alternate on the same server, so that a slow moment hits both.
"""

import argparse
import asyncio
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import aioboto3
from aiobotocore.config import AioConfig
from machine import CEPH_KEYS, resident_bytes, run_ceph, settings_for

from app.devstack import S3_ACCESS_KEY, S3_SECRET_KEY, run_devstack
from app.domain.files import UploadLimits
from app.settings import Settings
from app.store.object_writer import ObjectWriter
from app.store.objects import ObjectStore, open_object_store
from app.store.session_files import S3SessionFileStorage, SessionFilesKey

MB = 1_000_000
CHUNK_BYTES = 64 * 1024
LIMITS = UploadLimits(20, 20 * MB, 50 * MB)


async def chunks_of(data: bytes) -> AsyncIterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(data), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])
        await asyncio.sleep(0)


async def measure_speed(name: str, settings: Settings, rounds: int) -> None:
    data = os.urandom(50 * MB)
    config = AioConfig(s3={"addressing_style": "path"})
    async with (
        open_object_store(settings) as store,
        aioboto3.Session().client(
            "s3",
            endpoint_url=settings.s3_endpoint_url,
            aws_access_key_id=settings.s3_access_key,
            aws_secret_access_key=settings.s3_secret_key,
            region_name=settings.s3_region,
            config=config,
        ) as plain,
    ):
        await store.create_bucket()
        ours, theirs = [], []
        for _ in range(rounds + 1):
            started = time.perf_counter()
            await plain.put_object(Bucket="bench", Key="plain", Body=io.BytesIO(data))
            theirs.append(time.perf_counter() - started)
            started = time.perf_counter()
            writer = ObjectWriter(store, "ours")
            async for chunk in chunks_of(data):
                await writer.write(chunk)
            await writer.finish()
            ours.append(time.perf_counter() - started)
    # The first of each opens connections.
    a, b = statistics.median(ours[1:]), statistics.median(theirs[1:])
    print(
        f"{name}: 50 MB through the writer {a:.3f} s, plain aioboto3 {b:.3f} s, ratio {a / b:.2f}"
    )


async def upload_three(storage: S3SessionFileStorage) -> None:
    """50 MB in three files, made up as they go so that the source holds no memory."""
    key = SessionFilesKey(uuid4(), uuid4(), "default")
    async with storage.begin_upload(key, LIMITS) as upload:
        for number, size in enumerate((20 * MB, 20 * MB, 10 * MB)):

            async def made_up(size: int = size) -> AsyncIterator[bytes]:
                for start in range(0, size, CHUNK_BYTES):
                    yield os.urandom(min(CHUNK_BYTES, size - start))
                    await asyncio.sleep(0)

            await upload.add_file(f"{number}.bin", "application/octet-stream", made_up())
        await storage.store_files(upload)


async def measure_memory(name: str, settings: Settings, *, trace: bool) -> None:
    async with open_object_store(settings) as store:
        await store.create_bucket()
        storage = S3SessionFileStorage(store, NoFence(), settings)
        await upload_small(store)
        if trace:
            tracemalloc.start()
        before = peak = resident_bytes()
        work = asyncio.gather(*(upload_three(storage) for _ in range(10)))
        started = time.perf_counter()
        while not work.done():
            peak = max(peak, resident_bytes())
            await asyncio.sleep(0.005)
        await work
        seconds = time.perf_counter() - started
        if trace:
            _, traced = tracemalloc.get_traced_memory()
            tracemalloc.stop()
            print(f"{name}: ten uploads of 50 MB, traced peak {traced / MB:.0f} MB")
        else:
            print(
                f"{name}: ten uploads of 50 MB at once {seconds:.1f} s, resident memory "
                f"+{(peak - before) / MB:.0f} MB"
            )


async def upload_small(store: ObjectStore) -> None:
    """Load what the driver loads lazily."""
    writer = ObjectWriter(store, "small")
    await writer.write(b"x")
    await writer.finish()


class NoFence:
    def fence(self, *names: str) -> "NoFence":
        return self

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *error: object) -> None: ...


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory", nargs=4, metavar=("NAME", "URL", "KEY", "SECRET"))
    parser.add_argument("--trace", action="store_true")
    arguments = parser.parse_args()
    if arguments.memory:
        name, *where = arguments.memory
        asyncio.run(measure_memory(name, settings_for(*where), trace=arguments.trace))
        return
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        root = Path(directory)
        with run_devstack(root / "stack") as stack:
            where = settings_for(stack.s3_endpoint, S3_ACCESS_KEY, S3_SECRET_KEY)
            measure("embedded", where, arguments)
        with run_ceph(root / "ceph") as endpoint:
            if endpoint is not None:
                measure("ceph", settings_for(endpoint, *CEPH_KEYS), arguments)


def measure(name: str, settings: Settings, arguments: argparse.Namespace) -> None:
    asyncio.run(measure_speed(name, settings, arguments.rounds))
    where = [settings.s3_endpoint_url, settings.s3_access_key, settings.s3_secret_key]
    command = [sys.executable, __file__, "--memory", name, *map(str, where)]
    # Memory is measured in a fresh process: what the speed test left behind would hide it.
    for extra in ([], ["--trace"]):
        subprocess.run([*command, *extra], check=True)


if __name__ == "__main__":
    main()
