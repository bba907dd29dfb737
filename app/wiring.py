"""open_services(): everything that an API node, a worker or a command works with, made by hand."""

from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis

from app.domain.files import UploadLimits
from app.errors import Unavailable
from app.jobs import Queue, open_queue
from app.settings import Settings
from app.store.artifacts import ArtifactStore
from app.store.events import RunEvents, open_run_events
from app.store.fence import PostgresFence
from app.store.file_sets import FileSets
from app.store.lifecycle import LifecycleWatch
from app.store.objects import ObjectStore, open_object_store, require_conditional_writes
from app.store.postgres import Database, open_database
from app.store.redis import Logins, RateLimit, open_redis, own_errors
from app.store.session_files import S3SessionFileStorage
from app.usecases.claims import Claims
from app.usecases.deletions import Deletions
from app.usecases.initial_runs import InitialRuns
from app.usecases.runs import Runs
from app.usecases.turns import Turns

# Fences wait for each other, never for the main pool; a few at a time are plenty.
FENCE_POOL_SIZE = 4


@dataclass(frozen=True)
class Services:
    """The open adapters of one process, and the use cases that are made of several."""

    settings: Settings
    db: Database
    redis: Redis
    objects: ObjectStore
    lifecycle: LifecycleWatch
    session_files: S3SessionFileStorage
    artifacts: ArtifactStore
    paced_artifacts: ArtifactStore
    queue: Queue
    events: RunEvents
    logins: Logins
    login_limit_by_account: RateLimit
    login_limit_by_address: RateLimit
    upload_limits: UploadLimits
    initial_runs: InitialRuns
    turns: Turns
    runs: Runs
    deletions: Deletions

    def readiness_checks(self) -> dict[str, Awaitable[str | None]]:
        """One check for each dependency: what there is to say of it, or raises Unavailable."""
        return {
            "database": self._check_database(),
            "redis": self._check_redis(),
            "s3": self._check_bucket(),
        }

    async def _check_database(self) -> None:
        await self.db.fetchval("SELECT 1")

    async def _check_redis(self) -> None:
        with own_errors():
            await self.redis.ping()

    async def _check_bucket(self) -> str:
        if not await self.objects.bucket_exists():
            raise Unavailable("s3")
        # Drift is reported and no reason to take the node out, nor is a server that does not tell:
        # the rules are the safety net.
        return f"lifecycle rules: {await self.lifecycle.find_state() or 'unknown'}"


@asynccontextmanager
async def open_services(settings: Settings) -> AsyncIterator[Services]:
    """Open all adapters and close them in reverse.

    Raises:
        Unavailable: a dependency does not answer.
        ConditionalWritesMissing: the S3 server ignores conditions and no fence is set.
    """
    async with AsyncExitStack() as stack:
        db = await stack.enter_async_context(
            open_database(settings.database_url, size=settings.database_pool_size)
        )
        fence_db = await stack.enter_async_context(
            open_database(settings.database_url, size=FENCE_POOL_SIZE)
        )
        redis = await stack.enter_async_context(open_redis(settings.redis_url))
        events = await stack.enter_async_context(open_run_events(redis))
        queue = await stack.enter_async_context(open_queue(settings))
        objects = await stack.enter_async_context(open_object_store(settings))
        await require_conditional_writes(objects, settings)
        session_files = S3SessionFileStorage(objects, PostgresFence(fence_db), settings)
        stack.push_async_callback(session_files.aclose)
        limits = UploadLimits(
            settings.upload_max_files,
            settings.upload_max_file_bytes,
            settings.upload_max_total_bytes,
        )
        claims = Claims(db, session_files, settings.run_max_unfinished)
        logins = Logins(redis, settings.login_ttl_seconds)
        # What goes on in the background is in no hurry, and may be large.
        paced = objects.paced(settings.sweep_requests_per_second)
        paced_artifacts = ArtifactStore(paced)
        sets = FileSets(
            paced, PostgresFence(fence_db), conditional=settings.storage_fence == "none"
        )
        window = settings.login_window_seconds
        yield Services(
            settings=settings,
            db=db,
            redis=redis,
            objects=objects,
            lifecycle=LifecycleWatch(objects, settings),
            session_files=session_files,
            artifacts=ArtifactStore(objects),
            paced_artifacts=paced_artifacts,
            queue=queue,
            events=events,
            logins=logins,
            login_limit_by_account=RateLimit(redis, "account", settings.login_attempts, window),
            # A school shares one address: it gets more attempts than an account.
            login_limit_by_address=RateLimit(
                redis, "address", 10 * settings.login_attempts, window
            ),
            upload_limits=limits,
            initial_runs=InitialRuns(db, session_files, queue, claims, limits),
            turns=Turns(db, session_files, queue, claims),
            runs=Runs(db, events),
            deletions=Deletions(db, events, logins, sets, paced_artifacts),
        )
