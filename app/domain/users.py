"""Users and what each role may do (1-product.md, Roles)."""

from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

Role = Literal["user", "contributor", "admin"]
_RANKING: tuple[Role, ...] = ("user", "contributor", "admin")


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A person with an account; the password's hash stays in the store."""

    id: UUID
    username: str
    display_name: str
    role: Role
    is_active: bool = True

    @property
    def roles(self) -> tuple[Role, ...]:
        """The user's role and all below it."""
        return _RANKING[: _RANKING.index(self.role) + 1]

    def has_role(self, least: Role) -> bool:
        return least in self.roles


def normalize_username(raw: str) -> str:
    """Return the one form of a name, whoever writes it, in which it is stored and looked for."""
    return raw.strip().lower()


class ApiToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token's description; the token itself is shown once and stored hashed."""

    id: UUID
    name: str
    created_at: datetime
    expires_at: datetime | None
