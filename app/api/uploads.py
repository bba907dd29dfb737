"""Multipart bodies parsed as they arrive (RFC 7578): nothing is spooled, every part has a cap.

The framework's own multipart handling reads whole bodies before the handler starts and does not
cap text parts, so it is not used here.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from multipart import (
    MultipartError,
    MultipartSegment,
    ParserLimitReached,
    PushMultipartParser,
    parse_options_header,
)

from app.api.deps import AnyRequest
from app.errors import (
    FieldTooLarge,
    MalformedRequest,
    PayloadTooLarge,
    UnsupportedMediaType,
    UploadTooLarge,
)
from app.log import get_log
from app.settings import Settings

log = get_log(__name__)

# Parts beside the files: fields, empty file fields, and room for a clear error about the rest.
EXTRA_PARTS = 20
EXTRA_BYTES = 4_000_000


class _Part:
    """One part of the body; its chunks come from the wire as they are asked for."""

    def __init__(
        self, segment: MultipartSegment, events: AsyncIterator[Any], max_field_bytes: int
    ) -> None:
        self.name: str = segment.name
        self.filename: str | None = segment.filename
        self.content_type: str = (segment.content_type or "application/octet-stream").lower()[:255]
        self._events = events
        self._max_field_bytes = max_field_bytes
        self._ended = False

    async def chunks(self) -> AsyncIterator[bytes]:
        while not self._ended:
            event = await anext(self._events, None)
            if event is None:
                self._ended = True
            else:
                yield event

    async def text(self) -> str:
        """Read a field. Raises FieldTooLarge as soon as it passes its cap."""
        content = bytearray()
        async for chunk in self.chunks():
            content += chunk
            if len(content) > self._max_field_bytes:
                raise FieldTooLarge(
                    details={"field": self.name[:100], "max_bytes": self._max_field_bytes}
                )
        try:
            return content.decode()
        except UnicodeDecodeError:
            raise MalformedRequest(f"Fältet {self.name[:100]} är inte UTF-8.") from None


async def stream_form(request: AnyRequest, settings: Settings) -> AsyncIterator[_Part]:
    """Yield the parts of a multipart body in order; read each before asking for the next.

    Raises:
        UnsupportedMediaType: the body is not multipart/form-data.
        UploadTooLarge: the announced length cannot fit any permitted upload.
        MalformedRequest: the body is broken, ends early or stalls.
    """
    media_type, options = parse_options_header(request.headers.get("content-type", ""))
    if media_type != "multipart/form-data" or not options.get("boundary"):
        raise UnsupportedMediaType("Skicka formuläret som multipart/form-data.")
    _check_announced_length(request, settings)
    parser = PushMultipartParser(
        options["boundary"], max_segment_count=settings.upload_max_files + EXTRA_PARTS
    )
    events = _parse(parser, _receive_body(request, settings.upload_idle_seconds))
    async for segment in events:
        part = _Part(segment, events, settings.upload_max_field_bytes)
        yield part
        async for _ in part.chunks():
            pass


def _check_announced_length(request: AnyRequest, settings: Settings) -> None:
    announced = request.headers.get("content-length", "")
    most = settings.upload_max_total_bytes + 3 * settings.upload_max_field_bytes + EXTRA_BYTES
    if announced.isdigit() and int(announced) > most:
        raise UploadTooLarge(
            f"Filerna är tillsammans större än {settings.upload_max_total_bytes // 1_000_000} MB.",
            details={"max_bytes": settings.upload_max_total_bytes},
        )


async def _parse(
    parser: PushMultipartParser, chunks: AsyncIterator[bytes]
) -> AsyncIterator[MultipartSegment | bytes | None]:
    # Translated here: most of it is met by whoever reads a part, not by who asks for the next one.
    try:
        with parser:
            async for chunk in chunks:
                for event in parser.parse(chunk):
                    yield event
    except ParserLimitReached as error:
        log.info("upload.refused", reason=str(error))
        raise PayloadTooLarge("Formuläret har för många delar.") from None
    except MultipartError as error:
        log.info("upload.malformed", reason=str(error))
        raise MalformedRequest("Formuläret är trasigt eller avbröts.") from None


async def _receive_body(request: AnyRequest, idle_seconds: float) -> AsyncIterator[bytes]:
    more = True
    while more:
        try:
            async with asyncio.timeout(idle_seconds):
                message: Any = await request.receive()
        except TimeoutError:
            raise MalformedRequest("Uppladdningen avstannade.") from None
        if message["type"] == "http.disconnect":
            raise MalformedRequest("Uppladdningen avbröts.")
        more = message.get("more_body", False)
        if chunk := message.get("body"):
            yield chunk
