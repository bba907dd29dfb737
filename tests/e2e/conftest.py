"""Fixtures of the end-to-end tests: users who meet another node with every request."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from service import TIMEOUT_SECONDS, Client, Service
from steps import DocumentCheck, Way, log_in, publish
from tiny_tools import DO_FIELD, FILE_FIELD, QUIET, REPORTER

from app.dev import run_service
from app.devstack import free_port


@pytest.fixture(scope="session")
def anna(service: Service) -> Iterator[Client]:
    with log_in(service, "anna") as client:
        yield client


@pytest.fixture(scope="session")
def bo(service: Service) -> Iterator[Client]:
    with log_in(service, "bo") as client:
        yield client


@pytest.fixture(scope="session")
def carin(service: Service) -> Iterator[Client]:
    with log_in(service, "carin") as client:
        yield client


@pytest.fixture(scope="session")
def admin(service: Service) -> Iterator[Client]:
    with log_in(service, "admin") as client:
        yield client


@pytest.fixture
def reporter(service: Service, anna: Client) -> Way:
    """A new session of Anna's with a tool that tells what it sees, published for her alone."""
    version = publish(service, REPORTER, [FILE_FIELD, DO_FIELD])
    return Way(anna, version["tool_id"], version["id"], version["slug"], is_sandbox=False)


@pytest.fixture(params=["production", "sandbox"])
def way(request: pytest.FixtureRequest, service: Service, anna: Client, admin: Client) -> Way:
    """A new session with the reporter: of the published tool, then of the editor's sandbox."""
    version = publish(service, REPORTER, [FILE_FIELD, DO_FIELD])
    is_sandbox = request.param == "sandbox"
    client = admin if is_sandbox else anna
    return Way(client, version["tool_id"], version["id"], version["slug"], is_sandbox)


@pytest.fixture(scope="session")
def brief_service(stacks_dir: Path) -> Iterator[Service]:
    """A service where files live for seconds, and runs too."""
    overrides = {
        "SESSION_FILES_TTL_SECONDS": "5",
        "RUN_TIMEOUT_SECONDS": "2",
        "SANDBOX_RUN_TIMEOUT_SECONDS": "2",
        "SANDBOX": "process",
    }
    ports = [free_port()]
    data_dir = stacks_dir / "brief"
    with run_service(data_dir, ports=ports, workers=1, overrides=overrides) as running:
        yield Service(running)


@pytest.fixture(scope="session")
def idle_stack(stacks_dir: Path) -> Iterator[Service]:
    overrides = {"RUN_MAX_UNFINISHED": "2", "LOGIN_ATTEMPTS": "3", "SANDBOX": "process"}
    ports = [free_port()]
    data_dir = stacks_dir / "idle"
    with run_service(data_dir, ports=ports, workers=0, overrides=overrides) as running:
        yield Service(running)


@pytest.fixture
def idle_service(idle_stack: Service) -> Iterator[Service]:
    """A service without workers, where what is queued stays so, and with little patience.

    What a test leaves queued is cancelled after it: the next one has its full number of runs.
    """
    yield idle_stack
    for username in ("anna", "bo"):
        with log_in(idle_stack, username) as client:
            for run in (
                client.get("/runs", params={"limit": 200}).raise_for_status().json()["items"]
            ):
                if run["status"] in ("queued", "running"):
                    client.post(f"/runs/{run['run_id']}/cancel").raise_for_status()


@pytest.fixture(scope="session")
def quiet(service: Service) -> dict[str, Any]:
    return publish(service, QUIET, [FILE_FIELD])


@pytest.fixture(scope="session")
def stranger(service: Service) -> Iterator[httpx.Client]:
    """Somebody who has not logged in."""
    base_url = f"{service.running.urls[0]}/api/v1"
    with httpx.Client(base_url=base_url, timeout=TIMEOUT_SECONDS) as client:
        client.event_hooks["response"].append(DocumentCheck(service.running.urls[0]))
        yield client


@pytest.fixture(scope="session")
def document(stranger: httpx.Client) -> dict[str, Any]:
    found: dict[str, Any] = stranger.get(f"{str(stranger.base_url)[:-8]}/schema").json()
    return found
