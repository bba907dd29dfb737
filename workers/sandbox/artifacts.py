"""Artifacts on their way in: checked by name and size, stored under names of our own."""

import asyncio
import os
import unicodedata
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from workers.sandbox.base import CollectedArtifact, SandboxLimits
from workers.sandbox.wire import (
    BROKEN,
    CHUNK_BYTES,
    DATA,
    NOTE_MAX_BYTES,
    REFUSED,
    FrameReader,
    Refused,
    Violation,
    decode,
    explain,
    show,
)

_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class ArtifactHead(msgspec.Struct):
    """What the runner says of a file before its bytes."""

    path: str
    bytes: Annotated[int, Meta(ge=0)]


class ArtifactIntake:
    """Takes artifacts one by one into the spool, within the limits."""

    def __init__(self, limits: SandboxLimits, spool: Path) -> None:
        self._limits, self._spool = limits, spool
        self._seen: set[str] = set()
        self._total = 0
        self.collected: list[CollectedArtifact] = []

    async def collect(self, reader: FrameReader, artifact: ArtifactHead) -> None:
        self._check(artifact)
        # The name is ours: the tool's own never touches the worker's file system.
        spooled = self._spool / f"artifact-{len(self.collected):04d}"
        fd = os.open(spooled, _NEW_FILE, 0o600)
        try:
            left = artifact.bytes
            while left:
                kind, chunk = await reader.read(
                    {DATA: min(left, CHUNK_BYTES), REFUSED: NOTE_MAX_BYTES}
                )
                if kind == REFUSED:
                    raise Violation(explain(decode(chunk, Refused), self._limits))
                if not chunk:  # empty frames would keep us here for ever
                    raise Violation(BROKEN)
                await asyncio.to_thread(_write_all, fd, chunk)
                left -= len(chunk)
        finally:
            os.close(fd)
        self.collected.append(CollectedArtifact(artifact.path, artifact.bytes, spooled))

    def _check(self, artifact: ArtifactHead) -> None:
        limits = self._limits
        reason = None
        self._total += artifact.bytes
        if len(self.collected) >= limits.artifacts_max_files:
            reason = "too_many_artifacts"
        elif artifact.bytes > limits.artifact_max_bytes:
            reason = "artifact_too_large"
        elif self._total > limits.artifacts_max_total_bytes:
            reason = "artifacts_too_large"
        elif len(artifact.path.encode()) > 1024:
            reason = "path_too_long"
        elif not _is_plain_path(artifact.path):
            reason = "bad_name"
        if reason is not None:
            raise Violation(explain(Refused(reason, artifact.path), limits))
        # One name for what a user, or the disk of a user, would take for the same one.
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", artifact.path).casefold())
        if key in self._seen:
            raise Violation(f"Två av verktygets filer har samma namn: {show(artifact.path)}.")
        self._seen.add(key)


def _is_plain_path(path: str) -> bool:
    """Tell whether the path is relative, stays below where it starts and can be shown."""
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in path):
        return False
    parts = path.split("/")
    return all(part not in ("", ".", "..") and len(part.encode()) <= 255 for part in parts)


def _write_all(fd: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view) :]
