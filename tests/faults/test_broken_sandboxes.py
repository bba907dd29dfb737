"""A worker whose sandbox cannot start runs: others do them, or they fail after a known time."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, Process, eventually, paused
from fault_tools import TELL, TELL_SCHEMA
from service import Client

SLUG = "tell_broken"
ATTEMPT = "SELECT status, attempt FROM tool_runs WHERE id = $1"


@pytest.fixture(scope="module")
def client(cluster: Cluster, nodes: list[Process]) -> Iterator[Client]:
    cluster.publish(nodes[0], SLUG, TELL, TELL_SCHEMA)
    with cluster.client(nodes[0]) as client:
        yield client


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """What of the broken worker's sandbox fails."""
    path = tmp_path / "broken"
    path.write_text("run check")
    return path


@dataclass(frozen=True)
class Workers:
    """Starts workers whose sandbox is broken, while all others do nothing."""

    cluster: Cluster
    others: list[Process]
    broken: Path

    @contextmanager
    def only(self, **settings: str) -> Iterator[Process]:
        environment = {"BROKEN_FILE": str(self.broken)} | settings
        with (
            self.cluster.workers(1, module="broken_worker", **environment) as (worker,),
            paused(self.others),
        ):
            yield worker


@pytest.fixture
def breakable(cluster: Cluster, workers: list[Process], broken: Path) -> Workers:
    return Workers(cluster, workers, broken)


def start(client: Client, context: str) -> str:
    answer = client.run_tool(SLUG, wait=None, session_context=context)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["run_id"])


def wait_for_end(client: Client, run_id: str) -> dict[str, Any]:
    answer = client.get(f"/runs/{run_id}", headers={"Prefer": "wait=20"})
    run: dict[str, Any] = answer.raise_for_status().json()
    return run


def times_claimed(worker: Process, run_id: str) -> int:
    lines = worker.log_path.read_text("utf-8").splitlines()
    return sum("run.claimed" in line and run_id in line for line in lines)


def test_run_that_cannot_be_started_is_handed_back_once_and_taken_when_it_can(
    cluster: Cluster, client: Client, broken: Path, breakable: Workers
) -> None:
    with breakable.only() as worker:
        run_id = start(client, "handed-back")
        eventually(lambda: worker.has_logged("run.handed_back", run_id=run_id))
        (row,) = cluster.query(ATTEMPT, run_id)
        assert row == {"status": "queued", "attempt": 0}
        # What is queued meanwhile is left to others, also what is sent again.
        later_id = start(client, "left-to-others")
        eventually(lambda: worker.has_logged("worker.trial_failed"))
        assert (times_claimed(worker, run_id), times_claimed(worker, later_id)) == (1, 0)
        broken.write_text("")
        for each in (run_id, later_id):
            run = wait_for_end(client, each)
            assert run["status"] == "succeeded"
            assert cluster.query(ATTEMPT, each)[0]["attempt"] == 1
        assert (times_claimed(worker, run_id), times_claimed(worker, later_id)) == (2, 1)


def test_run_that_no_worker_can_start_waits_no_longer_than_any(
    client: Client, breakable: Workers
) -> None:
    settings = {"RUN_QUEUE_TIMEOUT_SECONDS": "2", "RUN_TIMEOUT_SECONDS": "1"}
    with breakable.only(SANDBOX_RUN_TIMEOUT_SECONDS="1", **settings) as worker:
        run_id = start(client, "never-started")
        run = wait_for_end(client, run_id)
        assert (run["status"], run["error_code"]) == ("failed", "queue_timeout")
        assert times_claimed(worker, run_id) == 1


def test_run_that_fails_to_start_although_trials_succeed_ends_too(
    client: Client, broken: Path, breakable: Workers
) -> None:
    broken.write_text("run")
    # Each try takes between half a second and 1.3, by chance.
    with breakable.only(RUN_QUEUE_TIMEOUT_SECONDS="2") as worker:
        run_id = start(client, "to-and-fro")
        run = wait_for_end(client, run_id)
        assert (run["status"], run["error_code"]) == ("failed", "sandbox_unavailable")
        assert 2 <= times_claimed(worker, run_id) <= 5
