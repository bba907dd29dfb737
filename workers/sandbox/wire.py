"""The frames that a runner answers with, read one by one: each of a kind and size that may come.

The bytes are described in `infra/runner/runner_wire.py`. What breaks a rule is a `Violation`,
whose Swedish words are for the user.
"""

import asyncio
from typing import Protocol, TypeVar

import msgspec

from workers.sandbox.base import SandboxLimits

MAGIC = b"SKR\x02"
JOB = b"J"
STOP = b"C"
READY = b"R"
TAKEN = b"K"
PROGRESS = b"P"
EXITED = b"X"
STDOUT = b"O"
STDERR = b"E"
RESULT = b"T"
ARTIFACT = b"A"
DATA = b"D"
REFUSED = b"V"
END = b"Z"

CHUNK_BYTES = 256 * 1024
NOTE_MAX_BYTES = 16 * 1024
# Frames are read by type only in their phase, so this bounds how often a forger can keep us busy.
PROGRESS_MAX_FRAMES = 100_000

_REASONS = {
    "link": "Verktyget lade en länk bland sina filer: {path}. Bara vanliga filer tas emot.",
    "not_a_regular_file": "Verktyget lämnade något som inte är en vanlig fil: {path}.",
    "bad_name": "Verktyget gav en fil ett namn som inte går att använda: {path}.",
    "path_too_long": "Verktyget gav en fil ett för långt namn: {path}.",
    "unreadable": "Verktyget lämnade en fil som inte går att läsa: {path}.",
    "changed": "En av verktygets filer ändrades medan den hämtades: {path}.",
    "too_many_directories": "Verktyget skapade för många mappar.",
    "too_many_artifacts": "Verktyget skapade fler filer än de {files} som får plats.",
    "artifact_too_large": "Verktyget skapade en för stor fil: {path}. Högst {each} byte.",
    "artifacts_too_large": "Verktygets filer är tillsammans större än {total} byte.",
    "result_too_large": "Verktygets svar (result.json) är större än {result} byte.",
    "work_full": "Verktyget använde mer än {work} byte diskutrymme.",
}
BROKEN = "Körningen svarade på ett sätt som inte går att tolka."


T = TypeVar("T")


class ByteSource(Protocol):
    """Where the answer is read from; `asyncio.StreamReader` is one."""

    async def readexactly(self, n: int, /) -> bytes: ...


class Violation(Exception):
    """The answer breaks the contract; the message is Swedish."""


class Refused(msgspec.Struct):
    """What the runner itself refused, and where."""

    reason: str
    path: str = ""


class FrameReader:
    """Reads frames of the kinds that may come next, each up to its own length."""

    def __init__(self, source: ByteSource, limits: SandboxLimits) -> None:
        self._source = source
        self.limits = limits
        # How long one frame may take; while a tool runs, none may come for as long as it has.
        self.frame_seconds: float | None = None

    async def read(self, expected: dict[bytes, int]) -> tuple[bytes, bytes]:
        async with asyncio.timeout(self.frame_seconds):
            head = await self._source.readexactly(5)
            kind, length = head[:1], int.from_bytes(head[1:], "big")
            if kind not in expected:
                raise Violation(BROKEN)
            if length > expected[kind]:
                if kind == RESULT:
                    raise Violation(explain(Refused("result_too_large"), self.limits))
                raise Violation(BROKEN)
            return kind, await self._source.readexactly(length)


def decode(payload: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Violation(BROKEN) from None


def explain(refused: Refused, limits: SandboxLimits) -> str:
    return _REASONS.get(refused.reason, BROKEN).format(
        path=show(refused.path),
        files=limits.artifacts_max_files,
        each=limits.artifact_max_bytes,
        total=limits.artifacts_max_total_bytes,
        result=limits.result_max_bytes,
        work=limits.work_bytes,
    )


def show(path: str) -> str:
    """Make a tool's name fit to be shown: short and printable."""
    return printable(path[:100]) or "(utan namn)"


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in text)
