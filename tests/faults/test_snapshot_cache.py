"""The cache of blobs in a running service: it saves downloads and never knows better than the user.

Two workers of one machine share a directory; the objects are taken away past the service, so that
what a run still sees can only have come from there.
"""

import json
import os
import signal
import time
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, Process, eventually, paused, run_cluster
from fault_tools import TELL, TELL_SCHEMA, seen_by
from service import Client

SLUG = "tell_cached"
FILES = [("a.txt", b"first"), ("b.bin", bytes(range(256)) * 1000)]
OTHER = [("c.txt", b"later")]
AWAY_SECONDS = 20


@pytest.fixture(scope="module")
def cluster(stacks_dir: Path) -> Iterator[Cluster]:
    with run_cluster(stacks_dir / "snapshot-cache") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def node(cluster: Cluster) -> Iterator[Process]:
    with cluster.node() as node:
        yield node


@pytest.fixture(scope="module")
def workers(
    cluster: Cluster, node: Process, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Process]]:
    directory = tmp_path_factory.mktemp("worker-cache")
    # One place each, so that two runs at once are in the hands of both.
    settings = {"WORKER_CACHE_DIR": str(directory), "WORKER_CONCURRENCY": "1"}
    with cluster.workers(2, **settings) as processes:
        yield processes


@pytest.fixture(scope="module")
def tool_id(cluster: Cluster, node: Process) -> str:
    return str(cluster.publish(node, SLUG, TELL, TELL_SCHEMA)["tool_id"])


@pytest.fixture
def client(
    cluster: Cluster, node: Process, workers: list[Process], tool_id: str
) -> Iterator[Client]:
    with cluster.client(node) as client:
        yield client


@pytest.fixture
def context(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)[:64]


def start(client: Client, context: str, **form: Any) -> str:
    answer = client.run_tool(SLUG, wait=None, session_context=context, **form)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["run_id"])


def end(client: Client, run_id: str) -> dict[str, Any]:
    run: dict[str, Any] = client.get(f"/runs/{run_id}", headers={"Prefer": "wait=30"}).json()
    assert run["finished_at"] is not None, run
    return run


def hashes(files: list[tuple[str, bytes]]) -> dict[str, str]:
    return {name: sha256(data).hexdigest() for name, data in files}


def fill(cluster: Cluster, client: Client, tool_id: str, context: str) -> list[str]:
    """Run the tool with files, so that they are cached; return their objects."""
    before = set(cluster.blobs(tool_id))
    assert seen_by(end(client, start(client, context, files=FILES))) == hashes(FILES)
    return sorted(set(cluster.blobs(tool_id)) - before)


def clear(client: Client, context: str) -> None:
    answer = client.delete(f"/tools/{SLUG}/session-files", params={"context": context})
    assert answer.status_code == 204


def staged(workers: list[Process], run_id: str) -> dict[str, Any]:
    """What the worker that had a run said of its files."""
    for worker in workers:
        for line in worker.log_path.read_text("utf-8").splitlines():
            if "snapshot.ready" in line and run_id in line:
                entry: dict[str, Any] = json.loads(line)
                return entry
    raise AssertionError(f"no worker staged {run_id}")


def assert_expired(run: dict[str, Any]) -> None:
    assert (run["status"], run["error_code"]) == ("failed", "session_files_expired")
    assert run["error_summary"] == (
        "Filerna som körningen behövde har tagits bort. Ladda upp dem igen."
    )


def test_second_step_downloads_nothing_on_any_worker(
    cluster: Cluster, workers: list[Process], client: Client, tool_id: str, context: str
) -> None:
    cluster.delete_objects(fill(cluster, client, tool_id, context))
    for worker in workers:
        with paused([worker]):
            step = start(client, context, session_files_mode="reuse")
            assert seen_by(end(client, step)) == hashes(FILES)
            told = staged(workers, step)
            total = sum(len(data) for _, data in FILES)
            assert (told["files"], told["bytes"]) == (2, total)
            assert (told["hits"], told["hit_bytes"]) == (2, total)


def test_run_queued_before_a_clear_fails_although_its_files_are_cached(
    cluster: Cluster, workers: list[Process], client: Client, tool_id: str, context: str
) -> None:
    fill(cluster, client, tool_id, context)
    with paused(workers):
        queued = start(client, context, session_files_mode="reuse")
        clear(client, context)
    assert_expired(end(client, queued))
    without = start(client, context, session_files_mode="reuse")
    assert seen_by(end(client, without)) == {}


def test_upload_after_the_clear_does_not_bring_the_cleared_files_back(
    cluster: Cluster, workers: list[Process], client: Client, tool_id: str, context: str
) -> None:
    fill(cluster, client, tool_id, context)
    with paused(workers):
        queued = start(client, context, session_files_mode="reuse")
        clear(client, context)
        later = start(client, context, files=OTHER)
    assert_expired(end(client, queued))
    assert seen_by(end(client, later)) == hashes(OTHER)


def test_run_whose_session_got_other_files_still_sees_its_own(
    cluster: Cluster, workers: list[Process], client: Client, tool_id: str, context: str
) -> None:
    fill(cluster, client, tool_id, context)
    with paused(workers):
        queued = start(client, context, session_files_mode="reuse")
        later = start(client, context, files=OTHER)
    assert seen_by(end(client, queued)) == hashes(FILES)
    assert seen_by(end(client, later)) == hashes(OTHER)


@pytest.mark.soak
def test_run_waits_while_s3_is_down_for_a_good_while(
    cluster: Cluster, workers: list[Process], client: Client, context: str
) -> None:
    with paused(workers):
        run_id = start(client, context, files=FILES)
        with cluster.down("s3"):
            went = time.monotonic()
            for worker in workers:
                os.kill(worker.pid, signal.SIGCONT)
            # The store gives up a call after seconds: from then on it is the run that waits.
            eventually(lambda: retries(workers) >= 2 * len(FILES))
            time.sleep(max(0, AWAY_SECONDS - (time.monotonic() - went)))
            assert client.get(f"/runs/{run_id}").json()["status"] == "running"
    run = end(client, run_id)
    assert seen_by(run) == hashes(FILES)
    assert run_attempt(cluster, run_id) == 1, "the lease was held all the time"


def test_cached_run_needs_no_s3_at_all(
    cluster: Cluster, workers: list[Process], client: Client, tool_id: str, context: str
) -> None:
    fill(cluster, client, tool_id, context)
    with paused(workers):
        run_id = start(client, context, session_files_mode="reuse")
        with cluster.down("s3"):
            for worker in workers:
                os.kill(worker.pid, signal.SIGCONT)
            assert seen_by(end(client, run_id)) == hashes(FILES)


def test_worker_whose_cache_cannot_be_used_works_without_it(
    cluster: Cluster, workers: list[Process], client: Client, context: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    with (
        paused(workers),
        cluster.worker(WORKER_CACHE_DIR=str(tmp_path / "file")) as worker,
    ):
        run_id = start(client, context, files=FILES)
        assert seen_by(end(client, run_id)) == hashes(FILES)
        again = start(client, context, session_files_mode="reuse")
        assert seen_by(end(client, again)) == hashes(FILES)
        assert staged([worker], again)["hits"] == 0
        assert worker.has_logged("blob_cache.failed")


def retries(workers: list[Process]) -> int:
    return sum(worker.log_path.read_text("utf-8").count("snapshot.retried") for worker in workers)


def run_attempt(cluster: Cluster, run_id: str) -> int:
    return int(cluster.query("SELECT attempt FROM tool_runs WHERE id = $1", run_id)[0]["attempt"])
