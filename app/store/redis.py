"""What lives in Redis besides the queue: login sessions and rate limits.

Nothing here is worth keeping: after a loss users log in again. Redis errors become `Unavailable`.
"""

import hashlib
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from uuid import UUID

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from app.errors import TooManyRequests, Unavailable

_PREFIX = "login:"


class LoginSession(msgspec.Struct, frozen=True):
    """A browser's session: whose it is and the token its state-changing calls must carry."""

    user_id: UUID
    csrf_token: str


@contextmanager
def own_errors() -> Iterator[None]:
    try:
        yield
    except (RedisError, OSError) as error:
        raise Unavailable("redis") from error


@asynccontextmanager
async def open_redis(url: str) -> AsyncIterator[Redis]:
    """Open a client that connects when first used and retries lost connections briefly."""
    client: Redis = Redis.from_url(
        url,
        socket_timeout=5,
        socket_connect_timeout=2,
        retry=Retry(ExponentialBackoff(cap=0.5, base=0.05), 3),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
    )
    try:
        yield client
    finally:
        await client.aclose()


class Logins:
    """Login sessions by a random token; only the token's hash is stored."""

    def __init__(self, redis: Redis, ttl_seconds: int) -> None:
        self._redis = redis
        self.ttl_seconds = ttl_seconds

    async def create(self, user_id: UUID) -> tuple[str, LoginSession]:
        """Start a session: (the token for the cookie, the session)."""
        token = secrets.token_urlsafe(32)
        session = LoginSession(user_id, secrets.token_urlsafe(24))
        with own_errors():
            await self._redis.set(_key(token), msgspec.msgpack.encode(session), ex=self.ttl_seconds)
        return token, session

    async def find(self, token: str) -> LoginSession | None:
        with own_errors():
            raw = await self._redis.get(_key(token))
        return None if raw is None else msgspec.msgpack.decode(raw, type=LoginSession)

    async def delete(self, token: str) -> None:
        with own_errors():
            await self._redis.delete(_key(token))

    async def delete_all(self, user_id: UUID) -> int:
        """End all sessions of a user: how many. Walks every session there is, so for rare use."""
        ended = 0
        with own_errors():
            cursor = 0
            while True:
                cursor, keys = await self._redis.scan(cursor, f"{_PREFIX}*", count=1000)
                values = await self._redis.mget(keys) if keys else []
                theirs = [
                    key
                    for key, raw in zip(keys, values, strict=True)
                    if raw is not None
                    and msgspec.msgpack.decode(raw, type=LoginSession).user_id == user_id
                ]
                ended += await self._redis.delete(*theirs) if theirs else 0
                if cursor == 0:
                    return ended


class RateLimit:
    """Counts attempts by subject in a fixed window."""

    def __init__(self, redis: Redis, name: str, limit: int, window_seconds: int) -> None:
        self._redis = redis
        self._name = name
        self._limit = limit
        self._window_seconds = window_seconds

    async def check(self, subject: str) -> None:
        """Count an attempt. Raises TooManyRequests past the limit, with the time to wait."""
        key = f"rate:{self._name}:{hashlib.sha256(subject.encode()).hexdigest()}"
        with own_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.incr(key)
                pipe.expire(key, self._window_seconds, nx=True)
                pipe.ttl(key)
                count, _, ttl = await pipe.execute()
        if count > self._limit:
            raise TooManyRequests(retry_after_seconds=max(int(ttl), 1))

    async def reset(self, subject: str) -> None:
        with own_errors():
            await self._redis.delete(
                f"rate:{self._name}:{hashlib.sha256(subject.encode()).hexdigest()}"
            )


def _key(token: str) -> str:
    return f"{_PREFIX}{hashlib.sha256(token.encode()).hexdigest()}"
