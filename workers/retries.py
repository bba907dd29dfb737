"""Trying again while something is away: the one loop of that kind in a worker."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

T = TypeVar("T")
E = TypeVar("E", bound=Exception)

LONGEST_DELAY_SECONDS = 2.0


async def retry(
    work: Callable[[], Awaitable[T]],
    failure: type[E],
    *,
    until: float,
    report: Callable[[E], None],
) -> T:
    """Do `work` again, with growing delays, as long as it ends in `failure`; each is reported.

    Raises:
        failure: that of a try that ended after `until`, by `time.monotonic()`.
    """
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"
    delay = 0.1
    while True:
        try:
            return await work()
        except failure as error:
            if task.cancelling():
                # Cleaning up after it failed too, and that is what came out.
                raise asyncio.CancelledError from error
            if time.monotonic() > until:
                raise
            report(error)
        # Not all at the same moment: the server has just come back.
        await asyncio.sleep(delay * random.uniform(0.5, 1))
        delay = min(2 * delay, LONGEST_DELAY_SECONDS)
