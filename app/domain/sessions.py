"""Contexts and modes of tool sessions (ADR-0024 §1, ADR-0039 §2, ST-12-07)."""

import hashlib
from enum import StrEnum
from uuid import UUID

from app.errors import InvalidContext, InvalidMode

DEFAULT_CONTEXT = "default"
SANDBOX_PREFIX = "sandbox:"
MAX_CONTEXT_LENGTH = 64


class SessionFilesMode(StrEnum):
    """What an initial run without uploads does with the saved files."""

    NONE = "none"
    REUSE = "reuse"
    CLEAR = "clear"


def parse_context(raw: str | None) -> str:
    """Return the context a user named for a published tool: trimmed, blank means `default`.

    Raises:
        InvalidContext: longer than 64 characters, control characters, or a reserved prefix.
    """
    context = (raw or "").strip() or DEFAULT_CONTEXT
    if len(context) > MAX_CONTEXT_LENGTH:
        raise InvalidContext(
            f"Sammanhanget får ha högst {MAX_CONTEXT_LENGTH} tecken.",
            details={"max_length": MAX_CONTEXT_LENGTH},
        )
    if not context.isprintable():
        raise InvalidContext("Sammanhanget får inte innehålla osynliga tecken.")
    if context.startswith(SANDBOX_PREFIX):
        raise InvalidContext(f"Sammanhanget får inte börja med ”{SANDBOX_PREFIX}”.")
    return context


def sandbox_context(version_id: UUID) -> str:
    """Return the context of an editor's test runs of one tool version."""
    return f"{SANDBOX_PREFIX}{version_id}"


def context_key(context: str) -> str:
    """Return the form of a context that is safe in object keys (ADR-0039 §2)."""
    return hashlib.sha256(context.encode()).hexdigest()


def parse_mode(raw: str | None) -> SessionFilesMode:
    """Raises InvalidMode for anything but none, reuse, clear or nothing at all."""
    try:
        return SessionFilesMode((raw or "").strip() or "none")
    except ValueError:
        raise InvalidMode from None
