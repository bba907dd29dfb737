"""What every claim of a session shares: the locks, the limit of unfinished runs, the files."""

from dataclasses import dataclass
from datetime import datetime

from app.domain.files import StoredFile
from app.domain.ids import new_uuid7
from app.domain.runs import ToolSession
from app.errors import NotAuthenticated, NotFound, SessionFilesExpired, TooManyRuns
from app.store import runs, sessions, tools, users
from app.store.postgres import Connection, Database
from app.store.session_files import SessionFilesKey, SessionFileStorageProtocol

# How often a claim starts over because the session's files changed between touch and lock.
CLAIM_ATTEMPTS = 5


@dataclass(frozen=True)
class Claims:
    """Locks and limits of claims, over the adapters that they take."""

    db: Database
    session_files: SessionFileStorageProtocol
    max_unfinished: int

    async def access_files(self, key: SessionFilesKey) -> tuple[int, tuple[StoredFile, ...]]:
        """Touch the session's files for a run: (files_rev before the touch, the files).

        Raises:
            SessionFilesExpired: the user stored files, and their time is over.
        """
        session = await sessions.find_session(self.db, *key.parts)
        snapshot = await self.session_files.touch_files(key)
        if snapshot is not None:
            return 0 if session is None else session.files_rev, snapshot.files
        if session is not None and session.has_files:
            raise SessionFilesExpired
        return 0 if session is None else session.files_rev, ()

    async def hold_owners(self, tx: Connection, key: SessionFilesKey) -> None:
        """Lock the user, then hold the tool, until the transaction ends: none is deleted before.

        Whatever adds a run or puts files in force begins with this: a deletion that comes meanwhile
        waits for its end, and then finds what it has added.

        Raises:
            NotAuthenticated, NotFound: the user, or the tool, was deleted since the request began.
        """
        if not await users.lock_active_user(tx, key.user_id):
            raise NotAuthenticated
        if not await tools.hold_tool(tx, key.tool_id):
            raise NotFound

    async def lock_session(
        self, tx: Connection, key: SessionFilesKey, now: datetime
    ) -> ToolSession:
        """Lock user, tool and session until the transaction ends; a new session is made.

        Raises:
            NotAuthenticated, NotFound: see `hold_owners`.
            TooManyRuns: the user has as many unfinished runs as allowed.
        """
        await self.hold_owners(tx, key)
        unfinished = await runs.count_unfinished_of(tx, key.user_id)
        if unfinished >= self.max_unfinished:
            raise TooManyRuns(details={"max": self.max_unfinished}, retry_after_seconds=5)
        return await sessions.ensure_and_lock_session(tx, new_uuid7(now), key.parts, now)
