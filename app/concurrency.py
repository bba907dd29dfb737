"""Work that is seen through although its caller is cancelled: half done, it would leave things."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from app.log import get_log

T = TypeVar("T")
log = get_log(__name__)


async def run_to_end(work: Awaitable[T]) -> T:
    """Await `work` to its end, also when the caller is cancelled meanwhile; then be cancelled.

    For what is bounded in time by itself. When it fails too, the failure is logged, since the
    cancellation is what the caller gets: what must be done about a failure is done in `work`.
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
