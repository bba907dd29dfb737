"""Runs that nobody works on: those of dead workers, and queued ones without a job or for too long.

Every query here is repeated every few seconds, by one worker at a time.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from app.domain.runs import RunStatus
from app.store import sessions
from app.store.postgres import Connection, Database, Executor
from app.store.runs import CANCELLED

WORKER_LOST = "Körningen avbröts av ett fel i tjänsten. Försök igen."
QUEUE_TIMEOUT = "Körningen fick vänta för länge på att startas. Försök igen."

# Queued runs old enough that their job should have been picked up: enqueue them (again).
LIST_UNSENT = """
SELECT id, attempt FROM tool_runs
WHERE status = 'queued' AND created_at < now() - interval '5 seconds'
ORDER BY created_at LIMIT 500
"""

# Runs whose worker let the lease run out; locked against the other sweeps.
LOCK_LOST_RUN = """
SELECT id, attempt, superseded, has_result, cancel_requested FROM tool_runs
WHERE id = $1 AND status = 'running' AND lease_expires_at < now() FOR UPDATE
"""
# While the server was away nobody could renew a lease or write an end: after its start all have
# the length of a lease ($1) to do so.
LIST_LOST_RUNS = """
SELECT id, session_id FROM tool_runs
WHERE status = 'running' AND lease_expires_at < now()
    AND pg_postmaster_start_time() < now() - $1::interval LIMIT 500
"""
REQUEUE_RUN = """
UPDATE tool_runs SET status = 'queued', lease_owner = NULL, lease_expires_at = NULL WHERE id = $1
"""
END_RUN = """
UPDATE tool_runs SET status = $2, error_code = $3, error_summary = $4, finished_at = now(),
    lease_owner = NULL, lease_expires_at = NULL
WHERE id = $1
"""
# Queued runs that nobody started for $1. One that was started before, and lost or handed back, gets
# that time again, after the $2 that its tool may take.
LIST_OVERDUE_QUEUED = """
SELECT id, session_id FROM tool_runs
WHERE status = 'queued'
    AND coalesce(started_at + $2::interval, created_at) < now() - $1::interval LIMIT 500
"""
LOCK_OVERDUE_QUEUED = """
SELECT id, superseded FROM tool_runs WHERE id = $1 AND status = 'queued' FOR UPDATE
"""


async def list_unsent(db: Executor) -> list[tuple[UUID, int]]:
    """Queued runs that may have no job, as (id, attempt)."""
    return [(row["id"], row["attempt"]) for row in await db.fetch(LIST_UNSENT)]


@dataclass(frozen=True)
class RecoveredRun:
    """What became of a run whose worker is gone: queued, at the attempt to send, or ended."""

    id: UUID
    status: RunStatus
    attempt: int


async def recover_lost_runs(
    db: Database, max_attempts: int, lease_seconds: float, now: datetime
) -> list[RecoveredRun]:
    """Queue runs of dead workers again; end those that are not to be executed any more.

    Those are the cancelled ones, and those that had a result or have no attempts left. What is in
    a claim's hands is left to the next round: claims wait for S3.
    """
    recovered: list[RecoveredRun] = []
    for lost in await db.fetch(LIST_LOST_RUNS, timedelta(seconds=lease_seconds)):
        async with db.transaction() as tx:
            if not await sessions.try_lock_session(tx, lost["session_id"]):
                continue
            row = await tx.fetchrow(LOCK_LOST_RUN, lost["id"])
            if row is None:
                continue
            end = None
            if row["cancel_requested"]:
                end = (RunStatus.CANCELLED, "cancelled", CANCELLED)
            elif row["has_result"] or row["attempt"] >= max_attempts:
                end = (RunStatus.FAILED, "worker_lost", WORKER_LOST)
            if end is None:
                await tx.execute(REQUEUE_RUN, row["id"])
            else:
                await _end(tx, row, lost["session_id"], end, now)
            status = RunStatus.QUEUED if end is None else end[0]
            recovered.append(RecoveredRun(row["id"], status, row["attempt"]))
    return recovered


async def fail_overdue_runs(
    db: Database, queue_timeout_seconds: int, run_seconds: int, now: datetime
) -> list[UUID]:
    """Fail runs that wait for too long to be started, or started again; returns their ids.

    A tool takes no longer than `run_seconds`. What is in a claim's hands is left to the next round.
    """
    failed: list[UUID] = []
    limits = (timedelta(seconds=queue_timeout_seconds), timedelta(seconds=run_seconds))
    end = (RunStatus.FAILED, "queue_timeout", QUEUE_TIMEOUT)
    for overdue in await db.fetch(LIST_OVERDUE_QUEUED, *limits):
        async with db.transaction() as tx:
            if not await sessions.try_lock_session(tx, overdue["session_id"]):
                continue
            row = await tx.fetchrow(LOCK_OVERDUE_QUEUED, overdue["id"])
            if row is None:
                continue
            await _end(tx, row, overdue["session_id"], end, now)
            failed.append(row["id"])
    return failed


async def _end(
    tx: Connection,
    row: dict[str, Any],
    session_id: UUID,
    end: tuple[RunStatus, str, str],
    now: datetime,
) -> None:
    """End a run that no worker holds, with a status, code and words; its session is locked."""
    await tx.execute(END_RUN, row["id"], *end)
    if not row["superseded"]:
        await sessions.release_session(tx, session_id, row["id"], now)
