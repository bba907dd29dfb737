"""/runs/{id}/events: a run as it goes, as server-sent events (WHATWG HTML, §9.2)."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from uuid import UUID

import msgspec
from litestar import Request, Router, get
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.response import ServerSentEvent, ServerSentEventMessage

from app.api.schemas import View
from app.domain.runs import Run
from app.domain.users import User
from app.errors import NotFound
from app.store.events import RunEvent, Subscription
from app.wiring import Services

# A proxy may close what is silent for a minute, and a page wants to know sooner.
HEARTBEAT_SECONDS = 10.0
RETRY_MILLISECONDS = 1000
SUBSCRIBE_SECONDS = 2.0


class StatusEvent(View):
    """The run's status; the last event of a run says how it ended."""

    status: str


class ProgressEvent(View):
    """How far the tool says that it has come, from 0 to 1."""

    fraction: float
    text: str


@get("/{run_id:uuid}/events")
async def stream_events(
    request: Request[Any, Any, Any],
    services: NamedDependency[Services],
    user: NamedDependency[User],
    run_id: FromPath[UUID],
) -> ServerSentEvent:
    """Status changes and progress until the run ends; `Last-Event-ID` goes on after that event."""
    # Before the answer begins: a foreign run is a 404, not a broken stream.
    await services.runs.get_run(user, run_id)
    after = request.headers.get("last-event-id")
    return ServerSentEvent(_follow_to_end(services, user, run_id, after))


async def _follow_to_end(
    services: Services, user: User, run_id: UUID, last_id: str | None
) -> AsyncIterator[ServerSentEventMessage]:
    try:
        async for message in _follow(services, user, run_id, last_id):
            yield message
    except NotFound:
        # Deleted meanwhile, with its tool: the answer has begun, so all that it can do is end.
        return


async def _follow(
    services: Services, user: User, run_id: UUID, last_id: str | None
) -> AsyncIterator[ServerSentEventMessage]:
    yield ServerSentEventMessage(data=None, retry=RETRY_MILLISECONDS)
    async with services.events.subscribe(run_id, ready_seconds=SUBSCRIBE_SECONDS) as updates:
        run = await services.runs.get_run(user, run_id)
        told: str | None = None
        for event in await services.events.replay(run_id, last_id):
            last_id, told = event.id, event.status or told
            yield _message(event)
        if told != run.status:
            # What is kept does not say it (any more): the run itself does.
            yield _status(run)
        while not run.status.is_finished:
            next_event = await _next_event(updates)
            if next_event is None:
                yield ServerSentEventMessage(data=None, comment="")
            elif next_event.id is None:
                # Events may have been missed.
                run = await services.runs.get_run(user, run_id)
                yield _status(run)
            elif _is_news(next_event, last_id):
                last_id = next_event.id
                if next_event.status is not None:
                    run = await services.runs.get_run(user, run_id)
                yield _message(next_event)


async def _next_event(updates: Subscription) -> RunEvent | None:
    """Return the next event, None for the time of a heartbeat without one."""
    try:
        async with asyncio.timeout(HEARTBEAT_SECONDS):
            return await updates.get()
    except TimeoutError:
        return None


def _is_news(event: RunEvent, after: str | None) -> bool:
    """Tell whether an event comes after the last one told: the replay may have told it already."""
    return after is None or event.id is None or _order(event.id) > _order(after)


def _order(event_id: str) -> tuple[int, ...]:
    return tuple(int(part) for part in event_id.split("-"))


def _message(event: RunEvent) -> ServerSentEventMessage:
    if event.status is not None:
        name, body = "status", msgspec.json.encode(StatusEvent(status=event.status))
    else:
        progress = ProgressEvent(fraction=event.fraction or 0.0, text=event.text or "")
        name, body = "progress", msgspec.json.encode(progress)
    return ServerSentEventMessage(event=name, data=body, id=event.id)


def _status(run: Run) -> ServerSentEventMessage:
    return ServerSentEventMessage(
        event="status", data=msgspec.json.encode(StatusEvent(status=run.status))
    )


router = Router("/runs", route_handlers=[stream_events], tags=["runs"])
