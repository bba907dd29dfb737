"""Users and what each role may do (1-product.md, Roles)."""

from datetime import datetime
from typing import Literal
from uuid import UUID

import msgspec

Role = Literal["user", "contributor", "admin"]
_RANK: dict[Role, int] = {"user": 0, "contributor": 1, "admin": 2}


class User(msgspec.Struct, frozen=True, kw_only=True):
    """A person with an account; the password's hash stays in the store."""

    id: UUID
    username: str
    display_name: str
    role: Role
    is_active: bool = True

    def has_role(self, least: Role) -> bool:
        return _RANK[self.role] >= _RANK[least]


class ApiToken(msgspec.Struct, frozen=True, kw_only=True):
    """A token's description; the token itself is shown once and stored hashed."""

    id: UUID
    name: str
    created_at: datetime
    expires_at: datetime | None
