"""Work that is seen through although its caller is cancelled, and work on many things at once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar, cast

from app.log import get_log

T = TypeVar("T")
R = TypeVar("R")
log = get_log(__name__)


async def run_to_end(work: Awaitable[T]) -> T:
    """Await `work` to its end, also when the caller is cancelled meanwhile; then be cancelled.

    For what would leave things half done, and is bounded in time by itself. When it fails too, the
    failure is logged, since the cancellation is what the caller gets: what must be done about a
    failure is done in `work`.
    """
    future = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait([future])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not future.cancelled() and (failure := future.exception()) is not None:
            log.warning("cleanup.failed", error=repr(failure))
        raise cancelled
    return future.result()


async def gather_some(
    work: Callable[[T], Awaitable[R]], items: Iterable[T], parallel: int
) -> list[R]:
    """Do the work for all items, some at a time; the first error is raised after all settled."""
    results = await settle(work, items, parallel)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return cast(list[R], results)


async def settle(
    work: Callable[[T], Awaitable[R]], items: Iterable[T], parallel: int
) -> list[R | BaseException]:
    """Do the work for all items, some at a time: what came of each, or the error it ended in."""
    turns = asyncio.Semaphore(parallel)

    async def do(item: T) -> R:
        async with turns:
            return await work(item)

    return await asyncio.gather(*(do(item) for item in items), return_exceptions=True)
