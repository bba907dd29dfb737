"""Users who take steps of a tool while things break, and what has to be true of each step."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cluster import Cluster, Process, run_cluster
from fault_tools import STEP, STEP_SCHEMA
from service import Client

SLUG = "step"
# What a run may go through after it was queued, as `Cluster.history` tells it.
EXECUTED_AGAIN = ["running", "queued", "running", "succeeded"]
EXECUTED_ONCE = ["running", "succeeded"]
NEVER_AGAIN = ["running", "failed"]  # the tool had delivered (rule 11)


@contextmanager
def run_stepping_cluster(data_dir: Path, **settings: str) -> Iterator[Cluster]:
    """Run servers of a module's own, as its fixture `stack`: no other's workers take its runs."""
    settings = {
        "RUNNER_PRELOAD": "",
        "WORKER_CACHE_BYTES": "0",  # or staging would not go to S3
    } | settings
    with run_cluster(data_dir, **settings) as stack:
        stack.record_history()
        yield stack


@pytest.fixture(scope="module")
def node(stack: Cluster) -> Iterator[Process]:
    """A node of the module's `stack` with the tool; nobody kills it."""
    with stack.node() as node:
        stack.publish(node, SLUG, STEP, STEP_SCHEMA)
        yield node


@pytest.fixture(scope="module")
def client(stack: Cluster, node: Process) -> Iterator[Client]:
    with stack.client(node) as client:
        yield client


@dataclass
class User:
    """Somebody who takes steps of the tool, one after the other, in a context of their own."""

    client: Client
    context: str
    run_id: str = ""
    before: dict[str, Any] = field(default_factory=dict)

    def begin(self) -> None:
        files = [("a.txt", self.context.encode())]
        answer = self.client.run_tool(SLUG, session_context=self.context, files=files)
        assert answer.json()["status"] == "succeeded", answer.text

    def take_step(self, wait: int | None = None, **form: Any) -> dict[str, Any]:
        self.before = self.session()
        body = {
            "tool_id": self.before["tool_id"],
            "context": self.context,
            "action_id": "step",
            "input": form,
            "expected_state_rev": self.before["state_rev"],
        }
        answer = self.client.start_action("/start_action", body, wait=wait)
        assert answer.is_success, answer.text
        self.run_id = answer.json()["run_id"]
        run: dict[str, Any] = answer.json()
        return run

    def session(self) -> dict[str, Any]:
        answer = self.client.get(f"/tools/{SLUG}/session", params={"context": self.context})
        session: dict[str, Any] = answer.raise_for_status().json()
        return session

    def wait_for_end(self) -> dict[str, Any]:
        answer = self.client.get(f"/runs/{self.run_id}", headers={"Prefer": "wait=40"})
        run: dict[str, Any] = answer.raise_for_status().json()
        assert run["finished_at"], f"it never ended: {run}"
        return run


def begin(client: Client, contexts: Sequence[str]) -> list[User]:
    users = [User(client, context) for context in contexts]
    for user in users:
        user.begin()
    return users


def assert_ended_well(
    stack: Cluster,
    user: User,
    run: dict[str, Any],
    history: list[str],
    *,
    attempts: int | None = None,
) -> None:
    """Once, as it had to; the session is free and shows exactly what the run's end means.

    `attempts` are the runnings in `history`, unless one was handed back.
    """
    assert stack.history(user.run_id) == history, run
    assert run["status"] == history[-1]
    rescued = history[-1] == "succeeded"
    if not rescued:
        assert run["error_code"] == "worker_lost"
        assert "Försök igen" in run["error_summary"]
    row = stack.query("SELECT attempt, lease_owner FROM tool_runs WHERE id = $1", user.run_id)[0]
    assert row == {"attempt": attempts or history.count("running"), "lease_owner": None}
    session = user.session()
    assert (session["active_run_id"], session["latest_run_id"]) == (None, user.run_id)
    assert session["state_rev"] == user.before["state_rev"] + rescued
    sql = "SELECT state FROM tool_sessions WHERE latest_run_id = $1"
    assert json.loads(stack.query(sql, user.run_id)[0]["state"]) == {"step": session["state_rev"]}


def assert_next_steps_work(users: list[User]) -> None:
    for user in users:
        user.take_step()
    for user in users:
        run = user.wait_for_end()
        assert run["status"] == "succeeded"
        assert run["ui_payload"]["outputs"][0]["value"] == {"a.txt": user.context}
