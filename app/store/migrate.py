"""Bringing the database's schema to a revision."""

from pathlib import Path

from alembic import command
from alembic.config import Config

MIGRATIONS = Path(__file__).resolve().parents[2] / "migrations"


def migrate(database_url: str, revision: str = "head") -> None:
    """Run the schema steps up to `revision`, or all of them down for "base".

    Blocks, and runs an event loop of its own: call it from a thread. Processes that migrate at
    the same time take turns.
    """
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["database_url"] = database_url
    if revision == "base":
        command.downgrade(config, revision)
    else:
        command.upgrade(config, revision)
