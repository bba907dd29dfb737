"""The HTTP API as 2-http-api.md promises it: errors, health, and the document of it all."""

import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import msgspec
import pytest
from problems import NOWHERE, call_all, check_problem
from service import Client
from tiny_tools import QUIET

from app.api import examples
from app.api.openapi import DOCS, FILE_OPERATIONS, FORM_OPERATIONS

JSON = {"content-type": "application/json"}


def test_errors_of_the_framework_have_the_one_shape(anna: Client, stranger: httpx.Client) -> None:
    check_problem(stranger.get("/nothing"), 404, "not_found")
    check_problem(stranger.get("/../../nothing"), 404, "not_found")
    check_problem(anna.get("/runs/not-a-uuid"), 404, "not_found")
    refused = anna.put("/tools")
    check_problem(refused, 405, "method_not_allowed")
    assert "GET" in refused.headers["allow"]
    for body in (b"{", b"", b"[]", b"null", b'{"username": "\xff"}', b"[" * 100_000):
        answer = stranger.post("/auth/login", content=body, headers=JSON)
        check_problem(answer, 400, "malformed_request")


@pytest.mark.parametrize(
    ("body", "reasons"),
    [
        ({"username": 1, "password": "x"}, {"username": "wrong_type"}),
        ({"username": "x"}, {"password": "missing"}),
        ({"username": "x", "password": "y", "extra": 1}, {"extra": "unknown_field"}),
        ({"username": "x" * 201, "password": "y"}, {"username": "out_of_bounds"}),
    ],
)
def test_a_body_of_the_wrong_form_is_told_by_field(
    stranger: httpx.Client, body: dict[str, Any], reasons: dict[str, str]
) -> None:
    details = check_problem(stranger.post("/auth/login", json=body), 400, "malformed_request")
    assert {item["field"]: item["reason"] for item in details["reasons"]} == reasons


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_a_json_route_takes_nothing_else(stranger: httpx.Client, media_type: str) -> None:
    content = json.dumps({"username": "anna", "password": "anna-hemligt"})
    answer = stranger.post("/auth/login", content=content, headers={"content-type": media_type})
    check_problem(answer, 415, "unsupported_media_type")


def test_json_beyond_its_cap_is_refused(stranger: httpx.Client) -> None:
    answer = stranger.post("/auth/login", json={"username": "x" * 2_000_001, "password": ""})
    check_problem(answer, 413, "payload_too_large")


def test_what_postgresql_cannot_hold_is_the_callers_mistake(
    anna: Client, carin: Client, stranger: httpx.Client
) -> None:
    tool = carin.post("/editor/tools", json={"slug": f"nul-{uuid.uuid4().hex}", "title": "x"})
    path = f"/editor/tools/{tool.json()['id']}"
    label = {"kind": "string", "name": "a", "label": "a\x00"}
    answers = [
        anna.get("/tools", params={"q": "a\x00"}),
        anna.get("/tools/a%00"),
        anna.get("/runs", params={"tool": "a\x00"}),
        anna.post("/auth/tokens", json={"name": "a\x00"}),
        stranger.post("/auth/login", json={"username": "a\x00", "password": "x"}),
        carin.patch(path, json={"title": "a\x00"}),
        carin.post(f"{path}/versions", json={"source": QUIET, "input_schema": [label]}),
    ]
    for answer in answers:
        check_problem(answer, 400, "malformed_request")
    version = carin.post(f"{path}/versions", json={"source": QUIET}).json()
    draft = {"source": QUIET, "expected_rev": 2**40}
    answer = carin.put(f"/editor/tool-versions/{version['id']}", json=draft)
    check_problem(answer, 400, "malformed_request")
    far = {"name": "x", "expires_at": "9999-12-31T23:59:59-23:59"}
    assert anna.post("/auth/tokens", json=far).status_code < 500


def test_the_correlation_id_is_taken_or_made_and_echoed(stranger: httpx.Client) -> None:
    mine = str(uuid.uuid4())
    for path in ("/health/live", "/nothing", "/auth/me"):
        answer = stranger.get(path, headers={"X-Correlation-ID": mine})
        assert answer.headers.get_list("x-correlation-id") == [mine]
        made = [
            stranger.get(path, headers={"X-Correlation-ID": sent}).headers["x-correlation-id"]
            for sent in ("not a uuid", "", mine + mine)
        ]
        assert len({str(uuid.UUID(item)) for item in made}) == 3


def test_health_tells_life_and_each_dependency(stranger: httpx.Client) -> None:
    assert stranger.get("/health/live").json() == {"status": "ok"}
    ready = stranger.get("/health/ready")
    assert (ready.status_code, ready.json()["status"]) == (200, "ok")
    dependencies = ready.json()["dependencies"]
    assert {"database", "redis", "s3"} <= set(dependencies)
    for dependency in dependencies.values():
        assert dependency["status"] == "ok"
        assert dependency["duration_ms"] >= 0


ROUTES = """
POST /auth/login, POST /auth/logout, GET /auth/me, GET /auth/tokens, POST /auth/tokens,
DELETE /auth/tokens/{token_id}, GET /tools, GET /tools/{slug}, POST /tools/{slug}/run,
POST /start_action, GET /tools/{slug}/session, GET /tools/{slug}/session-files,
DELETE /tools/{slug}/session-files, GET /runs, GET /runs/{run_id}, POST /runs/{run_id}/cancel,
GET /runs/{run_id}/artifacts, GET /runs/{run_id}/artifacts/{path}, GET /editor/tools,
POST /editor/tools, PATCH /editor/tools/{tool_id}, GET /editor/tools/{tool_id}/versions,
POST /editor/tools/{tool_id}/versions, GET /editor/tool-versions/{version_id},
PUT /editor/tool-versions/{version_id}, POST /editor/tool-versions/{version_id}/publish,
POST /editor/tool-versions/{version_id}/run-sandbox,
POST /editor/tool-versions/{version_id}/start-action,
GET /editor/tool-versions/{version_id}/session,
GET /editor/tool-versions/{version_id}/session-files,
DELETE /editor/tool-versions/{version_id}/session-files, GET /health/live, GET /health/ready,
GET /metrics, GET /admin/storage
"""


def list_operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield method, path, operation


def test_the_document_lists_every_route(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    listed = {
        f"{method.upper()} {path.removeprefix('/api/v1')}"
        for method, path, _ in list_operations(document)
    }
    assert set(re.split(r",\s+", ROUTES.strip())) <= listed


def test_every_operation_has_examples_and_says_what_it_is(document: dict[str, Any]) -> None:
    for _, path, operation in list_operations(document):
        assert operation["description"], path
        body = operation.get("requestBody", {}).get("content", {})
        assert all("example" in media for media in body.values()), path
        assert operation["responses"], path
        for status, answer in operation["responses"].items():
            for media_type, media in answer.get("content", {}).items():
                assert "example" in media or media["examples"], (path, status)
                if media_type == "application/problem+json":
                    for code, example in media["examples"].items():
                        assert example["value"]["code"] == code
                        assert example["value"]["status"] == int(status)
            assert answer.get("content") or status in {"202", "204"}, (path, status)
        assert "500" not in operation["responses"], "a 500 is a bug"


def test_the_document_names_every_word_of_a_run(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    words = {
        "RunKind": ["initial", "action"],
        "RunStatus": ["queued", "running", "succeeded", "failed", "timed_out", "cancelled"],
    }
    for name, values in words.items():
        assert schemas[name]["enum"] == values
    for view in ("RunView", "SandboxRunView"):
        fields = schemas[view]["properties"]
        assert [fields[name]["$ref"].rpartition("/")[2] for name in ("kind", "status")] == [*words]
    assert schemas["UserView"]["properties"]["role"]["enum"] == ["user", "contributor", "admin"]


def test_examples_are_what_their_types_say() -> None:
    for doc in DOCS.values():
        for example in (doc.body, *doc.answers.values()):
            if isinstance(example, msgspec.Struct):
                again = msgspec.json.decode(msgspec.json.encode(example), type=type(example))
                assert again == example
    assert set(DOCS) >= FORM_OPERATIONS | FILE_OPERATIONS
    assert examples.RUN.ui_payload is not None


def test_a_path_beside_the_document_is_not_found_in_the_one_shape(stranger: httpx.Client) -> None:
    root = str(stranger.base_url)[:-8]
    check_problem(stranger.get(f"{root}/schema/nothing"), 404, "not_found")
    check_problem(stranger.get(f"{root}/nothing"), 404, "not_found")
    assert stranger.get(f"{root}/schema/openapi.json").status_code == 200


def test_security_headers_are_on_every_answer(stranger: httpx.Client) -> None:
    for path in ("/health/live", "/nothing", "/auth/me"):
        headers = stranger.get(path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert "server" not in headers


def test_every_body_is_held_to_its_form(document: dict[str, Any], admin: Client) -> None:
    calls = [
        call
        for call in call_all(document, lambda path, _: path.endswith("/login"))
        if "json" in call[2]
    ]
    assert len(calls) == 8
    large = json.dumps({"x": "x" * 2_000_001})
    for method, path, given in calls:
        broken = admin.request(method, path, content=b"{", headers=JSON)
        check_problem(broken, 400, "malformed_request")
        unknown = admin.request(method, path, json=given["json"] | {"unknown": 1})
        check_problem(unknown, 400, "malformed_request")
        text = admin.request(method, path, content=b"{}", headers={"content-type": "text/plain"})
        check_problem(text, 415, "unsupported_media_type")
        check_problem(
            admin.request(method, path, content=large, headers=JSON), 413, "payload_too_large"
        )


def test_every_slug_is_a_text(document: dict[str, Any], admin: Client) -> None:
    calls = list(call_all(document, lambda path, _: "{slug}" not in path))
    assert len(calls) == 5
    for method, path, given in calls:
        answer = admin.request(method, path.replace(NOWHERE, "a%00"), **given)
        check_problem(answer, 400, "malformed_request")
