"""The JSON of the API: requests refuse unknown fields, answers name what the page needs."""

from datetime import datetime
from typing import Annotated, Any, Literal, cast
from uuid import UUID

import msgspec
from msgspec import Meta

from app.domain.curated import CuratedEntry
from app.domain.files import UploadLimits
from app.domain.normalizer import canonical_json
from app.domain.runs import Captured, Run, RunKind, RunStatus
from app.domain.tools import (
    DEFAULT_ENTRYPOINT,
    InputField,
    InputSchema,
    Tool,
    ToolVersion,
    VersionStatus,
    file_field,
)
from app.domain.users import ApiToken, Role, User
from app.store.lifecycle import LifecycleState
from app.store.sweep_ledger import StorageStatus

Name = Annotated[str, Meta(min_length=1, max_length=200)]
Text = Annotated[str, Meta(max_length=20_000)]
Revision = Annotated[int, Meta(ge=0, le=2**31 - 1)]


class Body(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A request body."""


class LoginBody(Body):
    username: Annotated[str, Meta(max_length=200)]
    password: Annotated[str, Meta(max_length=1000)]


class TokenBody(Body):
    name: Name
    expires_at: datetime | None = None


class StartActionBody(Body):
    tool_id: UUID
    action_id: str
    expected_state_rev: Revision
    input: dict[str, Any] = {}
    context: str | None = None


class SandboxActionBody(Body):
    action_id: str
    expected_state_rev: Revision
    input: dict[str, Any] = {}


class NewToolBody(Body):
    slug: str
    title: Name
    summary: Text = ""
    usage_instructions: Text = ""


class ToolPatchBody(Body):
    title: Name | None = None
    summary: Text | None = None
    usage_instructions: Text | None = None


class NewVersionBody(Body):
    source: str
    entrypoint: str = DEFAULT_ENTRYPOINT
    input_schema: list[dict[str, Any]] = []


class DraftBody(NewVersionBody, kw_only=True):
    expected_rev: Revision


class CuratedAppBody(Body):
    min_role: Role


class View(msgspec.Struct, kw_only=True):
    """An answer."""


class UserView(View):
    id: UUID
    username: str
    display_name: str
    role: Role


class AccountView(UserView):
    is_active: bool


class AccountPage(View):
    items: list[AccountView]
    next_cursor: str | None


class TokenView(View):
    id: UUID
    name: str
    created_at: datetime
    expires_at: datetime | None


class NewTokenView(TokenView):
    token: str


class ToolSummary(View):
    id: UUID
    slug: str
    title: str
    summary: str


class ToolPage(View):
    items: list[ToolSummary]
    next_cursor: str | None


class UploadConstraints(View):
    max_files: int
    max_file_bytes: int
    max_total_bytes: int
    min_files: int
    accept: list[str]


class ToolView(ToolSummary):
    usage_instructions: str
    input_schema: list[InputField]
    upload_constraints: UploadConstraints


class ArtifactView(View):
    path: str
    bytes: int


class RunView(View):
    run_id: UUID
    tool_id: UUID
    tool_slug: str
    tool_title: str
    context: str
    kind: RunKind
    status: RunStatus
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error_code: str | None
    error_summary: str | None
    ui_payload: dict[str, Any] | None
    artifacts: list[ArtifactView]
    state_rev: int | None


class SandboxRunView(RunView):
    stdout: Captured | None
    stderr: Captured | None


class RunPage(View):
    items: list[RunView]
    next_cursor: str | None


class ArtifactLink(ArtifactView):
    download_url: str


class ArtifactList(View):
    run_id: UUID
    artifacts: list[ArtifactLink]


class ActionStarted(View):
    run_id: UUID
    status: RunStatus
    state_rev: int


class FileView(View):
    name: str
    bytes: int


class SessionFilesView(View):
    tool_id: UUID
    context: str
    files: list[FileView]
    last_accessed_at: datetime | None
    expires_at: datetime | None


class EditorTool(ToolSummary):
    usage_instructions: str
    published_version_id: UUID | None
    created_at: datetime
    updated_at: datetime


class EditorToolPage(View):
    items: list[EditorTool]
    next_cursor: str | None


class VersionSummary(View):
    id: UUID
    tool_id: UUID
    number: int
    status: VersionStatus
    rev: int
    created_at: datetime
    updated_at: datetime
    published_at: datetime | None


class VersionView(VersionSummary):
    source: str
    entrypoint: str
    input_schema: list[InputField]


class VersionList(View):
    items: list[VersionSummary]


class CuratedAppView(View):
    app_id: str
    version: str | None
    slug: str
    title: str
    min_role: Role


class CuratedAppList(View):
    items: list[CuratedAppView]


class SweepView(View):
    started_at: datetime | None
    ended_at: datetime | None
    succeeded_at: datetime | None
    error: str | None
    sweeps: int
    failures: int


class StorageView(View):
    sessions: int
    files: int
    bytes: int
    orphans: int
    orphan_bytes: int
    unexplained: int
    oldest_access: datetime | None
    walked_at: datetime | None
    last_sweep: SweepView
    lifecycle: LifecycleState | Literal["unknown"]


def view_user(user: User) -> UserView:
    return UserView(
        id=user.id, username=user.username, display_name=user.display_name, role=user.role
    )


def view_account(user: User) -> AccountView:
    return AccountView(**msgspec.structs.asdict(user))


def view_token(token: ApiToken) -> TokenView:
    return TokenView(**msgspec.structs.asdict(token))


def summarize_tool(tool: Tool) -> ToolSummary:
    return ToolSummary(id=tool.id, slug=tool.slug, title=tool.title, summary=tool.summary)


def view_curated_app(entry: CuratedEntry) -> CuratedAppView:
    return CuratedAppView(**msgspec.structs.asdict(entry))


def view_storage(status: StorageStatus, lifecycle: LifecycleState | None) -> StorageView:
    return StorageView(
        sessions=status.sets,
        files=status.files,
        bytes=status.bytes,
        orphans=status.orphans,
        orphan_bytes=status.orphan_bytes,
        unexplained=status.unexplained,
        oldest_access=status.oldest_access,
        walked_at=status.walked_at,
        last_sweep=SweepView(
            started_at=status.started_at,
            ended_at=status.ended_at,
            succeeded_at=status.succeeded_at,
            error=status.error,
            sweeps=status.sweeps_total,
            failures=status.failures_total,
        ),
        lifecycle=lifecycle or "unknown",
    )


def view_tool(tool: Tool, schema: InputSchema, limits: UploadLimits) -> ToolView:
    field = file_field(schema)
    most = 0 if field is None else min(field.max or limits.max_files, limits.max_files)
    return ToolView(
        id=tool.id,
        slug=tool.slug,
        title=tool.title,
        summary=tool.summary,
        usage_instructions=tool.usage_instructions,
        input_schema=list(schema),
        upload_constraints=UploadConstraints(
            max_files=most,
            max_file_bytes=limits.max_file_bytes,
            max_total_bytes=limits.max_total_bytes,
            min_files=0 if field is None else field.min,
            accept=[] if field is None else list(field.accept),
        ),
    )


def view_run(run: Run) -> RunView:
    """Show a run to its user; only editors' test runs show what the tool printed."""
    shared: dict[str, Any] = {
        name: getattr(run, name)
        for name in RunView.__struct_fields__
        if name not in {"run_id", "ui_payload", "artifacts"}
    }
    shared["run_id"] = run.id
    shared["ui_payload"] = _raw_payload(run)
    shared["artifacts"] = [ArtifactView(path=a.path, bytes=a.bytes) for a in run.artifacts]
    if run.is_sandbox:
        return SandboxRunView(**shared, stdout=run.stdout, stderr=run.stderr)
    return RunView(**shared)


def _raw_payload(run: Run) -> dict[str, Any] | None:
    if run.ui_payload is None:
        return None
    # Byte for byte what the normalizer made: jsonb forgets the order of keys, canonical JSON
    # gives it back, and Raw keeps the response's encoder from making its own.
    return cast("dict[str, Any]", msgspec.Raw(canonical_json(run.ui_payload)))


def view_editor_tool(tool: Tool) -> EditorTool:
    return EditorTool(**{name: getattr(tool, name) for name in EditorTool.__struct_fields__})


def summarize_version(version: ToolVersion) -> VersionSummary:
    return VersionSummary(
        **{name: getattr(version, name) for name in VersionSummary.__struct_fields__}
    )


def view_version(version: ToolVersion) -> VersionView:
    return VersionView(**msgspec.structs.asdict(version))
