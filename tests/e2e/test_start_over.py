""" "Börja om": the step that the service itself offers in every interactive session."""

import asyncio
import json
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from service import Client, Service
from steps import START_OVER, Way, action_ids, list_blobs, log_in, publish
from tiny_tools import FILE_FIELD, report

from app.domain.backend_actions import offer_backend_actions
from app.domain.normalizer import normalize
from app.domain.policy import DEFAULT_POLICY
from app.domain.runs import FinishedRun, RunStatus
from app.settings import load_settings
from app.store import runs
from app.store.postgres import open_database

CLASHING = """
from skriptoteket_toolkit import action


def run_tool(input_dir, output_dir):
    return {"next_actions": [action("skriptoteket:start_over", "Min egen")], "state": {"a": 1}}
"""

# Offers as many steps as the policy allows.
EAGER = """
from skriptoteket_toolkit import action


def run_tool(input_dir, output_dir):
    return {"next_actions": [action(f"step-{n}", "Steg") for n in range(10)], "state": {}}
"""


def finish_by_hand(service: Service, run_id: str) -> None:
    """End a queued run as a worker would, with a step on offer."""

    async def finish() -> None:
        url = load_settings(service.running.environment).database_url
        async with open_database(url, size=1) as db:
            run = await runs.claim_run(db, UUID(run_id), 0, "by-hand", 60)
            assert run is not None
            step = {"action_id": "next", "label": "Nästa", "kind": "form", "fields": []}
            raw = {"contract_version": 2, "status": "succeeded", "next_actions": [step]}
            actions = offer_backend_actions(run, raw, DEFAULT_POLICY)
            made = normalize(raw, backend_actions=actions)
            finished = FinishedRun(
                status=RunStatus.SUCCEEDED,
                ui_payload=made.ui_payload_bytes,
                is_interactive=True,
                state={"a": 1},
            )
            assert await runs.finish_run(db, run.id, "by-hand", finished, datetime.now(UTC))

    asyncio.run(finish())


def begin(way: Way) -> dict[str, Any]:
    way.run(files=[("kvar.txt", b"kvar")])
    way.act()
    return way.session()


def test_an_interactive_session_offers_it_after_every_success(way: Way) -> None:
    first = way.run(files=[("kvar.txt", b"kvar")])
    assert action_ids(first["ui_payload"]) == action_ids(way.session()) == ["next", START_OVER]
    (offer,) = [a for a in way.session()["next_actions"] if a["action_id"] == START_OVER]
    assert (offer["label"], offer["kind"]) == ("Börja om", "form")
    assert [(field["name"], field["kind"]) for field in offer["fields"]] == [
        ("clear_files", "boolean")
    ]
    step = way.act()
    assert action_ids(step["ui_payload"]) == ["next", START_OVER]
    last = way.act(input={"do": "end"})
    assert action_ids(last["ui_payload"]) == [START_OVER]


def test_a_tool_without_steps_does_not_offer_it(reporter: Way) -> None:
    run = reporter.run(inputs=json.dumps({"do": "end"}))
    assert action_ids(run["ui_payload"]) == []
    assert action_ids(reporter.session()) == []
    assert reporter.session()["state"] == {}, "what it returned as state is not kept either"


def test_it_clears_the_state_and_keeps_the_files(way: Way) -> None:
    before = begin(way)
    run = way.act(START_OVER)
    assert (run["status"], run["kind"], run["state_rev"]) == (
        "succeeded",
        "action",
        before["state_rev"] + 1,
    )
    (told,) = run["ui_payload"]["outputs"]
    assert told["message"] == "Verktyget har börjat om. Sparade filer finns kvar."
    after = way.session()
    assert (after["state"], after["state_rev"]) == ({}, before["state_rev"] + 1)
    assert (after["latest_run_id"], after["active_run_id"]) == (run["run_id"], None)
    assert action_ids(after) == [], "there is nothing to start over from"
    assert way.files() == ["kvar.txt"]
    again = way.run(session_files_mode="reuse")
    assert list(report(again)["files"]) == ["kvar.txt"]
    assert way.session()["state"]["steps"] == ["start"]


def test_it_deletes_the_files_too_if_asked(service: Service, way: Way) -> None:
    begin(way)
    run = way.act(START_OVER, input={"clear_files": True})
    assert "borttagna" in run["ui_payload"]["outputs"][0]["message"]
    assert way.files() == []
    assert list_blobs(service, way.tool_id) == []
    # Cleared is not expired: the next steps just have no files.
    way.run()
    assert report(way.act())["files"] == {}


def test_it_is_done_at_once_without_a_worker_and_answers_so(idle_service: Service) -> None:
    version = publish(idle_service, "def run_tool(a, b):\n    return None\n", [FILE_FIELD])
    # Without a worker nothing gets an offer, so a session is made as a worker would leave it.
    with log_in(idle_service, "anna") as anna:
        way = Way(anna, version["tool_id"], version["id"], version["slug"], is_sandbox=False)
        run_id = way.send(wait=None).json()["run_id"]
        finish_by_hand(idle_service, run_id)
        answer = way.send_action(START_OVER, wait=None)
        assert answer.status_code == 200, answer.text
        assert answer.json()["status"] == "succeeded"
        assert answer.json()["state_rev"] == way.session()["state_rev"] == 2
        assert way.get_run(answer.json()["run_id"])["finished_at"] is not None
        events = anna.get(f"/runs/{answer.json()['run_id']}/events").text
        assert '"succeeded"' in events


def test_it_obeys_the_revision_and_a_running_step(reporter: Way) -> None:
    before = begin(reporter)
    stale = reporter.send_action(START_OVER, expected_state_rev=before["state_rev"] - 1)
    assert (stale.status_code, stale.json()["code"]) == (409, "state_rev_conflict")
    step = reporter.send_action(input={"do": "sleep 2"}, wait=None).json()
    busy = reporter.send_action(START_OVER)
    assert (busy.status_code, busy.json()["code"]) == (409, "session_busy")
    reporter.get_run(step["run_id"], wait=30)
    assert reporter.session()["state"]["steps"] == ["start", "next", "next"]


@pytest.mark.parametrize("wrong", [{"clear_files": "ja"}, {"clear": True}])
def test_its_form_is_held_like_any_other(reporter: Way, wrong: dict[str, Any]) -> None:
    before = begin(reporter)
    answer = reporter.send_action(START_OVER, input=wrong)
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_action_input")
    assert reporter.session() == before


def test_a_tool_that_offers_a_step_of_that_name_breaks_the_contract(
    service: Service, anna: Client
) -> None:
    version = publish(service, CLASHING)
    way = Way(anna, version["tool_id"], version["id"], version["slug"], is_sandbox=False)
    run = way.run()
    assert (run["status"], run["error_code"]) == ("failed", "contract_violation")
    assert START_OVER in run["error_summary"]
    assert (way.session()["state"], way.session()["state_rev"]) == ({}, 0)


def test_it_takes_a_place_among_the_actions_and_the_user_is_told(
    service: Service, anna: Client
) -> None:
    version = publish(service, EAGER)
    way = Way(anna, version["tool_id"], version["id"], version["slug"], is_sandbox=False)
    payload = way.run()["ui_payload"]
    assert action_ids(payload) == [*(f"step-{n}" for n in range(9)), START_OVER]
    assert [output["code"] for output in payload["outputs"]] == ["too_many_actions"]
