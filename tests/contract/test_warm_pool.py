"""The warm pool on the real engine: containers wait, serve one run each, and are replaced."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import docker
import pytest
from sandboxes import (
    IMAGE,
    POOL,
    Runs,
    answer_of,
    docker_sandbox,
    find_docker_objects,
    wait_until,
)

from workers.sandbox.base import Outcome, Sandbox
from workers.sandbox.docker import DockerSandbox, PoolSettings
from workers.sandbox.engine import OWNER_LABEL
from workers.sandbox.owner import name_owner

pytestmark = [pytest.mark.docker]


@pytest.fixture
def client(sandbox: Sandbox) -> Any:
    """The engine, past the sandbox; the parameter is there to skip where there is none."""
    client = docker.from_env()
    yield client
    client.close()


def waiting(client: Any) -> set[str]:
    """Ids of this process's containers."""
    wanted = {"label": f"{OWNER_LABEL}={name_owner()}"}
    return {entry["Id"] for entry in client.api.containers(filters=wanted)}


@asynccontextmanager
async def open_pool(client: Any, **changes: Any) -> AsyncIterator[DockerSandbox]:
    """Start a sandbox with a pool, full when the block begins."""
    settings: PoolSettings = replace(POOL, **changes)
    chosen = DockerSandbox(image=IMAGE, pool=settings)
    await chosen.start()
    try:
        await wait_until(lambda: chosen.idle >= 1, 20)
        yield chosen
    finally:
        await chosen.aclose()
    assert find_docker_objects(name_owner()) == [], "a closed pool leaves nothing"


async def fill(pool: DockerSandbox, count: int) -> None:
    await wait_until(lambda: pool.idle == count, 20)


@docker_sandbox
async def test_a_run_takes_a_container_that_waits_and_another_takes_its_place(
    client: Any, tmp_path: Path
) -> None:
    async with open_pool(client) as pool:
        await fill(pool, 2)
        before = waiting(client)
        run = Runs(pool, tmp_path)
        result = await run("return 'hej'", files={"a": b"x"})
        assert answer_of(result)["outputs"][0]["html"] == "hej"
        await fill(pool, 2)
        await wait_until(lambda: len(waiting(client)) == 2, 10)
        after = waiting(client)
        assert len(before & after) == 1 and len(after - before) == 1


@docker_sandbox
async def test_no_container_serves_a_second_run(client: Any, tmp_path: Path) -> None:
    look = """
        from pathlib import Path
        marks = [Path("/tmp/mark"), Path("/work/mark"), Path("/dev/shm/mark")]
        seen = [str(mark) for mark in marks if mark.exists()]
        for mark in marks:
            mark.write_text("x")
        return {"outputs": [{"kind": "json", "value": seen}]}
    """
    async with open_pool(client, size=1) as pool:
        run = Runs(pool, tmp_path)
        for _ in range(5):
            assert answer_of(await run(look))["outputs"] == [{"kind": "json", "value": []}]


@docker_sandbox
async def test_what_is_to_be_preloaded_is_there_and_what_cannot_be_costs_nothing(
    client: Any, tmp_path: Path
) -> None:
    async with open_pool(client, preload=["no_such_module", "sqlite3"]) as pool:
        found = "return {'outputs': [{'kind': 'json', 'value': 'sqlite3' in sys.modules}]}"
        result = await Runs(pool, tmp_path)(found)
        assert answer_of(result)["outputs"][0]["value"] is True
        # With other limits it is made cold, and imports what it needs by itself.
        result = await Runs(pool, tmp_path)(found, memory_bytes=POOL.limits.memory_bytes // 2)
        assert answer_of(result)["outputs"][0]["value"] is False


@docker_sandbox
async def test_more_runs_than_containers_are_done_cold(client: Any, tmp_path: Path) -> None:
    async with open_pool(client, size=1) as pool:
        run = Runs(pool, tmp_path)
        results = await asyncio.gather(*(run(f"return '{number}'") for number in range(5)))
        texts = [answer_of(result)["outputs"][0]["html"] for result in results]
        assert texts == ["0", "1", "2", "3", "4"]


@docker_sandbox
async def test_a_container_that_died_is_never_given_to_a_run_and_is_replaced(
    client: Any, tmp_path: Path
) -> None:
    async with open_pool(client) as pool:
        await fill(pool, 2)
        before = waiting(client)
        for container_id in before:
            client.api.kill(container_id)
        # At once, before anybody looked: the run must not notice.
        result = await Runs(pool, tmp_path)("return 'hej'")
        assert result.outcome is Outcome.COMPLETED
        await wait_until(lambda: pool.idle == 2 and not waiting(client) & before, 20)


@docker_sandbox
async def test_container_that_complained_and_died_while_it_waited_is_replaced(client: Any) -> None:
    async with open_pool(client, size=1):
        (before,) = waiting(client)
        complain = ["sh", "-c", "echo besvär >/proc/1/fd/2"]
        client.api.exec_start(client.api.exec_create(before, complain)["Id"])
        await asyncio.sleep(0.5)
        assert waiting(client) == {before}  # a word alone is no reason
        client.api.kill(before)
        await wait_until(lambda: len(waiting(client) - {before}) == 1, 10)


@docker_sandbox
async def test_a_run_that_may_take_longer_than_a_container_lives_is_done_cold(
    client: Any, tmp_path: Path
) -> None:
    async with open_pool(client, size=1) as pool:
        before = waiting(client)
        run = Runs(pool, tmp_path)
        await run("", timeout_seconds=POOL.limits.timeout_seconds + 1)
        assert before <= waiting(client)
        await run("", timeout_seconds=POOL.limits.timeout_seconds - 1)
        await wait_until(lambda: not waiting(client) & before, 10)


@docker_sandbox
async def test_containers_grow_old_and_are_replaced(client: Any) -> None:
    async with open_pool(client, max_age_seconds=2) as pool:
        await fill(pool, 2)
        before = waiting(client)
        await wait_until(lambda: pool.idle == 2 and not waiting(client) & before, 20)


@docker_sandbox
async def test_idle_containers_take_no_more_memory_than_allowed(client: Any) -> None:
    async with open_pool(client, size=3) as pool:
        await fill(pool, 3)
        each = max(
            client.api.stats(container_id, stream=False, one_shot=True)["memory_stats"]["usage"]
            for container_id in waiting(client)
        )
    async with open_pool(client, size=3, max_bytes=int(2.5 * each)) as pool:
        await fill(pool, 2)
        await asyncio.sleep(1.5)
        assert pool.idle == 2 and len(waiting(client)) == 2


@docker_sandbox
async def test_closing_while_the_pool_fills_leaves_nothing(client: Any) -> None:
    for delay in (0.0, 0.05, 0.15, 0.3):
        chosen = DockerSandbox(image=IMAGE, pool=POOL)
        await chosen.start()
        await asyncio.sleep(delay)
        await chosen.aclose()
        assert find_docker_objects(name_owner()) == []
