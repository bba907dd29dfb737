"""ST-12-07, reuse and clear of session files: one test for each acceptance criterion.

The fourth, "the same semantics in sandbox context", is the `sandbox` half of each test.
"""

import hashlib
from typing import Any

import pytest
from service import Client, Service
from steps import Way, list_blobs, publish
from tiny_tools import FILE_FIELD, STYLED, report

UPLOADS = [("a.txt", b"first"), ("b.txt", b"second")]
HASHES = {name: hashlib.sha256(content).hexdigest() for name, content in UPLOADS}


def test_reuse_injects_the_saved_files_into_an_initial_run(way: Way) -> None:
    way.run(files=UPLOADS)
    again = way.run(session_files_mode="reuse", inputs='{"do": "again"}')
    assert again["kind"] == "initial"
    assert report(again)["files"] == HASHES
    assert report(again)["manifest"] == ["a.txt", "b.txt"]
    assert report(again)["inputs"] == {"do": "again"}
    assert report(way.act())["files"] == HASHES


def test_clear_injects_nothing_and_deletes_the_saved_files(service: Service, way: Way) -> None:
    way.run(files=UPLOADS)
    cleared = way.run(session_files_mode="clear")
    assert report(cleared)["files"] == {}
    assert way.files() == []
    assert list_blobs(service, way.tool_id) == []
    assert report(way.act())["files"] == {}


@pytest.mark.parametrize("form", [{}, {"session_files_mode": "none"}], ids=["default", "none"])
def test_without_opting_in_the_input_directory_is_empty(way: Way, form: dict[str, Any]) -> None:
    way.run(files=UPLOADS)
    plain = way.run(**form)
    assert report(plain)["files"] == {}
    # Kept all the same, for the steps to come (ADR-0039 §4).
    assert way.files() == ["a.txt", "b.txt"]
    assert report(way.act())["files"] == HASHES


def test_a_form_only_tool_runs_with_an_empty_input_directory(way: Way) -> None:
    assert report(way.run(inputs='{"do": "nothing"}'))["files"] == {}
    assert report(way.run(session_files_mode="reuse"))["files"] == {}
    assert way.files() == []


@pytest.mark.parametrize("mode", ["none", "reuse", "clear"])
def test_uploads_replace_whatever_the_mode_says(reporter: Way, mode: str) -> None:
    reporter.run(files=UPLOADS)
    replaced = reporter.run(files=[("c.txt", b"third")], session_files_mode=mode)
    assert list(report(replaced)["files"]) == ["c.txt"]
    assert reporter.files() == ["c.txt"]


def test_sandbox_and_production_files_of_one_user_never_meet(
    service: Service, admin: Client, way: Way
) -> None:
    if way.is_sandbox:
        other = Way(admin, way.tool_id, way.version_id, way.slug, is_sandbox=False)
    else:
        way = Way(admin, way.tool_id, way.version_id, way.slug, is_sandbox=False)
        other = Way(admin, way.tool_id, way.version_id, way.slug, is_sandbox=True)
    way.run(files=UPLOADS)
    assert other.files() == []
    assert report(other.run(session_files_mode="reuse"))["files"] == {}
    assert report(other.run(session_files_mode="clear"))["files"] == {}
    assert way.files() == ["a.txt", "b.txt"]
    assert way.saved()["context"] == (f"sandbox:{way.version_id}" if way.is_sandbox else "default")


@pytest.mark.parametrize("context", ["production", "sandbox"])
def test_a_default_style_holds_unless_an_uploaded_one_is_reused(
    service: Service, anna: Client, admin: Client, context: str
) -> None:
    heading = {"kind": "string", "name": "heading", "label": "Rubrik"}
    version = publish(service, STYLED, [FILE_FIELD | {"accept": [".css"]}, heading])
    is_sandbox = context == "sandbox"
    client = admin if is_sandbox else anna
    way = Way(client, version["tool_id"], version["id"], version["slug"], is_sandbox)

    def style(**form: Any) -> str:
        run = way.run(inputs='{"heading": "Hej"}', **form)
        text: str = run["ui_payload"]["outputs"][0]["html"]
        return "own" if "rebeccapurple" in text else "default" if "black" in text else text

    own = [("stil.css", b"h1 { color: rebeccapurple }")]
    assert style() == "default"
    assert style(session_files_mode="reuse") == "default", "there is nothing to reuse yet"
    assert style(files=own) == "own"
    assert style() == "default", "never without being asked"
    assert style(session_files_mode="reuse") == "own"
    assert style(session_files_mode="reuse") == "own", "as often as one likes"
    assert style(session_files_mode="clear") == "default"
    assert style(session_files_mode="reuse") == "default", "cleared means gone"
