"""Runs: one execution of a tool in a session, and what is kept of it (ADR-0024 §§2-3)."""

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal
from uuid import UUID

import msgspec

from app.domain.files import StoredFile
from app.domain.sessions import SANDBOX_PREFIX
from app.domain.users import Role

SourceKind = Literal["tool_version", "curated_app"]


class RunSource(msgspec.Struct, frozen=True, kw_only=True):
    """What a run executes (ADR-0024 §3): a version of a tool, or one of a curated app."""

    source_kind: SourceKind
    version_id: UUID | None = None
    curated_app_id: str | None = None
    curated_app_version: str | None = None


class RunKind(StrEnum):
    INITIAL = "initial"
    ACTION = "action"


class RunStatus(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    CANCELLED = "cancelled"

    @property
    def is_finished(self) -> bool:
        return self not in (RunStatus.QUEUED, RunStatus.RUNNING)


class Artifact(msgspec.Struct, frozen=True):
    """A file that a run produced; its bytes are the object with its place in the run's list."""

    path: str
    bytes: int


class Captured(msgspec.Struct, frozen=True):
    """The kept beginning of a stream and how many bytes there were in all."""

    text: str = ""
    bytes: int = 0
    truncated: bool = False


class ActionCall(msgspec.Struct, frozen=True):
    """What an action run is given in SKRIPTOTEKET_ACTION (ADR-0024 §6)."""

    action_id: str
    input: dict[str, Any]
    state: dict[str, Any]


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A run as its user sees it, with the tool's name for lists."""

    id: UUID
    tool_id: UUID
    tool_slug: str
    tool_title: str
    user_id: UUID
    session_id: UUID
    context: str
    kind: RunKind
    status: RunStatus
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error_code: str | None
    error_summary: str | None
    state_rev: int | None
    artifacts: tuple[Artifact, ...]
    ui_payload: dict[str, Any] | None
    stdout: Captured | None
    stderr: Captured | None

    @property
    def is_sandbox(self) -> bool:
        """Whether this is an editor's test run."""
        return self.context.startswith(SANDBOX_PREFIX)


class ClaimedRun(msgspec.Struct, frozen=True, kw_only=True):
    """A run as the worker that holds its lease sees it."""

    id: UUID
    tool_id: UUID
    user_id: UUID
    session_id: UUID
    context: str
    kind: RunKind
    source_kind: SourceKind
    attempt: int
    lease_owner: str  # this claim's alone
    # A later initial run has taken the session over, with files of its own perhaps.
    superseded: bool
    inputs: dict[str, Any] | None
    action: ActionCall | None
    files: tuple[StoredFile, ...]
    session_has_files: bool  # False also after a clear: what the run needs is deleted then
    source: str
    entrypoint: str

    @property
    def is_sandbox(self) -> bool:
        """Whether this is an editor's test run."""
        return self.context.startswith(SANDBOX_PREFIX)


class FinishedRun(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker writes when a run ends. `state` None leaves the session's state as it is."""

    status: RunStatus
    error_code: str | None = None
    error_summary: str | None = None
    ui_payload: bytes | None = None
    is_interactive: bool = False
    state: dict[str, Any] | None = None
    artifacts: tuple[Artifact, ...] = ()
    stdout: Captured = Captured()
    stderr: Captured = Captured()


class Offer(RunSource, frozen=True, kw_only=True):
    """What a session has on offer: the source that made it, its actions, who may take them."""

    next_actions: list[dict[str, Any]]
    min_role: Role


class ToolSession(msgspec.Struct, frozen=True, kw_only=True):
    """The state of one user in one tool and context (ADR-0024 §1)."""

    id: UUID
    tool_id: UUID
    user_id: UUID
    context: str
    state: dict[str, Any]
    state_rev: int
    active_run_id: UUID | None
    latest_run_id: UUID | None
    offer_run_id: UUID | None
    has_files: bool
    files_rev: int
