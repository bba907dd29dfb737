"""How long a run takes from `POST /run` to its answer, beside bare calls of the Docker engine.

    python tests/benchmarks/bench_warm_run.py [--rounds N]

A whole service is started (one API node, one worker, embedded servers) and asked as a program
would, with `Prefer: wait`. "Bare cold" is create, start, wait and remove of a container that
executes `true`; "bare exec" is `docker exec` of `true` in a running container. What is compared is
measured in turns, so that a slow moment of the machine hits all alike; except the cold runs, which
come last, in a service without a pool. Before each warm run the pool is full again.

A ratio is that of the medians, or of the 95th percentiles. The aims are those of the issue that the
runner was built for. Prints figures and asserts none.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import docker

sys.path.append(str(Path(__file__).parents[1]))

from service import Client, Service

from app.dev import run_service
from app.devstack import free_port
from app.settings import Settings
from app.usecases.seed import SCRIPT_BANK
from workers.sandbox.engine import LABEL

EMPTY = "def run_tool(input_dir, output_dir):\n    return None\n"
PANDAS = "import pandas\n\n\ndef run_tool(input_dir, output_dir):\n    return pandas.__version__\n"
READER = """
from pathlib import Path


def run_tool(input_dir, output_dir):
    return str(sum(len(path.read_bytes()) for path in Path(input_dir).iterdir()))
"""
FILES = [{"kind": "file", "name": "files", "label": "Filer"}]
AT_ONCE = 10
# What is set beside what, and what the ratio should be at most.
RATIOS = (
    ("warm, empty tool", "bare cold", 0.2),
    ("warm, empty tool", "bare exec", 1.0),
    ("warm, 1 MB in the cache", "bare cold", 0.2),
    ("warm, 1 MB in the cache", "bare exec", 1.0),
    ("ten at once, each", "bare cold", None),
    ("cold, empty tool", "bare cold", None),
    ("warm, empty tool", "cold, empty tool", None),
    ("warm, imports pandas", "cold, imports pandas", None),
    ("html tool, second step", "html tool, first step", None),
)
POOL_SIZE = 4


class Bench:
    """One service, the engine beside it, and the times by name (ms)."""

    def __init__(self, service: Service, client: Client) -> None:
        self.service, self.client = service, client
        self.engine = docker.APIClient(version="auto")
        self.image = Settings().runner_image
        self.times: dict[str, list[float]] = {}
        idle = self.engine.create_container(self.image, entrypoint=["sleep", "3600"])
        self.engine.start(idle)
        self.running = idle["Id"]

    def close(self) -> None:
        self.engine.remove_container(self.running, force=True)
        self.engine.close()

    def publish(self, source: str, schema: list[dict[str, Any]] | None = None) -> str:
        slug = f"bench-{uuid.uuid4().hex[:8]}"
        self.service.publish(slug, source, schema)
        return slug

    def note(self, name: str, call: Callable[[], object]) -> None:
        began = time.perf_counter()
        call()
        self.times.setdefault(name, []).append((time.perf_counter() - began) * 1000)

    def wait_for_pool(self) -> None:
        """Wait until as many containers run as the pool holds, and nothing is being removed."""
        end = time.monotonic() + 60
        while True:
            found = self.engine.containers(all=True, filters={"label": LABEL})
            states = [entry["State"] for entry in found]
            if states == ["running"] * POOL_SIZE:
                break
            if time.monotonic() > end:
                sys.exit(f"the pool does not fill: {states}")
            time.sleep(0.05)
        time.sleep(0.2)  # its runners import

    def bare_cold(self) -> None:
        container = self.engine.create_container(self.image, entrypoint=["true"])
        self.engine.start(container)
        self.engine.wait(container)
        self.engine.remove_container(container, v=True)

    def bare_exec(self) -> None:
        made = self.engine.exec_create(self.running, ["true"])
        self.engine.exec_start(made)

    def run(self, slug: str, **form: Any) -> dict[str, Any]:
        answer = self.client.run_tool(slug, **form)
        run: dict[str, Any] = answer.json()
        if answer.status_code != 200 or run["status"] != "succeeded":
            sys.exit(f"a run did not succeed: {answer.text[:500]}")
        return run

    def measure_warm(self, rounds: int) -> None:
        empty, pandas = self.publish(EMPTY), self.publish(PANDAS)
        reader = self.publish(READER, FILES)
        self.run(reader, files=[("a.bin", os.urandom(1_000_000))])
        for number in range(rounds + 1):
            self.note("bare cold", self.bare_cold)
            self.note("bare exec", self.bare_exec)
            for name, slug, form in (
                ("warm, empty tool", empty, {}),
                ("warm, 1 MB in the cache", reader, {"session_files_mode": "reuse"}),
                ("warm, imports pandas", pandas, {}),
            ):
                self.wait_for_pool()
                self.note(name, lambda slug=slug, form=form: self.run(slug, **form))  # type: ignore[misc]
            if number == 0:
                self.times.clear()  # the first round warms caches

    def measure_cold(self, rounds: int) -> None:
        empty, pandas = self.publish(EMPTY), self.publish(PANDAS)
        for _ in range(rounds):
            self.note("cold, empty tool", lambda: self.run(empty))
            self.note("cold, imports pandas", lambda: self.run(pandas))

    def measure_at_once(self, rounds: int) -> None:
        empty = self.publish(EMPTY)
        with ThreadPoolExecutor(AT_ONCE) as threads:
            for _ in range(rounds):
                self.wait_for_pool()
                list(
                    threads.map(
                        lambda _: self.note("ten at once, each", lambda: self.run(empty)),
                        range(AT_ONCE),
                    )
                )

    def measure_steps(self, rounds: int) -> None:
        sample = SCRIPT_BANK / "html_to_pdf_preview" / "sample"
        files = [(path.name, path.read_bytes()) for path in sorted(sample.iterdir())]
        form = {"page_size": "A4", "orientation": "stående"}
        for _ in range(rounds):
            for step, call in (
                ("html tool, first step", lambda: self.run("html_to_pdf_preview", files=files)),
                (
                    "html tool, second step",
                    lambda: self.client.take_step("html_to_pdf_preview", "convert", form),
                ),
            ):
                self.wait_for_pool()
                self.note(step, call)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    common = {
        "SANDBOX": "docker",
        "RUN_MAX_UNFINISHED": "100",
        "LOGIN_ATTEMPTS": "1000",
        "WORKER_CONCURRENCY": str(AT_ONCE),
    }
    times: dict[str, list[float]] = {}
    for pool_size in (POOL_SIZE, 0):
        overrides = common | {"RUNNER_POOL_SIZE": str(pool_size)}
        with (
            tempfile.TemporaryDirectory(prefix="skriptoteket-bench-") as name,
            run_service(Path(name), ports=[free_port()], workers=1, overrides=overrides) as running,
        ):
            service = Service(running)
            with closing(service.client()) as client, closing(Bench(service, client)) as bench:
                if pool_size:
                    bench.measure_warm(options.rounds)
                    bench.measure_at_once(max(2, options.rounds // 5))
                    bench.measure_steps(options.rounds)
                else:
                    bench.measure_cold(options.rounds)
                times |= bench.times
    print_times(times)


def print_times(times: dict[str, list[float]]) -> None:
    """Print p50 and p95 of each, and of what is set beside something else their ratios."""
    found = {name: (statistics.median(values), p95(values)) for name, values in times.items()}
    print(f"{'ms':48}{'p50':>8}{'p95':>8}{'n':>6}")
    for name, (middle, high) in found.items():
        print(f"{name:48}{middle:8.1f}{high:8.1f}{len(times[name]):6}")
    print(f"\n{'ratio':48}{'p50':>8}{'p95':>8}  aim")
    for name, base, aim in RATIOS:
        ratios = [ours / theirs for ours, theirs in zip(found[name], found[base], strict=True)]
        told = "".join(f"{ratio:8.2f}" for ratio in ratios)
        if aim is not None:
            met = ", ".join("met" if ratio <= aim else "not met" for ratio in ratios)
            told += f"  at most {aim}: {met}"
        print(f"{name + ' / ' + base:48}{told}")


def p95(values: list[float]) -> float:
    # Within what was measured: of few values, the other method guesses beyond the slowest.
    return statistics.quantiles(values, n=20, method="inclusive")[-1]


if __name__ == "__main__":
    main()
