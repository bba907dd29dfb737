"""/metrics: what Prometheus scrapes. Public, like /health: it names no user, file or tool."""

from litestar import Response, get
from litestar.di import NamedDependency

from app.api.deps import PUBLIC
from app.metrics import CONTENT_TYPE, Metrics, take_snapshot
from app.wiring import Services


@get("/metrics", media_type=CONTENT_TYPE, tags=["health"], opt=PUBLIC)
async def show_metrics(
    services: NamedDependency[Services], metrics: NamedDependency[Metrics]
) -> Response[bytes]:
    """The state of storage, runs and this node, for Prometheus; also while the database is down."""
    snapshot = await take_snapshot(services.db, services.lifecycle)
    return Response(metrics.render(snapshot), media_type=CONTENT_TYPE)
