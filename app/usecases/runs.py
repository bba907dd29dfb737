"""Starting runs: a turn is claimed before anything is executed (1-product.md, rules 1 to 8).

Order of writes: objects, then the SQL commit, then the queue. A claim locks the user, then the
session; everything that decides who may write the session happens under the session's lock.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from app.domain.files import StoredFile, UploadLimits
from app.domain.ids import new_uuid7
from app.domain.inputs import coerce_values
from app.domain.runs import ActionCall, Run, RunKind, RunStatus, ToolSession
from app.domain.sessions import SessionFilesMode
from app.domain.tools import InputField, ToolVersion, file_field
from app.domain.users import User
from app.errors import (
    AppError,
    FilesRequired,
    InvalidActionInput,
    InvalidInputs,
    NotFound,
    RunFinished,
    SessionBusy,
    SessionFilesExpired,
    StateRevConflict,
    TooManyRuns,
    UnknownAction,
)
from app.jobs import Queue
from app.log import get_log
from app.store import runs, sessions
from app.store.events import RunEvent, RunEvents
from app.store.object_writer import run_to_end
from app.store.postgres import Connection, Database
from app.store.session_files import (
    SessionFilesKey,
    SessionFileStorageProtocol,
    SessionUpload,
    StoredSet,
)
from app.usecases.run_form import FormPart, RunForm, RunTarget
from app.usecases.sessions import clear_files

log = get_log(__name__)

# How often a claim starts over because the session's files changed between touch and lock.
CLAIM_ATTEMPTS = 5


@dataclass(frozen=True)
class ActionRequest:
    """A step that a user asks for."""

    action_id: str
    input: dict[str, Any]
    expected_state_rev: int


@dataclass(frozen=True)
class Runs:
    """What can be done with runs, over the adapters that it takes."""

    db: Database
    session_files: SessionFileStorageProtocol
    queue: Queue
    events: RunEvents
    upload_limits: UploadLimits
    max_unfinished: int

    # --- initial runs -----------------------------------------------------------------------

    async def start_initial(
        self, user: User, target: RunTarget, parts: AsyncIterator[FormPart]
    ) -> UUID:
        """Read the form, store its files, claim the session and queue the run: its id.

        Until the claim commits nothing has changed: a refused or broken upload leaves the old
        files in force and no blob behind. The exception is `clear`, which always takes effect.
        """
        form = RunForm(self.session_files, self.upload_limits, user, target)
        async with form:
            await form.read(parts)
            # From here on seen through, also when a node that stops cancels the request: a claim
            # broken off between its manifest and its commit would leave files without a run.
            return await run_to_end(self._claim_initial(form, target.version))

    async def _claim_initial(self, form: RunForm, version: ToolVersion) -> UUID:
        inputs = _check_inputs(version, form.inputs)
        if form.upload is not None:
            run_id = await self._claim_with_upload(form.key, version, inputs, form.upload)
        else:
            run_id = await self._claim_without_upload(form, version, inputs)
        await self.queue.enqueue_run(run_id, 0)
        return run_id

    async def _claim_with_upload(
        self,
        key: SessionFilesKey,
        version: ToolVersion,
        inputs: dict[str, Any],
        upload: SessionUpload,
    ) -> UUID:
        _check_file_count(version, len(upload.files))
        now = datetime.now(UTC)
        run = runs.NewRun(
            id=new_uuid7(now),
            version_id=version.id,
            kind=RunKind.INITIAL,
            inputs=inputs,
            files=upload.files,
        )
        stored = None
        try:
            async with self.db.transaction() as tx:
                session = await self._lock_session(tx, key, now)
                await _queue_initial(tx, session, run, now)
                await sessions.set_has_files(tx, session.id, True, now)
                # Last, since all refusals are behind us: this PUT puts the new set in force.
                stored = await self.session_files.store_files(upload)
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
            names = (key.tool_id, key.user_id, key.context)
            needed = await runs.find_needed_blobs(self.db, names)
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
        self, form: RunForm, version: ToolVersion, inputs: dict[str, Any]
    ) -> UUID:
        if form.mode is SessionFilesMode.CLEAR:
            await clear_files(self.db, self.session_files, form.key, datetime.now(UTC))
        is_reuse = form.mode is SessionFilesMode.REUSE
        for _ in range(CLAIM_ATTEMPTS):
            files_rev, files = await self._access_files(form.key) if is_reuse else (0, ())
            _check_file_count(version, len(files))
            now = datetime.now(UTC)
            run = runs.NewRun(
                id=new_uuid7(now),
                version_id=version.id,
                kind=RunKind.INITIAL,
                inputs=inputs,
                files=files,
            )
            async with self.db.transaction() as tx:
                session = await self._lock_session(tx, form.key, now)
                if is_reuse and session.files_rev != files_rev:
                    continue  # Replaced or cleared since: what we touched may be gone.
                await _queue_initial(tx, session, run, now)
            return run.id
        raise SessionBusy("Filerna ändras just nu. Försök igen om en stund.")

    # --- action runs ------------------------------------------------------------------------

    async def start_action(
        self, user: User, key: SessionFilesKey, request: ActionRequest
    ) -> tuple[UUID, int]:
        """Claim one turn of a session and queue it: (run id, the revision it began with).

        Raises:
            NotFound: the user has no such session.
            StateRevConflict, SessionBusy: another turn was faster; `details` has the revision.
            UnknownAction, InvalidActionInput: not what the latest run offered.
            SessionFilesExpired: the files that the session had are gone.
        """
        for _ in range(CLAIM_ATTEMPTS):
            session = await sessions.find_session(self.db, key.tool_id, user.id, key.context)
            if session is None:
                raise NotFound
            version_id, action_input = await self._check_turn(session, request)
            files_rev, files = await self._access_files(key)
            now = datetime.now(UTC)
            run = runs.NewRun(
                id=new_uuid7(now),
                version_id=version_id,
                kind=RunKind.ACTION,
                action=ActionCall(request.action_id, action_input, session.state),
                expected_state_rev=request.expected_state_rev,
                files=files,
            )
            async with self.db.transaction() as tx:
                locked = await self._lock_session(tx, key, now)
                _check_free(locked, request.expected_state_rev)
                if (locked.files_rev, locked.offer_run_id) != (files_rev, session.offer_run_id):
                    continue  # What we checked against has changed since: check again.
                await runs.insert_run(tx, locked, run, now)
                await sessions.set_active_run(tx, locked.id, run.id, now)
            await self.queue.enqueue_run(run.id, 0)
            return run.id, session.state_rev
        raise SessionBusy

    async def _check_turn(
        self, session: ToolSession, request: ActionRequest
    ) -> tuple[UUID, dict[str, Any]]:
        """Hold a request against what the session offers: (version, the checked input)."""
        _check_free(session, request.expected_state_rev)
        if session.offer_run_id is None:
            raise UnknownAction
        version_id, offered = await runs.get_offer(self.db, session.offer_run_id)
        action = next((a for a in offered if a["action_id"] == request.action_id), None)
        if action is None or version_id is None:
            raise UnknownAction(
                details={
                    "action_id": request.action_id[:100],
                    "offered": [a["action_id"] for a in offered],
                }
            )
        # What the normalizer stored is an action of the contract; its fields are form fields.
        fields = msgspec.convert(action["fields"], tuple[InputField, ...])
        values, problems = coerce_values(fields, request.input)
        if problems:
            raise InvalidActionInput(details={"fields": problems})
        return version_id, values

    # --- what both share --------------------------------------------------------------------

    async def _access_files(self, key: SessionFilesKey) -> tuple[int, tuple[StoredFile, ...]]:
        """Touch the session's files for a run: (files_rev before the touch, the files).

        Raises:
            SessionFilesExpired: the user stored files, and their time is over.
        """
        session = await sessions.find_session(self.db, key.tool_id, key.user_id, key.context)
        snapshot = await self.session_files.touch_files(key)
        if snapshot is not None:
            return 0 if session is None else session.files_rev, snapshot.files
        if session is not None and session.has_files:
            raise SessionFilesExpired
        return 0 if session is None else session.files_rev, ()

    async def _lock_session(
        self, tx: Connection, key: SessionFilesKey, now: datetime
    ) -> ToolSession:
        unfinished = await runs.lock_user_and_count_unfinished(tx, key.user_id)
        if unfinished >= self.max_unfinished:
            raise TooManyRuns(details={"max": self.max_unfinished}, retry_after_seconds=5)
        names = (key.tool_id, key.user_id, key.context)
        return await sessions.ensure_and_lock_session(tx, new_uuid7(now), names, now)

    # --- after the start --------------------------------------------------------------------

    async def get_run(self, user: User, run_id: UUID) -> Run:
        """Raises NotFound for a run that is not the user's."""
        run = await runs.find_run(self.db, run_id, user.id)
        if run is None:
            raise NotFound
        return run

    async def wait_for_run(self, user: User, run_id: UUID, seconds: float) -> Run:
        """Return the run as soon as it is finished, or as it is after `seconds`.

        Holds no database connection meanwhile and polls nothing.
        """
        async with self.events.subscribe(run_id, ready_seconds=min(seconds, 2)) as updates:
            end = asyncio.get_running_loop().time() + seconds
            while not (run := await self.get_run(user, run_id)).status.is_finished:
                try:
                    async with asyncio.timeout_at(end):
                        while not _is_reason_to_look(await updates.get()):
                            pass
                except TimeoutError:
                    return await self.get_run(user, run_id)
        return run

    async def cancel(self, user: User, run_id: UUID) -> None:
        """End a queued run; ask the worker of a running one to kill it.

        Raises:
            RunFinished: there is nothing left to cancel.
        """
        run = await self.get_run(user, run_id)
        status = await runs.request_cancel(self.db, run, datetime.now(UTC))
        if status is None:
            raise RunFinished
        await self.events.publish(run_id, RunEvent(status=status))


async def _queue_initial(
    tx: Connection, session: ToolSession, run: runs.NewRun, now: datetime
) -> None:
    """Supersede what is unfinished in the session and queue the run in its place."""
    await runs.supersede_runs(tx, session.id)
    await runs.insert_run(tx, session, run, now)
    await sessions.set_active_run(tx, session.id, run.id, now)


def _check_free(session: ToolSession, expected_state_rev: int) -> None:
    details = {"state_rev": session.state_rev, "active_run_id": session.active_run_id}
    if session.state_rev != expected_state_rev:
        raise StateRevConflict(details=details)
    if session.active_run_id is not None:
        raise SessionBusy(details=details)


def _check_inputs(version: ToolVersion, raw: dict[str, Any]) -> dict[str, Any]:
    values, problems = coerce_values(version.input_schema, raw)
    if problems:
        raise InvalidInputs(details={"fields": problems})
    return values


def _check_file_count(version: ToolVersion, count: int) -> None:
    """Hold the number of files that the run would get against the file field."""
    field = file_field(version.input_schema)
    if field is not None and count < field.min:
        words = "en fil" if field.min == 1 else f"{field.min} filer"
        raise FilesRequired(f"Verktyget behöver minst {words}.", details={"min": field.min})


def _is_reason_to_look(event: RunEvent) -> bool:
    """Whether the run has ended, or events were missed that may have said so."""
    return event == RunEvent() or (event.status is not None and RunStatus(event.status).is_finished)
