"""/editor: contributors write tools and try them out; admins publish."""

from datetime import UTC, datetime
from typing import cast
from uuid import UUID

import msgspec
from litestar import Response, Router, delete, get, patch, post, put
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from app.api.deps import (
    ADMINS,
    CONTRIBUTORS,
    AnyRequest,
    check_page_size,
    cut_page,
    decode_cursor,
)
from app.api.runs import answer_action, answer_started
from app.api.schemas import (
    ActionStarted,
    DraftBody,
    EditorTool,
    EditorToolPage,
    NewToolBody,
    NewVersionBody,
    SandboxActionBody,
    SandboxRunView,
    SessionFilesView,
    ToolPatchBody,
    VersionList,
    VersionView,
    summarize_version,
    view_editor_tool,
    view_version,
)
from app.api.sessions import view_files
from app.api.uploads import stream_form
from app.domain.sessions import sandbox_context
from app.domain.tools import ToolCode, parse_input_schema
from app.domain.users import User
from app.store import tools as tool_store
from app.store.session_files import SessionFilesKey
from app.usecases import sessions, tools
from app.usecases.run_form import RunTarget
from app.usecases.sessions import SessionView
from app.usecases.turns import ActionRequest
from app.wiring import Services


@get("/tools")
async def list_own_tools(
    services: NamedDependency[Services],
    user: NamedDependency[User],
    limit: FromQuery[int | None] = None,
    cursor: FromQuery[str | None] = None,
) -> EditorToolPage:
    """The caller's own tools, every tool for an admin, published or not."""
    size = check_page_size(limit)
    after = decode_cursor(cursor, tuple[str, UUID])
    found = await tools.list_editable(services.db, user, after, size + 1)
    page, next_cursor = cut_page(found, size, lambda tool: (tool.title, tool.id))
    return EditorToolPage(items=[view_editor_tool(tool) for tool in page], next_cursor=next_cursor)


@post("/tools", status_code=201)
async def create_tool(
    services: NamedDependency[Services], user: NamedDependency[User], data: NewToolBody
) -> EditorTool:
    """Add a tool, not yet published."""
    texts = {
        "title": data.title,
        "summary": data.summary,
        "usage_instructions": data.usage_instructions,
    }
    tool = await tools.create_tool(services.db, user, data.slug, texts, datetime.now(UTC))
    return view_editor_tool(tool)


@patch("/tools/{tool_id:uuid}")
async def update_tool(
    services: NamedDependency[Services],
    user: NamedDependency[User],
    tool_id: FromPath[UUID],
    data: ToolPatchBody,
) -> EditorTool:
    """Change a tool's title, summary or instructions."""
    texts = msgspec.structs.asdict(data)
    tool = await tools.update_tool(services.db, user, tool_id, texts, datetime.now(UTC))
    return view_editor_tool(tool)


@delete("/tools/{tool_id:uuid}", status_code=204, opt=ADMINS)
async def delete_tool(services: NamedDependency[Services], tool_id: FromPath[UUID]) -> None:
    """Delete a tool with its versions, and everybody's files, runs and sessions of it.

    It is out of the catalogue at once; the rest is deleted right after, and that may take a while.
    """
    await services.deletions.mark_tool(tool_id)


@get("/tools/{tool_id:uuid}/versions")
async def list_versions(
    services: NamedDependency[Services],
    user: NamedDependency[User],
    tool_id: FromPath[UUID],
) -> VersionList:
    """A tool's versions, newest first, without their code."""
    await tools.get_editable_tool(services.db, user, tool_id)
    versions = await tool_store.list_versions(services.db, tool_id)
    return VersionList(items=[summarize_version(version) for version in versions])


@post("/tools/{tool_id:uuid}/versions", status_code=201)
async def create_version(
    services: NamedDependency[Services],
    user: NamedDependency[User],
    tool_id: FromPath[UUID],
    data: NewVersionBody,
) -> VersionView:
    """Add a draft."""
    tool = await tools.get_editable_tool(services.db, user, tool_id)
    version = await tools.create_version(services.db, tool, user, _code(data), datetime.now(UTC))
    return view_version(version)


@get("/tool-versions/{version_id:uuid}")
async def show_version(
    services: NamedDependency[Services],
    user: NamedDependency[User],
    version_id: FromPath[UUID],
) -> VersionView:
    """One version with its code."""
    _, version = await tools.get_editable_version(services.db, user, version_id)
    return view_version(version)


@put("/tool-versions/{version_id:uuid}")
async def save_draft(
    services: NamedDependency[Services],
    user: NamedDependency[User],
    version_id: FromPath[UUID],
    data: DraftBody,
) -> VersionView:
    """Save a draft; 409 `edit_conflict` if somebody saved it since `expected_rev`."""
    now = datetime.now(UTC)
    saved = await tools.save_draft(
        services.db, user, version_id, data.expected_rev, _code(data), now
    )
    return view_version(saved)


@post("/tool-versions/{version_id:uuid}/publish", status_code=200, opt=ADMINS)
async def publish_version(
    services: NamedDependency[Services], user: NamedDependency[User], version_id: FromPath[UUID]
) -> VersionView:
    """Publish a version: new sessions get it, sessions under way stay on theirs."""
    _, version = await tools.get_editable_version(services.db, user, version_id)
    return view_version(await tools.publish(services.db, user, version, datetime.now(UTC)))


@post("/tool-versions/{version_id:uuid}/run-sandbox", status_code=202, request_max_body_size=None)
async def run_sandbox(
    request: AnyRequest,
    services: NamedDependency[Services],
    user: NamedDependency[User],
    version_id: FromPath[UUID],
) -> Response[SandboxRunView]:
    """Try a version out, with the same form as a published tool; also shows what it printed."""
    _, version = await tools.get_editable_version(services.db, user, version_id)
    source, context = tools.version_source(version), sandbox_context(version_id)
    target = RunTarget(version.tool_id, source, version.input_schema, fixed_context=context)
    run_id = await services.initial_runs.start(
        user, target, stream_form(request, services.settings)
    )
    answer = await answer_started(request, services, user, run_id)
    return cast("Response[SandboxRunView]", answer)


@post("/tool-versions/{version_id:uuid}/start-action", status_code=202)
async def start_sandbox_action(
    request: AnyRequest,
    services: NamedDependency[Services],
    user: NamedDependency[User],
    version_id: FromPath[UUID],
    data: SandboxActionBody,
) -> Response[ActionStarted]:
    """Take the next step of a test session."""
    key = await _sandbox_key(services, user, version_id)
    action = ActionRequest(data.action_id, data.input, data.expected_state_rev)
    return await answer_action(request, services, user, key, action)


@get("/tool-versions/{version_id:uuid}/session")
async def show_sandbox_session(
    services: NamedDependency[Services],
    user: NamedDependency[User],
    version_id: FromPath[UUID],
) -> SessionView:
    """State, revision and actions of the caller's test session."""
    key = await _sandbox_key(services, user, version_id)
    return await sessions.view_session(services.db, user, key)


@get("/tool-versions/{version_id:uuid}/session-files")
async def show_sandbox_files(
    services: NamedDependency[Services],
    user: NamedDependency[User],
    version_id: FromPath[UUID],
) -> SessionFilesView:
    """The saved files of the caller's test session."""
    return await view_files(services, await _sandbox_key(services, user, version_id))


@delete("/tool-versions/{version_id:uuid}/session-files", status_code=204)
async def clear_sandbox_files(
    services: NamedDependency[Services],
    user: NamedDependency[User],
    version_id: FromPath[UUID],
) -> None:
    """Delete the saved files of the caller's test session."""
    key = await _sandbox_key(services, user, version_id)
    await sessions.clear_files(services.db, services.session_files, key, datetime.now(UTC))


def _code(data: NewVersionBody) -> ToolCode:
    return ToolCode(data.source, data.entrypoint, parse_input_schema(data.input_schema))


async def _sandbox_key(services: Services, user: User, version_id: UUID) -> SessionFilesKey:
    tool, _ = await tools.get_editable_version(services.db, user, version_id)
    return SessionFilesKey(tool.id, user.id, sandbox_context(version_id))


router = Router(
    "/editor",
    route_handlers=[
        list_own_tools,
        create_tool,
        update_tool,
        delete_tool,
        list_versions,
        create_version,
        show_version,
        save_draft,
        publish_version,
        run_sandbox,
        start_sandbox_action,
        show_sandbox_session,
        show_sandbox_files,
        clear_sandbox_files,
    ],
    tags=["editor"],
    opt=CONTRIBUTORS,
)
