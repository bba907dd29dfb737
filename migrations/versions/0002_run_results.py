"""Runs remember that their tool delivered a result, so that it is never executed again."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.execute("ALTER TABLE tool_runs ADD COLUMN has_result boolean NOT NULL DEFAULT false")


def downgrade() -> None:
    op.execute("ALTER TABLE tool_runs DROP COLUMN has_result")
