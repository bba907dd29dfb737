"""Servers go away and come back: the workers stay, and what they had to do is done, once.

The Docker engine is one of our own here (`private_engine`); the other servers are real ones too.
"""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cluster import Cluster, Process, eventually, paused
from docker.errors import NotFound
from private_engine import IMAGE, PrivateEngine, run_private_engine
from service import Client
from stepping import (
    EXECUTED_AGAIN,
    EXECUTED_ONCE,
    User,
    assert_ended_well,
    assert_next_steps_work,
    begin,
    client,
    node,
    run_stepping_cluster,
)

from workers.sandbox.engine import EXPIRES_LABEL, LABEL, OWNER_LABEL
from workers.sandbox.owner import name_owner

__all__ = ["client", "node"]  # fixtures

POOL_SIZE = 2
BOUND_SECONDS = 30


@pytest.fixture(scope="module")
def stack(stacks_dir: Path) -> Iterator[Cluster]:
    pool = {"RUNNER_POOL_SIZE": str(POOL_SIZE)}
    with run_stepping_cluster(stacks_dir / "outages", **pool) as stack:
        yield stack


@pytest.fixture
def workers(stack: Cluster) -> Iterator[list[Process]]:
    """Two workers without an engine, each for one run at a time; they have to live on."""
    with stack.workers(2, SANDBOX="process", WORKER_CONCURRENCY="1") as workers:
        yield workers
        assert all(worker.popen.poll() is None for worker in workers)


@pytest.fixture(scope="module")
def engine(stacks_dir: Path) -> Iterator[PrivateEngine]:
    with run_private_engine(stacks_dir / "engine") as engine:
        yield engine


@pytest.fixture
def docker_worker(stack: Cluster, engine: PrivateEngine) -> Iterator[Process]:
    """The only worker that there is, on the engine of our own; it has to live on."""
    engine.start()
    with stack.worker(SANDBOX="docker", DOCKER_HOST=engine.host) as worker:
        yield worker
        assert worker.popen.poll() is None


def wait_for_end(user: User) -> dict[str, Any]:
    """Wait for the end of a user's run, also while the node has nobody to ask."""

    def ended() -> dict[str, Any] | None:
        answer = user.client.get(f"/runs/{user.run_id}")
        run: dict[str, Any] = answer.json() if answer.is_success else {}
        return run if run.get("finished_at") else None

    return eventually(ended, seconds=60)


# --- the Docker engine ------------------------------------------------------------------------


def found_in(engine: PrivateEngine) -> list[str]:
    """The names of all our containers and volumes."""
    client = engine.client()
    try:
        wanted = {"label": LABEL}
        containers = client.api.containers(all=True, filters=wanted)
        volumes = client.api.volumes(filters=wanted)["Volumes"] or []
        return [*(entry["Names"][0] for entry in containers), *(v["Name"] for v in volumes)]
    finally:
        client.close()


def assert_only_the_pool_is_left(engine: PrivateEngine) -> None:
    # Each in the pool is a container and its volume.
    eventually(lambda: len(found_in(engine)) == 2 * POOL_SIZE, seconds=BOUND_SECONDS)


@pytest.mark.docker
def test_worker_waits_for_its_engine_and_then_does_what_was_queued(
    stack: Cluster, client: Client, engine: PrivateEngine, docker_worker: Process
) -> None:
    users = begin(client, ["waits-1", "waits-2", "waits-3"])
    assert_only_the_pool_is_left(engine)
    before = found_in(engine)
    engine.stop()
    for user in users:
        user.take_step(artifacts=1)
    # What it has it keeps for a while; the rest it leaves to others, but there are none.
    eventually(lambda: docker_worker.has_logged("worker.trial_failed"))
    assert all(stack.history(user.run_id) in ([], ["running"]) for user in users)
    time.sleep(2)
    engine.start()
    started = time.monotonic()
    for user in users:
        assert_ended_well(stack, user, user.wait_for_end(), EXECUTED_ONCE)
    print(f"ended {time.monotonic() - started:.1f} s after the engine's start")
    # What the engine's end left is as much as a full pool.
    eventually(lambda: not set(found_in(engine)) & set(before), seconds=BOUND_SECONDS)
    assert_only_the_pool_is_left(engine)
    print(f"the pool is full {time.monotonic() - started:.1f} s after the engine's start")
    assert_next_steps_work(users)


@pytest.mark.docker
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.soak)]
)
def test_run_whose_engine_goes_away_is_executed_again(
    stack: Cluster,
    client: Client,
    engine: PrivateEngine,
    docker_worker: Process,
    number: signal.Signals,
) -> None:
    (user,) = users = begin(client, [f"engine-{number}"])
    engine.run_slowly_ending("somebody-else", IMAGE)
    user.take_step(seconds=4)
    eventually(lambda: stack.history(user.run_id) == ["running"])
    time.sleep(1)
    engine.stop(number)
    engine.start()
    started = time.monotonic()
    assert_ended_well(stack, user, user.wait_for_end(), EXECUTED_AGAIN)
    print(f"ended {time.monotonic() - started:.1f} s after the engine's start")
    assert_only_the_pool_is_left(engine)
    assert_next_steps_work(users)


@pytest.mark.docker
def test_what_dead_workers_left_is_removed_and_what_living_ones_have_is_not(
    stack: Cluster, engine: PrivateEngine, docker_worker: Process
) -> None:
    ours = name_owner()
    view, _, _ = ours.rsplit("/", 2)
    dead, elsewhere = f"{view}/{2**22 + 1}/1", "another-machine/4026531836/7/1"
    soon, late = str(int(time.time()) - 1), str(int(time.time()) + 3600)
    client = engine.client()
    try:

        def leave(name: str, owner: str, expires: str, *, start: bool) -> str:
            labels = {LABEL: "1", OWNER_LABEL: owner}
            volume = {"Type": "volume", "Target": "/work", "VolumeOptions": {"Labels": labels}}
            made = client.api.create_container(
                IMAGE,
                name=name,
                # It heeds nobody: neither the end of its stdin nor a SIGTERM.
                entrypoint=["sleep", "1000"],
                labels=labels | {EXPIRES_LABEL: expires},
                network_disabled=True,
                host_config=client.api.create_host_config(auto_remove=True) | {"Mounts": [volume]},
            )
            if start:
                client.api.start(made["Id"])
            mounts = client.api.inspect_container(made["Id"])["Mounts"]
            return str(mounts[0]["Name"])

        left = {
            leave("dead-never-started", dead, late, start=False),
            leave("dead-still-running", dead, late, start=True),
            leave("elsewhere-expired", elsewhere, soon, start=True),
        }
        alive = {
            leave("alive", ours, late, start=True),
            leave("elsewhere", elsewhere, late, start=True),
        }
        orphan = f"orphan-{uuid4()}"
        client.api.create_volume(orphan, labels={LABEL: "1", OWNER_LABEL: dead})
        left |= {orphan, "/dead-never-started", "/dead-still-running", "/elsewhere-expired"}
        alive |= {"/alive", "/elsewhere"}
        left_at = time.monotonic()
        assert left | alive <= set(found_in(engine))
        eventually(lambda: not left & set(found_in(engine)), seconds=BOUND_SECONDS)
        print(f"removed after {time.monotonic() - left_at:.1f} s")
        assert alive <= set(found_in(engine))
        # So are the worker's own.
        assert len(found_in(engine)) == len(alive) + 2 * POOL_SIZE
    finally:
        for name in ("alive", "elsewhere"):
            with suppress(NotFound):
                client.api.remove_container(name, force=True, v=True)
        client.close()


# --- the other servers ------------------------------------------------------------------------


def test_runs_survive_the_loss_of_all_that_redis_held(
    stack: Cluster, client: Client, workers: list[Process]
) -> None:
    executed, queued = users = begin(client, ["flushed-executed", "flushed-queued"])
    with paused(workers[1:]):
        executed.take_step(seconds=2, artifacts=1)
        eventually(lambda: stack.history(executed.run_id) == ["running"])
        queued.take_step()
        with stack.redis() as redis:
            redis.flushall()
        assert_ended_well(stack, executed, executed.wait_for_end(), EXECUTED_ONCE)
    assert_ended_well(stack, queued, queued.wait_for_end(), EXECUTED_ONCE)
    assert_next_steps_work(users)


def test_run_outlives_restarts_of_postgresql(
    stack: Cluster, client: Client, workers: list[Process]
) -> None:
    (user,) = users = begin(client, ["postgres"])
    user.take_step(seconds=6, artifacts=1)
    eventually(lambda: stack.history(user.run_id) == ["running"])
    for _ in range(3):
        with stack.down("postgres"):
            time.sleep(0.2)
        time.sleep(1)
    assert_ended_well(stack, user, wait_for_end(user), EXECUTED_ONCE)
    assert_next_steps_work(users)


@pytest.mark.parametrize(
    ("how", "seconds"),
    [
        ("down", 5),
        pytest.param("down", 20, marks=pytest.mark.soak),
        pytest.param("stalled", 20, marks=pytest.mark.soak),
    ],
)
def test_runs_wait_for_s3(
    stack: Cluster, client: Client, workers: list[Process], how: str, seconds: int
) -> None:
    name = f"{how}-{seconds}"
    uploading, staging = users = begin(client, [f"{name}-uploading", f"{name}-staging"])
    with paused(workers[1:]):
        uploading.take_step(seconds=3, artifacts=3)
        eventually(lambda: workers[0].has_logged("snapshot.ready", run_id=uploading.run_id))
        staging.take_step()  # The first worker is busy, the second one is paused.
        with getattr(stack, how)("s3"):
            os.kill(workers[1].pid, signal.SIGCONT)
            time.sleep(seconds)
            for user in users:
                assert stack.history(user.run_id) == ["running"]
        back = time.monotonic()
    for user in users:
        assert_ended_well(stack, user, user.wait_for_end(), EXECUTED_ONCE)
    print(f"ended {time.monotonic() - back:.1f} s after S3 was back")
    assert len(stack.keys(f"runs/{uploading.run_id}/")) == 3
    assert stack.open_uploads() == []
    assert_next_steps_work(users)


def test_stopped_worker_stores_what_a_tool_made(
    stack: Cluster, client: Client, workers: list[Process]
) -> None:
    (user,) = users = begin(client, ["stopped-uploading"])
    settings = {"SANDBOX": "process", "WORKER_GRACE_SECONDS": "1"}
    with stack.worker(**settings) as stopped, paused(workers):
        user.take_step(seconds=1, artifacts=2)
        eventually(lambda: stopped.has_logged("snapshot.ready", run_id=user.run_id))
        with stack.down("s3"):
            eventually(lambda: stopped.has_logged("run.write_retried"))
            stopped.popen.terminate()
            # The tool has delivered: it must not run again, and its files are on this worker only.
            time.sleep(3)
            assert stack.history(user.run_id) == ["running"]
        assert stopped.popen.wait(20) == 0, stopped.log_path.read_text("utf-8")[-3000:]
        assert_ended_well(stack, user, user.wait_for_end(), EXECUTED_ONCE)
    assert len(stack.keys(f"runs/{user.run_id}/")) == 2
    assert_next_steps_work(users)


def test_worker_hands_back_its_runs_also_without_redis(
    stack: Cluster, client: Client, workers: list[Process]
) -> None:
    users = begin(client, ["no-redis-1", "no-redis-2"])
    settings = {"SANDBOX": "process", "WORKER_GRACE_SECONDS": "1"}
    with stack.worker(**settings) as stopped, paused(workers):
        for user in users:
            user.take_step(seconds=4)
        eventually(lambda: all(stack.history(user.run_id) == ["running"] for user in users))
        with stack.down("redis"):
            stopped.popen.terminate()
            assert stopped.popen.wait(20) == 0, stopped.log_path.read_text("utf-8")[-3000:]
            for user in users:
                assert stack.history(user.run_id) == ["running", "queued"]
    for user in users:
        assert_ended_well(stack, user, user.wait_for_end(), EXECUTED_AGAIN, attempts=1)
    assert_next_steps_work(users)
