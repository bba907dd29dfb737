"""Which sandbox the settings and the machine lead to."""

import shutil
from pathlib import Path

import pytest

from app.settings import Settings
from workers.sandbox import open_sandbox
from workers.sandbox.base import SandboxUnavailable
from workers.sandbox.pick import _make_docker


@pytest.fixture
def no_docker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nowhere.sock")


async def test_auto_falls_back_to_processes_in_development(no_docker: None) -> None:
    sandbox = await open_sandbox(Settings(app_env="development", sandbox="auto"))
    assert sandbox.name == "process"
    await sandbox.aclose()


@pytest.mark.parametrize(
    "settings",
    [
        Settings(app_env="production", sandbox="auto"),
        Settings(app_env="production", sandbox="docker"),
        Settings(app_env="development", sandbox="docker"),
    ],
)
async def test_docker_that_is_needed_and_missing_is_told(
    no_docker: None, settings: Settings
) -> None:
    with pytest.raises(SandboxUnavailable, match="no Docker engine answers"):
        await open_sandbox(settings)


async def test_processes_are_never_used_in_production() -> None:
    with pytest.raises(SandboxUnavailable, match="no security boundary"):
        await open_sandbox(Settings(app_env="production", sandbox="process"))


@pytest.mark.docker
@pytest.mark.skipif(shutil.which("docker") is None, reason="no Docker")
async def test_missing_image_is_told() -> None:
    settings = Settings(app_env="test", sandbox="docker", runner_image="finns-inte:alls")
    with pytest.raises(SandboxUnavailable, match=r"finns-inte:alls|no Docker engine"):
        await open_sandbox(settings)


@pytest.mark.parametrize("seconds", [(120, 60), (60, 120)])
def test_containers_that_wait_may_take_runs_of_either_kind(seconds: tuple[int, int]) -> None:
    run_seconds, sandbox_seconds = seconds
    settings = Settings(
        run_timeout_seconds=run_seconds, sandbox_run_timeout_seconds=sandbox_seconds
    )
    pool = _make_docker(settings)._pool_settings
    assert pool is not None and pool.limits.timeout_seconds == 120
