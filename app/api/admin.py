"""/admin: what only admins decide."""

from datetime import UTC, datetime

from litestar import Router, get, patch
from litestar.di import NamedDependency
from litestar.params import FromPath

from app.api.deps import ADMINS
from app.api.schemas import CuratedAppBody, CuratedAppList, CuratedAppView, view_curated_app
from app.store import curated
from app.wiring import Services


@get("/curated-apps")
async def list_curated_apps(services: NamedDependency[Services]) -> CuratedAppList:
    """The curated apps of this installation, and who may see each."""
    entries = await curated.list_entries(services.db)
    return CuratedAppList(items=[view_curated_app(entry) for entry in entries])


@patch("/curated-apps/{app_id:str}")
async def update_curated_app(
    services: NamedDependency[Services], app_id: FromPath[str], data: CuratedAppBody
) -> CuratedAppView:
    """Decide who may see and run an app: the least role. New releases keep to it."""
    now = datetime.now(UTC)
    return view_curated_app(await curated.set_min_role(services.db, app_id, data.min_role, now))


router = Router(
    "/admin",
    route_handlers=[list_curated_apps, update_curated_app],
    tags=["admin"],
    opt=ADMINS,
)
