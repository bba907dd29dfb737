"""What sweeps may have written down, for tests of those who tell it."""

from datetime import UTC, datetime
from typing import Any

from app.store.sweep_ledger import StorageStatus

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


def make_status(**known: Any) -> StorageStatus:
    """Make the status before the first sweep, but for what is known."""
    counts = ("sets", "files", "bytes", "orphans", "orphan_bytes", "unexplained")
    nothing: dict[str, Any] = dict.fromkeys(counts, 0)
    return StorageStatus(**{**nothing, "oldest_access": None, "walked_at": None, **known})
