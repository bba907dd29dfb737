"""One cluster for all tests of faults; a test that kills a part of it starts that part itself."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from cluster import Cluster, Process, run_cluster


@pytest.fixture(scope="session")
def cluster(stacks_dir: Path) -> Iterator[Cluster]:
    """The servers alone: nodes and workers are fixtures of their own."""
    with run_cluster(stacks_dir / "faults") as cluster:
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
