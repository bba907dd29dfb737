"""A worker process: arq's loop with our serializer, woken by a message instead of fast polling."""

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from arq import cron
from arq.connections import ArqRedis
from arq.typing import WorkerCoroutine
from arq.worker import Worker, func
from redis.exceptions import RedisError

from app.errors import AppError
from app.jobs import RUN_PREFIX, RUN_TOOL, WAKE_CHANNEL, deserialize_job, serialize_job
from app.log import configure_logging, get_log
from app.settings import Settings, SettingsError, load_settings
from app.store.object_types import ConditionalWritesMissing, RequestRefused
from app.wiring import open_services
from workers.abandoned import AbandonedUploads
from workers.blob_cache import make_blob_cache
from workers.readiness import Readiness
from workers.run_tool import RunTool, longest_seconds
from workers.sandbox import open_sandbox
from workers.sandbox.base import SandboxUnavailable
from workers.sandbox.directories import keep_left_over_removed
from workers.sweep import Sweep

log = get_log(__name__)

# With the wake-up message lost, an idle worker finds a job this late.
POLL_SECONDS = 1.0
WAKE_SECONDS = 60.0
RETENTION_SECONDS = 3_000
# What a sweep may take beyond the time after which it begins nothing new.
SWEEP_END_SECONDS = 300
# No run takes as long: all that it does has limits of its own. To a run the queue's limit would
# look like the end of its worker, and it would be handed back for nothing, again and again.
QUEUE_SECONDS = 86_400


class WakingWorker(Worker):
    """arq's worker, except that it looks for jobs when told that there are some.

    It leaves runs to others while it is not ready.
    """

    readiness: Readiness | None = None

    async def main(self) -> None:
        wake = asyncio.Event()
        listener = asyncio.create_task(_listen_for_wake(self.pool, wake), name="queue-wake")
        try:
            while True:
                wake.clear()
                await self._look_for_jobs(wake)
                with suppress(TimeoutError):
                    async with asyncio.timeout(POLL_SECONDS):
                        await wake.wait()
        finally:
            listener.cancel()

    async def start_jobs(self, job_ids: list[bytes]) -> None:
        if self.readiness is not None and not self.readiness.is_ready:
            # The clock's jobs need no sandbox.
            job_ids = [i for i in job_ids if not i.decode().startswith(RUN_PREFIX)]
        await super().start_jobs(job_ids)

    async def run_job(self, job_id: str, score: int) -> None:
        """Take a run's job off the queue, then do it.

        arq leaves it there until it has ended, and looks at the first hundred only: so many runs
        at once, or the remains of dead workers, would hide all others. Who was taken off and is
        not done is known to PostgreSQL, and sent again.
        """
        if job_id.startswith(RUN_PREFIX):
            await self.pool.zrem(self.queue_name, job_id)
        await super().run_job(job_id, score)

    async def end_jobs(self) -> None:
        """Wait until what was told to end has ended, and leave the queue."""
        # Each to its own end: one that cannot tell the queue must not cut off the others.
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)
        try:
            await self.close()
        except (RedisError, OSError) as error:
            log.warning("queue.unavailable", error=str(error))

    async def _look_for_jobs(self, wake: asyncio.Event) -> None:
        known = set(self.tasks)
        try:
            await self._poll_iteration()
        except (RedisError, OSError) as error:
            # A worker outlives its queue: what is queued stands in PostgreSQL.
            log.warning("queue.unavailable", error=str(error))
            await self._give_back_places()
        for job_id in self.tasks.keys() - known:
            # A place that becomes free is a reason to look again.
            self.tasks[job_id].add_done_callback(lambda _: wake.set())

    async def _give_back_places(self) -> None:
        """Free the places that arq took for jobs that it then could not start."""
        await asyncio.sleep(0)  # What ended just now gives its place back by itself.
        working = sum(not task.done() for task in self.tasks.values())
        while self.job_counter > working:
            self.job_counter -= 1
            self.sem.release()


async def _listen_for_wake(redis: ArqRedis, wake: asyncio.Event) -> None:
    while True:
        pubsub = redis.pubsub(ignore_subscribe_messages=True)
        try:
            await pubsub.subscribe(WAKE_CHANNEL)
            while True:
                # Silence is no error here, unlike to `listen()`.
                if await pubsub.get_message(timeout=WAKE_SECONDS) is not None:
                    wake.set()
        except (RedisError, OSError) as error:
            log.warning("queue.wake_interrupted", error=str(error))
            await asyncio.sleep(POLL_SECONDS)
        finally:
            with suppress(RedisError, OSError):
                await pubsub.aclose()  # type: ignore[no-untyped-call]


async def run_worker(settings: Settings) -> None:
    """Work until SIGTERM or SIGINT, then let what runs end within a grace period."""
    async with AsyncExitStack() as stack:
        services = await stack.enter_async_context(open_services(settings))
        sandbox = await open_sandbox(settings)
        stack.push_async_callback(sandbox.aclose)
        readiness = Readiness(sandbox)
        stack.push_async_callback(readiness.aclose)
        abandoned = AbandonedUploads(services.paced_artifacts)
        do_run = RunTool(
            settings=settings,
            db=services.db,
            session_files=services.session_files,
            artifacts=services.artifacts,
            events=services.events,
            queue=services.queue,
            sandbox=sandbox,
            readiness=readiness,
            abandoned=abandoned,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            blob_cache=make_blob_cache(settings),
        )
        if do_run.blob_cache is not None:
            tidying = asyncio.create_task(do_run.blob_cache.keep_swept(), name="sweep-blob-cache")
            stack.callback(tidying.cancel)
        # A tool is over in this time, and cleaned up after in less than that.
        left_over = keep_left_over_removed(max_age_seconds=2 * longest_seconds(settings))
        removing = asyncio.create_task(left_over, name="remove-left-over")
        stack.callback(removing.cancel)
        sweep = Sweep(
            settings,
            services.db,
            services.queue,
            services.events,
            services.session_files,
            services.paced_artifacts,
            services.deletions,
            abandoned,
        )
        worker = _make_worker(settings, services.queue.arq, do_run, sweep)
        # Apart from each other, since a deletion may take hours.
        for work in (sweep.recover_runs, sweep.finish_deletions):
            rounds = _by_the_clock(work, work.__name__, settings.run_sweep_seconds)
            stack.callback(asyncio.create_task(rounds, name=work.__name__).cancel)
        log.info("worker.started", owner=do_run.worker, sandbox=sandbox.name)
        if settings.worker_ready_file is not None:
            ready_file = Path(settings.worker_ready_file)
            ready_file.touch()  # noqa: ASYNC240 - once, at start
            stack.callback(ready_file.unlink, missing_ok=True)
        try:
            with suppress(asyncio.CancelledError):
                await worker.async_run()
        finally:
            await worker.end_jobs()
            await abandoned.delete()
        log.info("worker.stopped", owner=do_run.worker)


async def _by_the_clock(work: Callable[[], Awaitable[None]], name: str, seconds: float) -> None:
    """Work again and again, outside the queue: it has to go on while that is away or full."""
    while True:
        try:
            await work()
        except AppError as error:
            log.warning("worker.round_failed", work=name, error=str(error))
        except Exception:
            # What recovers the others must not be what ends.
            log.exception("worker.round_crashed", work=name)
        await asyncio.sleep(seconds)


def _make_worker(settings: Settings, arq: ArqRedis, do_run: RunTool, sweep: Sweep) -> WakingWorker:
    async def run_tool(_: dict[str, Any], run_id: str, attempt: int) -> None:
        await do_run(UUID(run_id), attempt)

    async def cleanup_expired_session_files(_: dict[str, Any]) -> None:
        await sweep.clean_up_expired_session_files()

    async def apply_retention(_: dict[str, Any]) -> None:
        await sweep.apply_retention()

    worker = WakingWorker(
        functions=[
            func(
                cast(WorkerCoroutine, run_tool),
                name=RUN_TOOL,
                timeout=QUEUE_SECONDS,
                keep_result=0,
                # How often a run is tried is not the queue's to say: it counts also what a killed
                # worker took, and would then drop the job.
                max_tries=1_000_000,
            )
        ],
        cron_jobs=[
            cron(
                cast(WorkerCoroutine, cleanup_expired_session_files),
                minute={17},
                second={0},
                timeout=settings.sweep_max_seconds + SWEEP_END_SECONDS,
                keep_result=0,
            ),
            cron(
                cast(WorkerCoroutine, apply_retention),
                minute={47},
                second={0},
                timeout=RETENTION_SECONDS,
                keep_result=0,
            ),
        ],
        redis_pool=arq,
        queue_name=settings.queue_name,
        max_jobs=settings.worker_concurrency,
        job_serializer=serialize_job,
        job_deserializer=deserialize_job,
        job_completion_wait=settings.worker_grace_seconds,
        retry_jobs=False,
        keep_result=0,
        log_results=False,
    )
    worker.readiness = do_run.readiness
    return worker


def main() -> None:
    """Run a worker from the settings in the environment."""
    try:
        settings = load_settings()
        configure_logging(settings.log_level)
        asyncio.run(run_worker(settings))
    except AppError as error:
        log.error("worker.cannot_start", error=str(error), **error.details)
        sys.exit(1)
    except (SettingsError, SandboxUnavailable, ConditionalWritesMissing, RequestRefused) as error:
        log.error("worker.cannot_start", error=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
