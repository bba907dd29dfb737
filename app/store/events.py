"""Events of runs over Redis pub/sub: who waits for a run hears of it, on whichever node.

An event is a hint, never the truth: a subscriber reads the run from PostgreSQL. So a lost message
costs time and nothing else. The last events of each run are kept for a while, so that who lost the
connection can go on after the last one that it saw.

Redis is told of a run's first listener, and when the last one has left; what could not be said is
said later by the listening task, whose connection it is.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from app.domain.runs import RunStatus
from app.log import get_log

log = get_log(__name__)

# Nothing is said there: a connection without any subscription cannot be read from.
_OWN_CHANNEL = "run-events"
_EVENT_ID = re.compile(r"\d{1,20}-\d{1,20}")

BACKLOG = 100  # events a slow subscriber may lag behind before it loses the oldest
RECONNECT_SECONDS = 0.5
# A hint is worth no more than this of a run's time, and what is kept of them of a reader's.
PUBLISH_SECONDS = 1.0
REPLAY_SECONDS = 3.0
# After so long a silence the server is asked whether it is there, and has as long to answer.
SILENCE_SECONDS = 5.0
KEPT_EVENTS = 200
KEPT_SECONDS = 3600

# Number the event by the run's stream, keep it there, and tell the listeners: in one step, so that
# nobody is told of an event that a replay would not find.
_PUBLISH = """
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[2], '*', 'event', ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('PUBLISH', KEYS[2], id .. ' ' .. ARGV[1])
"""


class RunEvent(msgspec.Struct, frozen=True, omit_defaults=True):
    """A run's new status, or the progress that its tool reports (fraction 0 to 1).

    An empty one says that events may have been missed: read the run again.
    """

    status: RunStatus | None = None
    fraction: float | None = None
    text: str | None = None
    id: str | None = None  # "milliseconds-number", rising; None for an empty one


class Subscription:
    """Events of one run in the order in which they came."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self._events: asyncio.Queue[RunEvent] = asyncio.Queue(BACKLOG)

    def put(self, event: RunEvent) -> None:
        if self._events.full():
            self._events.get_nowait()
        self._events.put_nowait(event)

    async def get(self) -> RunEvent:
        return await self._events.get()


class RunEvents:
    """One pub/sub connection a process, shared by all of its subscriptions."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._publish = redis.register_script(_PUBLISH)
        self._pubsub = redis.pubsub(ignore_subscribe_messages=False)
        self._subscriptions: dict[str, set[Subscription]] = {}
        # Channels that Redis has said it sends us, and those of which it has to be told something.
        self._confirmed: set[str] = set()
        self._unsettled: set[str] = set()
        self._is_listening = False
        # An UNSUBSCRIBE must not overtake the SUBSCRIBE of somebody who came after it.
        self._commands = asyncio.Lock()

    async def publish(self, run_id: UUID, event: RunEvent) -> None:
        """Tell whoever listens; a Redis that is away is logged and otherwise ignored."""
        try:
            async with asyncio.timeout(PUBLISH_SECONDS):
                await self._publish(
                    keys=[_log_key(run_id), _channel(run_id)],
                    args=[msgspec.json.encode(event), KEPT_EVENTS, KEPT_SECONDS],
                )
        except (RedisError, OSError) as error:
            log.warning("run.event_lost", run_id=run_id, error=str(error))

    @asynccontextmanager
    async def subscribe(self, run_id: UUID, *, ready_seconds: float) -> AsyncIterator[Subscription]:
        """Listen to a run; in effect (or given up on) when the block begins.

        Read the run inside the block: what happened before is not repeated.
        """
        channel = _channel(run_id)
        subscription = Subscription()
        subscriptions = self._subscriptions.setdefault(channel, set())
        subscriptions.add(subscription)
        if channel in self._confirmed:
            subscription.ready.set()
        elif len(subscriptions) == 1:
            self._unsettled.add(channel)
        try:
            with suppress(RedisError, OSError):
                async with asyncio.timeout(ready_seconds):
                    # Else it is done as soon as there is a connection; two must not make it.
                    if self._is_listening:
                        await self._settle()
                    await subscription.ready.wait()
            # Or given up on: if it comes into effect later, something may have been missed.
            subscription.ready.set()
            yield subscription
        finally:
            subscriptions.discard(subscription)
            if not subscriptions:
                del self._subscriptions[channel]
                self._unsettled.add(channel)

    async def replay(self, run_id: UUID, after: str | None) -> list[RunEvent]:
        """Return the kept events of a run in order, those after an id or all of them.

        An id that is none of ours, and a Redis that is away, give what can be given: all, nothing.
        """
        start = f"({after}" if after and _EVENT_ID.fullmatch(after) else "-"
        try:
            async with asyncio.timeout(REPLAY_SECONDS):
                entries = await self._redis.xrange(_log_key(run_id), min=start)
        except (RedisError, OSError) as error:
            log.warning("run.replay_failed", run_id=run_id, error=str(error))
            return []
        return [_decode(entry_id, fields[b"event"]) for entry_id, fields in entries]

    async def listen(self) -> None:
        """Deliver events until cancelled; what was listened to before a loss is afterwards too."""
        while True:
            try:
                await self._pubsub.subscribe(_OWN_CHANNEL)
                self._is_listening = True
                await self._deliver_all()
            except Exception as error:
                # Whatever it is: without this task nobody here would hear of anything again.
                log.warning("run.events_interrupted", error=repr(error))
                self._is_listening = False
                self._confirmed.clear()
                connection: Any = self._pubsub.connection
                if connection is not None:
                    await connection.disconnect(nowait=True)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _settle(self) -> None:
        """Tell Redis which channels have got, or lost, their listeners since it was told."""
        async with self._commands:
            while self._unsettled:
                channel = self._unsettled.pop()
                try:
                    if channel not in self._subscriptions:
                        self._confirmed.discard(channel)
                        await self._pubsub.unsubscribe(channel)
                    elif channel not in self._confirmed:
                        await self._pubsub.subscribe(channel)
                except BaseException:
                    # Not said. The client itself repeats only what it once could say.
                    self._unsettled.add(channel)
                    raise

    async def _deliver_all(self) -> None:
        is_asked = False
        while True:
            await self._settle()
            # Not `listen()`: it takes a silence for a lost connection and subscribes anew, and
            # what is said meanwhile is lost.
            message = await self._pubsub.get_message(timeout=SILENCE_SECONDS)
            if message is not None:
                is_asked = False
                self._deliver(message)
            elif is_asked:
                raise TimeoutError("no answer to a ping")
            else:
                is_asked = True
                await self._pubsub.ping()

    async def aclose(self) -> None:
        await self._pubsub.aclose()  # type: ignore[no-untyped-call]

    def _deliver(self, message: dict[str, Any]) -> None:
        if message["channel"] is None:
            return  # The answer to a ping.
        channel = message["channel"].decode()
        subscriptions = self._subscriptions.get(channel, set())
        if message["type"] == "subscribe":
            if subscriptions:
                self._confirmed.add(channel)
            elif channel != _OWN_CHANNEL:
                # The client repeats it after a loss also for those who have left meanwhile.
                self._unsettled.add(channel)
            for subscription in subscriptions:
                if subscription.ready.is_set():
                    # Subscribed anew, or late: nobody knows what was said in between.
                    subscription.put(RunEvent())
                subscription.ready.set()
        elif message["type"] == "unsubscribe":
            self._confirmed.discard(channel)
            if subscriptions:
                # They came after that was said, and may have been taken for subscribed.
                self._unsettled.add(channel)
        elif message["type"] == "message":
            event = _decode(*message["data"].split(b" ", 1))
            for subscription in subscriptions:
                subscription.put(event)


@asynccontextmanager
async def open_run_events(redis: Redis) -> AsyncIterator[RunEvents]:
    events = RunEvents(redis)
    listener = asyncio.create_task(events.listen(), name="run-events")
    try:
        yield events
    finally:
        listener.cancel()
        with suppress(asyncio.CancelledError):
            await listener
        await events.aclose()


def _decode(event_id: bytes, data: bytes) -> RunEvent:
    return msgspec.structs.replace(msgspec.json.decode(data, type=RunEvent), id=event_id.decode())


def _log_key(run_id: UUID) -> str:
    return f"run-events:{run_id}"


def _channel(run_id: UUID) -> str:
    return f"run:{run_id}"
