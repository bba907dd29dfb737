"""What goes on beside the sweep of session files, for those who watch: retention, and deletions."""

from datetime import datetime

import msgspec

from app.store.postgres import Executor, convert_row

# One row, over two small partial indexes and a table of one row a job.
GET_UPKEEP = """
SELECT d.pending_deletions, d.oldest_deletion_at, r.succeeded_at AS retention_succeeded_at,
    (r.report ->> 'is_complete')::boolean AS retention_is_complete,
    coalesce(r.sweeps_total, 0) AS retentions_total,
    coalesce(r.failures_total, 0) AS retention_failures_total
FROM (
    SELECT count(*) AS pending_deletions, min(deleted_at) AS oldest_deletion_at
    FROM (
        SELECT deleted_at FROM users WHERE deleted_at IS NOT NULL
        UNION ALL
        SELECT deleted_at FROM tools WHERE deleted_at IS NOT NULL
    ) marked
) d LEFT JOIN sweep_status r ON r.job = 'retention'
"""


class Upkeep(msgspec.Struct, frozen=True, kw_only=True):
    """How retention last went, and the users and tools that are marked as deleted and still there.

    `retention_is_complete` is of the last one that ended well, None before the first;
    `retention_failures_total` counts killed ones too.
    """

    pending_deletions: int = 0
    oldest_deletion_at: datetime | None = None
    retention_succeeded_at: datetime | None = None
    retention_is_complete: bool | None = None
    retentions_total: int = 0
    retention_failures_total: int = 0


async def get_upkeep(db: Executor) -> Upkeep:
    """Return what is known of the work in the background; costs what is pending."""
    row = await db.fetchrow(GET_UPKEEP)
    assert row is not None, "an aggregate has one row"
    return convert_row(row, Upkeep)
