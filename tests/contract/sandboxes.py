"""The sandboxes that the contract suite runs over, and a way to run a tool in one and see that
nothing of it is left afterwards.
"""

import asyncio
import json
import os
import tempfile
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import pytest
import pytest_asyncio
from requirements import skip_for_want_of

from app.settings import Settings
from workers.sandbox.base import (
    InputFile,
    ProgressCallback,
    Sandbox,
    SandboxJob,
    SandboxLimits,
    SandboxResult,
    SandboxUnavailable,
)
from workers.sandbox.docker import DockerSandbox, PoolSettings
from workers.sandbox.engine import OWNER_LABEL
from workers.sandbox.owner import name_owner
from workers.sandbox.process import ProcessSandbox

MIB = 1024 * 1024
IMAGE = os.environ.get("RUNNER_IMAGE", Settings().runner_image)

LIMITS = SandboxLimits(
    timeout_seconds=20,
    memory_bytes=512 * MIB,
    cpus=1,
    processes=64,
    work_bytes=128 * MIB,
    output_max_bytes=10_000,
    result_max_bytes=1 * MIB,
    artifacts_max_files=5,
    artifact_max_bytes=1_000_000,
    artifacts_max_total_bytes=2_000_000,
)

POOL = PoolSettings(LIMITS, size=2, max_bytes=512 * MIB, max_age_seconds=600)
DOCKER = pytest.param("docker", marks=pytest.mark.docker)
WARM = pytest.param("warm", marks=pytest.mark.docker)  # from a pool; other limits go cold
# The default run tries what waits in a pool and what needs no engine; `make soak` the others too:
# a container made for its run, and the process sandbox where the kernel gives no namespaces.
COLD = pytest.param("docker", marks=[pytest.mark.docker, pytest.mark.soak])
BARE = pytest.param("bare", marks=pytest.mark.soak)
every_sandbox = pytest.mark.parametrize(
    "sandbox", [COLD, WARM, "process", BARE], indirect=True, scope="session"
)
fenced_sandboxes = pytest.mark.parametrize(
    "sandbox", [DOCKER, "process"], indirect=True, scope="session"
)
docker_sandbox = pytest.mark.parametrize("sandbox", [DOCKER], indirect=True, scope="session")


def make_sandbox(kind: str) -> Sandbox:
    """Make the sandbox of one of the parameters above."""
    match kind:
        case "docker":
            return DockerSandbox(image=IMAGE)
        case "warm":
            return DockerSandbox(image=IMAGE, pool=POOL)
        case _:
            return ProcessSandbox(use_namespaces=kind == "process")


@pytest_asyncio.fixture(scope="session")
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[Sandbox]:
    """The sandbox that the test is parametrized with, started."""
    chosen = make_sandbox(request.param)
    try:
        await chosen.start()
    except SandboxUnavailable as error:
        await chosen.aclose()
        skip_for_want_of("DOCKER", f"no Docker: {error}")
    yield chosen
    await chosen.aclose()


class Runs:
    """Runs tools in a sandbox, with temporary directories that belong to the test."""

    def __init__(self, sandbox: Sandbox, directory: Path) -> None:
        self.sandbox, self.directory = sandbox, directory
        self._count = 0

    async def __call__(
        self,
        source: str,
        *,
        files: dict[str, bytes] | None = None,
        inputs: Any = None,
        action: bytes | None = None,
        entrypoint: str = "run_tool",
        on_progress: ProgressCallback | None = None,
        stop: asyncio.Event | None = None,
        **limits: float,
    ) -> SandboxResult:
        """Run a tool, given as a module or as the body of `run_tool`."""
        job = SandboxJob(
            run_id=uuid4(),
            source=as_tool(source),
            entrypoint=entrypoint,
            files=self._write(files or {}),
            limits=replace(LIMITS, **limits),  # type: ignore[arg-type]
            inputs=None if inputs is None else json.dumps(inputs).encode(),
            action=action,
        )
        spool = self.directory / f"spool-{job.run_id}"
        spool.mkdir()
        return await self.sandbox.run(job, spool=spool, on_progress=on_progress, stop=stop)

    def _write(self, files: dict[str, bytes]) -> Sequence[InputFile]:
        staged = []
        self._count += 1
        for number, (name, data) in enumerate(files.items()):
            path = self.directory / f"blob-{self._count}-{number}"
            path.write_bytes(data)
            staged.append(InputFile(name, path, len(data)))
        return staged

    def find_left_over(self) -> list[str]:
        """List what is left of all the runs: processes, directories, containers, volumes."""
        left = [str(path) for path in self.temp.iterdir()]
        mark = os.fsencode(f"SKRIPTOTEKET_WORK={self.temp}")
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes():
                    left.append(f"process {(entry / 'cmdline').read_bytes()!r}")
            except OSError:  # it ended meanwhile
                continue
        if isinstance(self.sandbox, DockerSandbox):
            # What waits for a run to come is not left of one; what is being made is neither.
            found = find_docker_objects(name_owner())
            waiting = 2 * self.sandbox.pool_size
            left += found if len(found) > waiting else []
        return left

    @property
    def temp(self) -> Path:
        path = self.directory / "temp"
        path.mkdir(exist_ok=True)
        return path


@pytest_asyncio.fixture
async def run(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Runs]:
    """Run tools in the sandbox; after the test nothing of them may be left."""
    runs = Runs(sandbox, tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(runs.temp))
    yield runs
    # Containers are removed when their answer has been given.
    await wait_until(lambda: runs.find_left_over() == [], seconds=10)


def find_docker_objects(owner: str) -> list[str]:
    """List a process's containers and volumes."""
    client = docker.from_env()
    try:
        wanted = {"label": f"{OWNER_LABEL}={owner}"}
        containers = client.api.containers(all=True, filters=wanted)
        volumes = client.api.volumes(filters=wanted)["Volumes"] or []
        return [
            *(f"container {c['Names']}" for c in containers),
            *(f"volume {v['Name']}" for v in volumes),
        ]
    finally:
        client.close()


def as_tool(source: str) -> str:
    """Make the source of a tool from a body, unless it is one already."""
    source = textwrap.dedent(source)
    if "def run_tool" in source or "# whole" in source:
        return source
    return "import os, sys, time\ndef run_tool(input_dir, output_dir):\n" + textwrap.indent(
        source, "    "
    )


def answer_of(result: SandboxResult) -> dict[str, Any]:
    """Read result.json; it must be there."""
    assert result.result_json is not None, result
    document: dict[str, Any] = json.loads(result.result_json)
    assert document["contract_version"] == 2
    return document


async def wait_until(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for a condition; it must come true within `seconds`."""
    give_up_at = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up_at, f"not within {seconds} s"
        await asyncio.sleep(0.05)
