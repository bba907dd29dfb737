"""ST-12-05, session-scoped file persistence: one test for each acceptance criterion.

All through HTTP, each request at the next node; production and sandbox contexts where the
criterion holds for both.
"""

import asyncio
import hashlib
import io
import json
import re
import subprocess
import sys
import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from pypdf import PdfReader
from service import Client, Service
from steps import START_OVER, Way, action_ids, list_blobs, log_in, publish
from tiny_tools import DO_FIELD, FILE_FIELD, REPORTER, report

from app.settings import load_settings
from app.usecases.seed import SCRIPT_BANK
from app.usecases.storage_sweep import clean_up_expired
from app.wiring import open_services

SAMPLE = SCRIPT_BANK / "html_to_pdf_preview" / "sample"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_original_uploads_are_in_the_input_directory_of_an_action(way: Way) -> None:
    # `action.json` is a file like any other: the action itself comes in SKRIPTOTEKET_ACTION.
    uploads = {
        "Läsår å ä ö.html": "<h1>Vårtermin</h1>".encode(),
        "tom.txt": b"",
        "action.json": b"not an action",
    }
    first = way.run(files=list(uploads.items()))
    hashes = {name: sha256(content) for name, content in uploads.items()}
    assert report(first)["files"] == hashes
    assert report(first)["has_action"] is False

    for number in (1, 2):
        seen = report(way.act(input={"number": number}))
        assert seen["files"] == hashes
        assert seen["manifest"] == list(uploads)
        assert seen["has_action"] is True
        assert (seen["action"], seen["form"]) == ("next", {"number": number})
        assert seen["state"]["steps"] == ["start"] + ["next"] * (number - 1)


def test_each_run_gets_a_copy_so_that_no_step_changes_the_files(way: Way) -> None:
    way.run(files=[("a.txt", b"a")])
    changed = report(way.act(input={"do": "write"}))
    assert len(changed["files"]) == 4
    assert report(way.act())["files"] == {"a.txt": sha256(b"a")}


def test_new_uploads_replace_the_files_of_the_session(service: Service, way: Way) -> None:
    way.run(files=[("a.txt", b"old a"), ("b.txt", b"old b")])
    second = way.run(files=[("a.txt", b"new a"), ("c.txt", b"new c")])
    replaced = {"a.txt": sha256(b"new a"), "c.txt": sha256(b"new c")}
    assert report(second)["files"] == replaced
    assert report(way.act())["files"] == replaced
    assert way.files() == ["a.txt", "c.txt"]
    assert len(list_blobs(service, way.tool_id)) == 2, "the replaced files are deleted"


def test_uploads_over_50_mb_get_a_clear_error_and_change_nothing(
    service: Service, way: Way
) -> None:
    way.run(files=[("kvar.txt", b"kvar")])
    part = bytes(17_000_000)
    answer = way.send(files=[(f"{number}.bin", part) for number in range(3)])
    assert answer.status_code == 413
    problem = answer.json()
    assert problem["code"] == "upload_too_large"
    assert problem["detail"] == "Filerna är tillsammans större än 50 MB."
    assert problem["details"] == {"max_bytes": 50_000_000}

    assert way.files() == ["kvar.txt"]
    assert len(list_blobs(service, way.tool_id)) == 1
    assert report(way.act())["files"] == {"kvar.txt": sha256(b"kvar")}


def test_files_not_accessed_for_the_ttl_are_deleted_by_the_cleanup_job(
    brief_service: Service,
) -> None:
    version = publish(brief_service, REPORTER, [FILE_FIELD, DO_FIELD])
    names = (version["tool_id"], version["id"], version["slug"])
    with log_in(brief_service, "anna") as anna, log_in(brief_service, "admin") as admin:
        ways = [Way(anna, *names, is_sandbox=False), Way(admin, *names, is_sandbox=True)]
        firsts = [way.run(files=[("a.txt", b"a"), ("b.txt", b"b")]) for way in ways]
        assert len(list_blobs(brief_service, version["tool_id"])) == 4

        # Looking does not prolong a file's life: else this would never end.
        for way in ways:
            wait_until_expired(way)
        swept = clean_up(brief_service)
        assert (swept["deleted_sets"], swept["deleted_files"], swept["deleted_bytes"]) == (2, 4, 4)
        assert list_blobs(brief_service, version["tool_id"]) == []

        for way, first in zip(ways, firsts, strict=True):
            before = way.session()
            answer = way.send_action()
            assert answer.status_code == 410
            assert answer.json()["code"] == "session_files_expired"
            assert "Ladda upp dem igen" in answer.json()["detail"]

            assert way.session() == before
            assert before["state"]["steps"] == ["start"]
            assert action_ids(before) == ["next", START_OVER]
            assert way.get_run(first["run_id"])["ui_payload"] == first["ui_payload"]

            way.run(files=[("c.txt", b"c")])
            assert report(way.act())["files"] == {"c.txt": sha256(b"c")}
            way.clear()


def test_the_cleanup_job_leaves_files_alone_before_their_time(service: Service, way: Way) -> None:
    way.run(files=[("a.txt", b"a")])

    async def sweep() -> None:
        async with open_services(load_settings(service.running.environment)) as services:
            await clean_up_expired(services.db, services.session_files, services.settings)

    asyncio.run(sweep())
    assert report(way.act())["files"] == {"a.txt": sha256(b"a")}


def test_injection_counts_as_access(brief_service: Service) -> None:
    version = publish(brief_service, REPORTER, [FILE_FIELD, DO_FIELD])
    with log_in(brief_service, "anna") as client:
        way = Way(client, version["tool_id"], version["id"], version["slug"], is_sandbox=False)
        way.run(files=[("a.txt", b"a")])
        first = way.saved()
        assert way.saved()["last_accessed_at"] == first["last_accessed_at"], "looking is not access"
        time.sleep(1.1)
        way.act()
        second = way.saved()
        assert second["last_accessed_at"] > first["last_accessed_at"]
        assert second["expires_at"] > first["expires_at"]
        way.clear()


@pytest.mark.parametrize("context", ["production", "sandbox"])
def test_konvertera_till_pdf_uses_the_originally_uploaded_page(
    anna: Client, admin: Client, context: str
) -> None:
    way = pdf_way(anna, admin, is_sandbox=context == "sandbox")
    preview = way.run(files=[(path.name, path.read_bytes()) for path in sorted(SAMPLE.iterdir())])
    assert preview["status"] == "succeeded", preview
    action = way.session()["next_actions"][0]
    assert action["label"] == "Konvertera till PDF"

    converted = way.act(action["action_id"], input=action["prefill"])
    assert converted["status"] == "succeeded", converted
    assert converted["artifacts"][0]["path"] == "output/veckobrev.pdf"
    listed = way.client.get(f"/runs/{converted['run_id']}/artifacts").json()["artifacts"]
    pdf = way.client.get(listed[0]["download_url"].removeprefix("/api/v1"))
    assert pdf.content.startswith(b"%PDF-")
    assert len(pdf.content) == listed[0]["bytes"]

    text = "".join(page.extract_text() for page in PdfReader(io.BytesIO(pdf.content)).pages)
    page = (SAMPLE / "veckobrev.html").read_text("utf-8")
    missing = set(list_words(re.sub(r"<(style|head)\b.*?</\1>|<[^>]+>", " ", page, flags=re.S)))
    missing -= set(list_words(text))
    assert len(missing) <= 5, f"a few words are broken over lines, not these: {missing}"
    assert set("åäö") <= set(text)

    # Once more from the same files, on other paper.
    again = way.act(action["action_id"], input=action["prefill"] | {"orientation": "liggande"})
    assert again["status"] == "succeeded", again


def pdf_way(anna: Client, admin: Client, *, is_sandbox: bool) -> Way:
    slug = "html_to_pdf_preview"
    tools = admin.get("/editor/tools", params={"limit": 200}).json()["items"]
    tool = next(tool for tool in tools if tool["slug"] == slug)
    version_id = tool["published_version_id"]
    return Way(admin if is_sandbox else anna, tool["id"], version_id, slug, is_sandbox, "st-12-05")


def list_words(text: str) -> list[str]:
    words = re.findall(r"\w+", unicodedata.normalize("NFC", text).lower())
    return [word for word in words if len(word) > 3]


def wait_until_expired(way: Way) -> None:
    deadline = time.monotonic() + 30
    while way.files():
        assert time.monotonic() < deadline, "the files never expire"
        time.sleep(0.25)


def clean_up(service: Service) -> dict[str, Any]:
    """Run the job as its command, and return what it says it did."""
    command = [sys.executable, "-m", "app.cli", "cleanup_expired_session_files", "--json"]
    answer = subprocess.run(
        command,
        env=service.running.environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    swept: dict[str, Any] = json.loads(answer.stdout)
    return swept
