"""Names of jobs and how they get on the queue. A job says which run, never what it holds.

The queue may lose everything: `tool_runs` says what is queued, and the sweep sends it again.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any
from uuid import UUID

import msgspec
from arq.connections import ArqRedis
from arq.constants import in_progress_key_prefix, job_key_prefix
from redis.asyncio import ConnectionPool
from redis.exceptions import RedisError

from app.errors import Unavailable
from app.log import get_log
from app.settings import Settings

log = get_log(__name__)

RUN_TOOL = "run_tool"
RUN_PREFIX = "run:"  # of the ids of runs' jobs
TIMEOUT_SECONDS = 2
# Tells idle workers that something was queued, so that they need not poll in milliseconds.
WAKE_CHANNEL = "skriptoteket:wake"

# Never pickle: whoever can write to Redis must not be able to run code in a worker.
serialize_job = msgspec.msgpack.Encoder(enc_hook=repr).encode
deserialize_job = msgspec.msgpack.decode


class Queue:
    """The sending side of the queue."""

    def __init__(self, arq: ArqRedis, queue_name: str) -> None:
        self.arq = arq
        self._queue_name = queue_name

    async def enqueue_run(self, run_id: UUID, attempt: int) -> None:
        """Send a run's job once for each attempt; sending it again is harmless.

        Call after the commit of the run. A queue that is away is logged: the sweep sends later.
        """
        try:
            await self._send(run_id, attempt)
        except (RedisError, OSError) as error:
            log.warning("run.enqueue_failed", run_id=run_id, error=str(error))

    async def resend_run(self, run_id: UUID, attempt: int) -> None:
        """Send the job of a run that has waited for long: it may be lost, or its taker dead.

        A job that still waits keeps its place. One that was taken left the queue, and its remains
        would keep it from being sent. Two takers do no harm: one of them claims the run.
        """
        job_id = _job_id(run_id, attempt)
        try:
            remains = [in_progress_key_prefix + job_id]
            if await self.arq.zscore(self._queue_name, job_id) is None:
                remains.append(job_key_prefix + job_id)
            await self.arq.delete(*remains)
            await self._send(run_id, attempt)
        except (RedisError, OSError) as error:
            log.warning("run.enqueue_failed", run_id=run_id, error=str(error))

    async def hand_over_run(self, run_id: UUID, attempt: int, lease_owner: str) -> None:
        """Send a run that a claim gives back while the claim's own job for it has not ended."""
        try:
            await self._send(run_id, attempt, f"{_job_id(run_id, attempt)}:{lease_owner}")
        except (RedisError, OSError) as error:
            log.warning("run.enqueue_failed", run_id=run_id, error=str(error))

    async def _send(self, run_id: UUID, attempt: int, job_id: str | None = None) -> None:
        await self.arq.enqueue_job(
            RUN_TOOL,
            str(run_id),
            attempt,
            _job_id=job_id or _job_id(run_id, attempt),
            _queue_name=self._queue_name,
        )
        await self.arq.publish(WAKE_CHANNEL, b"")


def _job_id(run_id: UUID, attempt: int) -> str:
    return f"{RUN_PREFIX}{run_id}:{attempt}"


def make_queue(settings: Settings) -> Queue:
    """Make a queue that connects as it is used."""
    # Not arq's own create_pool: its connections would wait for ever for a Redis that hangs.
    pool: Any = ConnectionPool.from_url(
        settings.redis_url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS
    )
    arq: Any = ArqRedis(
        pool,
        job_serializer=serialize_job,
        job_deserializer=deserialize_job,
        default_queue_name=settings.queue_name,
    )
    return Queue(arq, settings.queue_name)


@asynccontextmanager
async def open_queue(settings: Settings) -> AsyncIterator[Queue]:
    """Connect to the queue. A Redis that is away fails here, at start, and nowhere later."""
    queue = make_queue(settings)
    try:
        try:
            await queue.arq.ping()
        except (RedisError, OSError) as error:
            raise Unavailable("redis") from error
        yield queue
    finally:
        with suppress(RedisError, OSError):
            arq: Any = queue.arq  # typed without this argument
            await arq.aclose(close_connection_pool=True)
