"""Runs in PostgreSQL: inserted queued, claimed under a lease, finished once."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from app.domain.files import StoredFile
from app.domain.runs import (
    ActionCall,
    ClaimedRun,
    FinishedRun,
    Offer,
    Run,
    RunKind,
    RunSource,
    RunStatus,
    ToolSession,
)
from app.store import sessions
from app.store.postgres import Connection, Database, Executor, convert_row

CANCELLED = "Körningen avbröts."

_RUN = """r.id, r.tool_id, t.slug AS tool_slug, t.title AS tool_title, r.user_id,
r.session_id, r.context, r.kind, r.status, r.created_at, r.started_at, r.finished_at, r.error_code,
r.error_summary, r.state_rev, r.artifacts"""

# One run of one user: a foreign id is no run at all, nor is one of a tool that is being deleted.
GET_RUN = f"""
SELECT {_RUN}, r.ui_payload, r.stdout, r.stderr FROM tool_runs r JOIN tools t ON t.id = r.tool_id
WHERE r.id = $1 AND r.user_id = $2 AND t.deleted_at IS NULL
"""  # noqa: S608

# A user's runs, newest first, before a position, of one tool or all. Payloads, and what tools
# printed, stay behind: a page could be of a hundred megabytes.
LIST_RUNS = f"""
SELECT {_RUN}, NULL AS ui_payload, NULL AS stdout, NULL AS stderr
FROM tool_runs r JOIN tools t ON t.id = r.tool_id
WHERE r.user_id = $1 AND t.deleted_at IS NULL
  AND ($2::text IS NULL OR t.slug = $2) AND ($3::uuid IS NULL OR r.id < $3)
ORDER BY r.id DESC LIMIT $4
"""  # noqa: S608

# What the run with the session's current screen offers, and what made it; no row once it is purged.
FIND_OFFER = """
SELECT r.source_kind, r.version_id, r.curated_app_id, r.curated_app_version, t.min_role,
    coalesce(r.ui_payload -> 'next_actions', '[]'::jsonb) AS next_actions
FROM tool_runs r JOIN tools t ON t.id = r.tool_id WHERE r.id = $1
"""

# Holds until the commit of a claim that has locked the user.
COUNT_UNFINISHED = """
SELECT count(*) FROM tool_runs WHERE user_id = $1 AND status IN ('queued', 'running')
"""
# Of all users; the index of unfinished runs alone is read.
COUNT_UNFINISHED_BY_STATUS = """
SELECT status, count(*) AS runs FROM tool_runs WHERE status IN ('queued', 'running')
GROUP BY status
"""

# A new initial run ($2) supersedes the unfinished ones: they may end but no longer write the
# session. Locks the rows that their workers' heartbeats write: the commit should follow at once.
SUPERSEDE_RUNS = """
UPDATE tool_runs SET superseded = true
WHERE session_id = $1 AND id <> $2 AND status IN ('queued', 'running') AND NOT superseded
"""

# By the clock by which it is found to be overdue, and too old to be kept.
INSERT_RUN = """
INSERT INTO tool_runs (id, tool_id, source_kind, version_id, curated_app_id, curated_app_version,
    user_id, session_id, context, kind, status, inputs, action, expected_state_rev, files,
    created_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, 'queued', $11, $12, $13, $14, now())
"""

# Blobs that unfinished runs of some sessions (tool, user, context) may still download.
FIND_NEEDED_BLOBS = """
SELECT s.tool_id, s.user_id, s.context, array_agg(DISTINCT file ->> 'blob_id') AS blob_ids
FROM unnest($1::uuid[], $2::uuid[], $3::text[]) AS k (tool_id, user_id, context)
JOIN tool_sessions s USING (tool_id, user_id, context)
JOIN tool_runs r ON r.session_id = s.id AND r.status IN ('queued', 'running'),
    jsonb_array_elements(r.files) AS file
GROUP BY s.tool_id, s.user_id, s.context
"""

# Take a queued run under a lease: one claim gets the row, the others none. The attempt in the
# job's id keeps a stale job from taking a later attempt. The session is read without a lock: a
# clear that commits meanwhile comes before or after.
CLAIM_RUN = """
UPDATE tool_runs r SET status = 'running', attempt = attempt + 1, lease_owner = $3,
    lease_expires_at = now() + $4::interval, started_at = coalesce(started_at, now())
FROM (
    SELECT x.id, coalesce(v.source, c.source) AS source,
        coalesce(v.entrypoint, c.entrypoint) AS entrypoint, s.has_files AS session_has_files
    FROM tool_runs x JOIN tool_sessions s ON s.id = x.session_id
    LEFT JOIN tool_versions v ON v.id = x.version_id
    LEFT JOIN curated_app_versions c
        ON c.app_id = x.curated_app_id AND c.version = x.curated_app_version
    WHERE x.id = $1
) code
WHERE r.id = code.id AND r.attempt = $2 AND r.status = 'queued' AND NOT r.cancel_requested
RETURNING r.id, r.tool_id, r.user_id, r.session_id, r.context, r.kind, r.source_kind, r.attempt,
    r.lease_owner, r.superseded, r.inputs, r.action, r.files, code.session_has_files, code.source,
    code.entrypoint
"""

# Keep a lease; no row means that it is lost. Answers whether the user asked to stop.
RENEW_LEASE = """
UPDATE tool_runs SET lease_expires_at = now() + $3::interval
WHERE id = $1 AND lease_owner = $2 AND status = 'running' RETURNING cancel_requested
"""

# Give a run back to the queue, and unless $3 the attempt too. Not one that has a result (rule 11),
# nor one that its user has cancelled, nor, with $4, one that was first started longer ago.
HAND_BACK = """
UPDATE tool_runs SET status = 'queued', attempt = attempt - CASE WHEN $3 THEN 0 ELSE 1 END,
    lease_owner = NULL, lease_expires_at = NULL
WHERE id = $1 AND lease_owner = $2 AND status = 'running' AND NOT has_result
    AND NOT cancel_requested AND ($4::interval IS NULL OR started_at > now() - $4::interval)
RETURNING attempt
"""

# The tool is through: from now on the run may fail but is never executed again (rule 11).
MARK_RESULT = """
UPDATE tool_runs SET has_result = true
WHERE id = $1 AND lease_owner = $2 AND status = 'running'
"""

FIND_RUN_SESSION = "SELECT session_id FROM tool_runs WHERE id = $1"

# End a run, by the holder of its lease only.
FINISH_RUN = """
UPDATE tool_runs SET status = $3, error_code = $4, error_summary = $5, ui_payload = $6,
    artifacts = $7, stdout = $8, stderr = $9, finished_at = now(),
    lease_owner = NULL, lease_expires_at = NULL
WHERE id = $1 AND lease_owner = $2 AND status = 'running'
RETURNING kind, superseded
"""

# A step that the service takes itself is finished when it is inserted.
FINISH_OWN_RUN = """
UPDATE tool_runs SET status = 'succeeded', ui_payload = $2, started_at = now(), finished_at = now()
WHERE id = $1 AND status = 'queued'
"""

SET_STATE_REV = "UPDATE tool_runs SET state_rev = $2 WHERE id = $1"

# Ask a run to stop. A queued one ends here; a running one is ended by its worker, or by whoever
# recovers it.
REQUEST_CANCEL = """
UPDATE tool_runs SET cancel_requested = true,
    status = CASE WHEN status = 'queued' THEN 'cancelled' ELSE status END,
    finished_at = CASE WHEN status = 'queued' THEN now() END,
    error_code = CASE WHEN status = 'queued' THEN 'cancelled' END,
    error_summary = CASE WHEN status = 'queued' THEN $2 END
WHERE id = $1 AND status IN ('queued', 'running')
RETURNING status, superseded
"""


async def find_run(db: Executor, run_id: UUID, user_id: UUID) -> Run | None:
    row = await db.fetchrow(GET_RUN, run_id, user_id)
    return None if row is None else convert_row(row, Run)


async def list_runs(
    db: Executor, user_id: UUID, tool_slug: str | None, before: UUID | None, limit: int
) -> list[Run]:
    rows = await db.fetch(LIST_RUNS, user_id, tool_slug, before, limit)
    return [convert_row(row, Run) for row in rows]


async def find_offer(db: Executor, run_id: UUID) -> Offer | None:
    """None: the run was purged after its session was read."""
    row = await db.fetchrow(FIND_OFFER, run_id)
    return None if row is None else convert_row(row, Offer)


async def count_unfinished_of(db: Connection, user_id: UUID) -> int:
    """How many runs of a user are queued or running."""
    count: int = await db.fetchval(COUNT_UNFINISHED, user_id)
    return count


async def count_unfinished(db: Executor) -> dict[str, int]:
    """How many runs are queued and running; a status that none has may be missing."""
    return {row["status"]: row["runs"] for row in await db.fetch(COUNT_UNFINISHED_BY_STATUS)}


async def supersede_runs(db: Connection, session_id: UUID, by: UUID) -> None:
    """Take the session from its unfinished runs, for the run `by`. Commit at once."""
    await db.execute(SUPERSEDE_RUNS, session_id, by)


@dataclass(frozen=True, kw_only=True)
class NewRun:
    """The parts of a run to insert; its session says the user, tool and context."""

    id: UUID
    source: RunSource
    kind: RunKind
    inputs: dict[str, Any] | None = None
    action: ActionCall | None = None
    expected_state_rev: int | None = None
    files: tuple[StoredFile, ...] = ()


async def insert_run(db: Connection, session: ToolSession, run: NewRun) -> None:
    """Queue a run. Raises SessionBusy if the session has an unfinished action run."""
    await db.execute(
        INSERT_RUN,
        run.id,
        session.tool_id,
        run.source.source_kind,
        run.source.version_id,
        run.source.curated_app_id,
        run.source.curated_app_version,
        session.user_id,
        session.id,
        session.context,
        run.kind,
        run.inputs,
        run.action,
        run.expected_state_rev,
        run.files,
    )


async def find_needed_blobs(
    db: Executor, keys: Sequence[tuple[UUID, UUID, str]]
) -> dict[tuple[UUID, UUID, str], set[str]]:
    """Blobs that unfinished runs may still download, of those of these sessions that have any."""
    columns = [[key[n] for key in keys] for n in range(3)]
    rows = await db.fetch(FIND_NEEDED_BLOBS, *columns)
    return {(row["tool_id"], row["user_id"], row["context"]): set(row["blob_ids"]) for row in rows}


async def claim_run(
    db: Executor, run_id: UUID, attempt: int, owner: str, lease_seconds: float
) -> ClaimedRun | None:
    """Take a queued run; None if it is taken, finished, cancelled or at another attempt.

    `owner` is a name that no other claim has, not even a later one of the same worker: whatever is
    written later is checked against it.
    """
    lease = timedelta(seconds=lease_seconds)
    row = await db.fetchrow(CLAIM_RUN, run_id, attempt, owner, lease)
    return None if row is None else convert_row(row, ClaimedRun)


async def renew_lease(db: Executor, run_id: UUID, owner: str, lease_seconds: float) -> bool | None:
    """Keep the lease. None: it is lost. Otherwise whether the user asked to cancel."""
    row = await db.fetchrow(RENEW_LEASE, run_id, owner, timedelta(seconds=lease_seconds))
    return None if row is None else row["cancel_requested"]


async def hand_back(
    db: Executor,
    run_id: UUID,
    owner: str,
    *,
    uses_attempt: bool,
    within_seconds: float | None = None,
) -> int | None:
    """Queue a run again that its worker cannot end: the attempt to send, None if it may not.

    With `within_seconds`, only so long after its first start.
    """
    within = None if within_seconds is None else timedelta(seconds=within_seconds)
    row = await db.fetchrow(HAND_BACK, run_id, owner, uses_attempt, within)
    return None if row is None else row["attempt"]


async def mark_result(db: Executor, run_id: UUID, owner: str) -> bool:
    """Note that the tool delivered a result. False: the lease is lost."""
    return await db.execute(MARK_RESULT, run_id, owner) == 1


async def finish_run(
    db: Database, run_id: UUID, owner: str, finished: FinishedRun, now: datetime
) -> bool:
    """End a run and write its session in one transaction (ADR-0024 §5, rules 5 and 6).

    Returns False, and changes nothing, if `owner` no longer holds the lease.
    """
    async with db.transaction() as tx:
        session = await sessions.lock_session_by_id(tx, await tx.fetchval(FIND_RUN_SESSION, run_id))
        row = await tx.fetchrow(
            FINISH_RUN,
            run_id,
            owner,
            finished.status,
            finished.error_code,
            finished.error_summary,
            finished.ui_payload,
            finished.artifacts,
            finished.stdout,
            finished.stderr,
        )
        if row is None or session is None:
            return False
        if row["superseded"]:
            return True
        if finished.status != "succeeded":
            await sessions.release_session(tx, session.id, run_id, now)
            state_rev = session.state_rev
        else:
            state = finished.state if finished.is_interactive else None
            step = 1 if finished.is_interactive or row["kind"] == RunKind.ACTION else 0
            state_rev = await sessions.advance_session(tx, session.id, run_id, now, state, step)
        await tx.execute(SET_STATE_REV, run_id, state_rev)
    return True


async def finish_own_run(
    db: Connection, session: ToolSession, run: NewRun, ui_payload: bytes, now: datetime
) -> int:
    """Insert an action run that the service has done itself, with an empty state: the revision.

    The caller holds the session's lock.
    """
    await insert_run(db, session, run)
    await db.execute(FINISH_OWN_RUN, run.id, ui_payload)
    state_rev = await sessions.advance_session(db, session.id, run.id, now, {}, 1)
    await db.execute(SET_STATE_REV, run.id, state_rev)
    return state_rev


async def request_cancel(
    db: Database, run_id: UUID, session_id: UUID, now: datetime
) -> RunStatus | None:
    """Cancel a queued run or ask a running one to stop: its status then, None if it had ended."""
    async with db.transaction() as tx:
        await sessions.lock_session_by_id(tx, session_id)
        row = await tx.fetchrow(REQUEST_CANCEL, run_id, CANCELLED)
        if row is None:
            return None
        if row["status"] == "cancelled" and not row["superseded"]:
            await sessions.release_session(tx, session_id, run_id, now)
        return RunStatus(row["status"])
