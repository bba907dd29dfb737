"""/admin: what only admins decide."""

from datetime import UTC, datetime
from uuid import UUID

from litestar import Router, delete, get, patch
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery

from app.api.deps import ADMINS, check_page_size, cut_page, decode_cursor
from app.api.schemas import (
    AccountPage,
    CuratedAppBody,
    CuratedAppList,
    CuratedAppView,
    StorageView,
    view_account,
    view_curated_app,
    view_storage,
)
from app.domain.users import User
from app.store import curated, sweep_ledger, users
from app.wiring import Services


@get("/users")
async def list_users(
    services: NamedDependency[Services],
    limit: FromQuery[int | None] = None,
    cursor: FromQuery[str | None] = None,
) -> AccountPage:
    """All accounts by username."""
    size = check_page_size(limit)
    found = await users.list_users(services.db, decode_cursor(cursor, str), size + 1)
    page, next_cursor = cut_page(found, size, lambda user: user.username)
    return AccountPage(items=[view_account(user) for user in page], next_cursor=next_cursor)


@delete("/users/{user_id:uuid}", status_code=204)
async def delete_user(
    services: NamedDependency[Services], user: NamedDependency[User], user_id: FromPath[UUID]
) -> None:
    """Delete a user with their files, runs, sessions and tokens; tools that they wrote stay.

    They are out at once; their files and runs are deleted right after, and that may take a while.
    """
    await services.deletions.mark_user(user_id, asked_by=user.id)


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


@get("/storage")
async def show_storage(services: NamedDependency[Services]) -> StorageView:
    """What the sweeps last saw of session files, and how the last one went.

    `sessions` and `oldest_access` are of the last sweep; the other counts are of the last walk
    over all blobs, no part of it longer ago than `walked_at`.
    """
    status = await sweep_ledger.get_status(services.db)
    return view_storage(status, await services.lifecycle.find_state())


router = Router(
    "/admin",
    route_handlers=[list_users, delete_user, list_curated_apps, update_curated_app, show_storage],
    tags=["admin"],
    opt=ADMINS,
)
