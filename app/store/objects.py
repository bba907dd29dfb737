"""The bucket: the only module that speaks to an S3 driver.

Every call has a time limit and its own retries with backoff; every failure leaves as one of the
errors of `object_types` or as `Unavailable("s3")`. The driver itself never retries: it would turn
our own conditional PUT, applied but unanswered, into a lost race. Nothing but a conditional PUT of
a small object is relied on to be atomic; see `probe_conditional_writes`.
"""

import asyncio
import base64
import copy
import hashlib
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
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
from app.store.object_types import (
    ConditionalWrites,
    ConditionalWritesMissing,
    ConditionLost,
    EtagForm,
    NotDeleted,
    NotSupported,
    ObjectInfo,
    ObjectMissing,
    ObjectStream,
    ObjectTooLarge,
    OpenUpload,
    PutAnswer,
    RangeNotSatisfiable,
    RequestRefused,
)
from app.store.upload_buffers import BufferBudget, PartBody

ATTEMPTS = 4
BACKOFF_SECONDS = 0.1
# A call that moves bytes may take this much longer for each of them (512 KiB/s).
SLOWEST_BYTES_PER_SECOND = 512 * 1024
READ_BYTES = 256 * 1024
# Copied onto itself as a whole, an object that has more than a head loses the rest on some
# releases of Ceph (18.2.5 and 19.2.1, tracker 70746); a part is always copied anew.
COPY_WHOLE_BYTES = 256 * 1024
# Work in the background has so many calls on their way at once, and more where it may ask so often
# that calls of this length would otherwise hold it up.
PARALLEL_CALLS = 8
CALL_SECONDS = 0.1
PROBE_PREFIX = "sessions/probe/"  # Below a prefix that the lifecycle rules clean.

log = get_log(__name__)


class ObjectStore:
    """One bucket. Safe for concurrent use; one instance a process, made by `open_object_store`."""

    def __init__(self, client: Any, settings: Settings) -> None:
        self._client = client
        self._bucket = settings.s3_bucket
        self._max_connections = settings.s3_max_connections
        self._timeout_seconds = settings.s3_timeout_seconds
        self._encryption: dict[str, Any] = (
            {"ServerSideEncryption": settings.s3_sse} if settings.s3_sse else {}
        )
        self._conditional: ConditionalWrites | None = None
        self._probing = asyncio.Lock()
        self._pace: Pace | None = None
        # How often each operation was called, also in vain.
        self.requests: Counter[str] = Counter()
        # How many calls a caller with many of them should make at once.
        self.parallel_calls = PARALLEL_CALLS
        self.buffers = BufferBudget(settings.upload_buffer_bytes, settings.upload_buffer_max_bytes)

    def paced(self, requests_per_second: float) -> Self:
        """Return the same bucket for work in the background: never faster, and counted apart."""
        slower = copy.copy(self)
        slower._pace, slower.requests = Pace(requests_per_second), Counter()
        # Half of the connections stay free for those who wait for an answer.
        wanted = min(round(requests_per_second * CALL_SECONDS), self._max_connections // 2)
        slower.parallel_calls = max(1, wanted)
        return slower

    # --- Small objects --------------------------------------------------------------------

    async def put(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str = "application/octet-stream",
        if_match: str | None = None,
        create_only: bool = False,
        attempts: int = ATTEMPTS,
    ) -> PutAnswer:
        """Write a small object, with a condition if one is given. Without one, safe to repeat.

        Under a condition there is one attempt, whatever `attempts` says.

        Raises:
            ConditionLost: under a condition, for anything but a confirmed success.
        """
        condition: dict[str, Any] = {}
        if create_only:
            condition["IfNoneMatch"] = "*"
        elif if_match is not None:
            quoted = (await self.conditional_writes()).etag_form == "quoted"
            condition["IfMatch"] = f'"{if_match}"' if quoted else if_match
        attempts = 1 if condition else attempts
        return await self._put(key, body, content_type, condition, attempts=attempts)

    async def _put(
        self,
        key: str,
        body: bytes,
        content_type: str,
        condition: Mapping[str, Any],
        *,
        attempts: int = 1,
    ) -> PutAnswer:
        try:
            answer = await self._call(
                "put_object",
                attempts=attempts,
                Key=key,
                Body=body,
                ContentType=content_type,
                **condition,
                **self._encryption,
            )
        except (ObjectMissing, _Refused) as error:
            if condition and (isinstance(error, ObjectMissing) or error.status in {409, 412}):
                raise ConditionLost(key, certain=True) from error
            raise
        except Unavailable as error:
            if condition:
                raise ConditionLost(key, certain=False) from error
            raise
        return PutAnswer(etag=_etag(answer), served_at=_served_at(answer))

    async def get(self, key: str, *, max_bytes: int) -> tuple[bytes, ObjectInfo]:
        """Read a small object whole.

        Raises:
            ObjectMissing, ObjectTooLarge
        """

        async def read(answer: dict[str, Any]) -> bytes:
            async with answer["Body"] as body:
                if answer["ContentLength"] > max_bytes:
                    body.close()
                    raise ObjectTooLarge(key)
                return bytes(await body.read())

        answer = await self._call("get_object", then=read, Key=key)
        return answer["read"], _info(key, answer)

    async def find(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object without its bytes, or None."""
        try:
            answer = await self._call("head_object", Key=key)
        except ObjectMissing:
            return None
        return _info(key, answer)

    # --- Streams --------------------------------------------------------------------------

    @asynccontextmanager
    async def open(
        self, key: str, *, offset: int = 0, length: int | None = None
    ) -> AsyncIterator[ObjectStream]:
        """Open an object, or `length` bytes of it, for reading once, in chunks of some 256 KiB.

        Leaving early closes the connection. A stream that breaks off is not resumed.

        Raises:
            ObjectMissing, RangeNotSatisfiable; Unavailable also while reading
        """
        params: dict[str, Any] = {"Key": key}
        if offset or length is not None:
            end = "" if length is None else offset + length - 1
            params["Range"] = f"bytes={offset}-{end}"
        answer = await self._call("get_object", **params)
        body = answer["Body"]
        total = str(answer.get("ContentRange", "")).rpartition("/")[2]
        try:
            yield ObjectStream(
                total_bytes=int(total or answer["ContentLength"]),
                range_bytes=answer["ContentLength"],
                etag=_etag(answer),
                last_modified=answer["LastModified"].astimezone(UTC),
                content_type=answer.get("ContentType", "application/octet-stream"),
                chunks=_read(body),
            )
        finally:
            body.close()

    async def put_part_body(
        self, key: str, body: PartBody, content_type: str, metadata: Mapping[str, str]
    ) -> None:
        """Write an object of at most one part from a buffer."""
        await self._call(
            "put_object",
            body_bytes=len(body),
            Key=key,
            Body=body,
            ContentLength=len(body),
            ContentType=content_type,
            Metadata=dict(metadata),
            **self._encryption,
        )

    async def create_multipart(
        self, key: str, content_type: str, metadata: Mapping[str, str]
    ) -> str:
        """Start a multipart upload and return its id. Repeated, it can leave an upload open."""
        answer = await self._call(
            "create_multipart_upload",
            Key=key,
            ContentType=content_type,
            Metadata=dict(metadata),
            **self._encryption,
        )
        return str(answer["UploadId"])

    async def put_part(self, key: str, upload_id: str, number: int, body: PartBody) -> str:
        """Write one part (numbered from 1) and return its etag as the server wrote it."""
        answer = await self._call(
            "upload_part",
            body_bytes=len(body),
            Key=key,
            UploadId=upload_id,
            PartNumber=number,
            Body=body,
            ContentLength=len(body),
        )
        return str(answer["ETag"])

    async def complete_multipart(self, key: str, upload_id: str, etags: Sequence[str]) -> None:
        """Make the object from its parts."""
        parts = [{"PartNumber": n, "ETag": etag} for n, etag in enumerate(etags, start=1)]
        try:
            await self._call(
                "complete_multipart_upload",
                Key=key,
                UploadId=upload_id,
                MultipartUpload={"Parts": parts},
            )
        except ObjectMissing:
            # The answer of an attempt that succeeded may have been lost.
            if await self.find(key) is None:
                raise

    async def abort_multipart(self, key: str, upload_id: str) -> bool:
        """Drop an upload and its parts; False when there is none (any more)."""
        try:
            await self._call("abort_multipart_upload", Key=key, UploadId=upload_id)
        except ObjectMissing:
            return False
        return True

    # --- Many objects ---------------------------------------------------------------------

    async def list_pages(
        self, prefix: str, *, start_after: str = "", page_keys: int = 1000
    ) -> AsyncIterator[list[ObjectInfo]]:
        """Yield pages of the objects under a prefix, in order of their keys.

        `start_after` resumes a listing behind a key.
        """
        params: dict[str, Any] = {"Prefix": prefix, "MaxKeys": page_keys}
        if start_after:
            params["StartAfter"] = start_after
        while True:
            answer = await self._call("list_objects_v2", **params)
            served_at = _served_at(answer)
            yield [
                ObjectInfo(
                    key=item["Key"],
                    bytes=item["Size"],
                    etag=item["ETag"].strip('"'),
                    last_modified=item["LastModified"].astimezone(UTC),
                    served_at=served_at,
                )
                for item in answer.get("Contents", ())
            ]
            if not answer.get("IsTruncated"):
                return
            params["ContinuationToken"] = answer["NextContinuationToken"]

    async def list_objects(
        self, prefix: str, *, start_after: str = ""
    ) -> AsyncIterator[ObjectInfo]:
        """Yield the objects under a prefix, in order of their keys."""
        async for page in self.list_pages(prefix, start_after=start_after):
            for info in page:
                yield info

    async def delete(self, keys: Iterable[str], *, attempts: int = ATTEMPTS) -> int:
        """Delete objects in batches of 1000 and return how many keys the server confirmed.

        Deleting what does not exist succeeds, as S3 has it. An error that stands inside a 200
        answer is an error; a whole call that meets 404 (no bucket) is one too, never "already
        gone": that reading is how orphans pile up unseen.

        Raises:
            NotDeleted: some of the keys were refused; those of all batches were tried.
        """
        keys = list(keys)
        refused: dict[str, str] = {}
        for start in range(0, len(keys), 1000):
            batch = keys[start : start + 1000]
            objects = [{"Key": key} for key in batch]
            answer = await self._call(
                "delete_objects", attempts=attempts, Delete={"Objects": objects}
            )
            for error in answer.get("Errors", ()):
                code = error.get("Code", "")
                # A server that reports a missing key as an error says what others call success.
                if code != "NoSuchKey":
                    # An error that names no key may be of any.
                    named = [error["Key"]] if error.get("Key") else batch
                    refused.update(dict.fromkeys(named, code))
        if refused:
            key, code = next(iter(refused.items()))
            log.error("s3.delete_failed", failed=len(refused), key=key, code=code)
            raise NotDeleted(refused)
        return len(keys)

    async def copy_onto_itself(self, key: str, metadata: Mapping[str, str]) -> None:
        """Copy an object onto itself on the server, which renews its `LastModified`.

        Raises:
            ObjectMissing
        """
        found = await self._call("head_object", Key=key)
        content_type = found.get("ContentType", "application/octet-stream")
        source = {"Bucket": self._bucket, "Key": key}
        if found["ContentLength"] > COPY_WHOLE_BYTES:
            upload_id = await self.create_multipart(key, content_type, metadata)
            try:
                copied = await self._call(
                    "upload_part_copy",
                    body_bytes=found["ContentLength"],
                    Key=key,
                    UploadId=upload_id,
                    PartNumber=1,
                    CopySource=source,
                )
                await self.complete_multipart(key, upload_id, [copied["CopyPartResult"]["ETag"]])
            except Exception:
                await self.abort_multipart(key, upload_id)
                raise
            return
        await self._call(
            "copy_object",
            body_bytes=found["ContentLength"],
            Key=key,
            CopySource=source,
            # A plain copy of an object onto itself is refused; one with new metadata is not.
            MetadataDirective="REPLACE",
            Metadata=dict(metadata),
            ContentType=content_type,
            **self._encryption,
        )

    async def list_multipart(self, prefix: str) -> AsyncIterator[OpenUpload]:
        """Yield the open multipart uploads under a prefix."""
        params: dict[str, Any] = {"Prefix": prefix}
        while True:
            answer = await self._call("list_multipart_uploads", **params)
            for item in answer.get("Uploads", ()):
                yield OpenUpload(
                    key=item["Key"],
                    upload_id=item["UploadId"],
                    started_at=item["Initiated"].astimezone(UTC),
                    served_at=_served_at(answer),
                )
            if not answer.get("IsTruncated"):
                return
            params["KeyMarker"] = answer["NextKeyMarker"]
            params["UploadIdMarker"] = answer["NextUploadIdMarker"]

    # --- The bucket -----------------------------------------------------------------------

    async def bucket_exists(self) -> bool:
        """Ask for the bucket: one cheap call, also the readiness check."""
        try:
            await self._call("head_bucket", attempts=1)
        except ObjectMissing:
            return False
        return True

    async def create_bucket(self) -> bool:
        """Create the bucket; False when it is there already."""
        if await self.bucket_exists():
            return False
        region = self._client.meta.region_name
        # The default region is the one that must not be named.
        place: dict[str, Any] = {"CreateBucketConfiguration": {"LocationConstraint": region}}
        named = region != "us-east-1" and self._client.meta.endpoint_url.endswith(".amazonaws.com")
        try:
            await self._call("create_bucket", **(place if named else {}))
        except _Refused as error:
            if error.code != "BucketAlreadyOwnedByYou":
                raise
            return False
        return True

    async def lifecycle_rules(self) -> Sequence[dict[str, Any]]:
        """Return the bucket's lifecycle rules as the server words them.

        Raises:
            NotSupported: the server knows no lifecycle rules.
        """
        try:
            answer = await self._call("get_bucket_lifecycle_configuration")
        except ObjectMissing:
            return []
        rules: Sequence[dict[str, Any]] = answer.get("Rules", [])
        return rules

    async def put_lifecycle_rules(self, rules: Sequence[dict[str, Any]]) -> None:
        """Replace the bucket's lifecycle rules.

        Raises:
            NotSupported, RequestRefused: the server knows no rules, or not one of these.
        """
        await self._call(
            "put_bucket_lifecycle_configuration", LifecycleConfiguration={"Rules": list(rules)}
        )

    # --- Conditions -----------------------------------------------------------------------

    async def conditional_writes(self) -> ConditionalWrites:
        """Return what the probe found; probe at the first call."""
        if self._conditional is None:
            async with self._probing:
                if self._conditional is None:
                    self._conditional = await self.probe_conditional_writes()
        return self._conditional

    async def probe_conditional_writes(self) -> ConditionalWrites:
        """Find out by trying whether PUT honours conditions and how `If-Match` wants the etag.

        Some servers ignore the headers and answer 200; one wants the etag without its quotes.
        """
        key = f"{PROBE_PREFIX}{uuid.uuid4()}"
        try:
            first = (await self._try_put(key, b"1", {"IfNoneMatch": "*"})) or ""
            honoured = bool(first) and not await self._try_put(key, b"2", {"IfNoneMatch": "*"})
            wrong = hashlib.md5(b"never written", usedforsecurity=False).hexdigest()
            form: EtagForm = "quoted"
            for form in ("quoted", "stripped"):
                spelled = '"{}"' if form == "quoted" else "{}"
                if await self._try_put(key, b"3", {"IfMatch": spelled.format(wrong)}):
                    honoured = False
                if await self._try_put(key, b"1", {"IfMatch": spelled.format(first)}):
                    break
            else:
                honoured = False
            return ConditionalWrites(supported=honoured, etag_form=form)
        finally:
            await self.delete([key])

    async def _try_put(self, key: str, body: bytes, condition: Mapping[str, Any]) -> str | None:
        """Return the etag, or None for a refusal; whatever else happens is not an answer."""
        try:
            return (await self._put(key, body, "text/plain", condition)).etag
        except ConditionLost as lost:
            if lost.certain:
                return None
            raise Unavailable("s3") from lost
        except (_Refused, NotSupported):
            return None

    # --- Calls ----------------------------------------------------------------------------

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
            except _DRIVER_ERRORS as error:
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


class _Refused(RequestRefused):
    """A 4xx that a caller in this module may know better than the table."""


@asynccontextmanager
async def open_object_store(settings: Settings) -> AsyncIterator[ObjectStore]:
    """Open the client of the bucket that the settings name. Makes no call by itself."""
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
        yield ObjectStore(client, settings)


async def require_conditional_writes(objects: ObjectStore, settings: Settings) -> None:
    """Refuse a server that ignores conditions, unless commits are fenced by PostgreSQL.

    Raises:
        ConditionalWritesMissing
    """
    if settings.storage_fence == "postgres":
        return
    if not (await objects.conditional_writes()).supported:
        raise ConditionalWritesMissing(
            "the S3 server ignores If-Match/If-None-Match on PUT; set STORAGE_FENCE=postgres"
        )


async def _read(body: Any) -> AsyncIterator[bytes]:
    try:
        while chunk := await body.read(READ_BYTES):
            yield chunk
    except _DRIVER_ERRORS as error:
        log.warning("s3.read_broken", error=repr(error))
        raise Unavailable("s3") from error


def _add_content_md5(params: dict[str, Any], **_: Any) -> None:
    digest = hashlib.md5(params["body"], usedforsecurity=False).digest()
    params["headers"]["Content-MD5"] = base64.b64encode(digest).decode()


# --- Driver errors → own errors ---------------------------------------------------------------

_DRIVER_ERRORS = (ClientError, BotoCoreError, aiohttp.ClientError, OSError, TimeoutError)
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
        return ObjectMissing(key, _served_at(error.response)), False
    if status == 416:
        return RangeNotSatisfiable(key), False
    if status in {405, 501}:
        return NotSupported(operation), False
    passing = status >= 500 or status in {0, 429} or code in _PASSING
    if passing or code in _NOT_SERVED:
        log.warning("s3.unavailable", operation=operation, status=status, code=code)
        return Unavailable("s3"), passing
    return _Refused(operation, status, code), False


def _served_at(answer: Mapping[str, Any]) -> datetime:
    """Return the server's clock, to the second: TTLs never depend on the node's."""
    date = answer["ResponseMetadata"].get("HTTPHeaders", {}).get("date")
    if date is None:
        raise RequestRefused("any call", 200, "the S3 server sends no Date header")
    return parsedate_to_datetime(date).astimezone(UTC)


def _etag(answer: Mapping[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')


def _info(key: str, answer: Mapping[str, Any]) -> ObjectInfo:
    return ObjectInfo(
        key=key,
        bytes=answer["ContentLength"],
        etag=_etag(answer),
        last_modified=answer["LastModified"].astimezone(UTC),
        served_at=_served_at(answer),
        metadata=answer.get("Metadata", {}),
    )
