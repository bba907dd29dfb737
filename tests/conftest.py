"""Fixtures shared by all tests: real servers, and one running service a session."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from service import Service
from xdist.scheduler import LoadScopeScheduling

from app.dev import run_service
from app.devstack import DevStack, free_port, run_devstack

# Files that share a stack of servers: a second process that ran some would start it once more.
STACKS = {
    "the service": ["tests/e2e/"],
    "the cluster": [
        "tests/faults/test_deletions.py",
        "tests/faults/test_limits.py",
        "tests/faults/test_memory.py",
        "tests/faults/test_snapshot_cache.py",
        "tests/faults/test_turn_races.py",
        "tests/faults/test_upload_faults.py",
        "tests/faults/test_worker_faults.py",
    ],
}
ALONE = "tests/e2e/test_dev_command.py"  # starts what it needs itself


class ByStack(LoadScopeScheduling):  # type: ignore[misc]
    """Give each process whole files, and all files that share a stack of servers to one."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        if path != ALONE:
            for stack, prefixes in STACKS.items():
                if path.startswith(tuple(prefixes)):
                    return stack
        return path


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByStack:
    return ByStack(config, log)


@pytest.fixture(scope="session")
def stacks_dir() -> Iterator[Path]:
    """Where stacks of servers keep their data; make a folder in it for each.

    Not pytest's own folder: another session closes that to other users, and PostgreSQL, which
    refuses to be root, runs as another user where the tests are root.
    """
    with tempfile.TemporaryDirectory(prefix="skriptoteket-test-") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def devstack(stacks_dir: Path) -> Iterator[DevStack]:
    """PostgreSQL, Valkey and an S3 server, all real, thrown away at the end."""
    with run_devstack(stacks_dir / "devstack") as stack:
        yield stack


@pytest.fixture(scope="session")
def service(stacks_dir: Path) -> Iterator[Service]:
    """Two API nodes and two workers over a stack of their own. Never kill a part of it."""
    ports = [free_port(), free_port()]
    # Tests start more runs at once than a person may, and log in more often. Their tools are
    # small: importing large libraries beforehand would only cost them time.
    overrides = {
        "RUN_MAX_UNFINISHED": "1000",
        "LOGIN_ATTEMPTS": "100000",
        "RUNNER_POOL_SIZE": "2",
        "RUNNER_PRELOAD": "",
    }
    data_dir = stacks_dir / "service"
    with run_service(data_dir, ports=ports, workers=2, overrides=overrides) as running:
        yield Service(running)
