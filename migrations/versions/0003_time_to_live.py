"""What the sweeps know of the bucket, and users and tools that are being deleted."""

from migrations.script import run_script

revision = "0003"
down_revision = "0002"

UP = """
-- The bucket's sets in ranges of their paths, each up to the next one's beginning, in the order of
-- the bucket's listing. Forgotten, all is one range: a sweep of that finds the others again.
CREATE TABLE sweep_shards (
    first_path      text COLLATE "C" PRIMARY KEY,
    swept_at        timestamptz,
    walked_at       timestamptz,
    sets            bigint NOT NULL DEFAULT 0,
    oldest_access   timestamptz,
    files           bigint NOT NULL DEFAULT 0,
    bytes           bigint NOT NULL DEFAULT 0,
    orphans         bigint NOT NULL DEFAULT 0,
    orphan_bytes    bigint NOT NULL DEFAULT 0,
    unexplained     bigint NOT NULL DEFAULT 0
);
-- One row a job: its last go. One that was begun and neither ended nor failed was killed.
CREATE TABLE sweep_status (
    job             text PRIMARY KEY,
    started_at      timestamptz NOT NULL,
    ended_at        timestamptz,
    succeeded_at    timestamptz,
    error           text,
    report          jsonb,
    sweeps_total    bigint NOT NULL DEFAULT 0,
    failures_total  bigint NOT NULL DEFAULT 0
);
-- Invisible from this moment, and gone with all that is theirs as soon as the sweep has done it.
ALTER TABLE users ADD COLUMN deleted_at timestamptz,
    ADD CONSTRAINT users_deleted_inactive CHECK (deleted_at IS NULL OR NOT is_active);
ALTER TABLE tools ADD COLUMN deleted_at timestamptz,
    ADD CONSTRAINT tools_deleted_unpublished
        CHECK (deleted_at IS NULL OR (published_version_id IS NULL AND curated_app_id IS NULL));
-- A deleted tool's runs go in batches, and its row without a look at everybody else's runs.
CREATE INDEX tool_runs_by_tool ON tool_runs (tool_id, id);
CREATE INDEX users_deleted ON users (deleted_at) WHERE deleted_at IS NOT NULL;
CREATE INDEX tools_deleted ON tools (deleted_at) WHERE deleted_at IS NOT NULL;
"""

DOWN = """
-- Half deleted, they would come back to life.
DELETE FROM tools WHERE deleted_at IS NOT NULL;
DELETE FROM users WHERE deleted_at IS NOT NULL;
DROP INDEX tool_runs_by_tool;
ALTER TABLE tools DROP CONSTRAINT tools_deleted_unpublished, DROP COLUMN deleted_at;
ALTER TABLE users DROP CONSTRAINT users_deleted_inactive, DROP COLUMN deleted_at;
DROP TABLE sweep_status;
DROP TABLE sweep_shards;
"""


def upgrade() -> None:
    run_script(UP)


def downgrade() -> None:
    run_script(DOWN)
