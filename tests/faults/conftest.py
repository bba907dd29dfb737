"""One cluster for all tests of faults; a test that kills a part of it starts that part itself."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from cluster import SETTINGS, Cluster, Process

from app.dev import run_service


@pytest.fixture(scope="session")
def cluster(stacks_dir: Path) -> Iterator[Cluster]:
    """The servers alone: nodes and workers are fixtures of their own."""
    data_dir = stacks_dir / "faults"
    with (
        run_service(data_dir, ports=[], workers=0, overrides=SETTINGS) as service,
        closing(Cluster(service)) as cluster,
    ):
        yield cluster


@pytest.fixture(scope="session")
def nodes(cluster: Cluster) -> Iterator[list[Process]]:
    """Two API nodes that nobody kills."""
    with cluster.nodes(2) as processes:
        yield processes


@pytest.fixture(scope="session")
def workers(cluster: Cluster) -> Iterator[list[Process]]:
    """Two workers that nobody kills."""
    with cluster.workers(2) as processes:
        yield processes
