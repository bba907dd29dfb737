"""The lease on a run: renewed by a heartbeat; who lost it changes nothing any more."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID

from app.errors import Unavailable
from app.log import get_log
from app.settings import Settings
from app.store import runs
from app.store.events import RunEvents, Subscription
from app.store.postgres import Database

# A cancel request that came before anybody listened is found by then; most runs have ended.
FIRST_BEAT_SECONDS = 0.25
# So long may the work take to end by itself once the user has cancelled.
STOP_GRACE_SECONDS = 1.5

log = get_log(__name__)


class LeaseLost(Exception):
    """Another worker has the run, or it was ended; what this one did is dropped."""


class CancelRequested(Exception):
    """The user asked to stop, and the work did not end by itself."""


@asynccontextmanager
async def hold_lease(
    db: Database, events: RunEvents, settings: Settings, run_id: UUID, owner: str
) -> AsyncIterator[asyncio.Event]:
    """Renew a lease that was just taken while the block runs; yields what is set to stop it.

    The block is ended when the lease is lost, and when it does not heed the stop in time.

    Raises:
        LeaseLost, CancelRequested: inside the block, in place of a cancellation.
    """
    stop = asyncio.Event()
    ended_by: list[type[Exception]] = []
    task = asyncio.current_task()
    assert task is not None, "a coroutine runs in a task"

    async def beat() -> None:
        async with events.subscribe(run_id, ready_seconds=1) as updates:
            wait_seconds = FIRST_BEAT_SECONDS
            while not ended_by:
                await _wait_for_word(updates, wait_seconds)
                wait_seconds = settings.run_heartbeat_seconds
                try:
                    wish = await runs.renew_lease(db, run_id, owner, settings.run_lease_seconds)
                except Unavailable as error:
                    # That says nothing about the lease, and all that is written is checked
                    # against it: a restart of the database must not cost the run.
                    log.warning("run.lease_unrenewed", run_id=run_id, error=str(error))
                    continue
                except Exception:
                    # Whatever it is, without a heartbeat the run would be somebody else's.
                    log.exception("run.lease_unrenewed", run_id=run_id)
                    continue
                if wish is None:
                    ended_by.append(LeaseLost)
                elif wish:
                    stop.set()
                    await asyncio.sleep(STOP_GRACE_SECONDS)
                    ended_by.append(CancelRequested)
        task.cancel()

    heart = asyncio.create_task(beat(), name=f"lease:{run_id}")
    try:
        yield stop
    except asyncio.CancelledError:
        if ended_by:
            task.uncancel()
            raise ended_by[0] from None
        raise
    finally:
        heart.cancel()


async def _wait_for_word(updates: Subscription, seconds: float) -> None:
    """Wait for a beat's time, or for an event of the run: a cancel request comes as one."""
    try:
        async with asyncio.timeout(seconds):
            while (await updates.get()).status is None:
                pass
    except TimeoutError:
        pass
