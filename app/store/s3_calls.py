"""Calls to an S3 server: their time limits, retries and pace, and what the driver's errors mean.

Every call has a time limit and its own retries with backoff; every failure leaves as one of the
errors of `object_types` or as `Unavailable("s3")`. The driver itself never retries: it would turn
our own conditional PUT, applied but unanswered, into a lost race.
"""

import asyncio
import base64
import copy
import hashlib
import random
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Self

import aioboto3
import aiohttp
from aiobotocore.config import AioConfig
from botocore.exceptions import BotoCoreError, ClientError

from app.errors import Unavailable
from app.log import get_log
from app.settings import Settings
from app.store.object_types import NotSupported, ObjectMissing, RangeNotSatisfiable, RequestRefused

ATTEMPTS = 4
BACKOFF_SECONDS = 0.1
# A call that moves bytes may take this much longer for each of them (512 KiB/s).
SLOWEST_BYTES_PER_SECOND = 512 * 1024
# Work in the background has so many calls on their way at once, and more where it may ask so often
# that calls of this length would otherwise hold it up.
PARALLEL_CALLS = 8
CALL_SECONDS = 0.1

log = get_log(__name__)


class BucketCalls:
    """Calls to one bucket, counted."""

    def __init__(self, client: Any, settings: Settings) -> None:
        self._client = client
        self._bucket = settings.s3_bucket
        self._max_connections = settings.s3_max_connections
        self._timeout_seconds = settings.s3_timeout_seconds
        self._pace: Pace | None = None
        # How often each operation was called, also in vain.
        self.requests: Counter[str] = Counter()
        # How many calls a caller with many of them should make at once.
        self.parallel_calls = PARALLEL_CALLS

    def paced(self, requests_per_second: float) -> Self:
        """Return the same bucket for work in the background: never faster, and counted apart."""
        slower = copy.copy(self)
        slower._pace, slower.requests = Pace(requests_per_second), Counter()
        # Half of the connections stay free for those who wait for an answer.
        wanted = min(round(requests_per_second * CALL_SECONDS), self._max_connections // 2)
        slower.parallel_calls = max(1, wanted)
        return slower

    async def _call(
        self,
        operation: str,
        *,
        attempts: int = ATTEMPTS,
        body_bytes: int = 0,
        then: Any = None,
        **params: Any,
    ) -> dict[str, Any]:
        """Make one call, again with backoff while the server is unavailable.

        `then` reads the answer's body within the same attempt and time limit. All attempts together
        have little more time than one: a server that stalls is not worth waiting for thrice.
        """
        loop = asyncio.get_running_loop()
        limit = self._timeout_seconds + body_bytes / SLOWEST_BYTES_PER_SECOND
        end = loop.time() + self._timeout_seconds + limit
        for attempt in range(1, attempts + 1):
            if self._pace is not None:
                await self._pace.take_turn()
            self.requests[operation] += 1
            try:
                async with asyncio.timeout_at(min(loop.time() + limit, end)):
                    method = getattr(self._client, operation)
                    answer: dict[str, Any] = await method(Bucket=self._bucket, **params)
                    if then is not None:
                        answer["read"] = await then(answer)
                    return answer
            except DRIVER_ERRORS as error:
                own, passes = _own_error(error, operation, params.get("Key", ""))
                if not passes or attempt == attempts or loop.time() >= end:
                    raise own from error
                # Full jitter, so that nodes that failed together do not come back together.
                await asyncio.sleep(random.uniform(0.3, 1) * BACKOFF_SECONDS * 4 ** (attempt - 1))
        raise AssertionError("unreachable")


class Pace:
    """Turns at even distances: a burst of callers waits in line, an idle time is not made up."""

    def __init__(self, per_second: float) -> None:
        self._distance_seconds = 1 / per_second
        self._next_at = 0.0

    async def take_turn(self) -> None:
        now = asyncio.get_running_loop().time()
        at = max(now, self._next_at)
        self._next_at = at + self._distance_seconds
        if at > now:
            await asyncio.sleep(at - now)


class Refused(RequestRefused):
    """A 4xx that a caller in this module may know better than the table."""


@asynccontextmanager
async def open_client(settings: Settings) -> AsyncIterator[Any]:
    """Open the driver's client of the server that the settings name. Makes no call by itself."""
    config = AioConfig(
        connect_timeout=min(5, settings.s3_timeout_seconds),
        read_timeout=settings.s3_timeout_seconds,
        max_pool_connections=settings.s3_max_connections,
        retries={"total_max_attempts": 1},
        # Newer default checksums are not understood by every server; our own SHA-256 is the
        # integrity, so the payload is not hashed a second time for the signature either.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        s3={"addressing_style": settings.s3_addressing, "payload_signing_enabled": False},
    )
    session = aioboto3.Session()
    async with session.client(
        "s3",
        endpoint_url=settings.s3_endpoint_url,
        region_name=settings.s3_region,
        aws_access_key_id=settings.s3_access_key,
        aws_secret_access_key=settings.s3_secret_key,
        config=config,
    ) as client:
        # Servers older than the driver's CRC32 headers insist on Content-MD5 for these two.
        for operation in ("DeleteObjects", "PutBucketLifecycleConfiguration"):
            client.meta.events.register(f"before-call.s3.{operation}", _add_content_md5)
        yield client


def _add_content_md5(params: dict[str, Any], **_: Any) -> None:
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


# --- Driver errors → own errors ---------------------------------------------------------------

DRIVER_ERRORS = (ClientError, BotoCoreError, aiohttp.ClientError, OSError, TimeoutError)
_MISSING = {"NoSuchKey", "NoSuchUpload", "NoSuchLifecycleConfiguration", "404", "NotFound"}
_PASSING = {"SlowDown", "RequestTimeout", "OperationAborted"}
# Not what was asked for but who asks, or where: the user can only wait for the operator.
_NOT_SERVED = {
    "NoSuchBucket",
    "AccessDenied",
    "InvalidAccessKeyId",
    "SignatureDoesNotMatch",
    "RequestTimeTooSkewed",
    "403",
}


def _own_error(error: Exception, operation: str, key: str) -> tuple[Exception, bool]:
    """Return the own error for a driver's, and whether it may pass if the call is made again."""
    if not isinstance(error, ClientError):
        log.warning("s3.unreachable", operation=operation, error=repr(error))
        return Unavailable("s3"), True
    status = int(error.response["ResponseMetadata"].get("HTTPStatusCode", 0))
    code = str(error.response.get("Error", {}).get("Code", ""))
    if code in _MISSING:
        return ObjectMissing(key, served_at(error.response)), False
    if status == 416:
        return RangeNotSatisfiable(key), False
    if status in {405, 501}:
        return NotSupported(operation), False
    passing = status >= 500 or status in {0, 429} or code in _PASSING
    if passing or code in _NOT_SERVED:
        log.warning("s3.unavailable", operation=operation, status=status, code=code)
        return Unavailable("s3"), passing
    return Refused(operation, status, code), False


def served_at(answer: Mapping[str, Any]) -> datetime:
    """Return the server's clock, to the second: TTLs never depend on the node's."""
    date = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
    if date is None:
        raise RequestRefused("any call", 200, "the S3 server sends no Date header")
    return parsedate_to_datetime(date).astimezone(UTC)
