"""Starting a tool: uploads first, then the claim (1-product.md, rules 1, 2 and 5).

Order of writes: objects, then the SQL commit, then the queue. A claim locks the user, the tool and
the session; everything that decides who may write the session happens under the session's lock.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from app.concurrency import run_to_end
from app.domain.files import UploadLimits
from app.domain.ids import new_uuid7
from app.domain.inputs import coerce_values
from app.domain.runs import RunKind, ToolSession
from app.domain.sessions import SessionFilesMode
from app.domain.tools import InputSchema, file_field
from app.domain.users import User
from app.errors import AppError, FilesRequired, InvalidInputs, SessionBusy
from app.jobs import Queue
from app.log import get_log
from app.store import runs, sessions
from app.store.postgres import Connection, Database
from app.store.session_files import (
    SessionFilesKey,
    SessionFileStorageProtocol,
    SessionUpload,
    StoredSet,
)
from app.usecases.claims import CLAIM_ATTEMPTS, Claims
from app.usecases.run_form import FormPart, RunForm, RunTarget
from app.usecases.sessions import clear_files

log = get_log(__name__)


@dataclass(frozen=True)
class InitialRuns:
    """Starts tools, over the adapters that it takes."""

    db: Database
    session_files: SessionFileStorageProtocol
    queue: Queue
    claims: Claims
    upload_limits: UploadLimits

    async def start(self, user: User, target: RunTarget, parts: AsyncIterator[FormPart]) -> UUID:
        """Read the form, store its files, claim the session and queue the run: its id.

        Until the claim commits nothing has changed: a refused or broken upload leaves the old
        files in force and no blob behind. The exception is `clear`, which always takes effect.
        """
        form = RunForm(self.session_files, self.upload_limits, user, target)
        async with form:
            await form.read(parts)
            # From here on seen through, also when a node that stops cancels the request: a claim
            # broken off between its manifest and its commit would leave files without a run.
            return await run_to_end(self._claim_initial(form, target))

    async def _claim_initial(self, form: RunForm, target: RunTarget) -> UUID:
        inputs = _check_inputs(target.input_schema, form.inputs)
        if form.upload is not None:
            run_id = await self._claim_with_upload(form.key, target, inputs, form.upload)
        else:
            run_id = await self._claim_without_upload(form, target, inputs)
        await self.queue.enqueue_run(run_id, 0)
        return run_id

    async def _claim_with_upload(
        self,
        key: SessionFilesKey,
        target: RunTarget,
        inputs: dict[str, Any],
        upload: SessionUpload,
    ) -> UUID:
        _check_file_count(target.input_schema, len(upload.files))
        now = datetime.now(UTC)
        run = runs.NewRun(
            id=new_uuid7(now),
            source=target.source,
            kind=RunKind.INITIAL,
            inputs=inputs,
            files=upload.files,
        )
        stored = None
        try:
            async with self.db.transaction() as tx:
                session = await self.claims.lock_session(tx, key, now)
                await _queue_initial(tx, session, run, now)
                await sessions.set_has_files(tx, session.id, True, now)
                # All refusals are behind us: this PUT puts the new set in force.
                stored = await self.session_files.store_files(upload)
                # Not before: while S3 hangs, the heartbeats of those runs would wait for us.
                await runs.supersede_runs(tx, session.id, by=run.id)
        except AppError:
            if stored is not None and await self._is_certainly_absent(run.id, key.user_id):
                await self.session_files.restore_files(stored)
            raise
        await self._discard_replaced(stored)
        return run.id

    async def _discard_replaced(self, stored: StoredSet) -> None:
        """Delete the blobs of the set before; a failure is left to the sweep: the run is queued."""
        key = stored.key
        try:
            needed = (await runs.find_needed_blobs(self.db, [key.parts])).get(key.parts, set())
            await self.session_files.discard_replaced(stored, needed=needed)
        except AppError as error:
            log.warning("session_files.discard_failed", error=error.code)

    async def _is_certainly_absent(self, run_id: UUID, user_id: UUID) -> bool:
        """Tell whether a lost COMMIT did not happen; when that cannot be told, it may have."""
        try:
            return await runs.find_run(self.db, run_id, user_id) is None
        except AppError:
            log.warning("run.commit_unknown", run_id=run_id)
            return False

    async def _claim_without_upload(
        self, form: RunForm, target: RunTarget, inputs: dict[str, Any]
    ) -> UUID:
        if form.mode is SessionFilesMode.CLEAR:
            await clear_files(self.db, self.session_files, form.key, datetime.now(UTC))
        is_reuse = form.mode is SessionFilesMode.REUSE
        for _ in range(CLAIM_ATTEMPTS):
            files_rev, files = await self.claims.access_files(form.key) if is_reuse else (0, ())
            _check_file_count(target.input_schema, len(files))
            now = datetime.now(UTC)
            run = runs.NewRun(
                id=new_uuid7(now),
                source=target.source,
                kind=RunKind.INITIAL,
                inputs=inputs,
                files=files,
            )
            async with self.db.transaction() as tx:
                session = await self.claims.lock_session(tx, form.key, now)
                if is_reuse and session.files_rev != files_rev:
                    continue  # Replaced or cleared since: what we touched may be gone.
                await _queue_initial(tx, session, run, now)
                await runs.supersede_runs(tx, session.id, by=run.id)
            return run.id
        raise SessionBusy("Filerna ändras just nu. Försök igen om en stund.")


async def _queue_initial(
    tx: Connection, session: ToolSession, run: runs.NewRun, now: datetime
) -> None:
    """Queue the run as the session's active one; to supersede the unfinished ones comes last."""
    await runs.insert_run(tx, session, run)
    await sessions.set_active_run(tx, session.id, run.id, now)


def _check_inputs(schema: InputSchema, raw: dict[str, Any]) -> dict[str, Any]:
    values, problems = coerce_values(schema, raw)
    if problems:
        raise InvalidInputs(details={"fields": problems})
    return values


def _check_file_count(schema: InputSchema, count: int) -> None:
    """Hold the number of files that the run would get against the file field."""
    field = file_field(schema)
    if field is not None and count < field.min:
        words = "en fil" if field.min == 1 else f"{field.min} filer"
        raise FilesRequired(f"Verktyget behöver minst {words}.", details={"min": field.min})
