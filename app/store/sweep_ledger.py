"""What sweeps write down in PostgreSQL: the bucket's shards, and how the last sweep went.

Nothing here says what may be deleted: manifests do. A ledger that was lost or restored from a
backup costs a sweep its order of work, and nothing else.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final
from uuid import UUID

import msgspec

from app.store.postgres import Database, Executor, convert_row
from app.store.sweep_types import SHARD_SETS, ShardCount, SweepReport

SESSION_FILES: Final = "session-files"

_COUNT = "sets, oldest_access, files, bytes, orphans, orphan_bytes, unexplained"

# The ranges of the bucket, in its order.
LIST_SHARDS = f"""
SELECT first_path, swept_at, walked_at, {_COUNT} FROM sweep_shards ORDER BY first_path
"""  # noqa: S608

# A shard as it was found just now. Its blobs are not walked every time: then what was known stays.
SAVE_SHARD = """
INSERT INTO sweep_shards AS s (first_path, swept_at, walked_at, sets, oldest_access, files, bytes,
    orphans, orphan_bytes, unexplained)
VALUES ($1, now(), CASE WHEN $2 THEN now() END, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (first_path) DO UPDATE SET swept_at = excluded.swept_at, sets = excluded.sets,
    oldest_access = excluded.oldest_access,
    walked_at = CASE WHEN $2 THEN excluded.walked_at ELSE s.walked_at END,
    files = CASE WHEN $2 THEN excluded.files ELSE s.files END,
    bytes = CASE WHEN $2 THEN excluded.bytes ELSE s.bytes END,
    orphans = CASE WHEN $2 THEN excluded.orphans ELSE s.orphans END,
    orphan_bytes = CASE WHEN $2 THEN excluded.orphan_bytes ELSE s.orphan_bytes END,
    unexplained = CASE WHEN $2 THEN excluded.unexplained ELSE s.unexplained END
"""
# Where a shard that was found too large goes on: not swept yet, so first in the next sweep. What
# was counted by its blobs, and when, is that of the shard it was a part of, shared out by sets: $3
# of them stayed behind.
SPLIT_SHARD = """
WITH whole AS (
    SELECT *, least(1, $3 / nullif(sets, 0)::float8) AS stays FROM sweep_shards
    WHERE first_path = $1
), behind AS (
    INSERT INTO sweep_shards (first_path, walked_at, sets, oldest_access, files, bytes, orphans,
        orphan_bytes, unexplained)
    SELECT $2, walked_at, greatest(0, sets - $3), oldest_access,
        files - floor(files * stays), bytes - floor(bytes * stays),
        orphans - floor(orphans * stays), orphan_bytes - floor(orphan_bytes * stays),
        unexplained - floor(unexplained * stays)
    FROM whole ON CONFLICT DO NOTHING
    RETURNING files, bytes, orphans, orphan_bytes, unexplained
)
UPDATE sweep_shards s SET files = s.files - b.files, bytes = s.bytes - b.bytes,
    orphans = s.orphans - b.orphans, orphan_bytes = s.orphan_bytes - b.orphan_bytes,
    unexplained = s.unexplained - b.unexplained
FROM behind b WHERE s.first_path = $1
"""
# The same in the first sweep of all, where nothing is known of the whole.
ADD_SHARD = "INSERT INTO sweep_shards (first_path) VALUES ($1) ON CONFLICT DO NOTHING"

# One shard takes over the one behind it, with what was counted there.
ABSORB_SHARD = """
UPDATE sweep_shards s SET sets = s.sets + o.sets, files = s.files + o.files,
    bytes = s.bytes + o.bytes, orphans = s.orphans + o.orphans,
    orphan_bytes = s.orphan_bytes + o.orphan_bytes, unexplained = s.unexplained + o.unexplained,
    oldest_access = least(s.oldest_access, o.oldest_access),
    -- NULL, which is ”never”, wins.
    swept_at = nullif(least(coalesce(s.swept_at, '-infinity'), coalesce(o.swept_at, '-infinity')),
        '-infinity'),
    walked_at = nullif(least(coalesce(s.walked_at, '-infinity'),
        coalesce(o.walked_at, '-infinity')), '-infinity')
FROM sweep_shards o WHERE s.first_path = $1 AND o.first_path = $2
"""
DELETE_SHARD = "DELETE FROM sweep_shards WHERE first_path = $1"

# A sweep that was begun and has neither ended nor failed when the next begins was killed.
BEGIN_SWEEP = """
INSERT INTO sweep_status AS s (job, started_at, sweeps_total) VALUES ($1, now(), 1)
ON CONFLICT (job) DO UPDATE SET started_at = now(), ended_at = NULL, error = NULL,
    sweeps_total = s.sweeps_total + 1,
    failures_total = s.failures_total + CASE WHEN s.ended_at IS NULL THEN 1 ELSE 0 END
"""
END_SWEEP = """
UPDATE sweep_status SET ended_at = now(), succeeded_at = now(), report = $2 WHERE job = $1
"""
FAIL_SWEEP = """
UPDATE sweep_status SET ended_at = now(), error = $2, failures_total = failures_total + 1,
    report = coalesce($3, report)
WHERE job = $1
"""
# Ended by a stop of its process, which is no failure: the next goes on.
INTERRUPT_SWEEP = "UPDATE sweep_status SET ended_at = now(), error = 'interrupted' WHERE job = $1"
FIND_STATUS = """
SELECT started_at, ended_at, succeeded_at, error, report, sweeps_total, failures_total
FROM sweep_status WHERE job = $1
"""
SUM_SHARDS = """
SELECT coalesce(sum(sets), 0)::bigint AS sets, min(oldest_access) AS oldest_access,
    coalesce(sum(files), 0)::bigint AS files, coalesce(sum(bytes), 0)::bigint AS bytes,
    coalesce(sum(orphans), 0)::bigint AS orphans,
    coalesce(sum(orphan_bytes), 0)::bigint AS orphan_bytes,
    coalesce(sum(unexplained), 0)::bigint AS unexplained,
    CASE WHEN bool_and(walked_at IS NOT NULL) THEN min(walked_at) END AS walked_at
FROM sweep_shards
"""

# Which of these pairs of tool and user are not both there: whose sets nothing here explains.
FIND_UNEXPLAINED = """
SELECT k.tool_id, k.user_id FROM unnest($1::uuid[], $2::uuid[]) AS k (tool_id, user_id)
WHERE NOT EXISTS (SELECT FROM tools t WHERE t.id = k.tool_id)
   OR NOT EXISTS (SELECT FROM users u WHERE u.id = k.user_id)
"""


class Shard(msgspec.Struct, frozen=True, kw_only=True):
    """A range of sets by path, from `first_path` up to the next shard's; its last counts."""

    first_path: str
    end_path: str | None
    swept_at: datetime | None
    walked_at: datetime | None
    sets: int


class StorageStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What the sweeps last saw in the bucket, and how the last one went.

    `sets` and `oldest_access` are of the last sweep. What is counted by blobs is as old as
    `walked_at` at most, None before the whole bucket was walked once; `orphans` are those that the
    walk found, deleted since or not. `report` is of the last sweep that got to its end, also one
    that had to leave something. `failures_total` counts killed sweeps too.
    """

    sets: int
    oldest_access: datetime | None
    files: int
    bytes: int
    orphans: int
    orphan_bytes: int
    unexplained: int
    walked_at: datetime | None
    started_at: datetime | None = None
    ended_at: datetime | None = None
    succeeded_at: datetime | None = None
    error: str | None = None
    report: SweepReport | None = None
    sweeps_total: int = 0
    failures_total: int = 0


async def list_shards(db: Executor) -> list[Shard]:
    """Return the bucket's shards in its order; they cover all of it, also when none is known."""
    rows = await db.fetch(LIST_SHARDS)
    firsts = [row["first_path"] for row in rows]
    if not firsts or firsts[0] != "":
        nothing = {"swept_at": None, "walked_at": None, "sets": 0}
        rows.insert(0, {"first_path": "", **nothing})
        firsts.insert(0, "")
    ends = [*firsts[1:], None]
    return [
        convert_row(
            {name: row[name] for name in ("first_path", "swept_at", "walked_at", "sets")}
            | {"end_path": end},
            Shard,
        )
        for row, end in zip(rows, ends, strict=True)
    ]


async def save_shard(db: Database, count: ShardCount) -> None:
    """Write down a shard that was swept, and that another begins behind it."""
    async with db.transaction() as tx:
        if count.end_path is not None:
            await tx.execute(SPLIT_SHARD, count.first_path, count.end_path, count.sets)
            await tx.execute(ADD_SHARD, count.end_path)
        await tx.execute(
            SAVE_SHARD,
            count.first_path,
            count.is_walked,
            count.sets,
            count.oldest_access,
            count.files,
            count.bytes,
            count.orphans,
            count.orphan_bytes,
            count.unexplained,
        )


async def merge_shards(db: Database) -> int:
    """Join neighbours that have become small, each with the one before it: how many went."""
    merged, kept, size = 0, "", 0
    async with db.transaction() as tx:
        for shard in await list_shards(tx):
            if shard.first_path and size + shard.sets <= SHARD_SETS // 2:
                await tx.execute(ABSORB_SHARD, kept, shard.first_path)
                await tx.execute(DELETE_SHARD, shard.first_path)
                merged, size = merged + 1, size + shard.sets
            else:
                kept, size = shard.first_path, shard.sets
    return merged


async def begin_sweep(db: Executor, job: str) -> None:
    """Note that a sweep begins, and whether the one before was killed."""
    await db.execute(BEGIN_SWEEP, job)


async def end_sweep(db: Executor, job: str, report: msgspec.Struct) -> None:
    await db.execute(END_SWEEP, job, report)


async def fail_sweep(db: Executor, job: str, error: str, report: SweepReport | None = None) -> None:
    """Note that a sweep failed; with a report if it got to its end all the same."""
    await db.execute(FAIL_SWEEP, job, error, report)


async def interrupt_sweep(db: Executor, job: str) -> None:
    await db.execute(INTERRUPT_SWEEP, job)


async def get_status(db: Executor) -> StorageStatus:
    """Return what is known of session files; all is zero or None before the first sweep."""
    row = await db.fetchrow(SUM_SHARDS)
    assert row is not None, "an aggregate has one row"
    status = await db.fetchrow(FIND_STATUS, SESSION_FILES)
    return convert_row(row | (status or {}), StorageStatus)


async def find_unexplained(
    db: Executor, owners: Sequence[tuple[UUID, UUID]]
) -> set[tuple[UUID, UUID]]:
    """Return those pairs (tool, user) of which one is not in the database."""
    tools, users = [tool for tool, _ in owners], [user for _, user in owners]
    rows = await db.fetch(FIND_UNEXPLAINED, tools, users)
    return {(row["tool_id"], row["user_id"]) for row in rows}
