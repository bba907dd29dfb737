"""Deleting users and tools, with everything of theirs: marked first, then purged until it is gone.

The mark is one small transaction, and from then on they are found by nobody. The purge comes after
it and may take hours: it waits until no run of theirs is unfinished, and goes from objects to rows.
Each of its steps can be done twice, so a purge that was killed is finished by the next.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from app.concurrency import gather_some
from app.errors import AppError, Conflict, NotFound
from app.log import get_log
from app.store import deletions, run_purge, runs, tools
from app.store.artifacts import ArtifactStore
from app.store.deletions import Owner
from app.store.events import RunEvent, RunEvents
from app.store.file_sets import FileSets
from app.store.postgres import Database
from app.store.redis import Logins
from app.store.set_removal import RemovedFiles, remove_sets

POLL_SECONDS = 0.5
PARALLEL_RUNS = 8  # whose artifacts are deleted at once

log = get_log(__name__)


class DeletionReport(msgspec.Struct):
    """What a purge has deleted. Of one that was interrupted, only what this go has."""

    sessions: int = 0
    files: int = 0
    bytes: int = 0
    runs: int = 0
    artifacts: int = 0
    artifact_bytes: int = 0


@dataclass(frozen=True)
class Deletions:
    """Marks and purges, over the adapters that it takes; its S3 is best a slow one."""

    db: Database
    events: RunEvents
    logins: Logins
    sets: FileSets
    artifacts: ArtifactStore

    # --- The mark -------------------------------------------------------------------------

    async def mark_user(self, user_id: UUID, *, asked_by: UUID | None) -> Owner:
        """Make a user and all of theirs invisible, and end their runs. `asked_by` None: the CLI.

        Raises:
            NotFound; Conflict: oneself, or the last admin
        """
        if user_id == asked_by:
            raise Conflict("Du kan inte ta bort dig själv. Be en annan administratör om det.")
        async with self.db.transaction() as tx:
            admins = await deletions.lock_admins(tx)
            if admins == [user_id]:
                raise Conflict("Den sista administratören kan inte tas bort.")
            if not await deletions.mark_user(tx, user_id, datetime.now(UTC)):
                raise NotFound
        return await self._follow_up(Owner("user", user_id))

    async def mark_tool(self, tool_id: UUID) -> Owner:
        """Make a tool and all of its sessions and runs invisible, and end those.

        Raises:
            NotFound; Conflict: a curated app, which comes with the release
        """
        async with self.db.transaction() as tx:
            tool = await tools.find_tool(tx, tool_id)
            if tool is not None and tool.curated_app_id is not None:
                raise Conflict(
                    "Appen hör till tjänsten och kan inte tas bort. Ändra vem som får se den."
                )
            if tool is None or not await deletions.mark_tool(tx, tool_id, datetime.now(UTC)):
                raise NotFound
        return await self._follow_up(Owner("tool", tool_id))

    async def _follow_up(self, owner: Owner) -> Owner:
        log.info("deletion.marked", kind=owner.kind, id=owner.id)
        try:
            if owner.kind == "tool":
                await deletions.free_slug(self.db, owner.id)
            await self._end_runs(owner)
        except AppError as error:
            # Marked it is; the sweep ends the runs, and does all the rest.
            log.warning("deletion.interrupted", id=owner.id, error=error.code)
        return owner

    # --- The purge ------------------------------------------------------------------------

    async def finish_all(self) -> None:
        """Go on with every deletion that nobody else is at; one query where there is none."""
        for owner in await deletions.list_marked(self.db):
            report = DeletionReport()
            try:
                async with self._hold(owner) as is_ours:
                    if is_ours:
                        await self._purge(owner, report)
            except AppError as error:
                log.warning("deletion.interrupted", id=owner.id, error=error.code)
            except Exception:
                # One that cannot be finished must not keep the others.
                log.exception("deletion.crashed", id=owner.id)

    async def delete_user(self, user_id: UUID) -> DeletionReport:
        """Mark a user, and return when everything of theirs is gone. Raises as `mark_user`."""
        owner = Owner("user", user_id)
        async with self._hold_in_turn(owner):
            return await self._purge_to_end(await self.mark_user(user_id, asked_by=None))

    async def delete_tool(self, tool_id: UUID) -> DeletionReport:
        """Mark a tool, and return when everything of it is gone. Raises as `mark_tool`."""
        async with self._hold_in_turn(Owner("tool", tool_id)):
            return await self._purge_to_end(await self.mark_tool(tool_id))

    def _hold(self, owner: Owner) -> AbstractAsyncContextManager[bool]:
        return self.db.try_lock(f"deletion:{owner.id}")

    @asynccontextmanager
    async def _hold_in_turn(self, owner: Owner) -> AsyncIterator[None]:
        # Held from before the mark on, so that all that is deleted is in one report.
        while True:
            async with self._hold(owner) as is_ours:
                if is_ours:
                    yield
                    return
            await asyncio.sleep(POLL_SECONDS)

    async def _purge_to_end(self, owner: Owner) -> DeletionReport:
        report = DeletionReport()
        while True:
            if await self._purge(owner, report):
                return report
            await asyncio.sleep(POLL_SECONDS)

    async def _purge(self, owner: Owner, report: DeletionReport) -> bool:
        """Delete all that is there; False, and nothing done, while a run of theirs goes on.

        Objects go before the rows that tell of them, and the owner's own row is the last.
        """
        await deletions.await_claims(self.db, owner)
        if await self._end_runs(owner):
            return False
        if owner.kind == "user":
            await self.logins.delete_all(owner.id)
        await self._remove_files(owner, report)
        await self._remove_runs(owner, report)
        while deleted := await deletions.delete_sessions(self.db, owner):
            report.sessions += deleted
        await deletions.delete_owner(self.db, owner)
        log.info("deletion.finished", kind=owner.kind, id=owner.id, **msgspec.to_builtins(report))
        return True

    async def _end_runs(self, owner: Owner) -> int:
        """Cancel what is unfinished: how many runs their workers have still to end."""
        running = 0
        for run_id, session_id in await deletions.list_unfinished(self.db, owner):
            status = await runs.request_cancel(self.db, run_id, session_id, datetime.now(UTC))
            if status is not None:
                running += not status.is_finished
                await self.events.publish(run_id, RunEvent(status=status))
        return running

    async def _remove_files(self, owner: Owner, report: DeletionReport) -> None:
        removed = RemovedFiles()
        try:
            for path in await deletions.list_file_paths(self.db, owner):
                await remove_sets(self.sets, path, removed)
        finally:
            report.files += removed.files
            report.bytes += removed.bytes

    async def _remove_runs(self, owner: Owner, report: DeletionReport) -> None:
        after: UUID | None = None
        while batch := await run_purge.list_runs_of(self.db, owner, after):
            with_artifacts = [run.id for run in batch if run.may_have_artifacts]
            for removed in await gather_some(
                self.artifacts.delete_all, with_artifacts, PARALLEL_RUNS
            ):
                report.artifacts += removed.artifacts
                report.artifact_bytes += removed.bytes
            report.runs += await run_purge.delete_runs(self.db, [run.id for run in batch])
            after = batch[-1].id
