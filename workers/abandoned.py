"""Uploads of runs that ended without them: nothing names those artifacts, or ever will."""

import asyncio
from dataclasses import dataclass, field
from uuid import UUID

from app.errors import AppError
from app.log import get_log
from app.store.artifacts import ArtifactStore

# So long may an object store that hangs keep the recovery of runs waiting.
DELETE_SECONDS = 2

log = get_log(__name__)


@dataclass(frozen=True)
class AbandonedUploads:
    """What this process has still to delete; what is lost of it goes by retention."""

    artifacts: ArtifactStore
    _run_ids: set[UUID] = field(default_factory=set)

    def add(self, run_id: UUID) -> None:
        """Have a run's uploads deleted. It has ended, or will, and nobody executes it again."""
        self._run_ids.add(run_id)

    async def delete(self) -> None:
        """Delete what can be deleted in DELETE_SECONDS; the next call goes on."""
        try:
            async with asyncio.timeout(DELETE_SECONDS):
                for run_id in list(self._run_ids):
                    removed = await self.artifacts.delete_all(run_id)
                    self._run_ids.discard(run_id)
                    log.info(
                        "run.uploads_deleted",
                        run_id=run_id,
                        artifacts=removed.artifacts,
                        bytes=removed.bytes,
                    )
        except (AppError, TimeoutError) as error:
            log.warning("run.uploads_not_deleted", runs=len(self._run_ids), error=repr(error))
