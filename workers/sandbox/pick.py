"""Which sandbox a worker uses, by the setting SANDBOX and what the machine has."""

from app.log import get_log
from app.settings import Settings
from workers.sandbox.base import Sandbox, SandboxUnavailable
from workers.sandbox.docker import DockerSandbox
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
        return await _open(DockerSandbox(image=settings.runner_image))
    except SandboxUnavailable as error:
        if settings.sandbox == "docker" or production:
            raise SandboxUnavailable(
                f"{error}. Start Docker and build the image (infra/build-runner-image.sh)"
            ) from error
        log.warning("sandbox.docker_unavailable", reason=str(error))
    return await _open(ProcessSandbox())


async def _open(sandbox: Sandbox) -> Sandbox:
    try:
        await sandbox.start()
    except BaseException:
        await sandbox.aclose()
        raise
    log.info("sandbox.opened", sandbox=sandbox.name)
    return sandbox
