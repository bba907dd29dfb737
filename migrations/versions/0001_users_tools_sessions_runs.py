"""Users, tokens, tools, versions, tool sessions and runs (ADR-0024 §§1-3)."""

from migrations.script import run_script

revision = "0001"
down_revision = None

UP = """
CREATE TABLE users (
    id            uuid PRIMARY KEY,
    username      text NOT NULL CHECK (username = lower(username) AND username <> ''),
    display_name  text NOT NULL,
    role          text NOT NULL CHECK (role IN ('user', 'contributor', 'admin')),
    password_hash text NOT NULL,
    is_active     boolean NOT NULL DEFAULT true,
    created_at    timestamptz NOT NULL,
    CONSTRAINT users_username_key UNIQUE (username)
);

CREATE TABLE api_tokens (
    id           uuid PRIMARY KEY,
    user_id      uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    name         text NOT NULL,
    token_hash   bytea NOT NULL UNIQUE,
    created_at   timestamptz NOT NULL,
    expires_at   timestamptz
);
CREATE INDEX api_tokens_by_user ON api_tokens (user_id, id);

CREATE TABLE tools (
    id                   uuid PRIMARY KEY,
    slug                 text NOT NULL CHECK (slug ~ '^[a-z0-9åäö][a-z0-9åäö_-]{0,79}$'),
    title                text NOT NULL,
    summary              text NOT NULL,
    usage_instructions   text NOT NULL,
    owner_id             uuid REFERENCES users ON DELETE SET NULL,
    published_version_id uuid,
    created_at           timestamptz NOT NULL,
    updated_at           timestamptz NOT NULL,
    CONSTRAINT tools_slug_key UNIQUE (slug)
);

CREATE TABLE tool_versions (
    id           uuid PRIMARY KEY,
    tool_id      uuid NOT NULL REFERENCES tools ON DELETE CASCADE,
    number       integer NOT NULL CHECK (number > 0),
    status       text NOT NULL CHECK (status IN ('draft', 'published')),
    source       text NOT NULL,
    entrypoint   text NOT NULL,
    input_schema jsonb NOT NULL,
    rev          integer NOT NULL DEFAULT 0,
    created_by   uuid REFERENCES users ON DELETE SET NULL,
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL,
    published_at timestamptz,
    CONSTRAINT tool_versions_number_key UNIQUE (tool_id, number),
    CHECK ((status = 'published') = (published_at IS NOT NULL))
);
ALTER TABLE tools ADD CONSTRAINT tools_published_version_fkey
    FOREIGN KEY (published_version_id) REFERENCES tool_versions DEFERRABLE INITIALLY DEFERRED;
-- The catalogue: published tools by title.
CREATE INDEX tools_catalogue ON tools (title, id) WHERE published_version_id IS NOT NULL;

CREATE TABLE tool_sessions (
    id            uuid PRIMARY KEY,
    tool_id       uuid NOT NULL REFERENCES tools ON DELETE CASCADE,
    user_id       uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    context       text NOT NULL,
    state         jsonb NOT NULL DEFAULT '{}'::jsonb,
    state_rev     integer NOT NULL DEFAULT 0,
    -- The unfinished run that will write this session; the last one that finished; and the last
    -- that succeeded, whose next_actions are on offer.
    active_run_id uuid,
    latest_run_id uuid,
    offer_run_id  uuid,
    -- Whether the user's last word was to store files, and how often that word changed.
    has_files     boolean NOT NULL DEFAULT false,
    files_rev     integer NOT NULL DEFAULT 0,
    created_at    timestamptz NOT NULL,
    updated_at    timestamptz NOT NULL,
    CONSTRAINT tool_sessions_key UNIQUE (tool_id, user_id, context)
);
CREATE INDEX tool_sessions_by_user ON tool_sessions (user_id);

CREATE TABLE tool_runs (
    id                  uuid PRIMARY KEY,
    tool_id             uuid NOT NULL REFERENCES tools ON DELETE CASCADE,
    source_kind         text NOT NULL,
    version_id          uuid REFERENCES tool_versions,
    curated_app_id      text,
    curated_app_version text,
    user_id             uuid NOT NULL REFERENCES users ON DELETE CASCADE,
    session_id          uuid NOT NULL REFERENCES tool_sessions ON DELETE CASCADE,
    context             text NOT NULL,
    kind                text NOT NULL CHECK (kind IN ('initial', 'action')),
    status              text NOT NULL CHECK (status IN
                            ('queued', 'running', 'succeeded', 'failed', 'timed_out', 'cancelled')),
    superseded          boolean NOT NULL DEFAULT false,
    inputs              jsonb,
    action              jsonb,
    expected_state_rev  integer,
    files               jsonb NOT NULL DEFAULT '[]'::jsonb,
    state_rev           integer,
    -- The tool delivered: whatever happens now, it is not executed again (rule 11).
    has_result          boolean NOT NULL DEFAULT false,
    attempt             integer NOT NULL DEFAULT 0,
    lease_owner         text,
    lease_expires_at    timestamptz,
    cancel_requested    boolean NOT NULL DEFAULT false,
    created_at          timestamptz NOT NULL,
    started_at          timestamptz,
    finished_at         timestamptz,
    error_code          text,
    error_summary       text,
    stdout              jsonb,
    stderr              jsonb,
    ui_payload          jsonb,
    artifacts           jsonb NOT NULL DEFAULT '[]'::jsonb,
    CONSTRAINT tool_runs_source_kind CHECK (
        (source_kind = 'tool_version' AND version_id IS NOT NULL
            AND curated_app_id IS NULL AND curated_app_version IS NULL)
        OR (source_kind = 'curated_app' AND version_id IS NULL
            AND curated_app_id IS NOT NULL AND curated_app_version IS NOT NULL)),
    CHECK ((kind = 'action') = (action IS NOT NULL)),
    CHECK ((status = 'running') = (lease_owner IS NOT NULL)),
    CHECK ((status IN ('queued', 'running')) = (finished_at IS NULL))
);
-- Rule 5: a session has at most one unfinished action run that may still write its state.
CREATE UNIQUE INDEX tool_runs_one_unfinished_action ON tool_runs (session_id)
    WHERE kind = 'action' AND status IN ('queued', 'running') AND NOT superseded;
CREATE INDEX tool_runs_by_user ON tool_runs (user_id, id DESC);
CREATE INDEX tool_runs_by_user_and_tool ON tool_runs (user_id, tool_id, id DESC);
CREATE INDEX tool_runs_by_session ON tool_runs (session_id, id DESC);
CREATE INDEX tool_runs_unfinished ON tool_runs (status, created_at)
    WHERE status IN ('queued', 'running');
CREATE INDEX tool_runs_unfinished_by_user ON tool_runs (user_id)
    WHERE status IN ('queued', 'running');
CREATE INDEX tool_runs_by_version ON tool_runs (version_id);
"""

DOWN = """
DROP TABLE tool_runs;
DROP TABLE tool_sessions;
ALTER TABLE tools DROP CONSTRAINT tools_published_version_fkey;
DROP TABLE tool_versions;
DROP TABLE tools;
DROP TABLE api_tokens;
DROP TABLE users;
"""


def upgrade() -> None:
    run_script(UP)


def downgrade() -> None:
    run_script(DOWN)
