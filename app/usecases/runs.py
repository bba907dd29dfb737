"""Runs after their start: reading, waiting, cancelling (1-product.md, rule 12)."""

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from app.domain.runs import Run
from app.domain.users import User
from app.errors import NotFound, RunFinished
from app.store import runs
from app.store.events import RunEvent, RunEvents
from app.store.postgres import Database


@dataclass(frozen=True)
class Runs:
    """What a user can do with runs that have been started."""

    db: Database
    events: RunEvents

    async def get_run(self, user: User, run_id: UUID) -> Run:
        """Raises NotFound for a run that is not the user's."""
        run = await runs.find_run(self.db, run_id, user.id)
        if run is None:
            raise NotFound
        return run

    async def wait_for_run(self, user: User, run_id: UUID, seconds: float) -> Run:
        """Return the run as soon as it is finished, or as it is after `seconds`.

        Holds no database connection meanwhile and polls nothing.
        """
        async with self.events.subscribe(run_id, ready_seconds=min(seconds, 2)) as updates:
            end = asyncio.get_running_loop().time() + seconds
            while not (run := await self.get_run(user, run_id)).status.is_finished:
                try:
                    async with asyncio.timeout_at(end):
                        while not _is_reason_to_look(await updates.get()):
                            pass
                except TimeoutError:
                    return await self.get_run(user, run_id)
        return run

    async def cancel(self, user: User, run_id: UUID) -> None:
        """End a queued run; ask the worker of a running one to kill it.

        Raises:
            RunFinished: there is nothing left to cancel.
        """
        run = await self.get_run(user, run_id)
        status = await runs.request_cancel(self.db, run.id, run.session_id, datetime.now(UTC))
        if status is None:
            raise RunFinished
        await self.events.publish(run_id, RunEvent(status=status))


def _is_reason_to_look(event: RunEvent) -> bool:
    """Whether the run has ended, or events were missed that may have said so."""
    return event == RunEvent() or (event.status is not None and event.status.is_finished)
