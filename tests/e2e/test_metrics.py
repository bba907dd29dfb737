"""What operators see of storage: /metrics as Prometheus reads it, and /admin/storage."""

import asyncio
import re
from datetime import UTC, datetime
from typing import Any

import asyncpg
import httpx
import pytest
from problems import NOWHERE, check_problem
from prometheus_client.parser import text_string_to_metric_families
from service import Client, Service
from steps import Way, log_in

from app.settings import load_settings
from app.store.objects import open_object_store
from app.usecases.retention import apply_retention
from app.usecases.storage_sweep import clean_up_expired
from app.wiring import open_services

MANIFESTS, BLOBS = "sessions/manifests/", "sessions/files/"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(service: Service, node: int) -> Samples:
    """Scrape a node as a stranger: the value of each series by name and labels."""
    answer = httpx.get(f"{service.running.urls[node]}/api/v1/metrics", timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/plain; version=")
    samples: Samples = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation, family.name
        for sample in family.samples:
            series = (sample.name, frozenset(sample.labels.items()))
            assert series not in samples, series
            samples[series] = sample.value
    return samples


def read(samples: Samples, name: str, **labels: str) -> float:
    return samples[f"skriptoteket_{name}", frozenset(labels.items())]


def sweep(service: Service) -> None:
    async def run() -> None:
        async with open_services(load_settings(service.running.environment)) as services:
            await clean_up_expired(services.db, services.session_files, services.settings)

    asyncio.run(run())


def look_into_bucket(service: Service) -> dict[str, Any]:
    """Count past the service what it is to tell."""

    async def look() -> dict[str, Any]:
        async with open_object_store(load_settings(service.running.environment)) as objects:
            manifests = [info async for info in objects.list_objects(MANIFESTS)]
            blobs = [info async for info in objects.list_objects(BLOBS)]
        return {
            "sessions": len(manifests),
            "files": len(blobs),
            "bytes": sum(blob.bytes for blob in blobs),
            "oldest_access": min(info.last_modified for info in manifests),
        }

    return asyncio.run(look())


def execute(service: Service, sql: str) -> None:
    async def run() -> None:
        connection = await asyncpg.connect(service.running.stack.database_url)
        await connection.execute(sql)
        await connection.close()

    asyncio.run(run())


@pytest.fixture
def swept(service: Service, reporter: Way) -> dict[str, Any]:
    """A bucket with files of a session in it, swept just now: what lies there."""
    reporter.run(files=[("brev.html", b"x" * 1000), ("bild.png", b"y" * 234)])
    sweep(service)
    return look_into_bucket(service)


def test_every_node_tells_what_the_sweep_saw(service: Service, swept: dict[str, Any]) -> None:
    assert swept["files"] >= 2 and swept["bytes"] >= 1234
    now = datetime.now(UTC).timestamp()
    for node in range(len(service.running.urls)):
        samples = scrape(service, node)
        assert read(samples, "storage_status_up") == 1
        assert read(samples, "session_file_sets") == swept["sessions"]
        assert read(samples, "session_files") == swept["files"]
        assert read(samples, "session_files_bytes") == swept["bytes"]
        oldest = read(samples, "session_files_oldest_access_timestamp_seconds")
        assert oldest == swept["oldest_access"].timestamp()
        started = read(samples, "sweep_started_timestamp_seconds")
        ended = read(samples, "sweep_ended_timestamp_seconds")
        assert now - 60 < started < ended <= now
        assert read(samples, "sweep_succeeded_timestamp_seconds") == ended
        assert started <= read(samples, "session_files_walked_timestamp_seconds") <= ended
        assert 0 < read(samples, "sweep_duration_seconds") <= ended - started
        assert read(samples, "sweep_complete") == 1
        assert read(samples, "sweep_unreadable_manifests") == 0
        assert read(samples, "session_files_ttl_seconds") == 86_400
        states = ("complete", "without_abort", "unsupported", "drifted", "unknown")
        told = [read(samples, "storage_lifecycle_rules", state=state) for state in states]
        assert sorted(told) == [0, 0, 0, 0, 1] and told[-2:] == [0, 0]


def test_sweeps_and_their_failures_are_counted(service: Service, swept: dict[str, Any]) -> None:
    before = scrape(service, 0)
    sweep(service)
    # As a sweep leaves it whose process was killed: the next one counts it.
    execute(service, "UPDATE sweep_status SET ended_at = NULL WHERE job = 'session-files'")
    killed = scrape(service, 1)
    sweep(service)
    after = scrape(service, 1)
    assert ("skriptoteket_sweep_ended_timestamp_seconds", frozenset()) not in killed
    steps = [read(samples, "sweeps_total") for samples in (before, killed, after)]
    assert (steps[1] - steps[0], steps[2] - steps[1]) == (1, 1)
    failures = [read(samples, "sweep_failures_total") for samples in (before, killed, after)]
    assert (failures[1] - failures[0], failures[2] - failures[1]) == (0, 1)


def test_retention_and_deletions_are_told_by_every_node(service: Service) -> None:
    before = read(scrape(service, 0), "retentions_total")
    now = datetime.now(UTC).timestamp()
    environment = load_settings(service.running.environment)

    async def apply() -> None:
        async with open_services(environment) as services:
            await apply_retention(services.db, services.paced_artifacts, environment)

    asyncio.run(apply())
    for node in range(len(service.running.urls)):
        samples = scrape(service, node)
        assert read(samples, "retentions_total") == before + 1
        assert read(samples, "retention_complete") == 1
        assert abs(read(samples, "retention_succeeded_timestamp_seconds") - now) < 60
        assert read(samples, "retention_failures_total") == 0
        assert read(samples, "deletions_pending") >= 0


def test_admins_see_the_state_of_storage(
    service: Service, swept: dict[str, Any], admin: Client
) -> None:
    told = admin.get("/admin/storage").raise_for_status().json()
    assert (told["sessions"], told["files"], told["bytes"]) == (
        swept["sessions"],
        swept["files"],
        swept["bytes"],
    )
    assert datetime.fromisoformat(told["oldest_access"]) == swept["oldest_access"]
    assert (told["orphans"], told["orphan_bytes"]) == (0, 0)
    last = told["last_sweep"]
    assert last["started_at"] <= told["walked_at"] <= last["ended_at"] == last["succeeded_at"]
    assert last["error"] is None and last["sweeps"] > last["failures"]
    assert told["lifecycle"] in {"complete", "without_abort", "unsupported"}


def test_only_admins_see_the_state_of_storage(
    anna: Client, carin: Client, stranger: httpx.Client
) -> None:
    check_problem(anna.get("/admin/storage"), 403, "forbidden")
    check_problem(carin.get("/admin/storage"), 403, "forbidden")
    check_problem(stranger.get("/admin/storage"), 401, "not_authenticated")


def test_requests_are_counted_by_the_template_of_their_path(
    service: Service, stranger: httpx.Client
) -> None:
    def count(route: str, method: str = "GET", status: str = "4xx") -> float:
        labels = {"method": method, "route": route, "status": status}
        return scrape(service, 0).get(
            ("skriptoteket_http_requests_total", frozenset(labels.items())), 0
        )

    route = "/api/v1/runs/{run_id}"
    known, unknown, wrong = count(route), count("unmatched"), count("unmatched", "DELETE")
    stranger.get(f"/runs/{NOWHERE}")
    stranger.get("/nothing/like/this")
    stranger.delete("/tools")
    stranger.request("BREW", "/tools")
    assert count(route) == known + 1
    assert count("unmatched") == unknown + 1
    assert count("unmatched", "DELETE") == wrong + 1
    samples = scrape(service, 0)
    labels = {"method": "GET", "route": route, "le": "60.0"}
    assert read(samples, "http_request_duration_seconds_bucket", **labels) >= known + 1
    for _, pairs in samples:
        labels = dict(pairs)
        assert not re.search(f"{NOWHERE}|nothing|BREW", str(labels)), labels


def test_runs_that_wait_for_a_worker_are_counted(idle_service: Service) -> None:
    before = read(scrape(idle_service, 0), "unfinished_runs", status="queued")
    with log_in(idle_service, "anna") as client:
        run = client.run_tool("raknare", wait=None).raise_for_status().json()
        assert run["status"] == "queued"
    samples = scrape(idle_service, 0)
    assert read(samples, "unfinished_runs", status="queued") == before + 1
    assert read(samples, "unfinished_runs", status="running") == 0
