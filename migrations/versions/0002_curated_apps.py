"""Curated apps in the catalogue (ADR-0024 §3): their code by version, and who may see a tool."""

from migrations.script import run_script

revision = "0002"
down_revision = "0001"

UP = """
-- Every version that was ever offered: a session stays on the one that it began with.
CREATE TABLE curated_app_versions (
    app_id       text NOT NULL CHECK (app_id <> ''),
    version      text NOT NULL CHECK (version <> ''),
    source       text NOT NULL,
    entrypoint   text NOT NULL,
    input_schema jsonb NOT NULL,
    created_at   timestamptz NOT NULL,
    PRIMARY KEY (app_id, version)
);
-- A catalogue entry offers a published version, or a version of the curated app that it is.
ALTER TABLE tools
    ADD COLUMN min_role text NOT NULL DEFAULT 'user'
        CHECK (min_role IN ('user', 'contributor', 'admin')),
    ADD COLUMN curated_app_id text CONSTRAINT tools_curated_app_key UNIQUE,
    ADD COLUMN curated_app_version text,
    ADD CONSTRAINT tools_curated_version_fkey FOREIGN KEY (curated_app_id, curated_app_version)
        REFERENCES curated_app_versions,
    ADD CONSTRAINT tools_one_source CHECK (
        CASE WHEN curated_app_id IS NULL THEN curated_app_version IS NULL
             ELSE published_version_id IS NULL AND owner_id IS NULL END);
ALTER TABLE tool_runs ADD CONSTRAINT tool_runs_curated_version_fkey
    FOREIGN KEY (curated_app_id, curated_app_version) REFERENCES curated_app_versions;
DROP INDEX tools_catalogue;
CREATE INDEX tools_catalogue ON tools (title, id)
    WHERE published_version_id IS NOT NULL OR curated_app_version IS NOT NULL;
"""

DOWN = """
DROP INDEX tools_catalogue;
CREATE INDEX tools_catalogue ON tools (title, id) WHERE published_version_id IS NOT NULL;
ALTER TABLE tool_runs DROP CONSTRAINT tool_runs_curated_version_fkey;
-- The entries of curated apps mean nothing to the version before; users' runs of them go along.
DELETE FROM tools WHERE curated_app_id IS NOT NULL;
ALTER TABLE tools
    DROP CONSTRAINT tools_one_source,
    DROP CONSTRAINT tools_curated_version_fkey,
    DROP COLUMN curated_app_version,
    DROP COLUMN curated_app_id,
    DROP COLUMN min_role;
DROP TABLE curated_app_versions;
"""


def upgrade() -> None:
    run_script(UP)


def downgrade() -> None:
    run_script(DOWN)
