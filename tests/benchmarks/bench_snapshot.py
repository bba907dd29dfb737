"""How long it takes to stage a run's files: from S3, and from this machine's cache.

    python tests/benchmarks/bench_snapshot.py [--rounds N]

Over the embedded S3 server on this machine, which is nearer than any real one: what the cache saves
elsewhere is more. "S3" is without a cache, "fill" is the first run with one, "hit" each later run:
a hit is read in full and proved by SHA-256, so the pure hash of as many bytes stands beside it.
The ways take turns, so that a slow moment of the machine hits all. Prints figures, asserts none.
"""

import argparse
import asyncio
import hashlib
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable
from pathlib import Path
from uuid import uuid4

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from staging import Stage, open_stage, random_files

from app.devstack import run_devstack
from app.domain.runs import ClaimedRun
from workers.blob_cache import BlobCache
from workers.snapshot import stage_snapshot

MB = 1_000_000
SHAPES = {"1 MB": (1, MB), "20 MB": (1, 20 * MB), "20 x 1 MB": (20, MB)}
CACHE_BYTES = 200 * MB


async def stage_once(stage: Stage, run: ClaimedRun, cache: BlobCache | None) -> None:
    """Stage the files and let them go; nothing reads them, since that is the sandbox's part."""
    with tempfile.TemporaryDirectory(dir=stage.directory) as name:
        async with stage_snapshot(stage.storage, run, Path(name), cache):
            pass


async def time_ms(work: Awaitable[None]) -> float:
    began = time.perf_counter()
    await work
    return (time.perf_counter() - began) * 1000


async def measure(stage: Stage, files: dict[str, bytes], rounds: int) -> dict[str, list[float]]:
    run = await stage.upload(files)
    warm = BlobCache(stage.directory / "warm", max_bytes=CACHE_BYTES, max_age_seconds=1e6)
    await stage_once(stage, run, warm)
    times: dict[str, list[float]] = {"S3": [], "fill": [], "hit": [], "hash": []}
    for number in range(rounds + 1):
        cold = BlobCache(
            stage.directory / f"cold-{uuid4()}", max_bytes=CACHE_BYTES, max_age_seconds=1e6
        )
        times["S3"].append(await time_ms(stage_once(stage, run, None)))
        times["fill"].append(await time_ms(stage_once(stage, run, cold)))
        before = stage.store.downloads
        times["hit"].append(await time_ms(stage_once(stage, run, warm)))
        if stage.store.downloads != before:
            sys.exit("what was cached was downloaded")
        began = time.perf_counter()
        for data in files.values():
            hashlib.sha256(data).digest()
        times["hash"].append((time.perf_counter() - began) * 1000)
        await cold.sweep(keep_bytes=0)
        if number == 0:
            for values in times.values():
                values.clear()  # the first round warms connections
    return times


async def run_all(rounds: int) -> None:
    print(f"{'p50 / p95, ms':14}{'S3':>17}{'fill':>17}{'hit':>17}{'hash':>10}{'S3 : hit':>11}")
    with tempfile.TemporaryDirectory(prefix="bench-") as name, run_devstack(Path(name)) as stack:
        runs = Path(name) / "runs"
        await asyncio.to_thread(runs.mkdir)
        async with open_stage(stack.database_url, stack.s3_endpoint, runs) as stage:
            for shape, (count, size_bytes) in SHAPES.items():
                times = await measure(stage, random_files(count, size_bytes), rounds)
                p50 = {way: statistics.median(values) for way, values in times.items()}
                cells = [f"{p50[way]:8.1f} /{_p95(times[way]):7.1f}" for way in ("S3", "fill")]
                cells.append(f"{p50['hit']:8.1f} /{_p95(times['hit']):7.1f}")
                ratio = p50["S3"] / p50["hit"]
                print(f"{shape:14}{''.join(cells)}{p50['hash']:10.1f}{ratio:11.1f}")


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1] if len(values) > 1 else values[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    asyncio.run(run_all(parser.parse_args().rounds))


if __name__ == "__main__":
    main()
