"""/health: is the process alive, and can it do its work?"""

import asyncio
import time
from collections.abc import Awaitable

from litestar import Response, Router, get
from litestar.di import NamedDependency

from app.api.deps import PUBLIC
from app.api.schemas import View
from app.errors import AppError
from app.log import get_log
from app.store.object_types import NotSupported, RequestRefused
from app.wiring import Services

log = get_log(__name__)

CHECK_TIMEOUT_SECONDS = 3.0


class DependencyView(View):
    status: str
    duration_ms: float
    detail: str | None = None


class ReadyView(View):
    status: str
    dependencies: dict[str, DependencyView]


@get("/live")
async def show_live() -> dict[str, str]:
    """Answers as long as the process does."""
    return {"status": "ok"}


@get("/ready")
async def show_ready(services: NamedDependency[Services]) -> Response[ReadyView]:
    """Each dependency and how long it took; 503 if one does not answer."""
    checks = services.readiness_checks()
    views = await asyncio.gather(*(_check(name, check) for name, check in checks.items()))
    dependencies = dict(zip(checks, views, strict=True))
    is_ready = all(view.status == "ok" for view in views)
    return Response(
        ReadyView(status="ok" if is_ready else "unavailable", dependencies=dependencies),
        status_code=200 if is_ready else 503,
        headers={} if is_ready else {"Retry-After": "5"},
    )


async def _check(name: str, check: Awaitable[str | None]) -> DependencyView:
    started, detail = time.monotonic(), None
    try:
        async with asyncio.timeout(CHECK_TIMEOUT_SECONDS):
            detail = await check
        status = "ok"
    except (AppError, RequestRefused, NotSupported, TimeoutError) as error:
        log.warning("health.dependency_down", dependency=name, error=repr(error))
        status = "unavailable"
    duration_ms = round((time.monotonic() - started) * 1000, 1)
    return DependencyView(status=status, duration_ms=duration_ms, detail=detail)


router = Router("/health", route_handlers=[show_live, show_ready], tags=["health"], opt=PUBLIC)
