"""Who asks, in what role, and with which wishes: what handlers take as dependencies."""

import base64
import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar
from uuid import UUID

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.di import Provide
from litestar.handlers.base import BaseRouteHandler

from app.domain.users import Role, User
from app.errors import (
    CsrfFailed,
    Forbidden,
    MalformedRequest,
    NotAuthenticated,
    UnsupportedMediaType,
)
from app.metrics import Metrics
from app.usecases import accounts
from app.wiring import Services

SESSION_COOKIE = "skriptoteket_session"
CSRF_COOKIE = "csrftoken"
CSRF_HEADER = "x-csrftoken"
CSRF_HEADER_ALIAS = "x-csrf-token"  # the other name that clients send by themselves
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_WAIT_SECONDS = 30
DEFAULT_PAGE = 50
MAX_PAGE = 200

T = TypeVar("T")
AnyRequest = Request[Any, Any, Any]
AnyConnection = ASGIConnection[Any, Any, Any, Any]
# For a handler's `opt`: who may call it. Without, it is any user.
PUBLIC = {"access": "public"}
CONTRIBUTORS = {"access": "contributor"}
ADMINS = {"access": "admin"}


class StrictRequest(AnyRequest):
    """The framework's request, except that a body that is no JSON is never our fault."""

    async def json(self) -> Any:
        try:
            return await super().json()
        except (UnicodeDecodeError, RecursionError):
            raise MalformedRequest from None


def provide_services(request: AnyRequest) -> Services:
    services: Services = request.app.state.services
    return services


def provide_metrics(request: AnyRequest) -> Metrics:
    metrics: Metrics = request.app.state.metrics
    return metrics


def provide_user(request: AnyRequest) -> User:
    """Return who asks; `authorize` has found out before anything of the body was read."""
    user: User = request.scope["user"]
    return user


DEPENDENCIES = {
    "services": Provide(provide_services, sync_to_thread=False),
    "metrics": Provide(provide_metrics, sync_to_thread=False),
    "user": Provide(provide_user, sync_to_thread=False),
}


async def authorize(connection: AnyConnection, handler: BaseRouteHandler) -> None:
    """Find out who asks and hold it against the handler's `access` (a guard, see `PUBLIC`).

    Raises:
        NotAuthenticated: nobody that we know.
        CsrfFailed: a state-changing call by cookie does not carry the session's token.
        Forbidden: the user's role is not enough.
    """
    access: Literal["public"] | Role = handler.opt.get("access", "user")
    if access == "public":
        return
    user = await _authenticate(connection)
    if not user.has_role(access):
        raise Forbidden
    connection.scope["user"] = user


async def _authenticate(connection: AnyConnection) -> User:
    """By `Authorization: Bearer` if there is such a header, else by the browser's cookie."""
    services: Services = connection.app.state.services
    authorization = connection.headers.get("authorization")
    if authorization is not None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() == "bearer":
            now = datetime.now(UTC)
            user = await accounts.find_token_user(services.db, token.strip(), now)
            if user is not None:
                return user
        raise NotAuthenticated("API-nyckeln gäller inte.")
    cookie = connection.cookies.get(SESSION_COOKIE)
    if cookie is None:
        raise NotAuthenticated
    found = await accounts.find_session_user(services.db, services.logins, cookie)
    if found is None:
        raise NotAuthenticated
    user, session = found
    if isinstance(connection, Request) and connection.method not in SAFE_METHODS:
        headers = connection.headers
        sent = headers.get(CSRF_HEADER) or headers.get(CSRF_HEADER_ALIAS) or ""
        if not secrets.compare_digest(sent.encode(), session.csrf_token.encode()):
            raise CsrfFailed
    return user


def read_wait_seconds(request: AnyRequest) -> int | None:
    """Return N of `Prefer: wait=N` (RFC 7240 §4.3), at most 30; None without it.

    A preference that cannot be read is ignored, as the RFC asks.
    """
    for header in request.headers.getall("prefer", []):
        for preference in header.split(","):
            match = re.fullmatch(r'\s*wait\s*=\s*"?(\d{1,9})"?\s*(;.*)?', preference, re.I)
            if match:
                return min(int(match.group(1)), MAX_WAIT_SECONDS)
    return None


def require_json(connection: AnyConnection, handler: BaseRouteHandler) -> None:
    """Guard: a JSON body says that it is one. A form of another site cannot (CSRF)."""
    if "data" not in handler.parsed_fn_signature.parameters:
        return
    media_type = connection.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("Skicka begäran som application/json.")


def check_page_size(limit: int | None) -> int:
    if limit is None:
        return DEFAULT_PAGE
    if not 1 <= limit <= MAX_PAGE:
        raise MalformedRequest(f"limit ska vara mellan 1 och {MAX_PAGE}.")
    return limit


def cut_page(
    found: list[T], size: int, position: Callable[[T], tuple[str, UUID] | UUID | str]
) -> tuple[list[T], str | None]:
    """Make a page of what a query for one more than `size` found: (its items, `next_cursor`)."""
    if len(found) <= size:
        return found, None
    return found[:size], _encode_cursor(position(found[size - 1]))


def _encode_cursor(position: tuple[str, UUID] | UUID | str) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode(position)).decode().rstrip("=")


def decode_cursor(cursor: str | None, type_: type[T]) -> T | None:
    """Read a `next_cursor` that a list gave. Raises MalformedRequest for anything else."""
    if cursor is None:
        return None
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
        return msgspec.json.decode(raw, type=type_)
    except (ValueError, msgspec.DecodeError):
        raise MalformedRequest("cursor är inte en som tjänsten har gett.") from None
