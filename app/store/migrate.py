"""Bringing the database's schema up to this release, and back."""

from pathlib import Path

from alembic import command
from alembic.config import Config

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"


def migrate(database_url: str) -> None:
    """Run the schema steps that are still missing.

    Blocks, and runs an event loop of its own: call it from a thread. Processes that migrate at
    the same time take turns.
    """
    command.upgrade(_configure(database_url), "head")


def downgrade(database_url: str, revision: str) -> None:
    """Go back to a revision, or all the way for "base"; blocks as `migrate` does."""
    command.downgrade(_configure(database_url), revision)


def _configure(database_url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["database_url"] = database_url
    return config
