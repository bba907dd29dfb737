"""/tools: the catalogue, and starting a tool."""

from uuid import UUID

from litestar import Response, Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from app.api.deps import AnyRequest, check_page_size, cut_page, decode_cursor
from app.api.runs import answer_started
from app.api.schemas import RunView, ToolPage, ToolView, summarize_tool, view_tool
from app.api.uploads import stream_form
from app.domain.users import User
from app.usecases import tools
from app.usecases.run_form import RunTarget
from app.wiring import Services


@get("/")
async def list_tools(
    services: NamedDependency[Services],
    user: NamedDependency[User],
    q: FromQuery[str | None] = None,
    limit: FromQuery[int | None] = None,
    cursor: FromQuery[str | None] = None,
) -> ToolPage:
    """Published tools by title."""
    size = check_page_size(limit)
    after = decode_cursor(cursor, tuple[str, UUID])
    found = await tools.list_catalogue(services.db, user, q, after, size + 1)
    page, next_cursor = cut_page(found, size, lambda tool: (tool.title, tool.id))
    return ToolPage(items=[summarize_tool(tool) for tool in page], next_cursor=next_cursor)


@get("/{slug:str}")
async def show_tool(
    services: NamedDependency[Services], user: NamedDependency[User], slug: FromPath[str]
) -> ToolView:
    """One published tool with its form and limits."""
    offered = await tools.get_offered(services.db, user, slug)
    return view_tool(offered.tool, offered.input_schema, services.upload_limits)


@post("/{slug:str}/run", status_code=202, request_max_body_size=None)
async def run_tool(
    request: AnyRequest,
    services: NamedDependency[Services],
    user: NamedDependency[User],
    slug: FromPath[str],
) -> Response[RunView]:
    """Start a tool: `files`, `inputs`, `session_context`, `session_files_mode` as multipart."""
    offered = await tools.get_offered(services.db, user, slug)
    target = RunTarget(offered.tool.id, offered.source, offered.input_schema)
    run_id = await services.initial_runs.start(
        user, target, stream_form(request, services.settings)
    )
    return await answer_started(request, services, user, run_id)


router = Router("/tools", route_handlers=[list_tools, show_tool, run_tool], tags=["tools"])
