"""What tests of faults share; a test that kills a part of it starts that part itself."""

from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from cluster import Cluster, Process, run_cluster
from places import Places, open_places
from s3_servers import embedded_server, run_ceph

from app.devstack import DevStack


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


@pytest.fixture(scope="module", params=["embedded", pytest.param("ceph", marks=pytest.mark.ceph)])
async def places(request: pytest.FixtureRequest, devstack: DevStack) -> AsyncIterator[Places]:
    """Buckets and databases of a module's own, on one S3 server and then the other."""
    with ExitStack() as stack:
        is_embedded = request.param == "embedded"
        server = embedded_server(devstack) if is_embedded else stack.enter_context(run_ceph())
        async with open_places(devstack, server) as places:
            yield places
