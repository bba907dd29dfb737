"""Users and tools are deleted with everything of theirs, and nothing else goes along."""

import asyncio
import json
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from typing import Any

import httpx
import pytest
from problems import NOWHERE, check_problem
from service import Client, Service, _items
from steps import DocumentCheck, TurnTransport, Way, publish
from tiny_tools import FILE_FIELD
from traces import add_user, find_strays, find_traces, log_in_as

from app import cli
from app.settings import load_settings
from app.store import run_purge
from app.store.postgres import open_database

# Leaves an artifact with each step, and offers the next.
KEEPER = """
from skriptoteket_toolkit import action, get_action_parts, output_path


def run_tool(input_dir, output_dir):
    state = get_action_parts()[2]
    output_path("spår.txt").write_text("tio tecken")
    return {"next_actions": [action("next", "Nästa")], "state": {"n": state.get("n", 0) + 1}}
"""
ARTIFACT_BYTES = 10


Delete = Callable[..., tuple[int, str, str]]


@contextmanager
def person(service: Service, username: str) -> Iterator[Client]:
    urls = service.running.urls
    transport = TurnTransport(urls)
    client = Client(base_url=f"{urls[0]}/api/v1", timeout=60, transport=transport)
    client.event_hooks["response"].append(DocumentCheck(urls[0]))
    with closing(client):
        log_in_as(client, username)
        yield client


@pytest.fixture
def delete(
    service: Service, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Delete:
    """Delete by a command, which waits until it is done: exit code, what it printed, and where."""
    monkeypatch.setattr(cli, "configure_logging", lambda level: None)
    for name, value in service.running.environment.items():
        monkeypatch.setenv(name, value)

    def run(*command: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["skriptoteket", *command, "--json"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        return (int(end.value.code or 0), *capsys.readouterr())

    return run


def keep(service: Service) -> dict[str, Any]:
    return publish(service, KEEPER, [FILE_FIELD])


def way(client: Client, tool: dict[str, Any], **kind: Any) -> Way:
    kind = {"is_sandbox": False} | kind
    return Way(client, tool["tool_id"], tool["id"], tool["slug"], **kind)


def leave_much(one: Way) -> set[str]:
    """Upload two files, run, take a step: the ids of both runs."""
    first = one.run(files=[("a.txt", b"aaaa"), ("å.txt", b"bb")])
    second = one.act()
    assert [run["status"] for run in (first, second)] == ["succeeded"] * 2
    return {first["run_id"], second["run_id"]}


def test_deleting_a_tool_leaves_nothing_of_it_and_all_of_others(
    service: Service, anna: Client, bo: Client, admin: Client, delete: Delete
) -> None:
    environment = service.running.environment
    doomed, other = keep(service), keep(service)
    runs = set()
    for one in (
        way(anna, doomed, context="lektion 2"),
        way(bo, doomed),
        way(admin, doomed, is_sandbox=True),
    ):
        runs |= leave_much(one)
    others_runs = leave_much(way(anna, other))
    before = find_traces(environment, other["tool_id"])
    assert len(find_traces(environment, doomed["tool_id"]).keys) == 3 + 6 + 6

    code, report, words = delete("delete-tool", doomed["slug"])
    assert (code, words) == (0, "")
    assert json.loads(report) == {
        "sessions": 3,
        "files": 6,
        "bytes": 18,
        "runs": 6,
        "artifacts": 6,
        "artifact_bytes": 6 * ARTIFACT_BYTES,
    }
    assert not find_traces(environment, doomed["tool_id"], runs=runs)
    assert find_traces(environment, other["tool_id"]) == before
    assert way(anna, other).files() == ["a.txt", "å.txt"]
    assert way(anna, other).act()["status"] == "succeeded"
    for run_id in others_runs:
        path = f"/runs/{run_id}/artifacts/output/spår.txt"
        assert anna.get(path).content == b"tio tecken"


def test_deleting_a_user_leaves_nothing_of_them_but_the_tools_that_they_wrote(
    service: Service, bo: Client, delete: Delete
) -> None:
    environment = service.running.environment
    name = f"dag-{uuid.uuid4().hex[:8]}"
    user_id = add_user(environment, name, "contributor")
    tool, other = keep(service), keep(service)
    with person(service, name) as dag, person(service, name) as elsewhere:
        slug = f"dags-{uuid.uuid4().hex[:8]}"
        written = dag.post("/editor/tools", json={"slug": slug, "title": "Dags"}).json()
        path = f"/editor/tools/{written['id']}/versions"
        version = dag.post(path, json={"source": KEEPER, "input_schema": [FILE_FIELD]}).json()
        own = version | {"slug": slug}
        token = dag.post("/auth/tokens", json={"name": "skript"}).json()["token"]
        runs = leave_much(way(dag, tool)) | leave_much(way(dag, other, context="x"))
        runs |= leave_much(way(dag, own, is_sandbox=True))
        bos_runs = leave_much(way(bo, tool))
        assert find_traces(environment, user_id).logins == 2

        code, report, words = delete("delete-user", name.upper())
        assert (code, words) == (0, "")
        assert json.loads(report) == {
            "sessions": 3,
            "files": 6,
            "bytes": 18,
            "runs": 6,
            "artifacts": 6,
            "artifact_bytes": 6 * ARTIFACT_BYTES,
        }
        assert not find_traces(environment, user_id, runs=runs)
        for client in (dag, elsewhere):
            check_problem(client.get("/auth/me"), 401, "not_authenticated")
        program = {"Authorization": f"Bearer {token}"}
        check_problem(dag.get("/auth/me", headers=program), 401, "not_authenticated")
        with pytest.raises(httpx.HTTPStatusError, match="401"):
            log_in_as(dag, name)
    assert way(bo, tool).files() == ["a.txt", "å.txt"]
    assert {run["run_id"] for run in bo.get("/runs").json()["items"]} >= bos_runs
    # What they wrote is others' tool too; it has no owner now.
    with closing(service.client("admin")) as admin:
        assert admin.get(path).json()["items"][0]["id"] == version["id"]


def test_a_deleted_tool_is_found_by_nobody_from_that_moment(
    service: Service, anna: Client, admin: Client
) -> None:
    tool = keep(service)
    slug, one = tool["slug"], way(anna, tool)
    run_id = min(leave_much(one))
    path, version = f"/editor/tools/{tool['tool_id']}", f"/editor/tool-versions/{tool['id']}"
    assert admin.delete(path).status_code == 204
    turn = {"tool_id": tool["tool_id"], "action_id": "next", "expected_state_rev": 2}
    for answer in (
        admin.delete(path),
        admin.patch(path, json={"title": "Kvar"}),
        admin.get(f"{path}/versions"),
        admin.post(f"{path}/versions", json={"source": KEEPER}),
        admin.get(version),
        admin.put(version, json={"source": KEEPER, "expected_rev": 0}),
        admin.post(f"{version}/publish"),
        admin.run_sandbox(tool["id"], files=[("a.txt", b"a")]),
        anna.get(f"/tools/{slug}"),
        one.send(files=[("a.txt", b"a")]),
        anna.get(f"/tools/{slug}/session"),
        anna.get(f"/tools/{slug}/session-files"),
        anna.post("/start_action", json=turn),
        anna.get(f"/runs/{run_id}"),
        anna.get(f"/runs/{run_id}/events"),
        anna.get(f"/runs/{run_id}/artifacts"),
        anna.get(f"/runs/{run_id}/artifacts/output/spår.txt"),
        anna.post(f"/runs/{run_id}/cancel"),
    ):
        check_problem(answer, 404, "not_found")
    assert slug not in [item["slug"] for item in _items(anna, "/tools")]
    assert tool["tool_id"] not in [item["id"] for item in _items(admin, "/editor/tools")]
    assert run_id not in [item["run_id"] for item in _items(anna, "/runs")]
    assert anna.get("/runs", params={"tool": slug}).json()["items"] == []
    body = {"slug": slug, "title": "En ny med samma namn"}
    assert admin.post("/editor/tools", json=body).status_code == 201


def test_a_deleted_users_name_may_be_taken_at_once(service: Service, admin: Client) -> None:
    name = f"eva-{uuid.uuid4().hex[:8]}"
    user_id = add_user(service.running.environment, name)
    assert admin.delete(f"/admin/users/{user_id}").status_code == 204
    check_problem(admin.delete(f"/admin/users/{user_id}"), 404, "not_found")
    second = add_user(service.running.environment, name)
    assert second != user_id
    assert admin.delete(f"/admin/users/{second}").status_code == 204


def test_accounts_are_listed_by_name_a_page_at_a_time(service: Service, admin: Client) -> None:
    environment = service.running.environment
    mark = uuid.uuid4().hex[:8]
    ids = {f"{mark}-{letter}": add_user(environment, f"{mark}-{letter}") for letter in "cab"}
    everybody = _items(admin, "/admin/users")
    names = [account["username"] for account in everybody]
    assert names == sorted(names)
    assert [a["id"] for a in everybody if a["username"] in ids] == [ids[n] for n in sorted(ids)]
    anna = next(account for account in everybody if account["username"] == "anna")
    assert set(anna) == {"id", "username", "display_name", "role", "is_active"}
    found, cursor = [], None
    while True:
        params = {"limit": 2} | ({} if cursor is None else {"cursor": cursor})
        page = admin.get("/admin/users", params=params).json()
        assert len(page["items"]) <= 2
        found += [account["username"] for account in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert set(names) <= set(found)
    for user_id in ids.values():
        assert admin.delete(f"/admin/users/{user_id}").status_code == 204
    assert not set(ids) & {account["username"] for account in _items(admin, "/admin/users")}
    check_problem(admin.get("/admin/users", params={"cursor": "bm9wZQ"}), 400, "malformed_request")


def test_only_admins_delete_and_what_cannot_go_says_so(
    service: Service, anna: Client, carin: Client, admin: Client
) -> None:
    tool = keep(service)
    for client in (anna, carin):
        check_problem(client.delete(f"/admin/users/{NOWHERE}"), 403, "forbidden")
        check_problem(client.get("/admin/users"), 403, "forbidden")
        answer = client.delete(f"/editor/tools/{tool['tool_id']}")
        check_problem(answer, 403, "forbidden")
    me = admin.get("/auth/me").json()["id"]
    refused = admin.delete(f"/admin/users/{me}")
    check_problem(refused, 409, "conflict")
    assert refused.json()["detail"].startswith("Du kan inte ta bort dig själv.")
    curated = next(item for item in _items(admin, "/tools") if item["slug"] == "klasslista")
    refused = admin.delete(f"/editor/tools/{curated['id']}")
    check_problem(refused, 409, "conflict")
    assert "kan inte tas bort" in refused.json()["detail"]
    assert admin.get("/auth/me").status_code == 200


def test_a_command_that_deletes_nothing_fails_with_a_line(delete: Delete) -> None:
    refused = {
        ("delete-user", "ingen-alls"): "there is no user of that name",
        ("delete-tool", "inget-alls"): "there is no tool of that name",
        ("delete-tool", "klasslista"): "Appen hör till tjänsten och kan inte tas bort.",
        ("delete-user", "admin"): "Den sista administratören kan inte tas bort.",
    }
    for command, words in refused.items():
        code, report, told = delete(*command)
        assert (code, report) == (1, "")
        assert told.startswith(f"skriptoteket: {words}")
        assert len(told.splitlines()) == 1


def test_a_session_whose_runs_were_purged_goes_on(service: Service, reporter: Way) -> None:
    runs = [reporter.run(files=[("a.txt", b"a")])["run_id"], reporter.act()["run_id"]]
    before = reporter.session()
    assert before["latest_run_id"] == runs[1]
    purge(service, runs)
    after = reporter.session()
    assert after == before | {"latest_run_id": None, "next_actions": []}
    check_problem(reporter.send_action(), 422, "unknown_action")
    for path in ("", "/artifacts", "/artifacts/output/x", "/events"):
        check_problem(reporter.client.get(f"/runs/{runs[1]}{path}"), 404, "not_found")
    assert reporter.files() == ["a.txt"]
    again = reporter.run(session_files_mode="reuse")
    assert (again["status"], again["state_rev"]) == ("succeeded", before["state_rev"] + 1)
    assert reporter.act()["status"] == "succeeded"


def purge(service: Service, run_ids: list[str]) -> None:
    """Delete runs as their time does."""

    async def delete() -> int:
        settings = load_settings(service.running.environment)
        async with open_database(settings.database_url, size=1) as db:
            return await run_purge.delete_runs(db, [uuid.UUID(run_id) for run_id in run_ids])

    assert asyncio.run(delete()) == len(run_ids)


def test_nothing_of_anybody_who_was_deleted_is_left(service: Service) -> None:
    """After all of the above, whoever finished it."""
    assert find_strays(service.running.environment) == []
