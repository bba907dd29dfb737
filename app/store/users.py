"""Users and API tokens in PostgreSQL."""

from datetime import datetime
from uuid import UUID

from app.domain.users import ApiToken, User
from app.store.postgres import Connection, Executor, convert_row

_USER_COLUMNS = "id, username, display_name, role, is_active"

# One user by id.
GET_USER = f"SELECT {_USER_COLUMNS} FROM users WHERE id = $1"  # noqa: S608

# One user with the password's hash, for login.
FIND_LOGIN = f"SELECT {_USER_COLUMNS}, password_hash FROM users WHERE username = $1"  # noqa: S608

# Create a user, or leave an existing one of the name alone.
ENSURE_USER = """
INSERT INTO users (id, username, display_name, role, password_hash, created_at)
VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (username) DO NOTHING
"""

# Accounts by name, after a position; one that is being deleted is gone.
LIST_USERS = f"""
SELECT {_USER_COLUMNS} FROM users
WHERE deleted_at IS NULL AND ($1::text IS NULL OR username > $1) ORDER BY username LIMIT $2
"""  # noqa: S608

# One claim of a user at a time, so that what it counts holds until it commits; none of who may
# not come in any more.
LOCK_ACTIVE_USER = "SELECT id FROM users WHERE id = $1 AND is_active FOR NO KEY UPDATE"

UPDATE_PASSWORD_HASH = "UPDATE users SET password_hash = $2 WHERE id = $1"  # noqa: S105

# The active user of an unexpired token.
FIND_TOKEN_USER = """
SELECT u.id, u.username, u.display_name, u.role, u.is_active
FROM api_tokens t JOIN users u ON u.id = t.user_id
WHERE t.token_hash = $1 AND u.is_active AND (t.expires_at IS NULL OR t.expires_at > $2)
"""  # noqa: S105

INSERT_TOKEN = """
INSERT INTO api_tokens (id, user_id, name, token_hash, created_at, expires_at)
VALUES ($1, $2, $3, $4, $5, $6)
"""  # noqa: S105

# A user's tokens, oldest first; few enough to need no pages.
LIST_TOKENS = """
SELECT id, name, created_at, expires_at FROM api_tokens
WHERE user_id = $1 ORDER BY id LIMIT 1000
"""

DELETE_TOKEN = "DELETE FROM api_tokens WHERE id = $1 AND user_id = $2"  # noqa: S105


async def find_user(db: Executor, user_id: UUID) -> User | None:
    row = await db.fetchrow(GET_USER, user_id)
    return None if row is None else convert_row(row, User)


async def list_users(db: Executor, after: str | None, limit: int) -> list[User]:
    """Return accounts in order of their names, after one of these."""
    return [convert_row(row, User) for row in await db.fetch(LIST_USERS, after, limit)]


async def lock_active_user(db: Connection, user_id: UUID) -> bool:
    """Lock a user until the transaction ends; False if there is no such active one (any more)."""
    return await db.fetchval(LOCK_ACTIVE_USER, user_id) is not None


async def find_login(db: Executor, username: str) -> tuple[User, str] | None:
    """Return the user of that name and the password's hash."""
    row = await db.fetchrow(FIND_LOGIN, username)
    if row is None:
        return None
    password_hash = row.pop("password_hash")
    return convert_row(row, User), password_hash


async def ensure_user(db: Executor, user: User, password_hash: str, now: datetime) -> bool:
    """Create the user; False if the name was taken, and then nothing changes."""
    row = (user.id, user.username, user.display_name, user.role, password_hash, now)
    return await db.execute(ENSURE_USER, *row) == 1


async def update_password_hash(db: Executor, user_id: UUID, password_hash: str) -> None:
    await db.execute(UPDATE_PASSWORD_HASH, user_id, password_hash)


async def find_token_user(db: Executor, token_hash: bytes, now: datetime) -> User | None:
    row = await db.fetchrow(FIND_TOKEN_USER, token_hash, now)
    return None if row is None else convert_row(row, User)


async def insert_token(db: Executor, user_id: UUID, token: ApiToken, token_hash: bytes) -> None:
    await db.execute(
        INSERT_TOKEN, token.id, user_id, token.name, token_hash, token.created_at, token.expires_at
    )


async def list_tokens(db: Executor, user_id: UUID) -> list[ApiToken]:
    return [convert_row(row, ApiToken) for row in await db.fetch(LIST_TOKENS, user_id)]


async def delete_token(db: Executor, user_id: UUID, token_id: UUID) -> bool:
    return await db.execute(DELETE_TOKEN, token_id, user_id) == 1
