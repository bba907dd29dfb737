"""Deletions that meet what is under way, outages, and their own sudden end."""

import json
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
from cluster import Cluster, Process, eventually, paused
from fault_tools import IDLE, STEP, STEP_SCHEMA
from racing import at_once
from service import Client
from traces import add_program, find_strays, find_traces

ROUNDS = 50
FILES = [("a.txt", b"a" * 1000), ("b.txt", b"b")]


START_OVER: dict[str, Any] = {
    "action_id": "skriptoteket:start_over",
    "input": {"clear_files": True},
}


@pytest.fixture(scope="module")
def admin(cluster: Cluster, nodes: list[Process]) -> Iterator[Client]:
    with cluster.client(nodes[0], "admin") as client:
        yield client


def make_tool(admin: Client, source: str = IDLE) -> dict[str, str]:
    """Publish a tool that nobody else uses: its `id` and `slug`."""
    slug = f"bort-{uuid.uuid4().hex[:12]}"
    tool = admin.post("/editor/tools", json={"slug": slug, "title": slug}).json()
    code = {"source": source, "input_schema": STEP_SCHEMA}
    version = admin.post(f"/editor/tools/{tool['id']}/versions", json=code).json()
    admin.post(f"/editor/tool-versions/{version['id']}/publish").raise_for_status()
    return {"id": tool["id"], "slug": slug}


@contextmanager
def somebody(cluster: Cluster, nodes: list[Process]) -> Iterator[tuple[str, list[Client]]]:
    """Add a user who lives for a test: their id, and a client of theirs at each node."""
    name = f"kort-{uuid.uuid4().hex[:12]}"
    user_id, token = add_program(cluster.service.environment, name)
    with ExitStack() as stack:
        clients = [
            stack.enter_context(Client(base_url=f"{node.url}/api/v1", timeout=60)) for node in nodes
        ]
        for client in clients:
            client.headers["authorization"] = f"Bearer {token}"
        yield user_id, clients


def is_gone(cluster: Cluster, *ids: str, runs: Iterable[str] = ()) -> bool:
    return not find_traces(cluster.service.environment, *ids, runs=runs)


def run_id_of(answer: httpx.Response) -> set[str]:
    """The run that a request has started; one that came too late was told so."""
    if answer.status_code in {200, 202}:
        return {answer.json()["run_id"]}
    # Of a user's steps one may also be too late for the other, or for their files.
    assert answer.status_code in {401, 404, 409, 410}, answer.text
    return set()


@pytest.mark.soak
def test_a_tool_that_goes_while_runs_of_it_start_leaves_nothing(
    cluster: Cluster, nodes: list[Process], workers: list[Process], admin: Client
) -> None:
    environment = cluster.service.environment
    with cluster.client(nodes[0]) as anna, cluster.client(nodes[1], "bo") as bo:
        late = 0
        doomed: list[str] = []
        runs: set[str] = set()
        for number in range(ROUNDS):
            tool = make_tool(admin)
            slug, path = tool["slug"], f"/editor/tools/{tool['id']}"
            calls = [
                partial(anna.run_tool, slug, wait=None, files=FILES),
                partial(bo.run_tool, slug, wait=None, files=FILES),
                partial(anna.run_tool, slug, wait=None, session_context="x"),
                lambda path=path, number=number: (
                    time.sleep(number % 10 / 250),
                    admin.delete(path),
                )[1],
            ]
            *started, deleted = at_once(calls)
            assert deleted.status_code == 204
            doomed.append(tool["id"])
            runs |= {run for answer in started for run in run_id_of(answer)}
            late += sum(answer.status_code == 404 for answer in started)
    assert 0 < late < 3 * ROUNDS, "some came before the deletion, and some after it"
    eventually(partial(is_gone, cluster, *doomed, runs=runs))
    assert find_strays(environment) == []


@pytest.mark.soak
def test_a_user_who_goes_while_their_runs_start_leaves_nothing(
    cluster: Cluster, nodes: list[Process], workers: list[Process], admin: Client
) -> None:
    tool = make_tool(admin, STEP)
    slug = tool["slug"]
    late = 0
    doomed: list[str] = []
    runs: set[str] = set()
    for number in range(ROUNDS):
        with somebody(cluster, nodes) as (user_id, (one, other)):
            first = one.run_tool(slug, wait=30, files=FILES).json()
            step = {
                "tool_id": tool["id"],
                "action_id": "step",
                "input": {"artifacts": 2},
                "expected_state_rev": first["state_rev"],
            }
            calls = [
                partial(one.run_tool, slug, wait=None, session_context="x", files=FILES),
                partial(other.start_action, "/start_action", step, wait=None),
                partial(other.start_action, "/start_action", step | START_OVER, wait=None),
                lambda user_id=user_id, number=number: (
                    time.sleep(number % 10 / 250),
                    admin.delete(f"/admin/users/{user_id}"),
                )[1],
            ]
            *started, deleted = at_once(calls)
            assert deleted.status_code == 204
            runs.add(first["run_id"])
            for answer in started:
                runs |= run_id_of(answer)
            late += sum(answer.status_code == 401 for answer in started)
            doomed.append(user_id)
    assert 0 < late < 3 * ROUNDS, "some came before the deletion, and some after it"
    eventually(partial(is_gone, cluster, *doomed, runs=runs))
    assert find_strays(cluster.service.environment) == []


@pytest.mark.parametrize("kind", ["user", "tool"])
def test_an_upload_that_outlasts_a_deletion_is_refused_and_leaves_nothing(
    kind: str, cluster: Cluster, nodes: list[Process], workers: list[Process], admin: Client
) -> None:
    tool = make_tool(admin)
    with somebody(cluster, nodes) as (user_id, (one, _)), paused(workers):
        doomed = user_id if kind == "user" else tool["id"]
        path = f"/admin/users/{user_id}" if kind == "user" else f"/editor/tools/{tool['id']}"

        def body() -> Iterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.txt"\r\n\r\n'
            yield b"a" * 300_000
            # By now the request is at work: it was let in before.
            eventually(lambda: one.get("/auth/me").is_success)
            admin.delete(path).raise_for_status()
            yield b"a\r\n--x--\r\n"

        headers = {"content-type": "multipart/form-data; boundary=x"}
        answer = one.post(f"/tools/{tool['slug']}/run", content=body(), headers=headers)
        assert answer.status_code == (401 if kind == "user" else 404), answer.text
        left = find_traces(cluster.service.environment, doomed)
        assert not left.keys
        assert left.rows.keys().isdisjoint({"tool_runs", "tool_sessions", "api_tokens"})
    eventually(partial(is_gone, cluster, doomed))


def test_a_tool_at_work_is_killed_and_then_goes(
    cluster: Cluster, nodes: list[Process], workers: list[Process], admin: Client
) -> None:
    tool = make_tool(admin, STEP)
    with cluster.client(nodes[1]) as anna:
        form = {"inputs": json.dumps({"seconds": 40})}
        started = anna.run_tool(tool["slug"], wait=None, files=FILES, **form)
        run_id = started.json()["run_id"]
        eventually(lambda: anna.get(f"/runs/{run_id}").json()["status"] == "running")
        with anna.stream("GET", f"/runs/{run_id}/events") as events:
            begun = time.monotonic()
            admin.delete(f"/editor/tools/{tool['id']}").raise_for_status()
            told = events.read().decode()
        assert told.endswith("\r\n\r\n"), "what was open is ended, and not broken off"
    eventually(partial(is_gone, cluster, tool["id"], runs=[run_id]))
    assert time.monotonic() - begun < 15, "nobody waited for the tool's own end"


@pytest.mark.parametrize("server", ["s3", "redis"])
def test_a_deletion_waits_for_what_is_down(
    server: str, cluster: Cluster, nodes: list[Process], workers: list[Process], admin: Client
) -> None:
    tool = make_tool(admin)
    with somebody(cluster, nodes) as (user_id, (one, _)):
        run_id = one.run_tool(tool["slug"], files=FILES).json()["run_id"]
        with cluster.down(server):
            assert admin.delete(f"/admin/users/{user_id}").status_code == 204
            assert one.get("/auth/me").status_code == 401
            interrupted = partial(_has_logged, workers, "deletion.interrupted", user_id)
            eventually(interrupted)
            assert find_user_row(cluster, user_id)
    eventually(partial(is_gone, cluster, user_id, runs=[run_id]))


def _has_logged(workers: list[Process], event: str, id: str) -> bool:
    return any(worker.has_logged(event, id=id) for worker in workers)


def find_user_row(cluster: Cluster, user_id: str) -> bool:
    return bool(cluster.query("SELECT id FROM users WHERE id = $1", user_id))


def test_a_purge_that_is_killed_anywhere_is_finished_by_the_next(
    cluster: Cluster, nodes: list[Process], workers: list[Process], admin: Client
) -> None:
    environment = cluster.service.environment
    kept, *tools = [make_tool(admin, STEP) for _ in range(3)]
    with somebody(cluster, nodes) as (user_id, (one, _)):
        form = {"inputs": json.dumps({"artifacts": 2})}
        runs = {
            one.run_tool(tool["slug"], files=FILES, **form).json()["run_id"]
            for tool in (kept, *tools)
        }
        doomed = [user_id, tools[0]["id"]]
        assert len(find_traces(environment, *doomed).keys) == 3 * (1 + 2 + 2)
        # Only those who are killed are at it.
        with paused(workers):
            admin.delete(f"/editor/tools/{tools[0]['id']}").raise_for_status()
            admin.delete(f"/admin/users/{user_id}").raise_for_status()
            done = subprocess.run(
                [sys.executable, Path(__file__).with_name("dying_deletion.py")],
                env=environment,
                capture_output=True,
                check=False,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            assert int(done.stdout) > 5, "it was killed more than a few times"
            assert not find_traces(environment, *doomed, runs=runs)
    assert find_traces(environment, kept["id"]).rows == {"tools": 1, "tool_versions": 1}
    assert find_strays(environment) == []
