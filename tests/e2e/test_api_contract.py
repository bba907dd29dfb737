"""The HTTP API as 2-http-api.md promises it, each request at the next node."""

import json
import re
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import msgspec
import pytest
from service import TIMEOUT_SECONDS, Client, Service
from steps import DocumentCheck, Way, delete_objects, list_blobs, log_in, publish
from tiny_tools import FILE_FIELD, QUIET, REPORTER, WRITER

from app.api import examples
from app.api.openapi import DOCS, FILE_OPERATIONS, FORM_OPERATIONS
from app.domain.normalizer import canonical_json

NOWHERE = str(uuid.UUID(int=7))


def check_problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Hold an answer against the one shape of errors; returns its `details`."""
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    problem = answer.json()
    members = {"type", "title", "status", "detail", "code", "details", "correlation_id"}
    assert set(problem) == members
    assert problem["status"] == status
    assert problem["type"] == f"urn:skriptoteket:problem:{code}"
    assert problem["correlation_id"] == answer.headers["x-correlation-id"]
    assert isinstance(problem["details"], dict)
    leaks = r"/work|/tmp|site-packages|Traceback|SELECT|INSERT|asyncpg|msgspec|Expected|Object "
    assert not re.search(leaks, answer.text), answer.text
    details: dict[str, Any] = problem["details"]
    return details


@pytest.fixture(scope="module")
def quiet(service: Service) -> dict[str, Any]:
    return publish(service, QUIET, [FILE_FIELD])


@pytest.fixture(scope="module")
def stranger(service: Service) -> Iterator[httpx.Client]:
    """Somebody who has not logged in."""
    base_url = f"{service.running.urls[0]}/api/v1"
    with httpx.Client(base_url=base_url, timeout=TIMEOUT_SECONDS) as client:
        client.event_hooks["response"].append(DocumentCheck(service.running.urls[0]))
        yield client


# --- the shape of errors --------------------------------------------------------------------

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


# --- logging in -----------------------------------------------------------------------------


def test_a_login_is_a_cookie_that_scripts_cannot_read(stranger: httpx.Client) -> None:
    login = {"username": "  ANNA ", "password": "anna-hemligt"}
    with httpx.Client(base_url=stranger.base_url, timeout=TIMEOUT_SECONDS) as client:
        answer = client.post("/auth/login", json=login)
        assert set(answer.json()) == {"id", "username", "display_name", "role"}
        session, csrf = sorted(answer.headers.get_list("set-cookie"), reverse=True)
        assert "HttpOnly" in session and "HttpOnly" not in csrf
        assert "samesite=lax" in session.lower()
        me = client.get("/auth/me").json()
        assert (me["username"], me["role"]) == ("anna", "user")


def test_unknown_user_and_wrong_password_get_the_same_answer(stranger: httpx.Client) -> None:
    answers = [
        stranger.post("/auth/login", json={"username": name, "password": "fel"})
        for name in ("anna", "ingen-alls")
    ]
    for answer in answers:
        check_problem(answer, 401, "bad_credentials")
        assert answer.json()["detail"] == "Fel användarnamn eller lösenord."
        assert "set-cookie" not in answer.headers


def test_logging_out_ends_the_session_on_every_node(service: Service) -> None:
    with log_in(service, "bo") as client:
        cookies = dict(client.cookies)
        assert client.post("/auth/logout").status_code == 204
        assert "skriptoteket_session" not in client.cookies
        for name, value in cookies.items():
            client.cookies.set(name, value)
        for _ in service.running.urls:
            check_problem(client.get("/auth/me"), 401, "not_authenticated")


def test_a_changing_call_by_cookie_needs_the_csrf_token(service: Service) -> None:
    with log_in(service, "bo") as client, log_in(service, "bo") as other:
        for token in ("", "x", client.headers.pop("x-csrftoken") + "x", "å"):
            headers = {"x-csrftoken": token.encode()} if token else {}
            answer = client.post("/auth/tokens", json={"name": "x"}, headers=headers)
            check_problem(answer, 403, "csrf_failed")
        theirs = {"x-csrftoken": other.headers["x-csrftoken"]}
        answer = client.post("/auth/tokens", json={"name": "x"}, headers=theirs)
        check_problem(answer, 403, "csrf_failed")
        assert client.get("/auth/me").status_code == 200, "reading needs none"


async def test_a_user_who_is_no_longer_active_is_out_at_once(service: Service) -> None:
    async def set_active(value: bool) -> None:
        connection = await asyncpg.connect(service.running.stack.database_url)
        await connection.execute("UPDATE users SET is_active = $1 WHERE username = 'bo'", value)
        await connection.close()

    with log_in(service, "bo") as client:
        token = client.post("/auth/tokens", json={"name": "kvar"}).json()
        program = {"Authorization": f"Bearer {token['token']}"}
        login = {"username": "bo", "password": "bo-hemligt"}
        await set_active(False)
        try:
            check_problem(client.get("/auth/me"), 401, "not_authenticated")
            check_problem(client.get("/auth/me", headers=program), 401, "not_authenticated")
            check_problem(client.post("/auth/login", json=login), 401, "bad_credentials")
        finally:
            await set_active(True)
        assert client.get("/auth/me", headers=program).status_code == 200
        assert client.delete(f"/auth/tokens/{token['id']}").status_code == 204


def test_too_many_logins_are_told_when_to_come_back(idle_service: Service) -> None:
    with httpx.Client(base_url=f"{idle_service.running.urls[0]}/api/v1", timeout=60) as client:
        wrong = {"username": "carin", "password": "fel"}
        for _ in range(3):
            check_problem(client.post("/auth/login", json=wrong), 401, "bad_credentials")
        right = wrong | {"password": "carin-hemligt"}
        for login in (wrong, right, right | {"username": " CARIN "}):
            answer = client.post("/auth/login", json=login)
            check_problem(answer, 429, "too_many_requests")
            assert 0 < int(answer.headers["retry-after"]) <= 300
        admin = {"username": "admin", "password": "admin-hemligt"}
        assert client.post("/auth/login", json=admin).status_code == 200, "others are not kept out"


# --- API tokens -----------------------------------------------------------------------------


def test_a_token_works_until_it_is_revoked_and_is_shown_once(
    anna: Client, bo: Client, stranger: httpx.Client, quiet: dict[str, Any]
) -> None:
    made = anna.post("/auth/tokens", json={"name": "Schemaläggaren"})
    assert made.status_code == 201
    token = made.json()
    program = {"Authorization": f"Bearer {token['token']}"}
    assert stranger.get("/auth/me", headers=program).json()["username"] == "anna"
    # No cookie, so no CSRF token either.
    ran = stranger.post(
        f"/tools/{quiet['slug']}/run", headers=program, files={"inputs": (None, "")}
    )
    assert ran.status_code == 202

    listed = anna.get("/auth/tokens")
    assert token["id"] in [item["id"] for item in listed.json()]
    assert all(set(item) == {"id", "name", "created_at", "expires_at"} for item in listed.json())
    assert token["token"] not in listed.text

    check_problem(bo.delete(f"/auth/tokens/{token['id']}"), 404, "not_found")
    assert anna.delete(f"/auth/tokens/{token['id']}").status_code == 204
    check_problem(stranger.get("/auth/me", headers=program), 401, "not_authenticated")
    check_problem(anna.delete(f"/auth/tokens/{token['id']}"), 404, "not_found")


def test_a_token_ends_at_its_time(anna: Client, stranger: httpx.Client) -> None:
    soon = datetime.now(UTC) + timedelta(seconds=1.5)
    body = {"name": "kort", "expires_at": soon.isoformat()}
    token = anna.post("/auth/tokens", json=body).json()
    program = {"Authorization": f"Bearer {token['token']}"}
    assert stranger.get("/auth/me", headers=program).status_code == 200
    time.sleep(max(0.0, (soon - datetime.now(UTC)).total_seconds()) + 0.1)
    check_problem(stranger.get("/auth/me", headers=program), 401, "not_authenticated")
    anna.delete(f"/auth/tokens/{token['id']}")
    for past in ("2020-01-01T00:00:00Z", "2999-01-01T00:00:00"):
        answer = anna.post("/auth/tokens", json={"name": "x", "expires_at": past})
        check_problem(answer, 422, "invalid_request")


@pytest.mark.parametrize("value", ["Bearer nope", "Bearer", "Basic YTpi", "x", "Bearer å"])
def test_a_bad_authorization_does_not_fall_back_to_the_cookie(anna: Client, value: str) -> None:
    answer = anna.get("/auth/me", headers={"Authorization": value.encode()})
    check_problem(answer, 401, "not_authenticated")
    assert answer.headers["www-authenticate"] == "Bearer"


# --- roles and foreign ids ------------------------------------------------------------------


def call_all(
    document: dict[str, Any], skip: Callable[[str, dict[str, Any]], bool]
) -> Iterator[Any]:
    """Yield (method, path with ids that nobody has, example body) of the operations not skipped."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if skip(path, operation):
                continue
            body = operation.get("requestBody", {}).get("content", {})
            given = {}
            if "application/json" in body:
                given = {"json": body["application/json"]["example"]}
            elif "multipart/form-data" in body:
                given = {"files": [("files", ("a.html", b"a"))]}
            yield method, re.sub(r"{\w+}", NOWHERE, path.removeprefix("/api/v1")), given


@pytest.fixture(scope="module")
def document(stranger: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = stranger.get(f"{str(stranger.base_url)[:-8]}/schema").json()
    return found


def test_every_operation_that_says_so_needs_a_login(
    document: dict[str, Any], stranger: httpx.Client
) -> None:
    calls = list(call_all(document, lambda _, operation: "401" not in operation["responses"]))
    assert len(calls) == len(DOCS) - 2, "all but health"
    for method, path, given in calls:
        code = "bad_credentials" if path == "/auth/login" else "not_authenticated"
        check_problem(stranger.request(method, path, **given), 401, code)


def test_users_have_no_business_in_the_editor_and_contributors_do_not_publish(
    document: dict[str, Any], anna: Client, carin: Client
) -> None:
    calls = list(call_all(document, lambda path, _: "/editor/" not in path))
    assert len(calls) == 13
    for method, path, given in calls:
        check_problem(anna.request(method, path, **given), 403, "forbidden")
    answer = carin.post(f"/editor/tool-versions/{NOWHERE}/publish")
    check_problem(answer, 403, "forbidden")


def test_ids_that_nobody_has_are_not_found(document: dict[str, Any], admin: Client) -> None:
    calls = list(call_all(document, lambda _, operation: "404" not in operation["responses"]))
    assert len(calls) >= 20
    for method, path, given in calls:
        check_problem(admin.request(method, path, **given), 404, "not_found")


def test_every_body_is_held_to_its_form(document: dict[str, Any], admin: Client) -> None:
    calls = [
        call
        for call in call_all(document, lambda path, _: path.endswith("/login"))
        if "json" in call[2]
    ]
    assert len(calls) == 7
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


def test_foreign_runs_are_not_found(service: Service, anna: Client, bo: Client) -> None:
    version = publish(service, WRITER)
    run = anna.run_tool(version["slug"]).json()
    assert run["status"] == "succeeded"
    path = f"/runs/{run['run_id']}"
    artifact = f"{path}/artifacts/output/siffror.bin"
    for one_path in (path, f"{path}/artifacts", artifact):
        assert anna.get(one_path).status_code == 200
        check_problem(bo.get(one_path), 404, "not_found")
    check_problem(bo.get(path, headers={"Prefer": "wait=1"}), 404, "not_found")
    check_problem(bo.post(f"{path}/cancel"), 404, "not_found")
    assert bo.get("/runs", params={"tool": version["slug"]}).json()["items"] == []


def test_foreign_sessions_are_ones_own_and_empty(
    service: Service, anna: Client, bo: Client
) -> None:
    version = publish(service, REPORTER, [FILE_FIELD])
    names = (version["tool_id"], version["id"], version["slug"])
    Way(anna, *names, is_sandbox=False).run(files=[("a.txt", b"a")])
    theirs = Way(bo, *names, is_sandbox=False)
    assert theirs.files() == []
    assert theirs.session() | {"tool_id": 0} == {
        "tool_id": 0,
        "context": "default",
        "state": {},
        "state_rev": 0,
        "latest_run_id": None,
        "active_run_id": None,
        "next_actions": [],
    }
    check_problem(theirs.send_action(expected_state_rev=1), 404, "not_found")
    assert theirs.clear().status_code == 204
    assert Way(anna, *names, is_sandbox=False).files() == ["a.txt"]


def test_foreign_tools_of_the_editor_are_not_found(
    service: Service, admin: Client, carin: Client
) -> None:
    version = publish(service, QUIET, [FILE_FIELD])
    tool, one = f"/editor/tools/{version['tool_id']}", f"/editor/tool-versions/{version['id']}"
    draft = {"source": QUIET, "expected_rev": 0}
    turn = {"action_id": "x", "expected_state_rev": 0}
    answers = [
        carin.patch(tool, json={"title": "Min nu"}),
        carin.get(f"{tool}/versions"),
        carin.post(f"{tool}/versions", json={"source": QUIET}),
        carin.get(one),
        carin.put(one, json=draft),
        carin.run_sandbox(version["id"], files=[("a.txt", b"a")]),
        carin.post(f"{one}/start-action", json=turn),
        carin.get(f"{one}/session"),
        carin.get(f"{one}/session-files"),
        carin.delete(f"{one}/session-files"),
    ]
    for answer in answers:
        check_problem(answer, 404, "not_found")
    assert list_blobs(service, version["tool_id"]) == []
    assert admin.get(one).status_code == 200
    assert carin.run_tool(version["slug"]).json()["status"] == "succeeded", "published to all"


def test_a_contributor_writes_saves_and_tries_out_a_tool(carin: Client, admin: Client) -> None:
    slug = f"eget-{uuid.uuid4().hex[:8]}"
    tool = carin.post("/editor/tools", json={"slug": slug, "title": "Eget"}).json()
    again = carin.post("/editor/tools", json={"slug": slug, "title": "Eget"})
    check_problem(again, 409, "conflict")
    check_problem(
        carin.post("/editor/tools", json={"slug": "Med Mellanslag", "title": "x"}),
        422,
        "invalid_request",
    )
    versions = f"/editor/tools/{tool['id']}/versions"
    for source, detail in (
        ("def run_tool(:", "Koden har ett syntaxfel på rad 1."),
        ("x = 1", "Koden saknar funktionen run_tool(input_dir, output_dir)."),
        ("\x00", "Koden går inte att tolka."),
    ):
        answer = carin.post(versions, json={"source": source})
        check_problem(answer, 422, "invalid_source")
        assert answer.json()["detail"] == detail
    for schema in ([{"kind": "enum", "name": "a", "label": "A"}], [{"name": "a"}], [{"kind": 1}]):
        answer = carin.post(versions, json={"source": QUIET, "input_schema": schema})
        check_problem(answer, 422, "invalid_input_schema")

    version = carin.post(versions, json={"source": QUIET}).json()
    path = f"/editor/tool-versions/{version['id']}"
    saved = carin.put(path, json={"source": QUIET + "# 2", "expected_rev": 0})
    assert (saved.status_code, saved.json()["rev"]) == (200, 1)
    stale = carin.put(path, json={"source": QUIET, "expected_rev": 0})
    assert check_problem(stale, 409, "edit_conflict") == {"rev": 1}
    assert carin.run_sandbox(version["id"]).json()["status"] == "succeeded"
    check_problem(carin.get(f"/tools/{slug}"), 404, "not_found")
    check_problem(carin.run_tool(slug), 404, "not_found")

    assert admin.post(f"{path}/publish").json()["status"] == "published"
    assert carin.get(f"/tools/{slug}").json()["title"] == "Eget"
    fixed = carin.put(path, json={"source": QUIET, "expected_rev": 1})
    check_problem(fixed, 409, "conflict")
    renamed = carin.patch(f"/editor/tools/{tool['id']}", json={"title": "Åtgärdat"}).json()
    assert (renamed["title"], renamed["slug"]) == ("Åtgärdat", slug)
    assert [item["number"] for item in carin.get(versions).json()["items"]] == [1]


# --- pages ----------------------------------------------------------------------------------


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


# --- waiting --------------------------------------------------------------------------------


def test_without_the_preference_a_run_is_queued_and_answered_at_once(
    anna: Client, quiet: dict[str, Any]
) -> None:
    answer = anna.run_tool(quiet["slug"], wait=None)
    run = answer.json()
    assert (answer.status_code, run["status"]) == (202, "queued")
    assert answer.headers["location"] == f"/api/v1/runs/{run['run_id']}"
    assert "preference-applied" not in answer.headers
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
        for run in client.get("/runs", params={"tool": version["slug"]}).json()["items"]:
            assert client.post(f"/runs/{run['run_id']}/cancel").status_code == 202


# --- payloads and files ---------------------------------------------------------------------


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


# --- multipart ------------------------------------------------------------------------------

BOUNDARY = "x-boundary"


def make_part(disposition: str, content: bytes = b"") -> bytes:
    head = f"--{BOUNDARY}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n"
    return head.encode() + content + b"\r\n"


END = f"--{BOUNDARY}--\r\n".encode()
A_FILE = make_part('name="files"; filename="a.txt"', b"a")
FORMS: dict[str, tuple[bytes, int, str | None]] = {
    "fields after the files": (
        A_FILE + make_part('name="inputs"', b'{"do": "x"}') + END,
        202,
        None,
    ),
    "same context after the files": (
        A_FILE + make_part('name="session_context"', b" default ") + END,
        202,
        None,
    ),
    "other context after the files": (
        A_FILE + make_part('name="session_context"', b"klass") + END,
        400,
        "malformed_request",
    ),
    "file field left empty": (make_part('name="files"; filename=""') + END, 202, None),
    "content without a name": (
        make_part('name="files"; filename=""', b"a") + END,
        400,
        "malformed_request",
    ),
    "files without filename": (make_part('name="files"', b"a") + END, 400, "malformed_request"),
    "unknown field": (make_part('name="fil"', b"a") + END, 400, "malformed_request"),
    "part without a name": (A_FILE + make_part('x="y"', b"a") + END, 400, "malformed_request"),
    "text that is no UTF-8": (make_part('name="inputs"', b"\xff") + END, 400, "malformed_request"),
    "text over its cap": (
        make_part('name="inputs"', b" " * 1_000_001) + END,
        413,
        "field_too_large",
    ),
    "too many parts": (make_part('name="inputs"', b"{}") * 60 + END, 413, "payload_too_large"),
    "ends early": (A_FILE, 400, "malformed_request"),
    "ends in the middle of a file": (A_FILE[:-3], 400, "malformed_request"),
    "no multipart at all": (b"hello", 400, "malformed_request"),
    "nothing": (b"", 400, "malformed_request"),
}


@pytest.mark.parametrize("name", FORMS)
def test_oddities_of_multipart_bodies(service: Service, reporter: Way, name: str) -> None:
    body, status, code = FORMS[name]
    answer = reporter.client.post(
        f"/tools/{reporter.slug}/run",
        content=body,
        headers={"content-type": f"multipart/form-data; boundary={BOUNDARY}"},
    )
    if code is None:
        assert answer.status_code == status, answer.text
    else:
        check_problem(answer, status, code)
        assert list_blobs(service, reporter.tool_id) == []


@pytest.mark.parametrize(
    "media_type",
    ["multipart/form-data", "application/json", "multipart/mixed; boundary=x", "", "nonsense"],
)
def test_a_form_is_multipart_with_a_boundary(
    anna: Client, quiet: dict[str, Any], media_type: str
) -> None:
    headers = {"content-type": media_type}
    answer = anna.post(f"/tools/{quiet['slug']}/run", content=A_FILE + END, headers=headers)
    check_problem(answer, 415, "unsupported_media_type")


def test_file_names_are_what_the_browser_meant(reporter: Way) -> None:
    # Browsers send UTF-8 as it is and escape the quotation mark.
    name = 'Läsår "åäö".txt'
    disposition = 'name="files"; filename="Läsår %22åäö%22.txt"'
    answer = reporter.client.post(
        f"/tools/{reporter.slug}/run",
        content=make_part(disposition, b"a") + END,
        headers={"content-type": f"multipart/form-data; boundary={BOUNDARY}"},
    )
    assert answer.status_code == 202, answer.text
    assert reporter.files() == [name]


# --- health and the document ----------------------------------------------------------------


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
DELETE /editor/tool-versions/{version_id}/session-files, GET /health/live, GET /health/ready
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
