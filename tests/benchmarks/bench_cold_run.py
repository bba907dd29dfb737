"""How long a cold run of an empty tool takes, beside a bare container of the same image.

    python tests/benchmarks/bench_cold_run.py [--image NAME] [--rounds N]

Both are measured in turns, so that a slow moment of the machine hits them alike. "Bare" is create,
start, wait and remove of a container that executes `true`; once as the engine makes it by itself,
and once without a network, which is the cheaper and so the stricter comparison. Prints figures and
asserts none.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import docker

from app.settings import Settings
from workers.sandbox.base import Outcome, SandboxJob
from workers.sandbox.docker import DockerSandbox
from workers.sandbox.pick import make_limits
from workers.sandbox.process import ProcessSandbox

EMPTY_TOOL = "def run_tool(input_dir, output_dir):\n    return None\n"


def make_job(settings: Settings) -> SandboxJob:
    return SandboxJob(
        run_id=uuid4(),
        source=EMPTY_TOOL,
        entrypoint="run_tool",
        files=[],
        limits=make_limits(settings, is_sandbox=False),
        inputs=b"{}",
    )


def run_bare(client: docker.APIClient, image: str, network_mode: str) -> None:
    host_config = client.create_host_config(network_mode=network_mode)
    container = client.create_container(image, entrypoint=["true"], host_config=host_config)
    client.start(container)
    client.wait(container)
    client.remove_container(container, v=True)


async def measure(image: str, rounds: int) -> dict[str, list[float]]:
    try:
        client = docker.APIClient(version="auto")
        client.inspect_image(image)
    except docker.errors.DockerException as error:
        sys.exit(f"nothing to compare with: no Docker engine, or no image {image} ({error})")
    sandboxes = {"docker run": DockerSandbox(image=image), "process run": ProcessSandbox()}
    times: dict[str, list[float]] = {}

    def note(name: str, began: float) -> None:
        times.setdefault(name, []).append((time.perf_counter() - began) * 1000)

    bare: dict[str, Callable[[], None]] = {
        "bare": lambda: run_bare(client, image, "default"),
        "bare, no network": lambda: run_bare(client, image, "none"),
    }
    for sandbox in sandboxes.values():
        await sandbox.start()
    for number in range(rounds + 1):
        for name, call in bare.items():
            began = time.perf_counter()
            await asyncio.to_thread(call)
            note(name, began)
        for name, sandbox in sandboxes.items():
            with tempfile.TemporaryDirectory() as spool:
                began = time.perf_counter()
                result = await sandbox.run(make_job(Settings()), spool=Path(spool))
                note(name, began)
            if result.outcome is not Outcome.COMPLETED:
                sys.exit(f"{name}: {result}")
        if number == 0:
            times.clear()  # the first round warms caches
    for sandbox in sandboxes.values():
        await sandbox.aclose()
    client.close()
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--image", default=Settings().runner_image)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    times = asyncio.run(measure(options.image, options.rounds))
    medians = {name: statistics.median(values) for name, values in times.items()}
    print(f"{'':18}{'p50 ms':>10}{'p95 ms':>10}{'/ bare':>10}{'/ no net':>10}")
    for name, values in times.items():
        p95 = statistics.quantiles(values, n=20, method="inclusive")[-1]
        ratios = (medians[name] / medians[base] for base in ("bare", "bare, no network"))
        print(f"{name:18}{medians[name]:10.1f}{p95:10.1f}", *(f"{r:9.2f}" for r in ratios))


if __name__ == "__main__":
    main()
