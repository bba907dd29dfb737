"""Races for one session over two nodes: every turn has one winner, every run its own files."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from hashlib import sha256
from typing import Any

import httpx
import pytest
from cluster import Cluster, Process
from fault_tools import CHAIN, CHAIN_SCHEMA, TELL, TELL_SCHEMA, seen_by
from racing import at_once, rounds
from service import Client

SLUG = "tell_races"
ROUNDS = 4
WRITERS = 8


@pytest.fixture(scope="module")
def tool_id(cluster: Cluster, nodes: list[Process]) -> str:
    return str(cluster.publish(nodes[0], SLUG, TELL, TELL_SCHEMA)["tool_id"])


@pytest.fixture(scope="module")
def clients(cluster: Cluster, nodes: list[Process], tool_id: str) -> Iterator[list[Client]]:
    """As many clients as there are writers, every other one at the other node."""
    with ExitStack() as stack:
        nodes_in_turn = [nodes[number % 2] for number in range(WRITERS)]
        yield [stack.enter_context(cluster.client(node)) for node in nodes_in_turn]


def session_of(client: Client, context: str, slug: str = SLUG) -> dict[str, Any]:
    session: dict[str, Any] = client.get(
        f"/tools/{slug}/session", params={"context": context}
    ).json()
    return session


def take_turn(
    client: Client, tool_id: str, context: str, rev: int, input: dict[str, Any] | None = None
) -> httpx.Response:
    turn = {
        "tool_id": tool_id,
        "context": context,
        "action_id": "again",
        "input": input or {},
        "expected_state_rev": rev,
    }
    return client.start_action("/start_action", turn, wait=None)


def wait_for_end(client: Client, run_id: str) -> dict[str, Any]:
    run: dict[str, Any] = client.get(f"/runs/{run_id}", headers={"Prefer": "wait=30"}).json()
    assert run["finished_at"] is not None, run
    return run


@rounds(20, 200)
def test_mixed_turns_on_two_nodes_make_one_line_of_revisions(
    rounds: int,
    cluster: Cluster,
    clients: list[Client],
    workers: list[Process],
    nodes: list[Process],
) -> None:
    """Each round two steps at one revision race, and in every third an initial run joins them.

    The tool keeps its own log in the state, so that a lost or a doubled turn would show in it.
    """
    slug = f"chain_races_{rounds}"
    tool_id = str(cluster.publish(nodes[0], slug, CHAIN, CHAIN_SCHEMA)["tool_id"])
    first, second, third = clients[:3]
    start = first.run_tool(slug, inputs='{"word": "start"}').json()
    for number in range(rounds):
        rev = session_of(first, "default", slug)["state_rev"]
        calls = [
            lambda client=client, word=word, rev=rev: take_turn(
                client, tool_id, "default", rev, {"word": word}
            )
            for client, word in ((first, f"a{number}"), (second, f"b{number}"))
        ]
        if number % 3 == 0:
            inputs = f'{{"word": "i{number}"}}'
            calls.append(lambda inputs=inputs: third.run_tool(slug, inputs=inputs, wait=None))
        answers = at_once(calls)
        statuses = sorted(answer.status_code for answer in answers[:2])
        # Beside an initial run both steps may come too late, and no more than one comes in time.
        assert statuses == [202, 409] or (number % 3 == 0 and statuses == [409, 409]), statuses
        for answer in answers:
            if answer.status_code == 409:
                assert answer.json()["code"] in {"state_rev_conflict", "session_busy"}
                assert answer.json()["details"]["state_rev"] in {rev, rev + 1}
            else:
                assert answer.status_code == 202, answer.text
                run = wait_for_end(first, answer.json()["run_id"])
                assert run["status"] == "succeeded", run

    rows = cluster.query(
        """SELECT id, kind, superseded, state_rev, attempt, action, inputs FROM tool_runs
           WHERE tool_id = $1 ORDER BY state_rev, id""",
        tool_id,
    )
    assert {row["attempt"] for row in rows} == {1}, "nothing is executed twice"
    in_line = [row for row in rows if not row["superseded"]]
    assert {row["state_rev"] for row in rows if row["superseded"]} <= {None}
    assert [row["state_rev"] for row in in_line] == list(range(1, len(in_line) + 1))
    expected: list[str] = []
    for row in in_line:
        word = json.loads(row["inputs"])["word"] if row["inputs"] else None
        expected = [word] if word else [*expected, json.loads(row["action"])["input"]["word"]]
    session = session_of(second, "default", slug)
    assert session["state"] == {"words": expected}
    assert (session["state_rev"], session["active_run_id"]) == (len(in_line), None)
    assert start["run_id"] == str(in_line[0]["id"])
    assert len(in_line) >= rounds


def test_action_that_races_an_upload_never_writes_over_it(
    cluster: Cluster, clients: list[Client], workers: list[Process], tool_id: str
) -> None:
    context = "action-and-upload"
    contents = b"0"
    files = [("a.txt", contents)]
    assert clients[0].run_tool(SLUG, session_context=context, files=files).status_code == 200
    for number in range(1, 9):
        rev = session_of(clients[0], context)["state_rev"]
        contents, before = f"{number}".encode(), contents
        upload, action = at_once(
            [
                lambda contents=contents: clients[0].run_tool(
                    SLUG, session_context=context, files=[("a.txt", contents)], wait=None
                ),
                lambda rev=rev: take_turn(clients[1], tool_id, context, rev),
            ]
        )
        assert upload.status_code == 202, upload.text
        assert action.status_code in {202, 409}, action.text
        uploaded = wait_for_end(clients[1], upload.json()["run_id"])
        assert seen_by(uploaded) == {"a.txt": sha256(contents).hexdigest()}
        if action.status_code == 202:
            # It was first, and kept its own files although they were replaced under it.
            acted = wait_for_end(clients[0], action.json()["run_id"])
            assert seen_by(acted) == {"a.txt": sha256(before).hexdigest()}
        session = session_of(clients[0], context)
        assert session["active_run_id"] is None
        assert session["state"]["seen"] == {"a.txt": sha256(contents).hexdigest()}


def test_racing_uploads_leave_one_writers_files_and_every_run_sees_its_own(
    cluster: Cluster, clients: list[Client], workers: list[Process], tool_id: str
) -> None:
    context = "uploads"
    runs: list[dict[str, Any]] = []
    for round_number in range(ROUNDS):
        sets = {
            writer: {
                f"{writer}-{number}.txt": f"{round_number} {writer} {number} ".encode() * 40_000
                for number in range(1 + writer % 3)
            }
            for writer in range(WRITERS)
        }
        answers = at_once(
            [
                lambda writer=writer, sets=sets: clients[writer].run_tool(
                    SLUG, session_context=context, files=list(sets[writer].items()), wait=None
                )
                for writer in range(WRITERS)
            ]
        )
        assert {answer.status_code for answer in answers} == {202}
        told = {
            writer: {n: sha256(c).hexdigest() for n, c in sets[writer].items()} for writer in sets
        }
        for writer, answer in enumerate(answers):
            run = wait_for_end(clients[writer - 1], answer.json()["run_id"])
            assert run["status"] == "succeeded", run
            assert seen_by(run) == told[writer]
            runs.append(run)
        listed = clients[0].get(f"/tools/{SLUG}/session-files", params={"context": context})
        names = {file["name"] for file in listed.json()["files"]}
        winner = int(min(names).partition("-")[0])
        assert names == set(sets[winner])
        session = session_of(clients[1], context)
        assert session["active_run_id"] is None
        # The session shows the run of the writer whose files are in force.
        assert session["state"]["seen"] == told[winner]
    assert cluster.query(
        "SELECT DISTINCT attempt FROM tool_runs WHERE tool_id = $1 AND context = $2",
        tool_id,
        context,
    ) == [{"attempt": 1}]


def test_blobs_that_runs_held_on_to_are_swept_after_them(
    cluster: Cluster, clients: list[Client], workers: list[Process], tool_id: str
) -> None:
    for context in ("swept", "swept-too"):
        for number in range(3):
            files = [("a.txt", b"%d" % number)]
            answer = clients[0].run_tool(SLUG, session_context=context, files=files)
            assert answer.status_code == 200
    cluster.sweep(hours_ahead=2)
    sessions = cluster.query(
        "SELECT context FROM tool_sessions WHERE tool_id = $1 AND has_files", tool_id
    )
    in_force = 0
    for row in sessions:
        params = {"context": row["context"]}
        listed = clients[0].get(f"/tools/{SLUG}/session-files", params=params).json()
        in_force += len(listed["files"])
    assert len(cluster.blobs(tool_id)) == in_force
