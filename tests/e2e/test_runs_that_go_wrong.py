"""A run that does not succeed: the session is as before, the user knows why, editors see stderr."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from service import Service
from steps import Way, log_in, publish
from tiny_tools import FILE_FIELD, HOW_FIELD, WRONG

# What the tool does: status, code, and a word of what the user is told.
WAYS_TO_GO_WRONG = {
    "fail": ("failed", "tool_failed", "Det här gick inte."),
    "crash": ("failed", "tool_failed", "fel"),
    "exit": ("failed", "tool_crashed", "utan resultat"),
    "number": ("failed", "tool_failed", "run_tool"),
    "sleep": ("timed_out", "timed_out", "för lång tid"),
    "garbage": ("failed", "contract_violation", "UTF-8"),
    "empty": ("failed", "contract_violation", "JSON"),
    "version": ("failed", "contract_violation", "version 2"),
    "status": ("failed", "contract_violation", "lyckades eller misslyckades"),
    "outputs": ("failed", "contract_violation", "outputs"),
    "twins": ("failed", "contract_violation", "twin"),
    "link": ("failed", "contract_violation", "secret"),
}


@pytest.fixture(scope="module")
def version(brief_service: Service) -> dict[str, Any]:
    return publish(brief_service, WRONG, [FILE_FIELD, HOW_FIELD])


@pytest.fixture(scope="module", params=["production", "sandbox"])
def begun(
    request: pytest.FixtureRequest, brief_service: Service, version: dict[str, Any]
) -> Iterator[Way]:
    """A session with a file, a state and a step on offer."""
    is_sandbox = request.param == "sandbox"
    with log_in(brief_service, "admin" if is_sandbox else "anna") as client:
        way = Way(client, version["tool_id"], version["id"], version["slug"], is_sandbox)
        yield way
        way.clear()  # others count what expires in this service


def as_before(way: Way) -> tuple[dict[str, Any], list[str]]:
    return way.session() | {"latest_run_id": None}, way.files()


@pytest.mark.parametrize("how", WAYS_TO_GO_WRONG)
def test_the_session_is_as_before_and_the_user_knows_why(begun: Way, how: str) -> None:
    status, code, words = WAYS_TO_GO_WRONG[how]
    # Files live for seconds here.
    begun.run(files=[("kvar.txt", b"kvar")])
    before = as_before(begun)
    attempts = [begun.act(input={"how": how}), begun.run(inputs=json.dumps({"how": how}))]
    for run in attempts:
        assert (run["status"], run["error_code"]) == (status, code), run
        assert words in run["error_summary"]
        assert "Traceback" not in run["error_summary"], "tracebacks are for editors"
        assert "RuntimeError" not in run["error_summary"]
        assert run["state_rev"] == before[0]["state_rev"]
        assert ("stderr" in run) is ("stdout" in run) is begun.is_sandbox
        if begun.is_sandbox:
            assert f"trace of {how}\n" in run["stderr"]["text"]
            assert ("RuntimeError: unexpected" in run["stderr"]["text"]) is (how == "crash")
    assert as_before(begun) == before
    assert begun.session()["latest_run_id"] == attempts[-1]["run_id"]
    if how != "sleep":
        assert begun.act()["status"] == "succeeded", "the user can try again"


def wait_until_running(way: Way, run_id: str) -> None:
    deadline = time.monotonic() + 30
    while way.get_run(run_id)["status"] == "queued":
        assert time.monotonic() < deadline, "no worker took the run"
        time.sleep(0.05)


@pytest.mark.parametrize("kind", ["initial", "action"])
def test_a_cancelled_run_is_killed_within_two_seconds(
    service: Service, way_to_wrong: Way, kind: str
) -> None:
    way = way_to_wrong
    way.run(files=[("kvar.txt", b"kvar")])
    before = as_before(way)
    if kind == "action":
        started = way.send_action(wait=None, input={"how": "sleep"}).json()
    else:
        started = way.send(wait=None, inputs=json.dumps({"how": "sleep"})).json()
    wait_until_running(way, started["run_id"])
    time.sleep(0.3)  # so that the tool itself is at work, not only its sandbox
    asked = time.monotonic()
    assert way.client.post(f"/runs/{started['run_id']}/cancel").status_code == 202
    run = way.get_run(started["run_id"], wait=30)
    took = time.monotonic() - asked
    assert (run["status"], run["error_code"]) == ("cancelled", "cancelled")
    assert run["error_summary"] == "Körningen avbröts."
    assert took < 2, "the answer comes only after the sandbox has been killed"
    assert as_before(way) == before
    again = way.client.post(f"/runs/{started['run_id']}/cancel")
    assert (again.status_code, again.json()["code"]) == (409, "run_finished")
    assert way.act()["status"] == "succeeded", "the user can try again"


@pytest.fixture
def way_to_wrong(service: Service) -> Iterator[Way]:
    version = publish(service, WRONG, [FILE_FIELD, HOW_FIELD])
    with log_in(service, "anna") as client:
        yield Way(client, version["tool_id"], version["id"], version["slug"], is_sandbox=False)
