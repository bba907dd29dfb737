"""Taking the next step: a turn is claimed before anything is executed (1-product.md, rules 3 to 9).

Everything that decides who may write the session happens under the session's lock.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec

from app.concurrency import run_to_end
from app.domain.backend_actions import CLEAR_FILES_FIELD, START_OVER_ID
from app.domain.contract import CONTRACT_VERSION, STATUS_SUCCEEDED
from app.domain.ids import new_uuid7
from app.domain.inputs import coerce_values
from app.domain.normalizer import normalize
from app.domain.policy import policy_for
from app.domain.runs import ActionCall, RunKind, RunStatus, ToolSession
from app.domain.tools import InputField
from app.domain.users import User
from app.errors import InvalidActionInput, NotFound, SessionBusy, StateRevConflict, UnknownAction
from app.jobs import Queue
from app.store import runs, sessions
from app.store.postgres import Database
from app.store.session_files import SessionFilesKey, SessionFileStorageProtocol
from app.usecases.claims import CLAIM_ATTEMPTS, Claims


@dataclass(frozen=True)
class ActionRequest:
    """A step that a user asks for."""

    action_id: str
    input: dict[str, Any]
    expected_state_rev: int


@dataclass(frozen=True)
class Turn:
    """A turn that was claimed: its run, and the session's revision now."""

    run_id: UUID
    status: RunStatus
    state_rev: int


@dataclass(frozen=True)
class Turns:
    """Takes steps in sessions, over the adapters that it takes."""

    db: Database
    session_files: SessionFileStorageProtocol
    queue: Queue
    claims: Claims

    async def start(self, user: User, key: SessionFilesKey, request: ActionRequest) -> Turn:
        """Claim one turn of a session and queue it; the service's own steps are done at once.

        Raises:
            NotFound: the user has no such session, or may no longer use the tool.
            StateRevConflict, SessionBusy: another turn was faster; `details` has the revision.
            UnknownAction, InvalidActionInput: not what the latest run offered.
            SessionFilesExpired: the files that the session had are gone.
        """
        for _ in range(CLAIM_ATTEMPTS):
            session = await sessions.find_session(self.db, *key.parts)
            if session is None:
                raise NotFound
            run = await self._check_turn(user, session, request)
            if request.action_id == START_OVER_ID:
                turn = await run_to_end(self._start_over(key, session, run))
            else:
                turn = await self._claim(key, session, run)
            if turn is not None:
                return turn
        raise SessionBusy

    async def _check_turn(
        self, user: User, session: ToolSession, request: ActionRequest
    ) -> runs.NewRun:
        """Hold a request against what the session offers: the run that it asks for."""
        _check_free(session, request.expected_state_rev)
        if session.offer_run_id is None:
            raise UnknownAction
        offer = await runs.find_offer(self.db, session.offer_run_id)
        if offer is None:
            raise UnknownAction  # Purged with its time since the session was read.
        if not user.has_role(offer.min_role):
            raise NotFound
        by_id = {action["action_id"]: action for action in offer.next_actions}
        action = by_id.get(request.action_id)
        if action is None:
            raise UnknownAction(
                details={"action_id": request.action_id[:100], "offered": list(by_id)}
            )
        # What the normalizer stored is an action of the contract; its fields are form fields.
        fields = msgspec.convert(action["fields"], tuple[InputField, ...])
        values, problems = coerce_values(fields, request.input)
        if problems:
            raise InvalidActionInput(details={"fields": problems})
        return runs.NewRun(
            id=new_uuid7(datetime.now(UTC)),
            source=offer,
            kind=RunKind.ACTION,
            action=ActionCall(request.action_id, values, session.state),
            expected_state_rev=session.state_rev,
        )

    async def _claim(
        self, key: SessionFilesKey, session: ToolSession, run: runs.NewRun
    ) -> Turn | None:
        """Queue the step; None if what it was checked against has changed since."""
        files_rev, files = await self.claims.access_files(key)
        now = datetime.now(UTC)
        async with self.db.transaction() as tx:
            locked = await self.claims.lock_session(tx, key, now)
            _check_free(locked, session.state_rev)
            if (locked.files_rev, locked.offer_run_id) != (files_rev, session.offer_run_id):
                return None
            await runs.insert_run(tx, locked, replace(run, files=files))
            await sessions.set_active_run(tx, locked.id, run.id, now)
        await self.queue.enqueue_run(run.id, 0)
        return Turn(run.id, RunStatus.QUEUED, session.state_rev)

    async def _start_over(
        self, key: SessionFilesKey, session: ToolSession, run: runs.NewRun
    ) -> Turn | None:
        """Empty the session's state and, if asked, its files: nothing has to be executed."""
        assert run.action is not None, "a step is an action run"
        clears_files = bool(run.action.input.get(CLEAR_FILES_FIELD))
        payload = _show_start_over(run, clears_files=clears_files)
        now = datetime.now(UTC)
        async with self.db.transaction() as tx:
            await self.claims.hold_owners(tx, key)
            locked = await sessions.lock_session(tx, key.parts)
            assert locked is not None, "sessions are deleted only with their user or tool"
            _check_free(locked, session.state_rev)
            if locked.offer_run_id != session.offer_run_id:
                return None
            state_rev = await runs.finish_own_run(tx, locked, run, payload, now)
            if clears_files:
                await sessions.set_has_files(tx, locked.id, False, now)
                # Last, since this cannot be taken back: after it only the commit can fail.
                await self.session_files.clear_session(key)
        return Turn(run.id, RunStatus.SUCCEEDED, state_rev)


def _show_start_over(run: runs.NewRun, *, clears_files: bool) -> bytes:
    files = "De sparade filerna är borttagna." if clears_files else "Sparade filer finns kvar."
    result = {
        "contract_version": CONTRACT_VERSION,
        "status": STATUS_SUCCEEDED,
        "outputs": [
            {"kind": "notice", "level": "info", "message": f"Verktyget har börjat om. {files}"}
        ],
    }
    return normalize(result, policy=policy_for(run.source.source_kind)).ui_payload_bytes


def _check_free(session: ToolSession, expected_state_rev: int) -> None:
    details = {"state_rev": session.state_rev, "active_run_id": session.active_run_id}
    if session.state_rev != expected_state_rev:
        raise StateRevConflict(details=details)
    if session.active_run_id is not None:
        raise SessionBusy(details=details)
