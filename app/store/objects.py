"""The bucket's operations, over `s3_calls`.

Nothing but a conditional PUT of a small object is relied on to be atomic; see
`probe_conditional_writes`.
"""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC
from typing import Any

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
)
from app.store.s3_calls import (
    ATTEMPTS,
    DRIVER_ERRORS,
    BucketCalls,
    Refused,
    open_client,
    served_at,
)
from app.store.upload_buffers import BufferBudget, PartBody

READ_BYTES = 256 * 1024
# Copied onto itself as a whole, an object that has more than a head loses the rest on some
# releases of Ceph (18.2.5 and 19.2.1, tracker 70746); a part is always copied anew.
COPY_WHOLE_BYTES = 256 * 1024
PROBE_PREFIX = "sessions/probe/"  # Below a prefix that the lifecycle rules clean.

log = get_log(__name__)


class ObjectStore(BucketCalls):
    """One bucket. Safe for concurrent use; one instance a process, made by `open_object_store`."""

    def __init__(self, client: Any, settings: Settings) -> None:
        super().__init__(client, settings)
        self._encryption: dict[str, Any] = (
            {"ServerSideEncryption": settings.s3_sse} if settings.s3_sse else {}
        )
        self._conditional: ConditionalWrites | None = None
        self._probing = asyncio.Lock()
        self.buffers = BufferBudget(settings.upload_buffer_bytes, settings.upload_buffer_max_bytes)

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
        except (ObjectMissing, Refused) as error:
            if condition and (isinstance(error, ObjectMissing) or error.status in {409, 412}):
                raise ConditionLost(key, certain=True) from error
            raise
        except Unavailable as error:
            if condition:
                raise ConditionLost(key, certain=False) from error
            raise
        return PutAnswer(etag=_etag(answer), served_at=served_at(answer))

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
            asked_at = served_at(answer)
            yield [
                ObjectInfo(
                    key=item["Key"],
                    bytes=item["Size"],
                    etag=item["ETag"].strip('"'),
                    last_modified=item["LastModified"].astimezone(UTC),
                    served_at=asked_at,
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
                    served_at=served_at(answer),
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
        except Refused as error:
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
        except (Refused, NotSupported):
            return None


@asynccontextmanager
async def open_object_store(settings: Settings) -> AsyncIterator[ObjectStore]:
    """Open the client of the bucket that the settings name. Makes no call by itself."""
    async with open_client(settings) as client:
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
    except DRIVER_ERRORS as error:
        log.warning("s3.read_broken", error=repr(error))
        raise Unavailable("s3") from error


def _etag(answer: Mapping[str, Any]) -> str:
    return str(answer.get("ETag", "")).strip('"')


def _info(key: str, answer: Mapping[str, Any]) -> ObjectInfo:
    return ObjectInfo(
        key=key,
        bytes=answer["ContentLength"],
        etag=_etag(answer),
        last_modified=answer["LastModified"].astimezone(UTC),
        served_at=served_at(answer),
        metadata=answer.get("Metadata", {}),
    )
