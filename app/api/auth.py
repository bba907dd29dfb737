"""/auth: browser sessions and API tokens."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from litestar import Response, Router, delete, get, post
from litestar.datastructures import Cookie
from litestar.di import NamedDependency
from litestar.params import FromPath

from app.api.deps import CSRF_COOKIE, PUBLIC, SESSION_COOKIE, AnyRequest
from app.api.schemas import (
    LoginBody,
    NewTokenView,
    TokenBody,
    TokenView,
    UserView,
    view_token,
    view_user,
)
from app.domain.users import User, normalize_username
from app.errors import Invalid
from app.store import users
from app.usecases import accounts
from app.wiring import Services


@post("/login", status_code=200, opt=PUBLIC)
async def log_in(
    request: AnyRequest, services: NamedDependency[Services], data: LoginBody
) -> Response[UserView]:
    """Log in with a password. Sets the session cookie and the readable CSRF cookie."""
    address = "unknown" if request.client is None else request.client.host
    user, token, session = await accounts.log_in(
        services.db,
        services.logins,
        (
            (services.login_limit_by_account, normalize_username(data.username)),
            (services.login_limit_by_address, address),
        ),
        data.username,
        data.password,
    )
    shared: dict[str, Any] = {
        "max_age": services.logins.ttl_seconds,
        "secure": services.settings.cookie_secure,
        "samesite": "lax",
        "path": "/",
    }
    return Response(
        view_user(user),
        cookies=[
            Cookie(key=SESSION_COOKIE, value=token, httponly=True, **shared),
            # Readable: the page repeats it in X-CSRFToken, which another site cannot.
            Cookie(key=CSRF_COOKIE, value=session.csrf_token, **shared),
        ],
    )


@post("/logout", status_code=204)
async def log_out(
    request: AnyRequest,
    services: NamedDependency[Services],
    user: NamedDependency[User],
) -> Response[None]:
    """End the browser's session."""
    if token := request.cookies.get(SESSION_COOKIE):
        await services.logins.delete(token)
    response: Response[None] = Response(None, status_code=204)
    response.delete_cookie(SESSION_COOKIE)
    response.delete_cookie(CSRF_COOKIE)
    return response


@get("/me")
async def show_me(user: NamedDependency[User]) -> UserView:
    """Who is logged in."""
    return view_user(user)


@get("/tokens")
async def list_tokens(
    services: NamedDependency[Services], user: NamedDependency[User]
) -> list[TokenView]:
    """The caller's API tokens, without the tokens themselves."""
    return [view_token(token) for token in await users.list_tokens(services.db, user.id)]


@post("/tokens", status_code=201)
async def create_token(
    services: NamedDependency[Services], user: NamedDependency[User], data: TokenBody
) -> NewTokenView:
    """Make an API token; this answer is the only one that holds it."""
    now = datetime.now(UTC)
    expires_at = _parse_expiry(data.expires_at, now)
    token, secret = await accounts.create_token(services.db, user, data.name, expires_at, now)
    return NewTokenView(
        id=token.id,
        name=token.name,
        created_at=token.created_at,
        expires_at=token.expires_at,
        token=secret,
    )


@delete("/tokens/{token_id:uuid}", status_code=204)
async def revoke_token(
    services: NamedDependency[Services], user: NamedDependency[User], token_id: FromPath[UUID]
) -> None:
    """Revoke an API token; it stops working at once."""
    await accounts.revoke_token(services.db, user, token_id)


def _parse_expiry(raw: datetime | None, now: datetime) -> datetime | None:
    if raw is None:
        return None
    try:
        expires_at = raw.astimezone(UTC)
    except OverflowError:  # the last hours of the year 9999, west of Greenwich
        raise Invalid("expires_at ligger för långt fram.") from None
    if raw.tzinfo is None or expires_at <= now:
        raise Invalid("expires_at ska vara en tid i framtiden, med tidszon.")
    return expires_at


router = Router(
    "/auth",
    route_handlers=[log_in, log_out, show_me, list_tokens, create_token, revoke_token],
    tags=["auth"],
)
