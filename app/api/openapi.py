"""What the OpenAPI document says beyond the handlers' types: examples, and every error by its code.

One line an operation, keyed by the handler's name. Errors that go with the kind of the operation
(not logged in, wrong role, not JSON, …) are added by rule, so that none is forgotten or invented.
"""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import msgspec
from litestar import Litestar, Response, Router
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import (
    Components,
    Example,
    OpenAPI,
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Reference,
    RequestBody,
    Schema,
    SecurityScheme,
)

from app import errors as e
from app.api import examples as x
from app.api.deps import CSRF_HEADER, SAFE_METHODS, SESSION_COOKIE
from app.api.errors import PROBLEM_JSON, make_problem, problem_response
from app.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE

OPEN_OPERATIONS = frozenset({"log_in", "show_live", "show_ready", "show_metrics"})
FORM_OPERATIONS = frozenset({"run_tool", "run_sandbox"})
FILE_OPERATIONS = frozenset({"download_artifact"})
WAITING_OPERATIONS = frozenset(
    {"run_tool", "run_sandbox", "start_action", "start_sandbox_action", "show_run"}
)

Errors = tuple[type[e.AppError], ...]

_BAD_FORM: Errors = (
    *(e.NotFound, e.MalformedRequest, e.UnsupportedMediaType, e.SessionFilesExpired),
    *(e.FileTooLarge, e.UploadTooLarge, e.TooManyFiles, e.FieldTooLarge, e.PayloadTooLarge),
    *(e.InvalidInputs, e.InvalidMode, e.InvalidFileName, e.DuplicateFileNames),
    *(e.FilesRequired, e.FilesNotAccepted, e.TooManyRuns, e.SessionBusy),
)
_BAD_TURN: Errors = (
    *(e.NotFound, e.StateRevConflict, e.SessionBusy, e.SessionFilesExpired),
    *(e.UnknownAction, e.InvalidActionInput, e.TooManyRuns),
)


@dataclass(frozen=True)
class Doc:
    """Examples of an operation by status, of its body, and the errors of its own."""

    answers: dict[int, Any]
    errors: Errors = ()
    body: Any = None


DOCS: dict[str, Doc] = {
    "log_in": Doc({200: x.USER}, (e.BadCredentials, e.TooManyRequests), x.LOGIN),
    "log_out": Doc({204: None}),
    "show_me": Doc({200: x.USER}),
    "list_tokens": Doc({200: [x.TOKEN]}),
    "create_token": Doc({201: x.NEW_TOKEN}, (e.Invalid,), x.TOKEN_BODY),
    "revoke_token": Doc({204: None}, (e.NotFound,)),
    "list_tools": Doc({200: x.TOOLS}),
    "show_tool": Doc({200: x.TOOL}, (e.NotFound,)),
    "run_tool": Doc({200: x.RUN, 202: x.QUEUED_RUN}, (*_BAD_FORM, e.InvalidContext), x.FORM),
    "start_action": Doc(
        {200: x.ACTION_DONE, 202: x.ACTION_QUEUED}, (*_BAD_TURN, e.InvalidContext), x.ACTION
    ),
    "show_session": Doc({200: x.SESSION}, (e.NotFound, e.InvalidContext)),
    "show_session_files": Doc({200: x.FILES}, (e.NotFound, e.InvalidContext)),
    "clear_session_files": Doc({204: None}, (e.NotFound, e.InvalidContext)),
    "list_runs": Doc({200: x.RUNS}),
    "show_run": Doc({200: x.RUN}, (e.NotFound,)),
    "cancel_run": Doc({202: None}, (e.NotFound, e.RunFinished)),
    "stream_events": Doc({200: x.EVENTS}, (e.NotFound,)),
    "list_artifacts": Doc({200: x.ARTIFACTS}, (e.NotFound,)),
    "download_artifact": Doc({200: "%PDF-1.7 …", 206: "%PDF"}, (e.NotFound, e.RangeNotSatisfiable)),
    "list_own_tools": Doc({200: x.EDITOR_TOOLS}),
    "create_tool": Doc({201: x.EDITOR_TOOL}, (e.Conflict, e.Invalid), x.NEW_TOOL),
    "update_tool": Doc({200: x.EDITOR_TOOL}, (e.NotFound,), x.TOOL_PATCH),
    "delete_tool": Doc({204: None}, (e.NotFound, e.Conflict)),
    "list_versions": Doc({200: x.VERSIONS}, (e.NotFound,)),
    "create_version": Doc(
        {201: x.VERSION}, (e.NotFound, e.Conflict, e.InvalidSource, e.InvalidInputSchema), x.CODE
    ),
    "show_version": Doc({200: x.VERSION}, (e.NotFound,)),
    "save_draft": Doc(
        {200: x.VERSION},
        (e.NotFound, e.Conflict, e.EditConflict, e.InvalidSource, e.InvalidInputSchema),
        x.DRAFT,
    ),
    "publish_version": Doc({200: x.PUBLISHED_VERSION}, (e.NotFound,)),
    "run_sandbox": Doc({200: x.SANDBOX_RUN, 202: x.QUEUED_SANDBOX_RUN}, _BAD_FORM, x.FORM),
    "start_sandbox_action": Doc(
        {200: x.ACTION_DONE, 202: x.ACTION_QUEUED}, _BAD_TURN, x.SANDBOX_ACTION
    ),
    "show_sandbox_session": Doc({200: x.SANDBOX_SESSION}, (e.NotFound,)),
    "show_sandbox_files": Doc({200: x.SANDBOX_FILES}, (e.NotFound,)),
    "clear_sandbox_files": Doc({204: None}, (e.NotFound,)),
    "list_users": Doc({200: x.ACCOUNTS}),
    "delete_user": Doc({204: None}, (e.NotFound, e.Conflict)),
    "list_curated_apps": Doc({200: x.CURATED_APPS}),
    "update_curated_app": Doc({200: x.CURATED_APP}, (e.NotFound,), x.CURATED_APP_BODY),
    "show_live": Doc({200: x.LIVE}),
    "show_storage": Doc({200: x.STORAGE}),
    "show_metrics": Doc({200: x.METRICS}),
    "show_ready": Doc({200: x.READY, 503: x.NOT_READY}),
}


def make_openapi_config() -> OpenAPIConfig:
    """Serve the document itself at /schema: a page for it would be loaded from somebody's CDN."""
    return OpenAPIConfig(
        title="Skriptoteket",
        version="1",
        description="Small Python tools for schools, run step by step. Errors are RFC 9457.",
        path="/schema",
        openapi_router=Router(
            "/schema",
            route_handlers=[],
            include_in_schema=False,
            after_request=_refuse_in_our_shape,
        ),
        render_plugins=[JsonRenderPlugin(path=["/", "/openapi.json"])],
        operation_id_creator=lambda handler, *_: handler.handler_name,
        use_handler_docstrings=True,
        components=Components(
            security_schemes={
                "cookie": SecurityScheme(
                    type="apiKey",
                    name=SESSION_COOKIE,
                    security_scheme_in="cookie",
                    description=f"From POST /auth/login; changes also need {CSRF_HEADER}.",
                ),
                "bearer": SecurityScheme(type="http", scheme="bearer"),
            }
        ),
        security=[{"cookie": []}, {"bearer": []}],
    )


async def _refuse_in_our_shape(response: Response[Any]) -> Response[Any]:
    # The framework has a page of its own for paths beside the document.
    return problem_response(e.NotFound()) if response.status_code == 404 else response


def complete_document(app: Litestar) -> None:
    """Add to the application's document what `DOCS` and the rules below say."""
    document: OpenAPI = app.openapi_schema
    assert document.components is not None and document.paths is not None
    document.components.schemas = dict(document.components.schemas or {}) | {
        "Problem": _PROBLEM_SCHEMA
    }
    for item in document.paths.values():
        for method in ("get", "put", "post", "delete", "patch"):
            operation: Operation | None = getattr(item, method)
            if operation is not None:
                _complete(operation, method.upper())


def list_errors(operation_id: str, method: str, *, needs_role: bool, has_query: bool) -> Errors:
    """Return every error that an operation may answer, by its own line and by its kind."""
    found: list[type[e.AppError]] = list(DOCS[operation_id].errors)
    if operation_id in {"show_live", "show_metrics"}:
        return ()
    if operation_id == "show_ready":
        return tuple(found)
    if operation_id not in OPEN_OPERATIONS:
        found.append(e.NotAuthenticated)
        found += [e.CsrfFailed] * (method not in SAFE_METHODS)
    found += [e.Forbidden] * needs_role
    if DOCS[operation_id].body is not None and operation_id not in FORM_OPERATIONS:
        found += [e.MalformedRequest, e.PayloadTooLarge, e.UnsupportedMediaType]
    found += [e.MalformedRequest] * has_query
    found.append(e.Unavailable)
    return tuple(dict.fromkeys(found))


def _complete(operation: Operation, method: str) -> None:
    operation_id = operation.operation_id
    assert operation_id is not None
    doc = DOCS[operation_id]
    operation.summary = None
    if operation_id in OPEN_OPERATIONS:
        operation.security = [{}]
    responses = operation.responses or {}
    template = next(response for code, response in responses.items() if code.startswith("2"))
    assert isinstance(template, OpenAPIResponse)
    answers: dict[str, Any] = {
        str(status): _answer(operation_id, status, example, template)
        for status, example in sorted(doc.answers.items())
    }
    has_query = any(
        not isinstance(parameter, Reference)
        and (parameter.param_in == "query" or parameter.name == "slug")
        for parameter in operation.parameters or ()
    )
    needs_role = not {"editor", "admin"}.isdisjoint(operation.tags or ())
    for error in list_errors(operation_id, method, needs_role=needs_role, has_query=has_query):
        _add_error(answers, error)
    operation.responses = dict(sorted(answers.items()))
    if operation_id in FORM_OPERATIONS:
        operation.request_body = _form_body(doc.body)
    elif doc.body is not None:
        assert isinstance(operation.request_body, RequestBody)
        for media in operation.request_body.content.values():
            media.example = msgspec.to_builtins(doc.body)


def _answer(
    operation_id: str, status: int, example: Any, template: OpenAPIResponse
) -> OpenAPIResponse:
    answer = OpenAPIResponse(description=HTTPStatus(status).phrase, headers={})
    if operation_id in WAITING_OPERATIONS:
        answer.headers = {"Preference-Applied": OpenAPIHeader(schema=_STRING)}
    if operation_id == "show_metrics":
        media = OpenAPIMediaType(schema=_STRING, example=example)
        answer.content = {METRICS_CONTENT_TYPE: media}
    elif operation_id in FILE_OPERATIONS:
        binary = Schema(type=OpenAPIType.STRING, content_media_type="application/octet-stream")
        media = OpenAPIMediaType(schema=binary, example=example)
        answer.content = {"application/octet-stream": media}
    elif example is not None:
        schema = next(iter((template.content or {}).values())).schema
        media = OpenAPIMediaType(schema=schema, example=msgspec.to_builtins(example))
        answer.content = {"application/json": media}
    return answer


def _add_error(answers: dict[str, Any], error: type[e.AppError]) -> None:
    status = str(error.status)
    if status not in answers:
        answers[status] = OpenAPIResponse(
            description=HTTPStatus(error.status).phrase,
            content={
                PROBLEM_JSON: OpenAPIMediaType(
                    schema=Reference(ref="#/components/schemas/Problem"), examples={}
                )
            },
        )
        if error.status in (429, 503):
            answers[status].headers = {"Retry-After": OpenAPIHeader(schema=_STRING)}
    made = error("database") if error is e.Unavailable else error()
    problem = make_problem(made, x.CORRELATION_ID)
    answers[status].content[PROBLEM_JSON].examples[error.code] = Example(
        value=msgspec.to_builtins(problem)
    )


def _form_body(example: Any) -> RequestBody:
    file = Schema(type=OpenAPIType.STRING, content_media_type="application/octet-stream")
    properties: dict[str, Schema | Reference] = {
        "session_context": Schema(
            type=OpenAPIType.STRING, max_length=64, description="Stands before the files."
        ),
        "session_files_mode": Schema(
            type=OpenAPIType.STRING, enum=["none", "reuse", "clear"], default="none"
        ),
        "inputs": Schema(
            type=OpenAPIType.STRING,
            content_media_type="application/json",
            description="A JSON object of values by field name.",
        ),
        "files": Schema(type=OpenAPIType.ARRAY, items=file),
    }
    schema = Schema(type=OpenAPIType.OBJECT, properties=properties)
    media = OpenAPIMediaType(schema=schema, example=example)
    return RequestBody(content={"multipart/form-data": media}, required=True)


_STRING = Schema(type=OpenAPIType.STRING)
_PROBLEM_SCHEMA = Schema(
    type=OpenAPIType.OBJECT,
    description="Problem details (RFC 9457). `detail` is for the user, `code` for programs.",
    required=["type", "title", "status", "detail", "code", "details", "correlation_id"],
    properties={
        **dict.fromkeys(("type", "title", "detail", "code", "correlation_id"), _STRING),
        "status": Schema(type=OpenAPIType.INTEGER),
        "details": Schema(type=OpenAPIType.OBJECT),
    },
)
