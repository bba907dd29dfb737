"""Fixtures shared by all tests: one stack of real servers a session."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.devstack import DevStack, run_devstack


@pytest.fixture(scope="session")
def devstack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevStack]:
    """PostgreSQL, Valkey and an S3 server, all real, thrown away at the end."""
    os.environ.setdefault("XDG_RUNTIME_DIR", str(_private_dir(tmp_path_factory)))
    with run_devstack(tmp_path_factory.mktemp("stack")) as stack:
        yield stack


def _private_dir(factory: pytest.TempPathFactory) -> Path:
    path = factory.mktemp("run")
    path.chmod(0o711)
    return path
