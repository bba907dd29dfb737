"""Finished runs on their way out: those past their time, and those of a deleted user or tool.

Invariant: a run's row goes after its artifacts, and no session points to a run that is gone.
"""

from datetime import datetime, timedelta
from uuid import UUID

import msgspec

from app.domain.ids import uuid7_floor
from app.store.deletions import Owner
from app.store.postgres import Database, Executor, convert_row

BATCH_RUNS = 500

# A worker notes that there is a result before it stores the first artifact.
_RUN = "id, (has_result OR artifacts <> '[]'::jsonb) AS may_have_artifacts"

# When a run that is $1 old now was made: by this one clock, however far off those of nodes are.
FIND_CUTOFF = "SELECT now() - $1::interval"

# Finished runs created before $1, oldest first, after a position. Ids are in order of creation, so
# this walks the beginning of the primary key and stops at the id that $2 would have been. The time
# of creation is a node's, that of a tool's end PostgreSQL's: a node far behind has no run purged.
LIST_OLD_RUNS = f"""
SELECT {_RUN} FROM tool_runs
WHERE id < $2 AND ($3::uuid IS NULL OR id > $3) AND created_at < $1 AND finished_at < $1
  AND status NOT IN ('queued', 'running')
ORDER BY id LIMIT $4
"""  # noqa: S608

# All runs of a user or a tool, after a position.
LIST_RUNS_OF = {
    kind: f"""
SELECT {_RUN} FROM tool_runs
WHERE {column} = $1 AND ($2::uuid IS NULL OR id > $2) ORDER BY id LIMIT $3
"""  # noqa: S608
    for kind, column in (("user", "user_id"), ("tool", "tool_id"))
}

# The sessions that point to any of these runs, locked in order, before the runs: the lock order.
# They keep state and revision; what a run that is gone offered is on offer no more.
FORGET_RUNS = """
UPDATE tool_sessions s SET
    offer_run_id = CASE WHEN s.offer_run_id = ANY($1) THEN NULL ELSE s.offer_run_id END,
    latest_run_id = CASE WHEN s.latest_run_id = ANY($1) THEN NULL ELSE s.latest_run_id END
FROM (
    SELECT id FROM tool_sessions
    WHERE id IN (SELECT session_id FROM tool_runs WHERE id = ANY($1))
      AND (offer_run_id = ANY($1) OR latest_run_id = ANY($1))
    ORDER BY id FOR NO KEY UPDATE
) pointing
WHERE s.id = pointing.id
"""
# In order of their ids, as all who delete runs take them: no two wait for each other.
DELETE_RUNS = """
DELETE FROM tool_runs WHERE id IN (
    SELECT id FROM tool_runs WHERE id = ANY($1) AND status NOT IN ('queued', 'running')
    ORDER BY id FOR UPDATE)
"""


class PurgeableRun(msgspec.Struct, frozen=True):
    """A run that is to go, and whether anything of it may lie in the bucket."""

    id: UUID
    may_have_artifacts: bool


async def find_cutoff(db: Executor, age: timedelta) -> datetime:
    """Return the moment before which a run is older than `age`, by PostgreSQL's clock."""
    cutoff: datetime = await db.fetchval(FIND_CUTOFF, age)
    return cutoff


async def list_old_runs(db: Executor, before: datetime, after: UUID | None) -> list[PurgeableRun]:
    """Return runs created and finished before a time, in order of their ids, after one of them."""
    rows = await db.fetch(LIST_OLD_RUNS, before, uuid7_floor(before), after, BATCH_RUNS)
    return [convert_row(row, PurgeableRun) for row in rows]


async def list_runs_of(db: Executor, owner: Owner, after: UUID | None) -> list[PurgeableRun]:
    """Return runs of a user or tool, in order of their ids, after one of them."""
    rows = await db.fetch(LIST_RUNS_OF[owner.kind], owner.id, after, BATCH_RUNS)
    return [convert_row(row, PurgeableRun) for row in rows]


async def delete_runs(db: Database, run_ids: list[UUID]) -> int:
    """Delete finished runs whose artifacts are gone, and what points to them: how many."""
    async with db.transaction() as tx:
        await tx.execute(FORGET_RUNS, run_ids)
        return await tx.execute(DELETE_RUNS, run_ids)
