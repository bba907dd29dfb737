"""create_app(settings): one stateless API node."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar import Litestar, Router
from litestar.config.app import AppConfig
from litestar.types import ASGIApp

from app.api import (
    admin,
    artifacts,
    auth,
    editor,
    events,
    health,
    metrics,
    runs,
    sessions,
    tools,
)
from app.api.deps import DEPENDENCIES, StrictRequest, authorize, require_json
from app.api.errors import EXCEPTION_HANDLERS
from app.api.middleware import LingeringClose, RequestContext
from app.api.openapi import complete_document, make_openapi_config
from app.metrics import Metrics
from app.settings import Settings
from app.wiring import open_services

MAX_JSON_BODY_BYTES = 2_000_000


def create_app(settings: Settings) -> ASGIApp:
    """Make the ASGI application; its adapters are opened when it starts, closed when it stops."""

    @asynccontextmanager
    async def lifespan(app: Litestar) -> AsyncIterator[None]:
        async with open_services(settings) as services:
            app.state.services = services
            yield

    api = Router(
        "/api/v1",
        route_handlers=[
            auth.router,
            tools.router,
            sessions.router,
            runs.start_action,
            runs.router,
            events.router,
            artifacts.router,
            editor.router,
            admin.router,
            health.router,
            metrics.show_metrics,
        ],
        guards=[authorize, require_json],
    )
    litestar = Litestar.from_config(
        AppConfig(
            route_handlers=[api],
            lifespan=[lifespan],
            request_class=StrictRequest,
            dependencies=dict(DEPENDENCIES),
            exception_handlers=EXCEPTION_HANDLERS,
            openapi_config=make_openapi_config(),
            request_max_body_size=MAX_JSON_BODY_BYTES,
            # Our own handlers log what matters, as JSON; the framework adds nothing to it.
            logging_config=None,
        )
    )
    litestar.state.metrics = Metrics(settings)
    complete_document(litestar)
    # Around the framework, not inside it: its own refusals (no such route) need them too.
    return RequestContext(LingeringClose(litestar), litestar.state.metrics.observe_request)
