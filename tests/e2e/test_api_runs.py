"""Lists, waiting for a run, its payload and its files, through HTTP."""

import time
import uuid
from typing import Any

import pytest
from problems import check_problem
from service import Client, Service
from steps import delete_objects, log_in, publish
from tiny_tools import QUIET, WRITER

from app.domain.normalizer import canonical_json


def list_pages(client: Client, path: str, limit: int, **query: str) -> list[list[dict[str, Any]]]:
    pages: list[list[dict[str, Any]]] = []
    cursor: str | None = ""
    while cursor is not None:
        params = {"limit": str(limit)} | query | ({"cursor": cursor} if cursor else {})
        page = client.get(path, params=params).raise_for_status().json()
        pages.append(page["items"])
        cursor = page["next_cursor"]
    return pages


def test_lists_come_in_pages_without_gaps_or_repeats(carin: Client, admin: Client) -> None:
    # Equal titles: the position in a list is more than the title.
    mark = uuid.uuid4().hex[:8]
    made = []
    for number in range(5):
        body = {"slug": f"{mark}-{number}", "title": f"Sida {mark}"}
        tool = carin.post("/editor/tools", json=body).raise_for_status().json()
        made.append(tool["id"])
        version = carin.post(f"/editor/tools/{tool['id']}/versions", json={"source": QUIET}).json()
        admin.post(f"/editor/tool-versions/{version['id']}/publish").raise_for_status()
    pages = list_pages(carin, "/tools", 2, q=mark)
    assert [len(page) for page in pages] == [2, 2, 1]
    assert [tool["id"] for page in pages for tool in page] == sorted(made)
    assert list_pages(carin, "/tools", 5, q=mark) == [[tool for page in pages for tool in page]]
    own = [tool["id"] for page in list_pages(carin, "/editor/tools", 2) for tool in page]
    assert set(made) <= set(own) and len(set(own)) == len(own)
    assert carin.get("/tools", params={"q": "%"}).json()["items"] == [], "no wildcard"

    runs = [carin.run_tool(f"{mark}-0", wait=None).json()["run_id"] for _ in range(3)]
    pages = list_pages(carin, "/runs", 2, tool=f"{mark}-0")
    assert [run["run_id"] for page in pages for run in page] == runs[::-1]
    assert all(run["ui_payload"] is None for page in pages for run in page)


@pytest.mark.parametrize("path", ["/tools", "/runs", "/editor/tools"])
def test_a_page_that_cannot_be_is_refused(carin: Client, path: str) -> None:
    for limit in ("0", "-1", "201", "x", "", "99999999999999999999"):
        check_problem(carin.get(path, params={"limit": limit}), 400, "malformed_request")
    for cursor in ("x", "å", "", "e30", "WzEsMl0", "A" * 5000, "WyJhXHUwMDAwIiwiMCJd"):
        check_problem(carin.get(path, params={"cursor": cursor}), 400, "malformed_request")


def test_without_the_preference_a_run_is_queued_and_answered_at_once(
    idle_service: Service,
) -> None:
    # Where nobody works: else a worker may have it in the moment before the answer is made.
    version = publish(idle_service, QUIET)
    with log_in(idle_service, "bo") as client:
        answer = client.run_tool(version["slug"], wait=None)
        run = answer.json()
        assert (answer.status_code, run["status"]) == (202, "queued")
        assert answer.headers["location"] == f"/api/v1/runs/{run['run_id']}"
        assert "preference-applied" not in answer.headers


def test_a_run_can_be_waited_for_after_its_start(anna: Client, quiet: dict[str, Any]) -> None:
    run = anna.run_tool(quiet["slug"], wait=None).json()
    waited = anna.get(f"/runs/{run['run_id']}", headers={"Prefer": "wait=30"})
    assert waited.json()["status"] == "succeeded"
    assert waited.headers["preference-applied"] == "wait=30"


@pytest.mark.parametrize(
    ("prefer", "applied"),
    [
        ("wait=20", "wait=20"),
        ("wait=999", "wait=30"),
        ('respond-async, WAIT = "20"', "wait=20"),
        ("wait=20; x=y", "wait=20"),
    ],
)
def test_a_run_that_is_waited_for_is_answered_when_it_is_done(
    anna: Client, quiet: dict[str, Any], prefer: str, applied: str
) -> None:
    form = {"inputs": (None, "{}")}
    started = time.monotonic()
    answer = anna.post(f"/tools/{quiet['slug']}/run", files=form, headers={"Prefer": prefer})
    assert (answer.status_code, answer.json()["status"]) == (200, "succeeded")
    assert answer.headers["preference-applied"] == applied
    assert time.monotonic() - started < 15


@pytest.mark.parametrize("prefer", ["wait=soon", "wait=-1", "wait", "return=minimal", "wait=1.5"])
def test_a_preference_that_cannot_be_read_is_ignored(
    anna: Client, quiet: dict[str, Any], prefer: str
) -> None:
    form = {"inputs": (None, "{}")}
    answer = anna.post(f"/tools/{quiet['slug']}/run", files=form, headers={"Prefer": prefer})
    assert answer.status_code == 202
    assert "preference-applied" not in answer.headers


def test_a_run_that_takes_longer_than_the_wait_is_answered_as_it_is(
    idle_service: Service,
) -> None:
    version = publish(idle_service, QUIET)
    with log_in(idle_service, "bo") as client:
        started = time.monotonic()
        answer = client.run_tool(version["slug"], wait=1)
        assert (answer.status_code, answer.json()["status"]) == (202, "queued")
        assert 1 <= time.monotonic() - started < 5
        assert client.run_tool(version["slug"], wait=0).status_code == 202


def test_the_payload_is_canonical_json_to_the_byte(service: Service, anna: Client) -> None:
    source = """
def run_tool(input_dir, output_dir):
    value = {"ö": 1, "b": [1.0, 1e22, -0.0, None, True, 0.1], "a": {"z": "\\u00e5\\n", "y": {}}}
    return {"outputs": [{"kind": "json", "value": value, "title": "T"}], "state": {"s": 1}}
"""
    version = publish(service, source)
    answer = anna.run_tool(version["slug"])
    run_id = answer.json()["run_id"]
    payload = answer.json()["ui_payload"]
    canonical = canonical_json(payload)
    assert b'"value":{"a":{"y":{},"z":"' in canonical
    assert b'"ui_payload":' + canonical in answer.content
    for _ in service.running.urls:
        assert b'"ui_payload":' + canonical in anna.get(f"/runs/{run_id}").content


@pytest.fixture(scope="module")
def written(service: Service, anna: Client) -> str:
    """The id of a run that wrote files."""
    run = anna.run_tool(publish(service, WRITER)["slug"]).json()
    assert run["status"] == "succeeded"
    run_id: str = run["run_id"]
    return run_id


def test_artifacts_are_listed_and_downloaded_whole(anna: Client, written: str) -> None:
    listed = anna.get(f"/runs/{written}/artifacts").json()
    assert listed["run_id"] == written
    found = {item["path"]: item for item in listed["artifacts"]}
    odd = 'output/mapp/Åäö “citat” "rakt" 100%.txt'
    assert set(found) == {"output/siffror.bin", odd, "output/tom.txt"}
    for item in found.values():
        answer = anna.get(item["download_url"].removeprefix("/api/v1"))
        assert answer.status_code == 200
        assert len(answer.content) == item["bytes"] == int(answer.headers["content-length"])
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-disposition"].startswith("attachment; ")
    assert anna.get(f"/runs/{written}/artifacts/siffror.bin").content == bytes(range(100))

    answer = anna.get(found[odd]["download_url"].removeprefix("/api/v1"))
    assert answer.text == "räksmörgås"
    assert answer.headers["content-disposition"] == (
        'attachment; filename="___ _citat_ _rakt_ 100_.txt"; '
        "filename*=UTF-8''%C3%85%C3%A4%C3%B6%20%E2%80%9Ccitat%E2%80%9D%20%22rakt%22%20100%25.txt"
    )
    for path in ("nej.txt", "output/", "output/%2e%2e/siffror.bin", "%2e%2e/x", "0"):
        check_problem(anna.get(f"/runs/{written}/artifacts/{path}"), 404, "not_found")


@pytest.mark.parametrize(
    ("range_", "span"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=10-19", (10, 20)),
        ("Bytes=10-19", (10, 20)),
        ("bytes=90-", (90, 100)),
        ("bytes=90-5000", (90, 100)),
        ("bytes=-10", (90, 100)),
        ("bytes=-5000", (0, 100)),
    ],
)
def test_a_single_range_is_sent_alone(
    anna: Client, written: str, range_: str, span: tuple[int, int]
) -> None:
    answer = anna.get(f"/runs/{written}/artifacts/siffror.bin", headers={"Range": range_})
    start, end = span
    assert answer.status_code == 206
    assert answer.content == bytes(range(start, end))
    assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/100"


@pytest.mark.parametrize("name", ["siffror.bin", "tom.txt"])
@pytest.mark.parametrize("range_", ["bytes=100-", "bytes=5000-6000", "bytes=-0"])
def test_a_range_outside_the_file_is_refused(
    anna: Client, written: str, name: str, range_: str
) -> None:
    answer = anna.get(f"/runs/{written}/artifacts/{name}", headers={"Range": range_})
    size = 100 if name == "siffror.bin" else 0
    assert check_problem(answer, 416, "range_not_satisfiable") == {"bytes": size}
    assert answer.headers["content-range"] == f"bytes */{size}"


@pytest.mark.parametrize(
    "headers",
    [
        {"Range": "bytes=0-1,3-4"},
        {"Range": "bytes=5-2"},
        {"Range": "bytes=-"},
        {"Range": "lines=0-1"},
        {"Range": "bytes=0-1", "If-Range": '"x"'},
    ],
)
def test_other_ranges_get_the_whole_file(
    anna: Client, written: str, headers: dict[str, str]
) -> None:
    answer = anna.get(f"/runs/{written}/artifacts/siffror.bin", headers=headers)
    assert (answer.status_code, len(answer.content)) == (200, 100)
    assert answer.headers["accept-ranges"] == "bytes"


def test_an_artifact_past_its_retention_is_told_before_any_byte(
    service: Service, anna: Client
) -> None:
    run_id = anna.run_tool(publish(service, WRITER)["slug"]).json()["run_id"]
    assert delete_objects(service, f"runs/{run_id}/") == 3
    answer = anna.get(f"/runs/{run_id}/artifacts/siffror.bin")
    check_problem(answer, 404, "not_found")
    assert "gallrats" in answer.json()["detail"]
