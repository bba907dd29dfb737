"""/runs and /start_action: steps, and what came of them."""

from uuid import UUID

from litestar import Response, Router, get, post
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from app.api.deps import (
    AnyRequest,
    check_page_size,
    cut_page,
    decode_cursor,
    read_wait_seconds,
)
from app.api.schemas import (
    ActionStarted,
    RunPage,
    RunView,
    StartActionBody,
    view_run,
)
from app.domain.sessions import parse_context
from app.domain.users import User
from app.store import runs
from app.store.session_files import SessionFilesKey
from app.usecases.turns import ActionRequest
from app.wiring import Services


async def answer_started(
    request: AnyRequest, services: Services, user: User, run_id: UUID
) -> Response[RunView]:
    """Answer 202 at once or, with `Prefer: wait=N`, 200 as soon as the run is finished."""
    wait_seconds = read_wait_seconds(request)
    headers = {"Location": f"/api/v1/runs/{run_id}"}
    if wait_seconds is None:
        run = await services.runs.get_run(user, run_id)
    else:
        headers["Preference-Applied"] = f"wait={wait_seconds}"
        run = await services.runs.wait_for_run(user, run_id, wait_seconds)
    is_done = wait_seconds is not None and run.status.is_finished
    return Response(view_run(run), status_code=200 if is_done else 202, headers=headers)


async def answer_action(
    request: AnyRequest,
    services: Services,
    user: User,
    key: SessionFilesKey,
    action: ActionRequest,
) -> Response[ActionStarted]:
    """Start an action run and answer it, waited for or not; what is done at once answers 200."""
    turn = await services.turns.start(user, key, action)
    status, state_rev = turn.status, turn.state_rev
    wait_seconds = read_wait_seconds(request)
    headers = {"Location": f"/api/v1/runs/{turn.run_id}"}
    if wait_seconds is not None:
        headers["Preference-Applied"] = f"wait={wait_seconds}"
        run = await services.runs.wait_for_run(user, turn.run_id, wait_seconds)
        status, state_rev = run.status, state_rev if run.state_rev is None else run.state_rev
    started = ActionStarted(run_id=turn.run_id, status=status, state_rev=state_rev)
    return Response(started, status_code=200 if status.is_finished else 202, headers=headers)


@post("/start_action", status_code=202, tags=["runs"])
async def start_action(
    request: AnyRequest,
    services: NamedDependency[Services],
    user: NamedDependency[User],
    data: StartActionBody,
) -> Response[ActionStarted]:
    """Take the next step of a session: claims the turn, then runs the tool with the action."""
    key = SessionFilesKey(data.tool_id, user.id, parse_context(data.context))
    action = ActionRequest(data.action_id, data.input, data.expected_state_rev)
    return await answer_action(request, services, user, key, action)


@get("/")
async def list_runs(
    services: NamedDependency[Services],
    user: NamedDependency[User],
    tool: FromQuery[str | None] = None,
    limit: FromQuery[int | None] = None,
    cursor: FromQuery[str | None] = None,
) -> RunPage:
    """The caller's runs, newest first, without their payloads."""
    size = check_page_size(limit)
    found = await runs.list_runs(services.db, user.id, tool, decode_cursor(cursor, UUID), size + 1)
    page, next_cursor = cut_page(found, size, lambda run: run.id)
    return RunPage(items=[view_run(run) for run in page], next_cursor=next_cursor)


@get("/{run_id:uuid}")
async def show_run(
    request: AnyRequest,
    services: NamedDependency[Services],
    user: NamedDependency[User],
    run_id: FromPath[UUID],
) -> Response[RunView]:
    """One run with its payload; `Prefer: wait=N` waits for its end."""
    wait_seconds = read_wait_seconds(request)
    if wait_seconds is None:
        return Response(view_run(await services.runs.get_run(user, run_id)))
    run = await services.runs.wait_for_run(user, run_id, wait_seconds)
    return Response(view_run(run), headers={"Preference-Applied": f"wait={wait_seconds}"})


@post("/{run_id:uuid}/cancel", status_code=202)
async def cancel_run(
    services: NamedDependency[Services], user: NamedDependency[User], run_id: FromPath[UUID]
) -> None:
    """Stop a run: a queued one ends now, a running one is killed by its worker."""
    await services.runs.cancel(user, run_id)


router = Router(
    "/runs",
    route_handlers=[list_runs, show_run, cancel_run],
    tags=["runs"],
)
