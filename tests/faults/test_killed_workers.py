"""A worker may be killed at any moment: its runs end once, soon, and nothing of it is left.

A victim's runs come to a halt at a stage each (`halting_worker`), then it is killed; ordinary
workers do the rest. PostgreSQL notes every change of a run, so that a second end is seen.
"""

import json
import os
import random
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import docker
import pytest
from cluster import Cluster, Process, eventually, paused
from docker.errors import DockerException
from requirements import skip_for_want_of
from service import Client
from stepping import (
    EXECUTED_AGAIN,
    EXECUTED_ONCE,
    NEVER_AGAIN,
    User,
    assert_ended_well,
    assert_next_steps_work,
    begin,
    client,
    node,
    run_stepping_cluster,
)

from app.settings import Settings
from workers.sandbox.engine import LABEL, OWNER_LABEL

__all__ = ["client", "node"]  # fixtures

BOUND_SECONDS = 30  # from a kill to the end of the run and of all that the worker had
POOL_SIZE = 1
SETTINGS = {"RUNNER_POOL_SIZE": str(POOL_SIZE), "RUN_LEASE_SECONDS": "3"}
DEFAULTS = {
    name.upper(): str(getattr(Settings(), name))
    for name in ("run_lease_seconds", "run_heartbeat_seconds", "run_sweep_seconds")
}

# Where a run's worker dies, how many files its tool makes, and what becomes of the run.
STAGES = [
    ("taken", 0, EXECUTED_ONCE),
    ("claimed", 0, EXECUTED_AGAIN),
    ("staging", 0, EXECUTED_AGAIN),
    ("executing", 0, EXECUTED_AGAIN),
    ("collecting", 1, EXECUTED_AGAIN),
    ("executed", 1, EXECUTED_AGAIN),
    ("uploading", 2, NEVER_AGAIN),
    ("before the commit", 0, EXECUTED_AGAIN),
    ("before the commit", 1, NEVER_AGAIN),
    ("after the commit", 1, EXECUTED_ONCE),
]


def make_cases(docker_rounds: int, process_rounds: int) -> list[Any]:
    """Rounds in each sandbox; `make soak` adds more."""
    cases = []
    for kind, count in (("docker", docker_rounds), ("process", process_rounds)):
        marks = [pytest.mark.docker] if kind == "docker" else []
        for number in range(10):
            soak = [pytest.mark.soak] if number >= count else []
            cases.append(pytest.param(kind, number, marks=[*marks, *soak]))
    return cases


@pytest.fixture(scope="module")
def kind(request: pytest.FixtureRequest) -> str:
    if request.param == "docker":
        require_docker()
    return str(request.param)


def require_docker() -> None:
    try:
        client = docker.from_env()
        client.images.get(os.environ.get("RUNNER_IMAGE", Settings().runner_image))
        client.close()
    except DockerException as error:
        skip_for_want_of("DOCKER", f"no Docker: {error}")


@pytest.fixture(scope="module")
def stack(stacks_dir: Path) -> Iterator[Cluster]:
    with run_stepping_cluster(stacks_dir / "killed", **SETTINGS) as stack:
        yield stack


@pytest.fixture(scope="module")
def temp(stacks_dir: Path) -> Path:
    """Where all workers here, as those of one machine, have their temporary directories."""
    path = stacks_dir / "killed-temp"
    path.mkdir(exist_ok=True)
    return path


@pytest.fixture(scope="module")
def rescuers(stack: Cluster, kind: str, temp: Path) -> Iterator[list[Process]]:
    """Two workers that nobody kills."""
    with stack.workers(2, SANDBOX=kind, TMPDIR=str(temp)) as workers:
        yield workers


def seconds_to_end(run: dict[str, Any], killed_at: float) -> float:
    return datetime.fromisoformat(run["finished_at"]).timestamp() - killed_at


def left_of(workers: list[Process]) -> list[str]:
    """The containers, volumes and processes that workers made, dead or alive."""
    client = docker.from_env()
    try:
        wanted = {"label": LABEL}
        containers = client.api.containers(all=True, filters=wanted)
        volumes = client.api.volumes(filters=wanted)["Volumes"] or []
    finally:
        client.close()
    pids = {str(worker.pid) for worker in workers}
    return [
        entry.get("Name") or entry["Names"][0]
        for entry in (*containers, *volumes)
        if entry["Labels"].get(OWNER_LABEL, "//").split("/")[-2] in pids
    ]


def processes_in(directory: Path) -> list[str]:
    """The processes of tools whose work directory is below one."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and os.fsencode(f"SKRIPTOTEKET_WORK={directory}") in (
                (entry / "environ").read_bytes()
            ):
                found.append(entry.name)
        except OSError:
            continue  # It ended meanwhile.
    return found


def directories_of(workers: list[Process], temp: Path) -> list[str]:
    """The temporary directories that workers made, dead or alive."""
    pids = {str(worker.pid) for worker in workers}
    return [path.name for path in temp.iterdir() if path.name.split("-")[-3] in pids]


def assert_nothing_left(kind: str, dead: list[Process], alive: list[Process], temp: Path) -> None:
    eventually(lambda: not directories_of(dead, temp), seconds=BOUND_SECONDS)
    if kind == "docker":
        eventually(lambda: not left_of(dead), seconds=BOUND_SECONDS)
        # Each in the pool is a container and its volume.
        eventually(lambda: len(left_of(alive)) <= 2 * POOL_SIZE * len(alive), seconds=10)
    else:
        eventually(lambda: not processes_in(temp), seconds=BOUND_SECONDS)


# --- SIGKILL ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "number"), make_cases(1, 0), indirect=["kind"], scope="module")
def test_runs_of_a_worker_killed_at_any_stage_end_once(
    stack: Cluster,
    client: Client,
    rescuers: list[Process],
    kind: str,
    number: int,
    temp: Path,
    tmp_path: Path,
) -> None:
    users = begin(client, [f"{stage}-{files}-{kind}-{number}" for stage, files, _ in STAGES])
    longest = kill_at_all_stages(stack, users, rescuers, kind, temp, HALT_DIRECTORY=str(tmp_path))
    print(f"{kind}: the last run ended {longest:.1f} s after the kill")


@pytest.mark.docker
@pytest.mark.soak
@pytest.mark.parametrize("kind", ["docker"], indirect=True, scope="module")
def test_runs_of_a_killed_worker_end_in_time_with_the_settings_of_a_service(
    stack: Cluster, client: Client, rescuers: list[Process], kind: str, temp: Path, tmp_path: Path
) -> None:
    users = begin(client, [f"{stage}-{files}-defaults" for stage, files, _ in STAGES])
    settings = DEFAULTS | {"TMPDIR": str(temp)}
    with paused(rescuers), stack.workers(2, SANDBOX=kind, **settings) as workers:
        settings |= {"HALT_DIRECTORY": str(tmp_path)}
        longest = kill_at_all_stages(stack, users, workers, kind, temp, **settings)
    print(f"defaults: the last run ended {longest:.1f} s after the kill")


def kill_at_all_stages(
    stack: Cluster,
    users: list[User],
    rescuers: list[Process],
    kind: str,
    temp: Path,
    **settings: str,
) -> float:
    """Kill a worker that holds a run at each stage: how long the last of them took to end."""
    settings = {
        "SANDBOX": kind,
        "WORKER_CONCURRENCY": str(len(STAGES)),
        "RUNNER_POOL_SIZE": "0",
        "TMPDIR": str(temp),
    } | settings
    halted = Path(settings["HALT_DIRECTORY"])
    with stack.workers(1, module="halting_worker", **settings) as dying:
        with paused(rescuers):
            with paused(dying):
                for user, (stage, artifacts, _) in zip(users, STAGES, strict=True):
                    seconds = 4 if stage == "executing" else 0
                    user.take_step(seconds=seconds, artifacts=artifacts)
                plan = {user.run_id: stage for user, (stage, *_) in zip(users, STAGES, strict=True)}
                (halted / "plan.json").write_text(json.dumps(plan))
            eventually(lambda: all((halted / user.run_id).exists() for user in users))
            assert directories_of(dying, temp)
            dying[0].kill()
            killed_at = time.time()
        runs = [user.wait_for_end() for user in users]
        assert_nothing_left(kind, dying, rescuers, temp)
        assert time.time() - killed_at < BOUND_SECONDS
    for user, run, (_, artifacts, history) in zip(users, runs, STAGES, strict=True):
        assert_ended_well(stack, user, run, history)
        uploads = partial(stack.keys, f"runs/{user.run_id}/")
        if run["status"] == "succeeded":
            assert len(uploads()) == len(run["artifacts"]) == artifacts
        else:
            assert run["artifacts"] == []
            # What was uploaded is no artifact of the run.
            eventually(lambda uploads=uploads: not uploads(), seconds=BOUND_SECONDS)
    assert_next_steps_work(users)
    # What the queue remembers of the dead worker's tries is nobody's business.
    assert not any(worker.has_logged("max retries 1 exceeded") for worker in rescuers)
    # Its jobs are not in the way of others either.
    with stack.redis() as redis:
        assert redis.zrange(Settings().queue_name, 0, -1) == []
    return max(seconds_to_end(run, killed_at) for run in runs)


@pytest.mark.parametrize(("kind", "number"), make_cases(0, 0), indirect=["kind"], scope="module")
def test_runs_of_workers_killed_at_any_moment_end_once(
    stack: Cluster,
    client: Client,
    rescuers: list[Process],
    kind: str,
    number: int,
    temp: Path,
) -> None:
    dice = random.Random(f"{kind}-{number}")
    users = begin(client, [f"any-{kind}-{number}-{who}" for who in range(5)])
    settings = {
        "SANDBOX": kind,
        "WORKER_CONCURRENCY": "1",
        "RUNNER_POOL_SIZE": "0",
        "TMPDIR": str(temp),
    }
    with stack.workers(len(users), **settings) as dying:
        with paused(rescuers):
            for user in users:
                user.take_step(seconds=1, artifacts=2)
            moments = sorted(dice.uniform(0, 1.8) for _ in users)
            started = time.monotonic()
            for victim, moment in zip(dying, moments, strict=True):
                time.sleep(max(0, started + moment - time.monotonic()))
                victim.kill()
            killed_at = time.time()
        for user in users:
            run = user.wait_for_end()
            history = stack.history(user.run_id)
            assert history in (EXECUTED_AGAIN, EXECUTED_ONCE, NEVER_AGAIN)
            assert_ended_well(stack, user, run, history)
            if run["status"] == "succeeded":
                assert len(stack.keys(f"runs/{user.run_id}/")) == len(run["artifacts"]) == 2
            print(f"{kind}: {' → '.join(history)} {seconds_to_end(run, killed_at):.1f} s")
        assert_nothing_left(kind, dying, rescuers, temp)
        assert time.time() - killed_at < BOUND_SECONDS
    assert_next_steps_work(users)


# --- SIGTERM ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param("docker", marks=pytest.mark.docker),
        pytest.param("process", marks=pytest.mark.soak),
    ],
    indirect=True,
    scope="module",
)
def test_stopped_worker_ends_what_it_can_and_hands_back_the_rest(
    stack: Cluster, client: Client, rescuers: list[Process], kind: str, tmp_path: Path
) -> None:
    short, long, late = begin(client, [f"{name}-{kind}" for name in ("short", "long", "late")])
    settings = {"SANDBOX": kind, "WORKER_GRACE_SECONDS": "3", "TMPDIR": str(tmp_path)}
    # Being handed back is no attempt: a run that has one only is still done.
    with stack.worker(RUN_MAX_ATTEMPTS="1", **settings) as stopped, paused(rescuers):
        short.take_step(seconds=1, artifacts=1)
        long.take_step(seconds=8)
        for user in (short, long):
            ready = partial(stopped.has_logged, "snapshot.ready", run_id=user.run_id)
            eventually(ready)
        stopped.popen.terminate()
        time.sleep(0.3)
        late.take_step()
        assert stopped.popen.wait(20) == 0, stopped.log_path.read_text("utf-8")[-3000:]
        assert stack.history(short.run_id) == EXECUTED_ONCE
        assert stack.history(long.run_id) == ["running", "queued"]
        assert stack.history(late.run_id) == []
        assert not (left_of([stopped]) if kind == "docker" else processes_in(tmp_path))
        assert not list(tmp_path.iterdir())
    assert_ended_well(stack, short, short.wait_for_end(), EXECUTED_ONCE)
    assert_ended_well(stack, late, late.wait_for_end(), EXECUTED_ONCE)
    assert_ended_well(stack, long, long.wait_for_end(), EXECUTED_AGAIN, attempts=1)
    assert_next_steps_work([short, long, late])
