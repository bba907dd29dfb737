"""Containers that have to go although the engine fails, the caller leaves, or the worker died."""

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from sandboxes import IMAGE, LIMITS, as_tool, docker_sandbox, find_docker_objects, wait_until

from workers.sandbox import engine as engine_module
from workers.sandbox import protocol
from workers.sandbox.base import Sandbox, SandboxJob
from workers.sandbox.engine import DEFAULT_SOCKET, OWNER_LABEL, Engine
from workers.sandbox.owner import name_owner
from workers.sandbox.protocol import exchange

pytestmark = [pytest.mark.docker]

ENGINE_SOCKET = os.environ.get("DOCKER_HOST", DEFAULT_SOCKET).removeprefix("unix://")


class Door:
    """A way to the real engine that can be held shut: what is asked then waits, or is cut off."""

    def __init__(self) -> None:
        self.is_open, self.knocks = asyncio.Event(), 0
        self.is_open.set()
        self._writers: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """End all connections, as an engine does that dies."""
        for writer in self._writers:
            writer.transport.abort()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_unix_connection(ENGINE_SOCKET)
        self._writers |= {writer, inner_writer}
        try:
            await asyncio.gather(
                self._pass_on(reader, inner_writer), self._pass_on(inner_reader, writer)
            )
        finally:
            self._writers -= {writer, inner_writer}
            for each in (writer, inner_writer):
                each.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                self.knocks += not self.is_open.is_set()
                await self.is_open.wait()
                writer.write(data)
            writer.write_eof()


@asynccontextmanager
async def open_door(path: Path) -> AsyncIterator[Door]:
    door = Door()
    server = await asyncio.start_unix_server(door.serve, path)
    try:
        yield door
    finally:
        server.close()
        door.is_open.set()
        door.cut()
        await asyncio.sleep(0.05)


@asynccontextmanager
async def open_engine() -> AsyncIterator[Engine]:
    engine = Engine(image=IMAGE, runtime=None)
    await engine.open()
    try:
        yield engine
    finally:
        await engine.aclose()


def find_containers() -> list[str]:
    return [found for found in find_docker_objects(name_owner()) if found.startswith("container")]


@docker_sandbox
async def test_removal_that_was_cancelled_while_the_engine_failed_is_done_later(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "door"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    async with open_door(path) as door, open_engine() as engine:
        container = await engine.open_container(LIMITS)
        door.is_open.clear()
        removing = asyncio.create_task(engine.remove(container.name))
        await wait_until(lambda: door.knocks > 0, 5)
        removing.cancel()
        door.cut()
        with pytest.raises(asyncio.CancelledError):
            await removing
        door.is_open.set()
        monkeypatch.undo()  # from here on the engine is asked past the door too
        assert any(container.name in found for found in find_containers())
        # Its streams are still open, as those of one whose runner a tool has stopped.
        await engine.remove_left_over()
        assert not any(container.name in found for found in find_containers())
        container.streams.close()


@docker_sandbox
async def test_container_that_should_be_over_is_left_over_also_to_who_made_it(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Out of sight of other workers on this machine, who would remove it just as well.
    monkeypatch.setattr(engine_module, "LABEL", "skriptoteket.removals")
    async with open_engine() as engine:
        with monkeypatch.context() as patched:
            patched.setattr(engine_module, "MAKE_SECONDS", -3600)
            expired = await engine.open_container(LIMITS)
        kept = await engine.open_container(LIMITS)
        try:
            assert await engine.remove_left_over() >= 1
            left = " ".join(find_containers())
            assert expired.name not in left
            assert kept.name in left
        finally:
            for container in (expired, kept):
                container.streams.close()
                await engine.remove(container.name)


@docker_sandbox
@pytest.mark.parametrize(("settle_seconds", "is_removed"), [(0.0, True), (3600.0, False)])
async def test_container_whose_removal_hangs_is_removed_once_its_worker_is_dead(
    sandbox: Sandbox,
    monkeypatch: pytest.MonkeyPatch,
    settle_seconds: float,
    is_removed: bool,
) -> None:
    """Docker 20.10 can say "removing" for ever, where a `--rm` met a removal by another."""
    monkeypatch.setattr(engine_module, "LABEL", "skriptoteket.removals")
    monkeypatch.setattr(engine_module, "SETTLE_SECONDS", settle_seconds)
    view, pid, _ = name_owner().split("/")
    async with open_engine() as engine:
        container = await engine.open_container(LIMITS)
        list_containers = engine._asked.containers

        def list_hanging(**filters: Any) -> list[dict[str, Any]]:
            return [
                entry
                | {
                    "State": "removing",
                    "Labels": entry["Labels"] | {OWNER_LABEL: f"{view}/{pid}/1"},
                }
                for entry in list_containers(**filters)
            ]

        with monkeypatch.context() as patched:
            patched.setattr(engine._asked, "containers", list_hanging)
            await asyncio.sleep(0.01)
            await engine.remove_left_over()
        assert (container.name not in " ".join(find_containers())) is is_removed
        container.streams.close()
        await engine.remove(container.name)


@docker_sandbox
async def test_tool_that_stops_its_runner_does_not_outlive_a_worker_that_died_out_of_sight(
    sandbox: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "BACKSTOP_SECONDS", 1.0)
    monkeypatch.setattr(protocol, "COLLECT_SECONDS", 1.0)
    stopped = asyncio.Event()

    async def on_progress(fraction: float, text: str) -> None:
        stopped.set()

    job = SandboxJob(
        run_id=uuid4(),
        source=as_tool(
            """
            import signal, subprocess
            from skriptoteket_toolkit import progress
            progress(0.1, "strax")
            time.sleep(0.3)
            os.kill(os.getppid(), signal.SIGSTOP)
            subprocess.Popen(["sleep", "1000"], start_new_session=True)
            time.sleep(1000)
            """
        ),
        entrypoint="run_tool",
        files=[],
        limits=replace(LIMITS, timeout_seconds=1),
    )
    async with open_engine() as engine:
        container = await engine.open_container(job.limits)
        streams = container.streams
        running = asyncio.create_task(
            exchange(
                job, streams, streams.stdin, spool=tmp_path, alone=True, on_progress=on_progress
            )
        )
        await asyncio.wait_for(stopped.wait(), 10)
        began = time.monotonic()
        await asyncio.sleep(0.6)
        # What is left of a worker that was killed, and that nobody can find dead.
        running.cancel()
        streams.close()
        await asyncio.sleep(1)
        try:
            assert any(container.name in found for found in find_containers())
            await wait_until(
                lambda: not any(container.name in found for found in find_containers()), 5
            )
            assert time.monotonic() - began < 1 + 1 + 1 + 3
        finally:
            await engine.remove(container.name)
