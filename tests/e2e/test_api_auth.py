"""Who may do what: logging in, API tokens, CSRF, roles, and ids of others."""

import time
import uuid
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import asyncpg
import httpx
import pytest
from problems import NOWHERE, call_all, check_problem
from service import TIMEOUT_SECONDS, Client, Service
from steps import Way, list_blobs, log_in, publish
from tiny_tools import FILE_FIELD, QUIET, REPORTER, WRITER
from traces import PASSWORD, add_program, add_user

from app.api.openapi import DOCS


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


def test_a_name_is_the_same_however_it_is_written(service: Service, stranger: httpx.Client) -> None:
    environment, name = service.running.environment, f"rektor-{uuid.uuid4().hex[:8]}"
    user_id = add_user(environment, f" {name.upper()} ")
    with pytest.raises(AssertionError, match="taken"):
        add_user(environment, name.title())
    login = {"username": f"{name.title()}  ", "password": PASSWORD}
    with httpx.Client(base_url=stranger.base_url, timeout=TIMEOUT_SECONDS) as client:
        user = client.post("/auth/login", json=login).json()
    shown = {"id": user_id, "username": name, "display_name": name, "role": "user"}
    assert user == shown


def test_nobody_logs_in_where_there_is_no_password(
    service: Service, stranger: httpx.Client
) -> None:
    name = f"program-{uuid.uuid4().hex[:8]}"
    user_id, token = add_program(service.running.environment, name)
    for password in ("", "none"):
        answer = stranger.post("/auth/login", json={"username": name, "password": password})
        check_problem(answer, 401, "bad_credentials")
    headers = {"Authorization": f"Bearer {token}"}
    assert stranger.get("/auth/me", headers=headers).json()["id"] == user_id


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


def test_every_operation_that_says_so_needs_a_login(
    document: dict[str, Any], stranger: httpx.Client
) -> None:
    calls = list(call_all(document, lambda _, operation: "401" not in operation["responses"]))
    assert len(calls) == len(DOCS) - 3, "all but health and metrics"
    for method, path, given in calls:
        code = "bad_credentials" if path == "/auth/login" else "not_authenticated"
        check_problem(stranger.request(method, path, **given), 401, code)


def test_users_have_no_business_in_the_editor_and_contributors_do_not_publish(
    document: dict[str, Any], anna: Client, carin: Client
) -> None:
    calls = list(call_all(document, lambda path, _: "/editor/" not in path))
    assert len(calls) == 14
    for method, path, given in calls:
        check_problem(anna.request(method, path, **given), 403, "forbidden")
    answer = carin.post(f"/editor/tool-versions/{NOWHERE}/publish")
    check_problem(answer, 403, "forbidden")


def test_ids_that_nobody_has_are_not_found(document: dict[str, Any], admin: Client) -> None:
    calls = list(call_all(document, lambda _, operation: "404" not in operation["responses"]))
    assert len(calls) >= 20
    for method, path, given in calls:
        check_problem(admin.request(method, path, **given), 404, "not_found")


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


@pytest.mark.parametrize(
    "path", ["/start_action", "/auth/tokens", "/editor/tools", "/tools/finns-inte/run"]
)
def test_who_asks_is_found_out_before_the_body_is_read(service: Service, path: str) -> None:
    stranger = httpx.Client(base_url=f"{service.running.urls[0]}/api/v1")
    with stranger:
        answer = stranger.post(
            path, content=b"{not json", headers={"content-type": "application/json"}
        )
    assert answer.status_code == 401
    assert answer.json()["code"] == "not_authenticated"


@pytest.mark.parametrize("header", ["X-CSRFToken", "X-CSRF-Token"])
def test_both_common_names_of_the_csrf_header_are_taken(service: Service, header: str) -> None:
    with closing(service.client()) as client:
        token = client.headers.pop("x-csrftoken")
        answer = client.post("/auth/tokens", json={"name": "skript"}, headers={header: token})
    assert answer.status_code == 201
