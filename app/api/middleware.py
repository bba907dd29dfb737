"""What happens around every request: correlation id, security headers, orderly early answers."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from uuid import UUID, uuid4

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, ReceiveMessage, Scope, Send

from app.log import correlation_id, get_log

log = get_log(__name__)

CORRELATION_HEADER = b"x-correlation-id"
# An early answer waits until the client stops sending for this long, and so long in all: many
# clients send everything before they read.
LINGER_IDLE_SECONDS = 2.0
LINGER_SECONDS = 30.0

SECURITY_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
]


class RequestContext:
    """ASGI middleware: takes or makes the correlation id, echoes it, logs and counts the request.

    `observe` is told method, template of the path (None: no such route), status and seconds.
    """

    def __init__(
        self, app: ASGIApp, observe: Callable[[str, str | None, int, float], None]
    ) -> None:
        self._app, self._observe = app, observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        request_id = _correlation_id(scope)
        token = correlation_id.set(request_id)
        started, status = time.monotonic(), 0

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = list(message.get("headers", []))
                headers.append((CORRELATION_HEADER, request_id.encode()))
                present = {name.lower() for name, _ in headers}
                headers += [pair for pair in SECURITY_HEADERS if pair[0] not in present]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, send_with_headers)
        finally:
            seconds = time.monotonic() - started
            self._observe(scope["method"], scope.get("path_template"), status, seconds)
            log.debug(
                "request.done",
                method=scope["method"],
                path=scope["path"],
                status=status,
                duration_ms=round(seconds * 1000, 1),
            )
            correlation_id.reset(token)


class LingeringClose:
    """ASGI middleware: an answer that comes before the request's body has been read.

    The client is told at once and the connection is closed. But closing a socket with unread
    data resets it, and the reset can overtake the answer: so what still arrives is read and
    dropped for a moment first (RFC 9112 §9.6).
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        is_body_read = not _has_body(scope)

        async def watch_receive() -> ReceiveMessage:
            nonlocal is_body_read
            message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                is_body_read = True
            return message

        async def send_then_linger(message: Message) -> None:
            if is_body_read:
                await send(message)
            elif message["type"] == "http.response.start":
                headers = [*message.get("headers", []), (b"connection", b"close")]
                await send({**message, "headers": headers})
            elif message["type"] != "http.response.body" or message.get("more_body", False):
                await send(message)
            else:
                await send({**message, "more_body": True})
                await _drain(receive)
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        await self._app(scope, watch_receive, send_then_linger)


async def _drain(receive: Receive) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + LINGER_SECONDS
    with suppress(TimeoutError):
        while True:
            async with asyncio.timeout_at(min(end, loop.time() + LINGER_IDLE_SECONDS)):
                message = await receive()
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return


def _has_body(scope: Scope) -> bool:
    headers = dict(scope["headers"])
    return b"transfer-encoding" in headers or headers.get(b"content-length", b"0") != b"0"


def _correlation_id(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == CORRELATION_HEADER:
            try:
                return str(UUID(value.decode("latin-1")))
            except ValueError:
                break
    return str(uuid4())
