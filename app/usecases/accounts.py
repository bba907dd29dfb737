"""Logging in, browser sessions and API tokens."""

import asyncio
import hashlib
import secrets
from datetime import datetime
from functools import cache
from uuid import UUID

from argon2 import PasswordHasher
from argon2.exceptions import Argon2Error, InvalidHashError

from app.domain.ids import new_uuid7
from app.domain.users import ApiToken, Role, User, normalize_username
from app.errors import BadCredentials, NotFound
from app.log import get_log
from app.store import users
from app.store.postgres import Database, Executor
from app.store.redis import Logins, LoginSession, RateLimit

log = get_log(__name__)

TOKEN_PREFIX = "skt_"  # noqa: S105 - lets secret scanners know one when they see it
_hasher = PasswordHasher()  # argon2id with the library's current defaults (RFC 9106 low memory)


async def _hash_password(password: str) -> str:
    return await asyncio.to_thread(_hasher.hash, password)


async def create_user(
    db: Executor,
    username: str,
    role: Role,
    password: str | None,
    now: datetime,
    *,
    display_name: str = "",
) -> User | None:
    """Add an account; None, and nothing changes, if the name is taken.

    It is shown by its username unless there is a `display_name`. Without a password, nothing but
    API tokens lets its user in.
    """
    name = normalize_username(username)
    user = User(id=new_uuid7(now), username=name, display_name=display_name or name, role=role)
    password_hash = "" if password is None else await _hash_password(password)
    return user if await users.ensure_user(db, user, password_hash, now) else None


async def log_in(
    db: Database,
    logins: Logins,
    limits: tuple[tuple[RateLimit, str], ...],
    username: str,
    password: str,
) -> tuple[User, str, LoginSession]:
    """Check a password and start a browser session: (user, the cookie's token, session).

    Each attempt counts against every limit; a success clears the account's own, the first.

    Raises:
        BadCredentials: no such active user, or another password; which is not said.
        TooManyRequests: past a limit; the password is not looked at.
    """
    for limit, subject in limits:
        await limit.check(subject)
    found = await users.find_login(db, normalize_username(username))
    user, stored_hash = found or (None, await asyncio.to_thread(_dummy_hash))
    matches = await asyncio.to_thread(_verify, stored_hash, password)
    if user is None or not matches or not user.is_active:
        log.info("login.refused", username=username[:100])
        raise BadCredentials
    if _hasher.check_needs_rehash(stored_hash):
        await users.update_password_hash(db, user.id, await _hash_password(password))
    account_limit, account = limits[0]
    await account_limit.reset(account)
    token, session = await logins.create(user.id)
    log.info("login.succeeded", user_id=user.id)
    return user, token, session


async def find_session_user(
    db: Database, logins: Logins, token: str
) -> tuple[User, LoginSession] | None:
    """Return the active user of a browser session."""
    session = await logins.find(token)
    user = None if session is None else await users.find_user(db, session.user_id)
    if session is None or user is None or not user.is_active:
        return None
    return user, session


async def find_token_user(db: Database, token: str, now: datetime) -> User | None:
    """Return the active user of an API token that is neither revoked nor expired."""
    return await users.find_token_user(db, _digest(token), now)


async def create_token(
    db: Database, user: User, name: str, expires_at: datetime | None, now: datetime
) -> tuple[ApiToken, str]:
    """Make a token: (its description, the token itself, which is never shown again)."""
    secret = TOKEN_PREFIX + secrets.token_urlsafe(32)
    token = ApiToken(id=new_uuid7(now), name=name, created_at=now, expires_at=expires_at)
    await users.insert_token(db, user.id, token, _digest(secret))
    return token, secret


async def revoke_token(db: Database, user: User, token_id: UUID) -> None:
    """Raises NotFound for an id that is not one of the user's tokens."""
    if not await users.delete_token(db, user.id, token_id):
        raise NotFound


@cache
def _dummy_hash() -> str:
    """Return what is verified where there is no such account: the answer takes as long as else."""
    return _hasher.hash(secrets.token_urlsafe(16))


def _verify(stored_hash: str, password: str) -> bool:
    try:
        return _hasher.verify(stored_hash, password)
    except (Argon2Error, InvalidHashError):
        return False


def _digest(token: str) -> bytes:
    # Tokens are 256 random bits: a plain hash is enough, and it can be looked up.
    return hashlib.sha256(token.encode()).digest()
