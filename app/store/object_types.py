"""What the bucket's module answers with: its own errors, and what it says of objects.

No driver is imported here, so that everybody may name these.
"""

from collections.abc import AsyncIterator, Mapping
from datetime import datetime
from typing import Literal

import msgspec

from app.errors import Unavailable

EtagForm = Literal["quoted", "stripped"]


class ObjectMissing(Exception):
    """There is no such object (or upload). `served_at` is the server's time of the answer."""

    def __init__(self, key: str, served_at: datetime) -> None:
        super().__init__(key)
        self.key, self.served_at = key, served_at


class ConditionLost(Exception):
    """A conditional PUT was not confirmed: read the object again, then decide.

    `certain` tells a refusal (412, 409, 404), after which the PUT was not applied unless a resend
    below us hid our own success, from a 5xx or a time-out, after which it may have been.
    """

    def __init__(self, key: str, *, certain: bool) -> None:
        super().__init__(key)
        self.key, self.certain = key, certain


class NotDeleted(Unavailable):
    """Some objects were not deleted, for reasons of their own; all others were."""

    def __init__(self, codes: Mapping[str, str]) -> None:
        super().__init__("s3")
        # The server's reason by key.
        self.codes = codes


class ObjectTooLarge(Exception):
    """The object is larger than the caller would take."""


class RangeNotSatisfiable(Exception):
    """The range lies outside the object."""


class NotSupported(Exception):
    """The server does not know this call (405, 501)."""


class RequestRefused(Exception):
    """The server refused a request that ought to be right: a bug or a setting, not an outage."""

    def __init__(self, operation: str, status: int, code: str) -> None:
        super().__init__(f"{operation}: {status} {code}")
        self.operation, self.status, self.code = operation, status, code


def is_of_one_object(error: Exception) -> bool:
    """Tell whether an error may concern one object alone: neither the database's, nor a bug.

    The server says "refused" of a locked object and "unavailable" of a damaged one; whether it is
    away altogether is shown by the next call about something else.
    """
    if isinstance(error, Unavailable):
        return bool(error.details["dependency"] == "s3")
    return isinstance(error, RequestRefused | NotSupported)


class ConditionalWritesMissing(Exception):
    """The server ignores conditions on PUT: a commit would not be atomic."""


class ObjectInfo(msgspec.Struct, frozen=True):
    """What the server says of an object. `etag` has no quotes; `served_at` is the server's clock.

    `last_modified` has whole seconds after a GET or HEAD and milliseconds in a listing.
    """

    key: str
    bytes: int
    etag: str
    last_modified: datetime
    served_at: datetime
    metadata: Mapping[str, str] = {}


class PutAnswer(msgspec.Struct, frozen=True):
    etag: str
    served_at: datetime


class ObjectStream(msgspec.Struct, frozen=True):
    """An object being read: `total_bytes` of the whole object, `chunks` of the range asked for."""

    total_bytes: int
    range_bytes: int
    etag: str
    last_modified: datetime
    content_type: str
    chunks: AsyncIterator[bytes]


class OpenUpload(msgspec.Struct, frozen=True):
    """A multipart upload that was neither completed nor aborted."""

    key: str
    upload_id: str
    started_at: datetime
    served_at: datetime


class ConditionalWrites(msgspec.Struct, frozen=True):
    """Whether PUT honours conditions, and the form of the etag that `If-Match` wants."""

    supported: bool
    etag_form: EtagForm
