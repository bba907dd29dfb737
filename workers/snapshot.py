"""The files of a run: from S3 to the worker's disk, in parallel, each one verified."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from app.domain.files import StoredFile
from app.errors import AppError
from app.store.session_files import SessionFilesKey, SessionFileStorageProtocol
from workers.sandbox.base import InputFile

PARALLEL_DOWNLOADS = 4


async def download_snapshot(
    storage: SessionFileStorageProtocol,
    key: SessionFilesKey,
    files: Sequence[StoredFile],
    directory: Path,
) -> list[InputFile]:
    """Download the files that a run was started with, whatever the session holds by now.

    Files on disk are named by their place in the list: a user's name never becomes a path here.

    Raises:
        SessionFilesExpired: a file was deleted meanwhile, by a clear or by its time.
        FileDamaged: its bytes are not those stored.
        Unavailable: S3 does not answer.
    """
    turn = asyncio.Semaphore(PARALLEL_DOWNLOADS)

    async def download(index: int, file: StoredFile) -> InputFile:
        path = directory / str(index)
        async with turn, storage.open_file(key, file) as chunks:
            with path.open("xb") as target:
                async for chunk in chunks:
                    target.write(chunk)
        return InputFile(file.name, path, file.bytes)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(download(i, file)) for i, file in enumerate(files)]
    except* AppError as errors:
        # A run ends with one reason: the first is as good as any.
        reason = errors.exceptions[0]
    else:
        return [task.result() for task in tasks]
    raise reason
