"""Curated apps: tools that ship with the service (ADR-0024 §3, 3-runner-contract.md)."""

from uuid import UUID, uuid5

import msgspec

from app.domain.tools import InputSchema
from app.domain.users import Role

# Fixed for good: every installation gives an app the same `tool_id`.
NAMESPACE = UUID("6a0d6f0e-6c0b-5f0e-9a55-1d2f4a0c7b31")


class CuratedApp(msgspec.Struct, frozen=True, kw_only=True):
    """An app of the repository: its catalogue entry and its code.

    `version` names the code exactly, so that a session can stay on the one it began with.
    """

    app_id: str
    version: str
    slug: str
    title: str
    summary: str
    usage_instructions: str
    min_role: Role
    source: str
    entrypoint: str
    input_schema: InputSchema

    @property
    def tool_id(self) -> UUID:
        """The id of its catalogue entry."""
        return uuid5(NAMESPACE, self.app_id)


class CuratedEntry(msgspec.Struct, frozen=True, kw_only=True):
    """An app's place in this installation's catalogue; `version` None: no longer shipped."""

    app_id: str
    version: str | None
    slug: str
    title: str
    min_role: Role
