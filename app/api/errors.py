"""One shape for all errors: RFC 9457 problem details, the framework's own included."""

import re
from typing import Any

import msgspec
from litestar import Response
from litestar.exceptions import (
    HTTPException,
    MethodNotAllowedException,
    NotAuthorizedException,
    NotFoundException,
    PermissionDeniedException,
    ValidationException,
)

from app.api.deps import AnyRequest
from app.errors import (
    AppError,
    Forbidden,
    MalformedRequest,
    MethodNotAllowed,
    NotAuthenticated,
    NotFound,
    PayloadTooLarge,
    UnsupportedMediaType,
)
from app.log import correlation_id, get_log

log = get_log(__name__)

PROBLEM_JSON = "application/problem+json"


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """Problem details (RFC 9457 §3.1) with our stable `code`, `details` and `correlation_id`."""

    type: str
    title: str
    status: int
    detail: str
    code: str
    details: dict[str, Any]
    correlation_id: str | None


def problem_response(error: AppError, headers: dict[str, str] | None = None) -> Response[Problem]:
    headers = dict(headers or {})
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return Response(
        make_problem(error, correlation_id.get()),
        status_code=error.status,
        media_type=PROBLEM_JSON,
        headers=headers,
    )


def make_problem(error: AppError, request_id: str | None) -> Problem:
    """Put an error into the one shape."""
    return Problem(
        type=f"urn:skriptoteket:problem:{error.code}",
        title=error.title,
        status=error.status,
        detail=error.detail,
        code=error.code,
        details=error.details,
        correlation_id=request_id,
    )


def on_app_error(_: AnyRequest, error: AppError) -> Response[Problem]:
    if error.status >= 500:
        log.warning("request.unavailable", code=error.code, **error.details)
    return problem_response(error)


def on_http_exception(_: AnyRequest, error: HTTPException) -> Response[Problem]:
    """Give the framework's own refusals our shape; their English texts stay out."""
    headers = {}
    if isinstance(error, MethodNotAllowedException):
        headers = {k: v for k, v in (error.headers or {}).items() if k.lower() == "allow"}
    return problem_response(_translate(error), headers)


def _translate(error: HTTPException) -> AppError:
    match error:
        case NotFoundException():
            return NotFound()
        case MethodNotAllowedException():
            return MethodNotAllowed()
        case NotAuthorizedException():
            return NotAuthenticated()
        case PermissionDeniedException():
            return Forbidden()
        case ValidationException():
            return MalformedRequest(
                "Begäran har inte den form som den ska ha.", details={"reasons": _reasons(error)}
            )
        case _ if error.status_code == 413:
            return PayloadTooLarge()
        case _ if error.status_code == 415:
            return UnsupportedMediaType()
        case _ if error.status_code < 500:
            return MalformedRequest()
    log.error("request.failed", error=repr(error))
    return AppError()


# What msgspec says, in English, of a value; and our code for it, with the field that it names.
_REASONS = (
    (re.compile(r"missing required field `(?P<field>.*)`"), "missing"),
    (re.compile(r"unknown field `(?P<field>.*)`"), "unknown_field"),
    (re.compile(r"Missing required"), "missing"),
    (re.compile(r"of length|[<>]="), "out_of_bounds"),
    (re.compile(r"got `"), "wrong_type"),
)


def _reasons(error: ValidationException) -> list[dict[str, str]]:
    extra: Any = error.extra if isinstance(error.extra, list) else []
    return [_reason(item) for item in extra if isinstance(item, dict)][:20]


def _reason(item: dict[str, Any]) -> dict[str, str]:
    message, field = str(item.get("message", "")), str(item.get("key", ""))
    for pattern, code in _REASONS:
        if found := pattern.search(message):
            inner = found.groupdict().get("field")
            field = ".".join(filter(None, (field.removeprefix("data"), inner)))
            return {"field": field[:100], "reason": code}
    return {"field": field[:100], "reason": "invalid"}


def on_bug(_: AnyRequest, error: Exception) -> Response[Problem]:
    """Anything unexpected: logged whole, told in general words."""
    log.exception("request.crashed", error=type(error).__name__)
    return problem_response(AppError())


EXCEPTION_HANDLERS: dict[Any, Any] = {
    AppError: on_app_error,
    HTTPException: on_http_exception,
    Exception: on_bug,
}
