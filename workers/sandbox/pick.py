"""Which sandbox a worker uses, by the setting SANDBOX and what the machine has."""

from app.log import get_log
from app.settings import Settings
from workers.sandbox.base import Sandbox, SandboxLimits, SandboxUnavailable
from workers.sandbox.docker import DockerSandbox, PoolSettings
from workers.sandbox.process import ProcessSandbox

log = get_log(__name__)


async def open_sandbox(settings: Settings) -> Sandbox:
    """Start the sandbox that the settings ask for; the caller closes it with `aclose`.

    `auto` is Docker where an engine answers and has the image. Otherwise it is the process
    sandbox, but never in production, where that would run tools with the worker's own rights.

    Raises:
        SandboxUnavailable: what is asked for is not there; the message says what to do.
    """
    production = settings.app_env == "production"
    if settings.sandbox == "process":
        if production:
            raise SandboxUnavailable("SANDBOX=process is no security boundary: not in production")
        return await _open(ProcessSandbox())
    try:
        return await _open(_make_docker(settings))
    except SandboxUnavailable as error:
        if settings.sandbox == "docker" or production:
            raise SandboxUnavailable(
                f"{error}. Start Docker and build the image (infra/build-runner-image.sh)"
            ) from error
        log.warning("sandbox.docker_unavailable", reason=str(error))
    return await _open(ProcessSandbox())


def _make_docker(settings: Settings) -> DockerSandbox:
    kinds = [make_limits(settings, is_sandbox=is_sandbox) for is_sandbox in (False, True)]
    pool = PoolSettings(
        limits=max(kinds, key=lambda limits: limits.timeout_seconds),  # they differ in this only
        size=settings.runner_pool_size,
        max_bytes=settings.runner_pool_bytes,
        max_age_seconds=settings.runner_pool_max_age_seconds,
        preload=settings.runner_preload.split(),
    )
    return DockerSandbox(image=settings.runner_image, runtime=settings.runner_runtime, pool=pool)


def make_limits(settings: Settings, *, is_sandbox: bool) -> SandboxLimits:
    """Return the caps of a run; an editor's test run has a shorter time."""
    return SandboxLimits(
        timeout_seconds=settings.sandbox_run_timeout_seconds
        if is_sandbox
        else settings.run_timeout_seconds,
        memory_bytes=settings.run_memory_bytes,
        cpus=settings.run_cpus,
        processes=settings.run_processes,
        work_bytes=settings.run_work_bytes,
        output_max_bytes=settings.run_output_max_bytes,
        result_max_bytes=settings.run_result_max_bytes,
        artifacts_max_files=settings.artifacts_max_files,
        artifact_max_bytes=settings.artifact_max_bytes,
        artifacts_max_total_bytes=settings.artifacts_max_total_bytes,
    )


async def _open(sandbox: Sandbox) -> Sandbox:
    try:
        await sandbox.start()
    except BaseException:
        await sandbox.aclose()
        raise
    log.info("sandbox.opened", sandbox=sandbox.name)
    return sandbox
