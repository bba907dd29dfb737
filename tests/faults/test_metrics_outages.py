"""Operators see most when things go wrong: /metrics answers while servers are away."""

import time
from collections.abc import Iterator

import httpx
import pytest
from cluster import Cluster, Process, eventually
from prometheus_client.parser import text_string_to_metric_families

from app.devstack import free_port
from app.metrics import READ_SECONDS

# Prometheus' own patience.
SCRAPE_SECONDS = 10.0


def scrape(node: Process) -> dict[str, float]:
    """Scrape a node: the value of each series by name, or by `name state`."""
    started = time.monotonic()
    answer = httpx.get(f"{node.url}/api/v1/metrics", timeout=30)
    assert answer.status_code == 200, answer.text
    assert time.monotonic() - started < min(SCRAPE_SECONDS, READ_SECONDS + 3)
    return {
        " ".join([sample.name.removeprefix("skriptoteket_"), *sample.labels.values()]): (
            sample.value
        )
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


@pytest.fixture
def node(cluster: Cluster) -> Iterator[Process]:
    """A node that nobody asked whether it is ready: it has not asked for the bucket's rules yet."""
    port = free_port()
    node = cluster._spawn(["app.cli", "api", "--port", str(port)], {})
    node.url = f"http://127.0.0.1:{port}"
    try:
        eventually(lambda: is_live(node))
        yield node
    finally:
        node.stop()


def is_live(node: Process) -> bool:
    try:
        return httpx.get(f"{node.url}/api/v1/health/live").is_success
    except httpx.TransportError:
        return False


def test_metrics_are_told_while_postgresql_is_away(cluster: Cluster, node: Process) -> None:
    before = scrape(node)
    assert before["storage_status_up"] == 1
    assert before["unfinished_runs queued"] >= 0
    with cluster.down("postgres"):
        told = scrape(node)
        assert told["storage_status_up"] == 0
        assert "sweeps_total" not in told and "unfinished_runs queued" not in told
        assert "retentions_total" not in told and "deletions_pending" not in told
        assert told["session_files_ttl_seconds"] == 86_400
        route = "http_requests_total GET /api/v1/metrics 2xx"
        assert told[route] == before.get(route, 0) + 1
        assert told["storage_lifecycle_rules unknown"] == 0
    eventually(lambda: scrape(node)["storage_status_up"] == 1)


@pytest.mark.parametrize("how", [pytest.param("down", marks=pytest.mark.soak), "stalled"])
def test_metrics_are_told_while_s3_is_away(cluster: Cluster, node: Process, how: str) -> None:
    with getattr(cluster, how)("s3"):
        told = scrape(node)
        assert told["storage_lifecycle_rules unknown"] == 1
        assert told["storage_status_up"] == 1
        started = time.monotonic()
        scrape(node)
        assert time.monotonic() - started < 1, "a server in trouble is not asked again at once"
