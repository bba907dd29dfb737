"""/runs/{id}/events: a run as it goes, as server-sent events (WHATWG HTML, §9.2).

Statuses come from PostgreSQL alone, so that none is told after a newer one: an event of Redis is a
reason to look, and its id is where a client that lost the connection goes on.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from uuid import UUID

import msgspec
from litestar import Router, get
from litestar.di import NamedDependency
from litestar.params import FromPath
from litestar.response import ServerSentEvent, ServerSentEventMessage

from app.api.deps import AnyRequest
from app.api.schemas import View
from app.domain.runs import RunStatus
from app.domain.users import User
from app.errors import NotFound, Unavailable
from app.store.events import RunEvent, Subscription
from app.wiring import Services

# A proxy may close what is silent for a minute, and a page wants to know sooner.
HEARTBEAT_SECONDS = 10.0
RETRY_MILLISECONDS = 1000
SUBSCRIBE_SECONDS = 2.0


class StatusEvent(View):
    """The run's status; the last event of a run says how it ended."""

    status: RunStatus


class ProgressEvent(View):
    """How far the tool says that it has come, from 0 to 1."""

    fraction: float
    text: str


@get("/{run_id:uuid}/events")
async def stream_events(
    request: AnyRequest,
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
    services: Services, user: User, run_id: UUID, after: str | None
) -> AsyncIterator[ServerSentEventMessage]:
    yield ServerSentEventMessage(data=None, retry=RETRY_MILLISECONDS)
    told: RunStatus | None = None
    last_id: str | None = None
    async with services.events.subscribe(run_id, ready_seconds=SUBSCRIBE_SECONDS) as updates:
        for kept in await services.events.replay(run_id, after):
            last_id, told = kept.id, kept.status or told
            yield _message(kept)
            if told is not None and told.is_finished:
                return
        # What is kept may not say how the run stands now: the first reason to look.
        event: RunEvent | None = RunEvent()
        while True:
            if event is None:
                yield ServerSentEventMessage(data=None, comment="")
            if event is not None and event.fraction is not None:
                yield _message(event)
            # A heartbeat is a reason to look too: the event that should have been may be lost.
            elif status := await _find_change(services, user, run_id, told):
                told = status
                yield _message(RunEvent(status=status, id=None if event is None else event.id))
                if status.is_finished:
                    return
            event = await _next_event(updates, last_id)
            if event is not None:
                last_id = event.id or last_id


async def _find_change(
    services: Services, user: User, run_id: UUID, told: RunStatus | None
) -> RunStatus | None:
    """Return the status of the run if it is another than what was told.

    An unfinished run's row is small. None also if the database does not answer: a page would not
    come back to a node that refuses it, so the stream stays, and the next heartbeat looks again.

    Raises:
        NotFound: the run is no more.
    """
    with suppress(Unavailable):
        run = await services.runs.get_run(user, run_id)
        return None if run.status == told else run.status
    return None


async def _next_event(updates: Subscription, after: str | None) -> RunEvent | None:
    """Return the next event that was not told yet, None for the time of a heartbeat without one."""
    try:
        async with asyncio.timeout(HEARTBEAT_SECONDS):
            while not _is_news(event := await updates.get(), after):
                pass
            return event
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


router = Router("/runs", route_handlers=[stream_events], tags=["runs"])
