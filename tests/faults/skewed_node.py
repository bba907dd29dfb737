"""A node that touches a session's files and then sweeps, by the service's own means.

Told of the session by its environment; says on its first line of output what it believes the time
to be, and when it was told that the files were accessed.
"""

import asyncio
import os
import sys
from datetime import UTC, datetime
from uuid import UUID

import msgspec

from app import cli
from app.errors import AppError
from app.settings import load_settings
from app.store.session_files import SessionFilesKey
from app.wiring import open_services


class Told(msgspec.Struct):
    """What the node tells of itself and of its touch; `error` is why there was none."""

    clock: datetime
    last_accessed_at: datetime | None = None
    error: str | None = None


async def touch() -> Told:
    tool_id, user_id, context = os.environ["TOUCHED"].split("/")
    key = SessionFilesKey(UUID(tool_id), UUID(user_id), context)
    told = Told(datetime.now(UTC))
    try:
        async with open_services(load_settings()) as services:
            snapshot = await services.session_files.touch_files(key)
            assert snapshot is not None, "there are no files"
            told.last_accessed_at = snapshot.last_accessed_at
    except AppError as error:
        told.error = repr(error)
    return told


if __name__ == "__main__":
    print(msgspec.json.encode(asyncio.run(touch())).decode(), flush=True)
    sys.argv = ["skriptoteket", "cleanup_expired_session_files", "--json"]
    cli.main()
