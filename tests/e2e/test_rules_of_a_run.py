"""The rules of a run (1-product.md), through HTTP, each request at the next node."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from racing import at_once
from service import Client, Service
from steps import START_OVER, Way, action_ids, list_blobs, log_in, publish
from tiny_tools import DO_FIELD, FILE_FIELD, QUIET, REPORTER, report


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


KEPT = {"kvar.txt": sha256(b"kvar")}


def begin(way: Way) -> None:
    """Give a session a file, a state and an action on offer."""
    way.run(files=[("kvar.txt", b"kvar")])


def do(what: str) -> dict[str, Any]:
    return {"inputs": json.dumps({"do": what})}


# --- 1: a failed or refused upload changes nothing -------------------------------------------

NEW = ("ny.txt", b"ny")
REFUSED: dict[str, tuple[dict[str, Any], int, str]] = {
    "separator in a name": ({"files": [NEW, ("a/b.txt", b"")]}, 422, "invalid_file_name"),
    "dot-dot": ({"files": [NEW, ("..", b"")]}, 422, "invalid_file_name"),
    "name too long": ({"files": [NEW, ("å" * 128, b"")]}, 422, "invalid_file_name"),
    "same name but for case": ({"files": [NEW, ("NY.txt", b"")]}, 422, "duplicate_file_names"),
    "same name but for its form": (
        {"files": [("\u00e5.txt", b""), ("a\u030a.txt", b"")]},
        422,
        "duplicate_file_names",
    ),
    "file over the limit": ({"files": [NEW, ("b.bin", bytes(20_000_001))]}, 413, "file_too_large"),
    "too many files": (
        {"files": [(f"{number}.txt", b"x") for number in range(21)]},
        413,
        "too_many_files",
    ),
    "unknown input": ({"files": [NEW], "inputs": '{"x": 1}'}, 422, "invalid_inputs"),
    "input of a wrong type": ({"files": [NEW], "inputs": '{"do": 1}'}, 422, "invalid_inputs"),
    "inputs that are no JSON": ({"files": [NEW], "inputs": "{"}, 422, "invalid_inputs"),
    "unknown mode": ({"files": [NEW], "session_files_mode": "keep"}, 422, "invalid_mode"),
    "unknown field": ({"files": [NEW], "filer": "x"}, 400, "malformed_request"),
}


def test_a_refused_upload_changes_nothing(service: Service, reporter: Way) -> None:
    begin(reporter)
    before, blobs = reporter.session(), list_blobs(service, reporter.tool_id)
    saved = reporter.saved()
    for name, (form, status, code) in REFUSED.items():
        answer = reporter.send(**form)
        assert (answer.status_code, answer.json()["code"]) == (status, code), name
        assert list_blobs(service, reporter.tool_id) == blobs, name
        assert reporter.saved() == saved, name
        assert reporter.session() == before, name
    assert report(reporter.act())["files"] == KEPT


def test_the_limits_of_an_upload_are_inclusive(reporter: Way) -> None:
    big = bytes(20_000_000)
    run = reporter.run(files=[("big.bin", big), *((f"{number}.txt", b"x") for number in range(19))])
    assert report(run)["files"]["big.bin"] == sha256(big)
    assert len(reporter.files()) == 20


def test_files_that_the_form_does_not_take_are_refused(service: Service, anna: Client) -> None:
    only_html = FILE_FIELD | {"accept": [".html"], "max": 2}
    version = publish(service, REPORTER, [only_html])
    way = Way(anna, version["tool_id"], version["id"], version["slug"], is_sandbox=False)
    html = [(f"{number}.HTML", b"x") for number in range(3)]
    for files in ([("a.txt", b"x")], html):
        answer = way.send(files=files)
        assert (answer.status_code, answer.json()["code"]) == (422, "files_not_accepted")
    assert len(report(way.run(files=html[:2]))["files"]) == 2

    version = publish(service, REPORTER, [DO_FIELD])
    formless = Way(anna, version["tool_id"], version["id"], version["slug"], is_sandbox=False)
    answer = formless.send(files=[("a.txt", b"x")])
    assert (answer.status_code, answer.json()["code"]) == (422, "files_not_accepted")
    assert list_blobs(service, formless.tool_id) == []


# --- 2: initial runs without uploads, where the tool wants files -----------------------------


def test_clear_takes_effect_though_the_tool_then_lacks_files(
    service: Service, anna: Client
) -> None:
    version = publish(service, REPORTER, [FILE_FIELD | {"min": 1}])
    way = Way(anna, version["tool_id"], version["id"], version["slug"], is_sandbox=False)
    begin(way)
    before = way.session()
    for mode in ("none", "clear", "reuse"):
        answer = way.send(session_files_mode=mode)
        if mode == "none":
            assert way.files() == ["kvar.txt"], "only a clear clears"
        assert (answer.status_code, answer.json()["code"]) == (422, "files_required")
        assert answer.json()["detail"] == "Verktyget behöver minst en fil."
    assert way.files() == []
    assert list_blobs(service, way.tool_id) == []
    assert way.session() == before, "no run was started"


def test_reuse_meets_the_minimum_of_a_file_field(service: Service, anna: Client) -> None:
    version = publish(service, REPORTER, [FILE_FIELD | {"min": 1}])
    way = Way(anna, version["tool_id"], version["id"], version["slug"], is_sandbox=False)
    begin(way)
    assert report(way.run(session_files_mode="reuse"))["files"] == KEPT


def test_an_explicit_clear_deletes_at_once_and_actions_go_on_without_files(
    service: Service, way: Way
) -> None:
    assert way.clear().status_code == 204, "also when there are none"
    begin(way)
    assert way.clear().status_code == 204
    assert way.files() == []
    assert list_blobs(service, way.tool_id) == []
    # Cleared is not expired: the user wanted it so.
    assert report(way.act())["files"] == {}
    assert way.clear().status_code == 204


# --- 4: contexts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "context"),
    [("", "default"), ("   ", "default"), (" klass 7b ", "klass 7b"), ("åäö" * 21 + "x", None)],
)
def test_a_context_is_trimmed_and_blank_means_default(
    reporter: Way, raw: str, context: str | None
) -> None:
    run = reporter.run(files=[NEW], session_context=raw)
    context = raw if context is None else context
    assert run["context"] == context
    saved = reporter.client.get(f"/tools/{reporter.slug}/session-files", params={"context": raw})
    assert (saved.json()["context"], len(saved.json()["files"])) == (context, 1)


BAD_CONTEXTS = ["x" * 65, "sandbox:", f"sandbox:{'0' * 36}", "  sandbox:x", "a\tb", "a\x00b"]


@pytest.mark.parametrize("context", BAD_CONTEXTS)
def test_a_context_that_cannot_be_is_refused_everywhere(reporter: Way, context: str) -> None:
    path = f"/tools/{reporter.slug}"
    query = {"context": context}
    turn = {"action_id": "next", "input": {}, "expected_state_rev": 0, "context": context}
    answers = [
        reporter.send(session_context=context),
        reporter.client.get(f"{path}/session", params=query),
        reporter.client.get(f"{path}/session-files", params=query),
        reporter.client.delete(f"{path}/session-files", params=query),
        reporter.client.post("/start_action", json=turn | {"tool_id": reporter.tool_id}),
    ]
    for answer in answers:
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_context")


def test_contexts_of_a_tool_share_nothing(service: Service, reporter: Way, anna: Client) -> None:
    names = (reporter.tool_id, reporter.version_id, reporter.slug)
    one, two = (Way(anna, *names, is_sandbox=False, context=name) for name in ("åk 7", "åk 8"))
    begin(one)
    assert two.files() == []
    assert two.session()["state_rev"] == 0
    two.run(files=[("b.txt", b"b")])
    assert report(one.act())["files"] == KEPT
    assert report(two.act())["state"]["steps"] == ["start"]


def test_the_sandbox_has_its_own_context_whatever_the_form_says(way: Way) -> None:
    run = way.run(session_context="klass")
    expected = f"sandbox:{way.version_id}" if way.is_sandbox else "klass"
    assert run["context"] == expected


# --- 5: a turn is claimed before anything is executed ---------------------------------------


def test_of_two_steps_at_once_one_is_queued_and_the_other_told_the_revision(way: Way) -> None:
    begin(way)
    revision = way.session()["state_rev"]

    def step() -> httpx.Response:
        turn = {"input": {"do": "sleep 0.5"}, "expected_state_rev": revision}
        return way.send_action(wait=None, **turn)

    answers = at_once([step] * 4)
    won = [answer for answer in answers if answer.status_code == 202]
    lost = [answer for answer in answers if answer.status_code == 409]
    assert (len(won), len(lost)) == (1, 3)
    assert won[0].json()["status"] == "queued"
    for answer in lost:
        assert answer.json()["code"] in {"session_busy", "state_rev_conflict"}
        assert answer.json()["details"]["state_rev"] >= revision

    run = way.get_run(won[0].json()["run_id"], wait=30)
    assert run["state_rev"] == revision + 1
    assert way.session()["state"]["steps"] == ["start", "next"], "one ran"
    late = way.send_action(expected_state_rev=revision)
    assert (late.status_code, late.json()["code"]) == (409, "state_rev_conflict")
    assert late.json()["details"]["state_rev"] == revision + 1
    assert way.session()["latest_run_id"] == run["run_id"], "the loser ran nothing"


def test_a_step_while_another_is_running_is_told_which(way: Way) -> None:
    begin(way)
    first = way.send_action(wait=None, input={"do": "sleep 1"}).json()
    second = way.send_action()
    assert (second.status_code, second.json()["code"]) == (409, "session_busy")
    assert second.json()["details"] == {
        "state_rev": first["state_rev"],
        "active_run_id": first["run_id"],
    }
    assert way.session()["active_run_id"] == first["run_id"]
    assert way.get_run(first["run_id"], wait=30)["status"] == "succeeded"
    assert way.session()["active_run_id"] is None


@pytest.mark.parametrize("kind", ["initial", "action"])
def test_a_new_initial_run_supersedes_an_unfinished_one(reporter: Way, kind: str) -> None:
    begin(reporter)
    if kind == "initial":
        older = reporter.send(wait=None, **do("sleep 1.5")).json()["run_id"]
    else:
        older = reporter.send_action(wait=None, input={"do": "sleep 1.5"}).json()["run_id"]
    newer = reporter.run(**do("newer"))
    after_newer = reporter.session()
    assert after_newer["latest_run_id"] == newer["run_id"]
    assert after_newer["state"] == {"steps": ["start"], "do": "newer"}

    ended = reporter.get_run(older, wait=30)
    assert ended["status"] == "succeeded", "it may finish, and is kept"
    assert report(ended)["action"] == ("next" if kind == "action" else None)
    assert ended["state_rev"] is None
    assert reporter.session() == after_newer, "but no longer writes the session"
    assert report(reporter.act())["state"]["do"] == "newer"


def test_a_superseded_run_keeps_the_files_it_was_started_with(reporter: Way) -> None:
    older = reporter.send(wait=None, files=[("a.txt", b"old")], **do("sleep 0.5")).json()["run_id"]
    newer = reporter.run(files=[("a.txt", b"new")])
    assert report(newer)["files"] == {"a.txt": sha256(b"new")}
    assert report(reporter.get_run(older, wait=30))["files"] == {"a.txt": sha256(b"old")}


# --- 6: what a run leaves behind ------------------------------------------------------------


def test_each_success_stores_state_and_raises_the_revision_by_one(reporter: Way) -> None:
    begin(reporter)
    first = reporter.session()["state_rev"]
    for count in (1, 2):
        run = reporter.act()
        session = reporter.session()
        assert run["state_rev"] == session["state_rev"] == first + count
        assert session["state"]["steps"] == ["start"] + ["next"] * count
        assert session["latest_run_id"] == run["run_id"]
        assert session["next_actions"] == run["ui_payload"]["next_actions"]


def test_state_null_means_unchanged(reporter: Way) -> None:
    begin(reporter)
    before = reporter.session()
    reporter.act(input={"do": "keep state"})
    after = reporter.session()
    assert after["state"] == before["state"]
    assert after["state_rev"] == before["state_rev"] + 1


def test_an_action_that_offers_nothing_more_ends_the_dialogue(reporter: Way) -> None:
    begin(reporter)
    before = reporter.session()
    reporter.act(input={"do": "end"})
    after = reporter.session()
    assert after["state_rev"] == before["state_rev"] + 1
    assert action_ids(after) == [START_OVER]
    assert after["state"] == before["state"], "only an interactive run stores its state"
    answer = reporter.send_action()
    assert (answer.status_code, answer.json()["code"]) == (422, "unknown_action")


# --- 7: only what is on offer ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("action_id", "given", "code"),
    [
        ("other", {}, "unknown_action"),
        ("", {}, "unknown_action"),
        ("next", {"number": "three"}, "invalid_action_input"),
        ("next", {"number": 1.5}, "invalid_action_input"),
        ("next", {"do": ["a"]}, "invalid_action_input"),
        ("next", {"do": "a\x00"}, "invalid_action_input"),
        ("next", {"unknown": 1}, "invalid_action_input"),
    ],
)
def test_what_was_not_offered_is_refused_and_nothing_runs(
    anna: Client, offering: Way, action_id: str, given: dict[str, Any], code: str
) -> None:
    before = offering.session()
    answer = offering.send_action(action_id, input=given)
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    if code == "invalid_action_input":
        assert list(answer.json()["details"]["fields"]) == list(given)
    assert offering.session() == before
    newest = anna.get("/runs", params={"tool": offering.slug}).json()["items"]
    assert [run["run_id"] for run in newest] == [before["latest_run_id"]]


@pytest.fixture(scope="module")
def offering(service: Service, anna: Client) -> Way:
    """A session that offers `next`; tests leave it as it is."""
    version = publish(service, REPORTER, [FILE_FIELD, DO_FIELD])
    way = Way(anna, version["tool_id"], version["id"], version["slug"], is_sandbox=False)
    begin(way)
    return way


def test_a_step_in_a_session_that_never_began_is_not_found(reporter: Way) -> None:
    answer = reporter.send_action(expected_state_rev=0)
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_inputs_reach_the_tool_as_the_form_has_them(reporter: Way) -> None:
    run = reporter.run(inputs='{"do": " åäö "}')
    assert report(run)["inputs"] == {"do": " åäö "}


# --- 8: a session stays on its version ------------------------------------------------------


def test_a_session_stays_on_its_version_when_a_new_one_is_published(
    service: Service, reporter: Way
) -> None:
    begin(reporter)
    newer = REPORTER.replace('"steps": steps', '"steps": ["newer"]')
    service.publish(reporter.slug, newer, [FILE_FIELD, DO_FIELD])
    reporter.act()
    assert reporter.session()["state"]["steps"] == ["start", "next"]
    other = Way(reporter.client, reporter.tool_id, "", reporter.slug, False, context="new")
    other.run()
    assert other.session()["state"]["steps"] == ["newer"]
    reporter.run()
    assert reporter.session()["state"]["steps"] == ["newer"], "an initial run begins anew"


# --- 12: cancelling -------------------------------------------------------------------------


def test_cancelling_a_queued_run_ends_it_at_once(idle_service: Service) -> None:
    version = publish(idle_service, QUIET)
    with log_in(idle_service, "bo") as client:
        way = Way(client, version["tool_id"], version["id"], version["slug"], is_sandbox=False)
        run_id = way.send(wait=None).json()["run_id"]
        assert way.session()["active_run_id"] == run_id
        assert client.post(f"/runs/{run_id}/cancel").status_code == 202
        run = way.get_run(run_id)
        assert (run["status"], run["started_at"]) == ("cancelled", None)
        assert run["finished_at"] is not None
        assert way.session()["active_run_id"] is None


def test_more_unfinished_runs_than_allowed_are_refused(idle_service: Service) -> None:
    version = publish(idle_service, REPORTER, [FILE_FIELD])
    with log_in(idle_service, "anna") as client:
        way = Way(client, version["tool_id"], version["id"], version["slug"], is_sandbox=False)
        queued = [way.send(wait=None, files=[("a.txt", b"a")]).json()["run_id"] for _ in range(2)]
        blobs = list_blobs(idle_service, way.tool_id)
        answer = way.send(files=[("b.txt", b"b")])
        assert (answer.status_code, answer.json()["code"]) == (429, "too_many_runs")
        assert int(answer.headers["Retry-After"]) > 0
        assert way.files() == ["a.txt"]
        assert list_blobs(idle_service, way.tool_id) == blobs
        with log_in(idle_service, "bo") as bo:
            assert bo.run_tool(version["slug"], wait=None).status_code == 202, "others may"
        client.post(f"/runs/{queued[0]}/cancel").raise_for_status()
        assert way.send(wait=None).status_code == 202


# --- 13: what a user reads is Swedish -------------------------------------------------------


def test_refusals_are_told_in_swedish(offering: Way) -> None:
    send: list[Callable[[], httpx.Response]] = [
        lambda: offering.send(inputs="{"),
        lambda: offering.send(session_files_mode="x"),
        lambda: offering.send(session_context="x" * 65),
        lambda: offering.send_action("other"),
        lambda: offering.send_action(expected_state_rev=99),
        lambda: offering.client.get(f"/runs/{offering.tool_id}"),
    ]
    words = [answer.json()["detail"] for answer in (make() for make in send)]
    for text in words:
        assert any(word in text.split() for word in ("är", "ska", "får", "finns", "erbjuds")), text
