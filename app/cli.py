"""The `skriptoteket` command: run a node, a worker, the whole stack, or one job by hand."""

import argparse
import asyncio
import json
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from app.console import print_report, show_sweep
from app.domain.users import User, normalize_username
from app.errors import AppError, NotFound, Unavailable
from app.log import configure_logging
from app.settings import Settings, SettingsError, load_settings
from app.store import sweep_ledger, tools, users
from app.store.lifecycle import init_storage
from app.store.object_types import ConditionalWritesMissing, RequestRefused
from app.store.objects import open_object_store
from app.store.postgres import open_database
from app.store.sweep_types import SweepReport
from app.usecases.accounts import create_user
from app.usecases.deletions import DeletionReport
from app.usecases.retention import RetentionReport, apply_retention
from app.usecases.seed import seed_catalogue
from app.usecases.storage_sweep import clean_up_expired, survey_session_files
from app.wiring import Services, open_services

T = TypeVar("T")

EXIT_TRY_LATER = 75  # EX_TEMPFAIL of sysexits.h
# A setting, a server that is away, or one that is not fit: nothing that a traceback would explain.
TOLD_ERRORS = (
    SettingsError,
    AppError,
    ConditionalWritesMissing,
    RequestRefused,
    OSError,
)


def main() -> None:
    """Run one command; errors that a person can act on are told in a line."""
    args = _parser().parse_args()
    if args.run in (_dev, _demo):
        # Said here, not in the stack alone: what the caller's own variables say still wins.
        os.environ.setdefault("APP_ENV", "development")
    try:
        settings = load_settings()
        # What dev and demo tell is for a person; their processes log to files of their own.
        configure_logging("error" if args.run in (_dev, _demo) else settings.log_level)
        sys.exit(args.run(args, settings))
    except TOLD_ERRORS as error:
        # The words are a user's; which server it is that is away is for this one.
        which = f" ({error.details['dependency']})" if isinstance(error, Unavailable) else ""
        print(f"skriptoteket: {error}{which}", file=sys.stderr)  # noqa: T201
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="skriptoteket", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Any, words: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=words, description=words)
        sub.set_defaults(run=run)
        return sub

    api = add("api", _api, "run an API node")
    api.add_argument("--host", default="127.0.0.1")
    api.add_argument("--port", type=int, default=8000)
    add("worker", _worker, "run a worker")
    add("migrate", _migrate, "bring the database's schema up to date")
    add("storage-init", _storage_init, "create the bucket and install its lifecycle rules")
    add("seed", _seed, "bring the script bank's tools and the curated apps into the catalogue")
    user = add("add-user", _add_user, "add a user; the password is read from standard input")
    user.add_argument("username")
    user.add_argument("--name", help="display name")
    user.add_argument("--role", choices=["user", "contributor", "admin"], default="user")
    user = add("delete-user", _delete_user, "delete a user and all of theirs, and wait for it")
    user.add_argument("username")
    tool = add("delete-tool", _delete_tool, "delete a tool and all of its runs, and wait for it")
    tool.add_argument("slug")
    sweep = add(
        "cleanup_expired_session_files",
        _cleanup_expired_session_files,
        "delete session files past their time, and what nothing names",
    )
    sweep.add_argument("--dry-run", action="store_true", help="only look")
    usage = add("session_files_usage", _session_files_usage, "count session files; changes nothing")
    retention = add(
        "apply_retention", _apply_retention, "delete runs and artifacts past their time"
    )
    retention.add_argument("--dry-run", action="store_true", help="only count")
    for reporting in (user, tool, sweep, usage, retention):
        reporting.add_argument("--json", action="store_true", help="print the report as JSON")
    dev = add("dev", _dev, "run everything on this machine with embedded servers")
    dev.add_argument("--port", type=int, default=8000, help="of the first API node")
    dev.add_argument("--data-dir", type=Path, default=Path(".devdata"))
    dev.add_argument("--api-nodes", type=int, default=1)
    dev.add_argument("--workers", type=int, default=1)
    dev.add_argument("--ready-file", type=Path)
    demo = add("demo", _demo, "show the main job done, from login to PDF")
    demo.add_argument("--output-dir", type=Path, default=Path("demo-output"))
    return parser


def _api(args: argparse.Namespace, settings: Settings) -> int:
    # Imported here: all other commands start in half the time without.
    import uvicorn

    from app.main import create_app

    uvicorn.run(
        create_app(settings),
        host=args.host,
        port=args.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )
    return 0


def _worker(args: argparse.Namespace, settings: Settings) -> int:
    # The workers import the app and never the reverse: hand over to their own program.
    os.execv(sys.executable, [sys.executable, "-m", "workers.main"])  # noqa: S606


def _migrate(args: argparse.Namespace, settings: Settings) -> int:
    # Imported here: it takes longer to load than an API node takes to start.
    from app.store.migrate import migrate

    migrate(settings.database_url)
    return 0


def _storage_init(args: argparse.Namespace, settings: Settings) -> int:
    async def init() -> None:
        async with open_object_store(settings) as objects:
            _print_json(msgspec.to_builtins(await init_storage(objects, settings)))

    return _run(init())


def _seed(args: argparse.Namespace, settings: Settings) -> int:
    async def seed() -> None:
        async with open_database(settings.database_url, size=1) as db:
            for slug in await seed_catalogue(db, datetime.now(UTC)):
                print(slug)  # noqa: T201

    return _run(seed())


def _add_user(args: argparse.Namespace, settings: Settings) -> int:
    password = sys.stdin.readline().rstrip("\n")
    if len(password) < 8:
        print("skriptoteket: a password has at least 8 characters", file=sys.stderr)  # noqa: T201
        return 1

    async def add() -> User | None:
        name, title = args.username, args.name or args.username
        async with open_database(settings.database_url, size=1) as db:
            now = datetime.now(UTC)
            return await create_user(db, name, args.role, password, now, display_name=title)

    if asyncio.run(add()) is not None:
        return 0
    print("skriptoteket: there is a user of that name", file=sys.stderr)  # noqa: T201
    return 1


def _delete_user(args: argparse.Namespace, settings: Settings) -> int:
    async def delete(services: Services) -> DeletionReport:
        found = await users.find_login(services.db, normalize_username(args.username))
        if found is None:
            raise NotFound("there is no user of that name")
        return await services.deletions.delete_user(found[0].id)

    return _delete(args, settings, delete)


def _delete_tool(args: argparse.Namespace, settings: Settings) -> int:
    async def delete(services: Services) -> DeletionReport:
        tool = await tools.find_tool_by_slug(services.db, args.slug)
        if tool is None:
            raise NotFound("there is no tool of that name")
        return await services.deletions.delete_tool(tool.id)

    return _delete(args, settings, delete)


def _delete(
    args: argparse.Namespace,
    settings: Settings,
    delete: Callable[[Services], Awaitable[DeletionReport]],
) -> int:
    async def work() -> DeletionReport:
        async with open_services(settings) as services:
            return await delete(services)

    print_report(asyncio.run(work()), as_json=args.json)
    return 0


def _cleanup_expired_session_files(args: argparse.Namespace, settings: Settings) -> int:
    if args.dry_run:
        return _session_files_usage(args, settings)

    return _sweep(args, settings, clean_up_expired)


def _session_files_usage(args: argparse.Namespace, settings: Settings) -> int:
    return _sweep(args, settings, survey_session_files)


def _sweep(
    args: argparse.Namespace, settings: Settings, work: Callable[..., Awaitable[SweepReport | None]]
) -> int:
    async def sweep() -> SweepReport | None:
        async with open_services(settings) as services:
            db, storage = services.db, services.session_files
            with show_sweep((await sweep_ledger.get_status(db)).sets) as tell:
                return await work(db, storage, settings, on_progress=tell)

    return _print_swept(_run_to_stop(sweep()), args)


def _apply_retention(args: argparse.Namespace, settings: Settings) -> int:
    async def apply() -> RetentionReport | None:
        async with open_services(settings) as services:
            return await apply_retention(
                services.db, services.paced_artifacts, settings, dry_run=args.dry_run
            )

    return _print_swept(_run_to_stop(apply()), args)


def _run_to_stop(work: Coroutine[Any, Any, T]) -> T:
    """Run what can be interrupted at any point, also by SIGTERM: it ends as by Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    return asyncio.run(work)


def _print_swept(report: msgspec.Struct | None, args: argparse.Namespace) -> int:
    if report is None:
        print("another process is sweeping", file=sys.stderr)  # noqa: T201
        return EXIT_TRY_LATER
    print_report(report, as_json=args.json)
    # Swept to the end, but for what S3 refused.
    return 1 if isinstance(report, SweepReport) and report.failed else 0


def _dev(args: argparse.Namespace, settings: Settings) -> int:
    # Imported here: the embedded servers are an extra that production does not install.
    from app.dev import run_dev

    return run_dev(
        data_dir=args.data_dir,
        port=args.port,
        api_nodes=args.api_nodes,
        workers=args.workers,
        ready_file=args.ready_file,
    )


def _demo(args: argparse.Namespace, settings: Settings) -> int:
    from app.demo import run_demo

    return run_demo(args.output_dir)


def _run(work: Coroutine[Any, Any, None]) -> int:
    asyncio.run(work)
    return 0


def _print_json(value: Any) -> None:
    print(json.dumps(value, ensure_ascii=False))  # noqa: T201


if __name__ == "__main__":
    main()
