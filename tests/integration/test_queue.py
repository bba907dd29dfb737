"""Jobs on the queue: what waits keeps its place, and what a dead worker took is sent again."""

from collections.abc import AsyncIterator
from uuid import uuid4

import pytest
from arq.constants import in_progress_key_prefix, job_key_prefix

from app.devstack import DevStack
from app.jobs import RUN_PREFIX, Queue, open_queue
from app.settings import Settings

NAME = "tests-queue"


@pytest.fixture
async def queue(devstack: DevStack) -> AsyncIterator[Queue]:
    async with open_queue(Settings(redis_url=devstack.redis_url, queue_name=NAME)) as queue:
        await queue.arq.delete(NAME)
        yield queue


async def waiting(queue: Queue) -> dict[str, float]:
    """The jobs that wait, and their places."""
    return {
        job.decode(): place for job, place in await queue.arq.zrange(NAME, 0, -1, withscores=True)
    }


async def test_job_that_is_sent_again_keeps_its_place(queue: Queue) -> None:
    run_id = uuid4()
    await queue.enqueue_run(run_id, 0)
    before = await waiting(queue)
    assert len(before) == 1
    await queue.arq.zincrby(NAME, -5_000, next(iter(before)))  # it has waited for a while
    before = await waiting(queue)
    await queue.resend_run(run_id, 0)
    assert await waiting(queue) == before


async def test_job_whose_taker_died_is_there_again(queue: Queue) -> None:
    run_id = uuid4()
    job_id = f"{RUN_PREFIX}{run_id}:0"
    for was_taken_off in (True, False):
        await queue.enqueue_run(run_id, 0)
        # What is left when a worker dies with the job in its hands.
        await queue.arq.set(in_progress_key_prefix + job_id, b"1")
        if was_taken_off:
            await queue.arq.zrem(NAME, job_id)
        await queue.resend_run(run_id, 0)
        assert list(await waiting(queue)) == [job_id]
        assert await queue.arq.exists(job_key_prefix + job_id)
        assert not await queue.arq.exists(in_progress_key_prefix + job_id)
