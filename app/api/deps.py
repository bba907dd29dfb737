"""Who asks, in what role, and with which wishes: what handlers take as dependencies."""

import base64
import re
import secrets
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.di import NamedDependency, Provide
from litestar.handlers.base import BaseRouteHandler

from app.domain.users import Role, User
from app.errors import (
    CsrfFailed,
    Forbidden,
    MalformedRequest,
    NotAuthenticated,
    UnsupportedMediaType,
)
from app.usecases import accounts
from app.wiring import Services

SESSION_COOKIE = "skriptoteket_session"
CSRF_COOKIE = "csrftoken"
CSRF_HEADER = "x-csrftoken"
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
MAX_WAIT_SECONDS = 30
DEFAULT_PAGE = 50
MAX_PAGE = 200

T = TypeVar("T")
AnyRequest = Request[Any, Any, Any]


class StrictRequest(Request[Any, Any, Any]):
    """The framework's request, except that a body that is no JSON is never our fault."""

    async def json(self) -> Any:
        try:
            return await super().json()
        except (UnicodeDecodeError, RecursionError):
            raise MalformedRequest from None


def provide_services(request: AnyRequest) -> Services:
    services: Services = request.app.state.services
    return services


async def provide_user(request: AnyRequest, services: NamedDependency[Services]) -> User:
    """Return who asks: by `Authorization: Bearer`, else by the browser's cookie.

    Raises:
        NotAuthenticated: neither names an active user.
        CsrfFailed: a state-changing call by cookie does not carry the session's token.
    """
    authorization = request.headers.get("authorization")
    if authorization is not None:
        scheme, _, token = authorization.partition(" ")
        now = datetime.now(UTC)
        if scheme.lower() == "bearer":
            user = await accounts.find_token_user(services.db, token.strip(), now)
            if user is not None:
                return user
        raise NotAuthenticated("API-nyckeln gäller inte.")
    cookie = request.cookies.get(SESSION_COOKIE)
    found = (
        None
        if cookie is None
        else await accounts.find_session_user(services.db, services.logins, cookie)
    )
    if found is None:
        raise NotAuthenticated
    user, session = found
    if request.method not in SAFE_METHODS:
        sent = request.headers.get(CSRF_HEADER, "")
        if not secrets.compare_digest(sent.encode(), session.csrf_token.encode()):
            raise CsrfFailed
    return user


def _role_provider(least: Role) -> Callable[..., Any]:
    async def provide(user: NamedDependency[User]) -> User:
        if not user.has_role(least):
            raise Forbidden
        return user

    return provide


DEPENDENCIES = {
    "services": Provide(provide_services, sync_to_thread=False),
    "user": Provide(provide_user),
    "contributor": Provide(_role_provider("contributor")),
    "admin": Provide(_role_provider("admin")),
}


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


def require_json(connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler) -> None:
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


def encode_cursor(position: tuple[str, UUID] | UUID) -> str:
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
