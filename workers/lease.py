"""The lease on a run: renewed by a heartbeat; who lost it changes nothing any more."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from app.domain.runs import ClaimedRun
from app.errors import Unavailable
from app.log import get_log
from app.settings import Settings
from app.store import runs
from app.store.events import RunEvents, Subscription
from app.store.postgres import Database
from workers.interruptible import Interruptible

# A cancel request that came before anybody listened is found by then; most runs have ended.
FIRST_BEAT_SECONDS = 0.25
# So long may the work take to end by itself once the user has cancelled.
STOP_GRACE_SECONDS = 1.5

log = get_log(__name__)


class LeaseLost(Exception):
    """Another worker has the run, or it was ended; what this one did is dropped."""


class CancelRequested(Exception):
    """The user asked to stop, and the work did not end by itself."""


@dataclass(frozen=True)
class Lease:
    """What the holder of a lease works under."""

    # Set when the user asks to stop.
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    # What needs the lease: interrupted with LeaseLost, and with CancelRequested where it does not
    # heed the stop in time.
    work: Interruptible = field(default_factory=Interruptible)


@asynccontextmanager
async def hold_lease(
    db: Database, events: RunEvents, settings: Settings, run: ClaimedRun
) -> AsyncIterator[Lease]:
    """Renew a lease that was just taken until the block ends, whatever becomes of the work in it.

    So the block holds all that is done for the run, cleaning up and the writing of its end too.
    """
    lease = Lease()
    heart = asyncio.create_task(_beat(db, events, settings, run, lease), name=f"lease:{run.id}")
    try:
        yield lease
    finally:
        heart.cancel()


async def _beat(
    db: Database, events: RunEvents, settings: Settings, run: ClaimedRun, lease: Lease
) -> None:
    async with events.subscribe(run.id, ready_seconds=1) as updates:
        wait_seconds = FIRST_BEAT_SECONDS
        while True:
            await _wait_for_word(updates, wait_seconds)
            wait_seconds = settings.run_heartbeat_seconds
            try:
                wish = await runs.renew_lease(
                    db, run.id, run.lease_owner, settings.run_lease_seconds
                )
            except Unavailable as error:
                # That says nothing about the lease, and all that is written is checked against
                # it: a restart of the database must not cost the run.
                log.warning("run.lease_unrenewed", run_id=run.id, error=str(error))
                continue
            except Exception:
                # Whatever it is, without a heartbeat the run would be somebody else's.
                log.exception("run.lease_unrenewed", run_id=run.id)
                continue
            if wish is None:
                lease.work.interrupt(LeaseLost())
                return
            if wish and not lease.stop.is_set():
                lease.stop.set()
                loop = asyncio.get_running_loop()
                loop.call_later(STOP_GRACE_SECONDS, lease.work.interrupt, CancelRequested())


async def _wait_for_word(updates: Subscription, seconds: float) -> None:
    """Wait for a beat's time, or for an event of the run: a cancel request comes as one."""
    try:
        async with asyncio.timeout(seconds):
            while (await updates.get()).status is None:
                pass
    except TimeoutError:
        pass
