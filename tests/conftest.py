"""Fixtures shared by all tests: real servers, and one running service a session."""

from collections.abc import Iterator

import pytest

from app.dev import run_service
from app.devstack import DevStack, free_port, run_devstack
from service import Service


@pytest.fixture(scope="session")
def devstack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevStack]:
    """PostgreSQL, Valkey and an S3 server, all real, thrown away at the end."""
    with run_devstack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two API nodes and two workers over a stack of their own. Never kill a part of it."""
    data_dir = tmp_path_factory.mktemp("service")
    ports = [free_port(), free_port()]
    # Tests start more runs at once than a person may, and log in more often.
    overrides = {"RUN_MAX_UNFINISHED": "1000", "LOGIN_ATTEMPTS": "100000"}
    with run_service(data_dir, ports=ports, workers=2, overrides=overrides) as running:
        yield Service(running)
