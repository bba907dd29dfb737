"""Whatever dies under a run, the run ends once, with the truth, and its session is free."""

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any

import pytest
from cluster import SETTINGS, Cluster, Process, eventually, paused
from fault_tools import TELL, TELL_SCHEMA, seen_by
from service import Client

from app.jobs import open_queue
from app.settings import load_settings
from app.store import run_recovery
from app.store.postgres import open_database

SLUG = "tell_workers"


@pytest.fixture(scope="module")
def tool_id(cluster: Cluster, nodes: list[Process]) -> str:
    return str(cluster.publish(nodes[0], SLUG, TELL, TELL_SCHEMA)["tool_id"])


@pytest.fixture
def client(cluster: Cluster, nodes: list[Process], tool_id: str) -> Iterator[Client]:
    with cluster.client(nodes[0]) as client:
        yield client


@pytest.fixture
def other(cluster: Cluster, nodes: list[Process], tool_id: str) -> Iterator[Client]:
    """The same user at the other node."""
    with cluster.client(nodes[1]) as client:
        yield client


@pytest.fixture
def context(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)[:64]


def start(client: Client, context: str, seconds: float = 0, **form: Any) -> str:
    answer = client.run_tool(
        SLUG, wait=None, session_context=context, inputs=f'{{"seconds": {seconds}}}', **form
    )
    assert answer.status_code == 202, answer.text
    return str(answer.json()["run_id"])


def show(client: Client, run_id: str, wait: int = 0) -> dict[str, Any]:
    answer = client.get(f"/runs/{run_id}", headers={"Prefer": f"wait={wait}"} if wait else {})
    run: dict[str, Any] = answer.raise_for_status().json()
    return run


def start_running(client: Client, context: str, seconds: float) -> str:
    run_id = start(client, context, seconds)
    eventually(lambda: show(client, run_id)["status"] == "running")
    return run_id


def assert_free(client: Client, context: str, run_id: str) -> None:
    session = client.get(f"/tools/{SLUG}/session", params={"context": context}).json()
    assert (session["active_run_id"], session["latest_run_id"]) == (None, run_id)


def attempts_of(cluster: Cluster, run_id: str) -> int:
    return int(cluster.query("SELECT attempt FROM tool_runs WHERE id = $1", run_id)[0]["attempt"])


# --- workers ----------------------------------------------------------------------------------


def test_run_of_a_killed_worker_is_done_by_another_and_ends_once(
    cluster: Cluster, workers: list[Process], client: Client, context: str
) -> None:
    with cluster.worker() as victim:
        with paused(workers):
            run_id = start_running(client, context, seconds=1)
            victim.kill()
        run = show(client, run_id, wait=30)
    assert run["status"] == "succeeded"
    assert attempts_of(cluster, run_id) == 2
    assert_free(client, context, run_id)
    finishes = [worker.has_logged("run.finished", run_id=run_id) for worker in workers]
    assert sorted(finishes) == [False, True]


def test_run_whose_workers_keep_dying_fails_and_frees_its_session(
    cluster: Cluster, workers: list[Process], client: Client, context: str
) -> None:
    with cluster.workers(2) as victims:
        with paused(workers):
            run_id = start_running(client, context, seconds=20)
            for attempt in (1, 2):
                eventually(lambda attempt=attempt: attempts_of(cluster, run_id) == attempt)
                victim = eventually(lambda: holder(cluster, run_id, victims))
                victim.kill()
        run = show(client, run_id, wait=30)
    assert (run["status"], run["error_code"]) == ("failed", "worker_lost")
    assert "Försök igen" in run["error_summary"]
    assert attempts_of(cluster, run_id) == 2
    assert_free(client, context, run_id)


def holder(cluster: Cluster, run_id: str, workers: list[Process]) -> Process | None:
    """The worker that holds a run's lease."""
    owner = cluster.query("SELECT lease_owner FROM tool_runs WHERE id = $1", run_id)[0]
    pid = int((owner["lease_owner"] or "::0:").split(":")[-2] or 0)
    return next((worker for worker in workers if worker.pid == pid), None)


def test_worker_that_stood_still_past_its_lease_changes_nothing(
    cluster: Cluster, workers: list[Process], client: Client, context: str
) -> None:
    with cluster.worker() as sleeper:
        with paused(workers):
            run_id = start_running(client, context, seconds=1)
            os.kill(sleeper.pid, signal.SIGSTOP)
        run = show(client, run_id, wait=30)
        assert (run["status"], attempts_of(cluster, run_id)) == ("succeeded", 2)
        os.kill(sleeper.pid, signal.SIGCONT)
        eventually(lambda: sleeper.has_logged("run.lease_lost", run_id=run_id))
    assert show(client, run_id) == run
    assert_free(client, context, run_id)


def test_worker_that_gets_its_run_again_after_a_pause_has_lost_its_first_attempt(
    cluster: Cluster, workers: list[Process], client: Client, context: str
) -> None:
    # Its heartbeat comes too late to tell it: what it writes is checked against the lease.
    settings = {"RUN_LEASE_SECONDS": "60", "RUN_HEARTBEAT_SECONDS": "30"}
    with cluster.worker(**settings) as sleeper, paused(workers):
        run_id = start_running(client, context, seconds=3)
        time.sleep(0.5)
        with paused([sleeper]):
            sql = "UPDATE tool_runs SET lease_expires_at = now() - interval '1 s' WHERE id = $1"
            cluster.query(sql, run_id)
            asyncio.run(recover_and_send(cluster))
        eventually(lambda: attempts_of(cluster, run_id) == 2)
        eventually(lambda: sleeper.has_logged("run.lease_lost", run_id=run_id))
        assert show(client, run_id)["status"] == "running"
        assert show(client, run_id, wait=30)["status"] == "succeeded"
    assert attempts_of(cluster, run_id) == 2
    assert_free(client, context, run_id)


async def recover_and_send(cluster: Cluster) -> None:
    """Do what the sweep of another worker does for runs whose lease ran out."""
    settings = load_settings(cluster.service.environment)
    async with open_database(settings.database_url, size=1) as db, open_queue(settings) as queue:
        for run in await run_recovery.recover_lost_runs(db, 2, 0, datetime.now(UTC)):
            await queue.enqueue_run(run.id, run.attempt)


def test_cancelled_run_of_a_killed_worker_is_not_executed_again(
    cluster: Cluster, workers: list[Process], client: Client, context: str
) -> None:
    with cluster.worker(RUN_LEASE_SECONDS="2") as victim:
        with paused(workers):
            run_id = start_running(client, context, seconds=1)
            os.kill(victim.pid, signal.SIGSTOP)  # It does not hear of it.
            assert client.post(f"/runs/{run_id}/cancel").status_code == 202
            victim.kill()
        run = show(client, run_id, wait=30)
    assert (run["status"], run["error_code"]) == ("cancelled", "cancelled")
    assert attempts_of(cluster, run_id) == 1
    assert_free(client, context, run_id)


def test_cancelled_run_ends_at_once_and_frees_its_session(
    workers: list[Process], client: Client, other: Client, context: str
) -> None:
    run_id = start_running(client, context, seconds=60)
    asked = time.monotonic()
    assert other.post(f"/runs/{run_id}/cancel").status_code == 202
    run = show(client, run_id, wait=30)
    assert run["status"] == "cancelled"
    assert time.monotonic() - asked < 5
    assert_free(client, context, run_id)


# --- the queue --------------------------------------------------------------------------------


def test_queued_run_survives_the_loss_of_all_that_redis_held(
    cluster: Cluster, workers: list[Process], client: Client, context: str
) -> None:
    with paused(workers):
        run_id = start(client, context)
        with cluster.redis() as redis:
            redis.flushall()
    run = show(client, run_id, wait=30)
    assert (run["status"], attempts_of(cluster, run_id)) == ("succeeded", 1)
    assert_free(client, context, run_id)


def test_run_that_nobody_took_in_time_fails_and_frees_its_session(
    cluster: Cluster, workers: list[Process], client: Client, context: str
) -> None:
    with cluster.worker(RUN_QUEUE_TIMEOUT_SECONDS="1") as impatient:
        with paused([*workers, impatient]):
            run_id = start(client, context)
            with cluster.redis() as redis:
                redis.flushall()  # Or it would be taken as soon as they look.

        def has_ended() -> bool:
            # Too old for one of them, and not so old that the others send it again.
            age = "UPDATE tool_runs SET created_at = now() - interval '2 s' WHERE id = $1"
            cluster.query(age, run_id)
            return show(client, run_id)["finished_at"] is not None

        eventually(has_ended)
    run = show(client, run_id)
    assert (run["status"], run["error_code"]) == ("failed", "queue_timeout")
    assert run["error_summary"]
    assert run["started_at"] is None
    assert_free(client, context, run_id)


def test_busy_workers_still_recover_runs(
    cluster: Cluster, workers: list[Process], client: Client, context: str
) -> None:
    settings = {"WORKER_CONCURRENCY": "1", "RUN_QUEUE_TIMEOUT_SECONDS": "2"}
    with cluster.worker(**settings), paused(workers):
        busy_with = start_running(client, f"{context[:60]}-1", seconds=60)
        waiting = start(client, context)
        run = show(client, waiting, wait=20)
        assert (run["status"], run["error_code"]) == ("failed", "queue_timeout")
        assert client.post(f"/runs/{busy_with}/cancel").status_code == 202
        assert show(client, busy_with, wait=10)["status"] == "cancelled"


def test_waiting_on_the_other_node_ends_with_the_run(
    cluster: Cluster, workers: list[Process], client: Client, other: Client, context: str
) -> None:
    answered_after, picked_up_after = [], []
    for _ in range(7):
        run_id = start(client, context, seconds=0.2)
        run = show(other, run_id, wait=30)
        answered = datetime.now(UTC)
        assert run["status"] == "succeeded"
        answered_after.append((answered - time_of(run, "finished_at")).total_seconds())
        picked_up_after.append(
            (time_of(run, "started_at") - time_of(run, "created_at")).total_seconds()
        )
    print(f"answered {statistics.median(answered_after) * 1000:.0f} ms after the end,")
    print(f"picked up after {statistics.median(picked_up_after) * 1000:.0f} ms (medians)")
    # Polling would take half a second; the machine may be busy.
    assert statistics.median(answered_after) < 0.25
    assert statistics.median(picked_up_after) < 0.25


def time_of(run: dict[str, Any], name: str) -> datetime:
    return datetime.fromisoformat(run[name])


def test_silence_does_not_cost_a_node_its_subscription(
    cluster: Cluster, nodes: list[Process], workers: list[Process]
) -> None:
    # Whoever subscribes anew misses what is said meanwhile.
    def subscribers() -> set[str]:
        with cluster.redis() as redis:
            return {client["id"] for client in redis.client_list(_type="pubsub")}

    before = subscribers()
    assert len(before) >= len(nodes) + 2 * len(workers)
    time.sleep(7)
    assert subscribers() == before


def test_run_whose_taker_died_before_it_could_claim_does_not_wait_for_long(
    cluster: Cluster, workers: list[Process], client: Client, context: str
) -> None:
    with paused(workers):
        run_id = start(client, context)
        with cluster.redis() as redis:
            # What arq leaves behind of a worker that was killed with a job just in its hands.
            redis.psetex(f"arq:in-progress:run:{run_id}:0", 250_000, b"1")
    run = show(client, run_id, wait=30)
    assert (run["status"], attempts_of(cluster, run_id)) == ("succeeded", 1)


# --- Redis ------------------------------------------------------------------------------------


def test_wait_without_redis_tells_the_truth_in_time(
    cluster: Cluster, workers: list[Process], client: Client, context: str
) -> None:
    done = start(client, context)
    assert show(client, done, wait=30)["status"] == "succeeded"
    with cluster.down("redis"):
        asked = time.monotonic()
        assert show(client, done, wait=20)["status"] == "succeeded"
        assert time.monotonic() - asked < 5
        run_id = start(client, context)
        asked = time.monotonic()
        assert show(client, run_id, wait=2)["status"] == "queued"
        assert 2 <= time.monotonic() - asked < 8
    run = show(client, run_id, wait=30)
    assert (run["status"], attempts_of(cluster, run_id)) == ("succeeded", 1)
    assert_free(client, context, run_id)


def test_run_that_ends_while_redis_is_down_is_told_when_it_is_back(
    cluster: Cluster, workers: list[Process], client: Client, other: Client, context: str
) -> None:
    run_id = start_running(client, context, seconds=1)
    waiting = other.build_request("GET", f"/runs/{run_id}", headers={"Prefer": "wait=30"})
    started = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(other.send, waiting)
        time.sleep(0.3)
        with cluster.down("redis"):
            eventually(lambda: show(client, run_id)["status"] == "succeeded")
            assert not answer.done()
        assert answer.result().json()["status"] == "succeeded"
    assert time.monotonic() - started < 15
    assert attempts_of(cluster, run_id) == 1


def test_workers_and_nodes_outlive_a_restart_of_redis(
    cluster: Cluster, workers: list[Process], client: Client, other: Client, context: str
) -> None:
    run_id = start_running(client, context, seconds=2)
    with cluster.down("redis"):
        time.sleep(0.5)
    run = show(other, run_id, wait=30)
    assert (run["status"], attempts_of(cluster, run_id)) == ("succeeded", 1)
    again = eventually(lambda: soon(client, context))
    assert again["status"] == "succeeded"
    assert all(worker.popen.poll() is None for worker in workers)


def soon(client: Client, context: str) -> dict[str, Any] | None:
    """Run the tool; the run if it ended within seconds."""
    run = show(client, start(client, context), wait=3)
    return run if run["finished_at"] else None


def test_redis_that_hangs_keeps_nobody_from_queueing(
    cluster: Cluster, workers: list[Process], client: Client, context: str
) -> None:
    with cluster.stalled("redis"):
        asked = time.monotonic()
        run_id = start(client, context)
        assert time.monotonic() - asked < 8
    run = show(client, run_id, wait=30)
    assert (run["status"], attempts_of(cluster, run_id)) == ("succeeded", 1)


def test_run_goes_on_while_redis_hangs(
    cluster: Cluster, workers: list[Process], client: Client, context: str
) -> None:
    run_id = start_running(client, context, seconds=1)
    with cluster.stalled("redis"):
        eventually(lambda: show(client, run_id)["status"] == "succeeded", seconds=10)
    assert attempts_of(cluster, run_id) == 1


# --- PostgreSQL and S3 ------------------------------------------------------------------------


def test_run_outlives_a_restart_of_postgresql(
    cluster: Cluster, workers: list[Process], client: Client, other: Client, context: str
) -> None:
    run_id = start_running(client, context, seconds=1)
    with cluster.down("postgres"):
        # Over in the sandbox, but there is nobody to tell, and the lease runs out.
        time.sleep(int(SETTINGS["RUN_LEASE_SECONDS"]) + 1)
        refused = client.get(f"/runs/{run_id}")
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")
        assert int(refused.headers["retry-after"]) > 0
    run = eventually(lambda: ended(other, run_id))
    assert (run["status"], attempts_of(cluster, run_id)) == ("succeeded", 1)
    assert_free(client, context, run_id)
    assert eventually(lambda: soon(client, context))["status"] == "succeeded"
    assert all(worker.popen.poll() is None for worker in workers)


def ended(client: Client, run_id: str) -> dict[str, Any] | None:
    answer = client.get(f"/runs/{run_id}")
    if answer.status_code == 503:
        return None
    run: dict[str, Any] = answer.json()
    return run if run["finished_at"] else None


def test_run_whose_file_is_gone_fails_with_words_that_say_so(
    cluster: Cluster, workers: list[Process], client: Client, tool_id: str, context: str
) -> None:
    before = set(cluster.blobs(tool_id))
    with paused(workers):
        files = [("a.txt", b"a"), ("b.txt", b"b")]
        run_id = start(client, context, files=files)
        blobs = sorted(set(cluster.blobs(tool_id)) - before)
        assert len(blobs) == 2
        cluster.delete_objects(blobs[:1])
    run = show(client, run_id, wait=30)
    assert (run["status"], run["error_code"]) == ("failed", "session_files_expired")
    assert "Ladda upp" in run["error_summary"]
    assert_free(client, context, run_id)
    # And the way out that the words name is open.
    answer = client.run_tool(SLUG, session_context=context, files=files)
    assert seen_by(answer.json()) == {name: sha256(text).hexdigest() for name, text in files}


def test_run_whose_file_is_damaged_fails_with_words_that_say_so(
    cluster: Cluster, workers: list[Process], client: Client, tool_id: str, context: str
) -> None:
    before = set(cluster.blobs(tool_id))
    with paused(workers):
        run_id = start(client, context, files=[("a.txt", b"true")])
        (blob,) = set(cluster.blobs(tool_id)) - before
        cluster.put_object(blob, b"fals")
    run = show(client, run_id, wait=30)
    assert (run["status"], run["error_code"]) == ("failed", "file_damaged")
    assert "skadad" in run["error_summary"]
    assert_free(client, context, run_id)


def test_run_waits_out_a_moment_without_s3(
    cluster: Cluster, workers: list[Process], client: Client, context: str
) -> None:
    with paused(workers):
        run_id = start(client, context, files=[("a.txt", b"a")])
        with cluster.stalled("s3"):
            for worker in workers:
                os.kill(worker.pid, signal.SIGCONT)
            eventually(lambda: show(client, run_id)["status"] == "running")
            time.sleep(1)
    run = show(client, run_id, wait=30)
    assert (run["status"], attempts_of(cluster, run_id)) == ("succeeded", 1)
