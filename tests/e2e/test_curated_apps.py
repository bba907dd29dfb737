"""Curated apps: in the catalogue, run by a worker, with their own policy (3-runner-contract.md)."""

import asyncio
import io
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from openpyxl import load_workbook
from script_bank import get_app
from service import Client, Service
from steps import START_OVER, Way, action_ids
from tiny_tools import FILE_FIELD

from app.curated import load_curated_apps
from app.domain.curated import CuratedApp
from app.domain.tools import parse_input_schema
from app.settings import load_settings
from app.store import curated
from app.store.postgres import open_database
from app.usecases.seed import seed_curated_apps

ROSTER = (
    "Förnamn;Efternamn;Klass\n"
    + "".join(f"{name};Ek;7A\n" for name in ("Åsa", "Bo", "Cia", "Dag", "Eva", "Finn"))
).encode()

# As much state as only the curated policy keeps: 200 KiB.
BIG_STATE = """
from skriptoteket_toolkit import action, get_action_parts, json_output


def run_tool(input_dir, output_dir):
    _, _, state = get_action_parts()
    seen = len(state.get("text", ""))
    return {
        "outputs": [json_output(seen)],
        "next_actions": [action("again", "Igen")],
        "state": {"text": "x" * 200_000},
    }
"""


def open_app(client: Client, app: CuratedApp) -> Way:
    return Way(client, str(app.tool_id), "", app.slug, is_sandbox=False)


def query(service: Service, sql: str, *args: Any) -> list[dict[str, Any]]:
    async def fetch() -> list[dict[str, Any]]:
        connection = await asyncpg.connect(load_settings(service.running.environment).database_url)
        try:
            return [dict(row) for row in await connection.fetch(sql, *args)]
        finally:
            await connection.close()

    return asyncio.run(fetch())


def offer(service: Service, *apps: CuratedApp) -> None:
    """Bring apps into the catalogue, as a release that ships them does."""

    async def write() -> None:
        url = load_settings(service.running.environment).database_url
        async with open_database(url, size=1) as db, db.transaction() as tx:
            for app in apps:
                await curated.offer_app(tx, app, datetime.now(UTC))

    asyncio.run(write())


def seed(service: Service) -> None:
    async def write() -> None:
        url = load_settings(service.running.environment).database_url
        async with open_database(url, size=1) as db:
            await seed_curated_apps(db, datetime.now(UTC))

    asyncio.run(write())


def make_app(app_id: str, source: str, **changes: Any) -> CuratedApp:
    fields: dict[str, Any] = {
        "app_id": app_id,
        "version": "1",
        "slug": app_id,
        "title": app_id,
        "summary": "",
        "usage_instructions": "",
        "min_role": "user",
        "source": source,
        "entrypoint": "run_tool",
        "input_schema": (),
    } | changes
    return CuratedApp(**fields)


@pytest.fixture
def extra(service: Service) -> Iterator[None]:
    """The release's own catalogue again afterwards."""
    yield
    seed(service)


def test_the_catalogue_has_them_beside_the_tools(anna: Client) -> None:
    items = anna.get("/tools", params={"limit": 200}).json()["items"]
    by_slug = {item["slug"]: item for item in items}
    for app in load_curated_apps():
        assert by_slug[app.slug]["title"] == app.title
        assert by_slug[app.slug]["id"] == str(app.tool_id)
        shown = anna.get(f"/tools/{app.slug}").json()
        assert len(shown["input_schema"]) == len(app.input_schema)


def test_their_ids_are_the_same_in_every_installation() -> None:
    assert {app.app_id: str(app.tool_id) for app in load_curated_apps()} == {
        "klasslista": "60bb5c82-b04c-5a99-baa5-8110e76de28d",
        "raknare": "ad6d9a73-1633-5642-91ba-489d75e31001",
    }


def test_the_counter_counts_from_step_to_step(service: Service, anna: Client) -> None:
    way = open_app(anna, get_app("raknare"))
    first = way.run(inputs='{"start": 5}')
    assert first["ui_payload"]["outputs"][0]["markdown"] == "# 5"
    assert START_OVER in action_ids(first["ui_payload"])
    assert way.act("add", input={"step": 3})["ui_payload"]["outputs"][0]["markdown"] == "# 8"
    assert way.session()["state"]["count"] == 8
    (row,) = query(
        service,
        "SELECT DISTINCT source_kind, version_id, curated_app_id, curated_app_version"
        " FROM tool_runs WHERE tool_id = $1",
        UUID(way.tool_id),
    )
    assert row == {
        "source_kind": "curated_app",
        "version_id": None,
        "curated_app_id": "raknare",
        "curated_app_version": get_app("raknare").version,
    }
    way.act(START_OVER)
    assert way.session()["state"] == {}


def test_a_roster_uploaded_once_makes_groups_that_avoid_earlier_pairs(anna: Client) -> None:
    way = open_app(anna, get_app("klasslista"))
    way.run(files=[("klass.csv", ROSTER)])
    pairs: list[set[frozenset[str]]] = []
    for _ in range(2):
        run = way.act("assign_groups", input={"mode": "size", "number": 2})
        assert run["status"] == "succeeded", run
        state = way.session()["state"]
        pairs.append(
            {frozenset(state["names"][n] for n in group) for group in state["divisions"][-1]}
        )
    assert pairs[0].isdisjoint(pairs[1])
    assert way.files() == ["klass.csv"]
    export = way.act("export")
    name = next(a["path"] for a in export["artifacts"] if a["path"].endswith(".xlsx"))
    content = anna.get(f"/runs/{export['run_id']}/artifacts/{name}").content
    cells = [
        cell
        for sheet in load_workbook(io.BytesIO(content))
        for row in sheet.iter_rows(values_only=True)
        for cell in row
    ]
    assert any("Åsa" in str(cell) for cell in cells)


def test_they_have_the_curated_budget(service: Service, anna: Client, extra: None) -> None:
    app = make_app("mycket_tillstand", BIG_STATE)
    offer(service, app)
    way = open_app(anna, app)
    way.run()
    assert len(way.session()["state"]["text"]) == 200_000
    run = way.act("again")
    assert run["ui_payload"]["outputs"] == [{"kind": "json", "value": 200_000}]


def test_nobody_edits_them_in_the_editor(admin: Client) -> None:
    app = get_app("raknare")
    items = admin.get("/editor/tools", params={"limit": 200}).json()["items"]
    assert app.slug not in {item["slug"] for item in items}
    for answer in (
        admin.get(f"/editor/tools/{app.tool_id}/versions"),
        admin.patch(f"/editor/tools/{app.tool_id}", json={"title": "Min"}),
        admin.post(f"/editor/tools/{app.tool_id}/versions", json={"source": app.source}),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_who_lacks_the_role_does_not_see_it_at_all(
    service: Service, anna: Client, carin: Client, extra: None
) -> None:
    app = make_app("for_larare", "def run_tool(a, b):\n    return 'ja'\n", min_role="contributor")
    offer(service, app)
    way = open_app(anna, app)
    refused = [
        anna.get(f"/tools/{app.slug}"),
        anna.get(f"/tools/{app.slug}/session"),
        anna.get(f"/tools/{app.slug}/session-files"),
        anna.delete(f"/tools/{app.slug}/session-files"),
        way.send(),
    ]
    assert {answer.status_code for answer in refused} == {404}
    assert app.slug not in {t["slug"] for t in anna.get("/tools?limit=200").json()["items"]}
    assert app.slug in {t["slug"] for t in carin.get("/tools?limit=200").json()["items"]}
    assert open_app(carin, app).run()["status"] == "succeeded"


def test_an_admin_decides_who_sees_it_and_who_loses_it_takes_no_further_step(
    service: Service, anna: Client, admin: Client, extra: None
) -> None:
    app = make_app("blir_dolt", BIG_STATE)
    offer(service, app)
    way = open_app(anna, app)
    way.run()
    changed = admin.patch("/admin/curated-apps/blir_dolt", json={"min_role": "admin"})
    assert changed.json()["min_role"] == "admin"
    answer = way.send_action("again", expected_state_rev=1)
    assert answer.status_code == 404
    offer(service, app)
    apps = admin.get("/admin/curated-apps").json()["items"]
    (entry,) = [app for app in apps if app["app_id"] == "blir_dolt"]
    assert entry["min_role"] == "admin", "a new release does not undo an admin's word"


def test_only_admins_decide_and_only_what_can_be(
    anna: Client, carin: Client, admin: Client
) -> None:
    for client in (anna, carin):
        assert client.get("/admin/curated-apps").status_code == 403
        answer = client.patch("/admin/curated-apps/raknare", json={"min_role": "admin"})
        assert answer.status_code == 403
    assert (
        admin.patch("/admin/curated-apps/finns-inte", json={"min_role": "user"}).status_code == 404
    )
    answer = admin.patch("/admin/curated-apps/raknare", json={"min_role": "everybody"})
    assert answer.status_code == 400


def test_a_session_stays_on_the_version_it_began_with(
    service: Service, anna: Client, extra: None
) -> None:
    def say(word: str) -> str:
        return BIG_STATE.replace("json_output(seen)", f"json_output('{word}')")

    offer(service, make_app("byter_version", say("ett")))
    way = open_app(anna, make_app("byter_version", say("ett")))
    way.run()
    offer(service, make_app("byter_version", say("två"), version="2"))
    assert way.act("again")["ui_payload"]["outputs"][0]["value"] == "ett"
    assert way.run()["ui_payload"]["outputs"][0]["value"] == "två"
    assert way.act("again")["ui_payload"]["outputs"][0]["value"] == "två"


def test_an_app_that_is_no_longer_shipped_leaves_the_catalogue(
    service: Service, anna: Client
) -> None:
    app = make_app("borttagen", BIG_STATE)
    offer(service, app)
    way = open_app(anna, app)
    first = way.run()
    seed(service)
    assert anna.get(f"/tools/{app.slug}").status_code == 404
    assert way.get_run(first["run_id"])["ui_payload"] == first["ui_payload"]
    answer = way.client.start_action(
        "/start_action",
        {
            "tool_id": way.tool_id,
            "context": "default",
            "action_id": "again",
            "expected_state_rev": 1,
        },
    )
    assert answer.status_code == 200, "a session under way goes on"


@pytest.mark.parametrize("how", ["retired", "kept_for_admins"])
def test_what_its_users_saved_stays_theirs_when_it_leaves_their_catalogue(
    service: Service, anna: Client, bo: Client, admin: Client, extra: None, how: str
) -> None:
    app = make_app(f"sparar_{how}", BIG_STATE, input_schema=parse_input_schema([FILE_FIELD]))
    offer(service, app)
    way = open_app(anna, app)
    way.run(files=[("a.txt", b"mitt")])
    before = way.session()
    if how == "retired":
        seed(service)
    else:
        admin.patch(f"/admin/curated-apps/{app.app_id}", json={"min_role": "admin"})
    assert anna.get(f"/tools/{app.slug}").status_code == 404
    # What it offers is what can be taken: who lost the role takes no further step.
    assert way.session() == before | ({} if how == "retired" else {"next_actions": []})
    assert way.files() == ["a.txt"]
    assert way.clear().status_code == 204
    assert way.files() == []
    nobodys = [(bo, "default"), (anna, "another")]
    for client, context in nobodys:
        other = replace(way, client=client, context=context)
        answer = client.get(f"/tools/{app.slug}/session", params={"context": context})
        assert [answer.status_code, other.clear().status_code] == [404, 404]


def test_changed_code_is_another_version_without_anybody_saying_so() -> None:
    versions = {app.app_id: app.version for app in load_curated_apps()}
    assert all(version.startswith("1+") and len(version) == 14 for version in versions.values())
    assert len(set(versions.values())) == len(versions)
