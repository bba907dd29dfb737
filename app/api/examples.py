"""Examples of what the API takes and answers: the same values as the types that it is made of."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from app.api.health import DependencyView, ReadyView
from app.api.schemas import (
    AccountPage,
    AccountView,
    ActionStarted,
    ArtifactLink,
    ArtifactList,
    ArtifactView,
    CuratedAppBody,
    CuratedAppList,
    CuratedAppView,
    DraftBody,
    EditorTool,
    EditorToolPage,
    FileView,
    LoginBody,
    NewTokenView,
    NewToolBody,
    NewVersionBody,
    RunPage,
    RunView,
    SandboxActionBody,
    SandboxRunView,
    SessionFilesView,
    StartActionBody,
    StorageView,
    SweepView,
    TokenBody,
    TokenView,
    ToolPage,
    ToolPatchBody,
    ToolSummary,
    ToolView,
    UploadConstraints,
    UserView,
    VersionList,
    VersionSummary,
    VersionView,
)
from app.domain.runs import Captured, RunKind, RunStatus
from app.domain.sessions import sandbox_context
from app.domain.tools import InputField
from app.usecases.sessions import SessionView

CORRELATION_ID = "6f1c2c3e-2d0b-4c63-9f0b-0d5f6c1f7a11"
_USER_ID = UUID("0198f0a0-0000-7000-8000-000000000001")
_TOOL_ID = UUID("0198f0a0-0000-7000-8000-000000000002")
_VERSION_ID = UUID("0198f0a0-0000-7000-8000-000000000003")
_RUN_ID = UUID("0198f0a0-0000-7000-8000-000000000004")
_TOKEN_ID = UUID("0198f0a0-0000-7000-8000-000000000005")
_THEN = datetime(2026, 1, 16, 7, 30, tzinfo=UTC)
_SOON = datetime(2026, 1, 16, 7, 30, 2, tzinfo=UTC)
_TOMORROW = datetime(2026, 1, 17, 7, 30, 2, tzinfo=UTC)
_CURSOR = "WyJXZWJic2lkYSB0aWxsIFBERiIsIjAxOThmMGEwIl0"

LOGIN = LoginBody(username="anna", password="ett långt lösenord")  # noqa: S106
USER = UserView(id=_USER_ID, username="anna", display_name="Anna Ek", role="user")
ACCOUNTS = AccountPage(
    items=[
        AccountView(
            id=_USER_ID, username="anna", display_name="Anna Ek", role="user", is_active=True
        )
    ],
    next_cursor=None,
)
TOKEN_BODY = TokenBody(name="Schemaläggaren", expires_at=_TOMORROW)
TOKEN = TokenView(id=_TOKEN_ID, name="Schemaläggaren", created_at=_THEN, expires_at=_TOMORROW)
NEW_TOKEN = NewTokenView(
    id=_TOKEN_ID,
    name="Schemaläggaren",
    created_at=_THEN,
    expires_at=_TOMORROW,
    token="skt_3n5…",  # noqa: S106 - shows the shape only
)

_TITLE = "Webbsida till PDF"
_SUMMARY = "Gör en PDF av en webbsida."
_FILE_FIELD = InputField(kind="file", name="files", label="Webbsida", accept=(".html",), min=1)
TOOLS = ToolPage(
    items=[ToolSummary(id=_TOOL_ID, slug="html_to_pdf_preview", title=_TITLE, summary=_SUMMARY)],
    next_cursor=None,
)
TOOL = ToolView(
    id=_TOOL_ID,
    slug="html_to_pdf_preview",
    title=_TITLE,
    summary=_SUMMARY,
    usage_instructions="Ladda upp en `.html`-fil.",
    input_schema=[_FILE_FIELD],
    upload_constraints=UploadConstraints(
        max_files=20,
        max_file_bytes=20_000_000,
        max_total_bytes=50_000_000,
        min_files=1,
        accept=[".html"],
    ),
)

FORM = {
    "session_context": "default",
    "session_files_mode": "none",
    "inputs": '{"rubrik": "Veckobrev"}',
    "files": ["(innehållet i veckobrev.html)"],
}
_CONVERT: dict[str, Any] = {
    "action_id": "convert",
    "label": "Konvertera till PDF",
    "kind": "form",
    "fields": [
        {
            "name": "page_size",
            "label": "Pappersstorlek",
            "kind": "enum",
            "required": True,
            "options": [{"value": "A4", "label": "A4"}, {"value": "A5", "label": "A5"}],
        }
    ],
    "prefill": {"page_size": "A4"},
}
_QUEUED: dict[str, Any] = {
    "run_id": _RUN_ID,
    "tool_id": _TOOL_ID,
    "tool_slug": "html_to_pdf_preview",
    "tool_title": _TITLE,
    "context": "default",
    "kind": RunKind.INITIAL,
    "status": RunStatus.QUEUED,
    "created_at": _THEN,
    "started_at": None,
    "finished_at": None,
    "error_code": None,
    "error_summary": None,
    "ui_payload": None,
    "artifacts": [],
    "state_rev": None,
}
_DONE: dict[str, Any] = {
    "status": RunStatus.SUCCEEDED,
    "started_at": _THEN,
    "finished_at": _SOON,
    "ui_payload": {
        "contract_version": 2,
        "next_actions": [_CONVERT],
        "outputs": [{"html": "<h1>Veckobrev</h1>", "kind": "html_sandboxed"}],
    },
    "artifacts": [ArtifactView(path="output/veckobrev.pdf", bytes=120_000)],
    "state_rev": 1,
}
_SANDBOX = {"context": sandbox_context(_VERSION_ID)}
QUEUED_RUN = RunView(**_QUEUED)
RUN = RunView(**_QUEUED | _DONE)
RUNS = RunPage(items=[RunView(**_QUEUED | _DONE | {"ui_payload": None})], next_cursor=_CURSOR)
QUEUED_SANDBOX_RUN = SandboxRunView(**_QUEUED | _SANDBOX, stdout=None, stderr=None)
SANDBOX_RUN = SandboxRunView(
    **_QUEUED | _DONE | _SANDBOX,
    stdout=Captured("Läser veckobrev.html\n", 21, False),
    stderr=Captured(),
)

_TURN: dict[str, Any] = {
    "action_id": "convert",
    "input": {"page_size": "A4"},
    "expected_state_rev": 1,
}
ACTION = StartActionBody(tool_id=_TOOL_ID, context="default", **_TURN)
SANDBOX_ACTION = SandboxActionBody(**_TURN)
ACTION_QUEUED = ActionStarted(run_id=_RUN_ID, status=RunStatus.QUEUED, state_rev=1)
ACTION_DONE = ActionStarted(run_id=_RUN_ID, status=RunStatus.SUCCEEDED, state_rev=2)

_SESSION: dict[str, Any] = {
    "tool_id": _TOOL_ID,
    "context": "default",
    "state": {"pages": ["veckobrev.html"]},
    "state_rev": 1,
    "latest_run_id": _RUN_ID,
    "active_run_id": None,
    "next_actions": [_CONVERT],
}
SESSION = SessionView(**_SESSION)
SANDBOX_SESSION = SessionView(**_SESSION | _SANDBOX)
_FILES: dict[str, Any] = {
    "tool_id": _TOOL_ID,
    "context": "default",
    "files": [FileView(name="veckobrev.html", bytes=4_711)],
    "last_accessed_at": _SOON,
    "expires_at": _TOMORROW,
}
FILES = SessionFilesView(**_FILES)
SANDBOX_FILES = SessionFilesView(**_FILES | _SANDBOX)
ARTIFACTS = ArtifactList(
    run_id=_RUN_ID,
    artifacts=[
        ArtifactLink(
            path="output/veckobrev.pdf",
            bytes=120_000,
            download_url=f"/api/v1/runs/{_RUN_ID}/artifacts/output/veckobrev.pdf",
        )
    ],
)

_SOURCE = "def run_tool(input_dir, output_dir):\n    return '<h1>Hej</h1>'\n"
NEW_TOOL = NewToolBody(slug="hej", title="Hej", summary="Säger hej.")
TOOL_PATCH = ToolPatchBody(title="Hej på dig")
EDITOR_TOOL = EditorTool(
    id=_TOOL_ID,
    slug="hej",
    title="Hej",
    summary="Säger hej.",
    usage_instructions="",
    published_version_id=None,
    created_at=_THEN,
    updated_at=_THEN,
)
EDITOR_TOOLS = EditorToolPage(items=[EDITOR_TOOL], next_cursor=None)
CODE = NewVersionBody(source=_SOURCE)
DRAFT = DraftBody(source=_SOURCE, expected_rev=0)
_VERSION: dict[str, Any] = {
    "id": _VERSION_ID,
    "tool_id": _TOOL_ID,
    "number": 1,
    "status": "draft",
    "rev": 0,
    "created_at": _THEN,
    "updated_at": _THEN,
    "published_at": None,
}
_CODE: dict[str, Any] = {"source": _SOURCE, "entrypoint": "run_tool", "input_schema": []}
VERSIONS = VersionList(items=[VersionSummary(**_VERSION)])
VERSION = VersionView(**_VERSION, **_CODE)
PUBLISHED_VERSION = VersionView(
    **_VERSION | {"status": "published", "published_at": _SOON}, **_CODE
)

EVENTS = (
    'id: 1795226400000-0\nevent: status\ndata: {"status":"running"}\n\n'
    'id: 1795226400250-0\nevent: progress\ndata: {"fraction":0.5,"text":"Sida 1 av 2"}\n\n'
)
LIVE = {"status": "ok"}
_UP, _DOWN = (DependencyView(status=word, duration_ms=1.2) for word in ("ok", "unavailable"))
READY = ReadyView(status="ok", dependencies={"database": _UP, "redis": _UP, "s3": _UP})
NOT_READY = ReadyView(
    status="unavailable", dependencies={"database": _UP, "redis": _DOWN, "s3": _UP}
)

CURATED_APP = CuratedAppView(
    app_id="klasslista",
    version="1+fbb66c454b45",
    slug="klasslista",
    title="Klasslista",
    min_role="contributor",
)
CURATED_APPS = CuratedAppList(items=[CURATED_APP])
CURATED_APP_BODY = CuratedAppBody(min_role="contributor")

STORAGE = StorageView(
    sessions=1_204,
    files=3_811,
    bytes=2_750_118_400,
    orphans=2,
    orphan_bytes=48_300,
    unexplained=0,
    oldest_access=_THEN,
    walked_at=_THEN,
    last_sweep=SweepView(
        started_at=_THEN, ended_at=_SOON, succeeded_at=_SOON, error=None, sweeps=412, failures=0
    ),
    lifecycle="complete",
)
METRICS = (
    "# HELP skriptoteket_storage_status_up 1 if PostgreSQL told this scrape the state of storage\n"
    "# TYPE skriptoteket_storage_status_up gauge\n"
    "skriptoteket_storage_status_up 1.0\n"
)
