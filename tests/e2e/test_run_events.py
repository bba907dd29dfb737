"""A run's events: told live from any node, resumable, and ended when the run ends."""

import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import httpx
import pytest
from service import Client, Service

PROGRESSING = """
import time
from skriptoteket_toolkit import progress

def run_tool(input_dir, output_dir):
    for step in range(3):
        progress(step / 3, f"Steg {step}")
        time.sleep(0.3)
    return "klart"
"""
SLUG = "med-framsteg"


@pytest.fixture(scope="module", autouse=True)
def tool(service: Service) -> None:
    service.publish(SLUG, PROGRESSING)


@pytest.fixture
def nodes(service: Service) -> Iterator[tuple[Client, Client]]:
    with closing(service.client(node=0)) as here, closing(service.client(node=1)) as there:
        yield here, there


def read_events(response: httpx.Response) -> list[dict[str, Any]]:
    """Parse a stream of server-sent events: a dict of fields each."""
    events = []
    for block in "\n".join(response.iter_lines()).split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.splitlines() if line[:1] != ":")
        if "data" in fields:
            events.append(fields)
    return events


def test_another_node_tells_progress_while_the_tool_works(nodes: tuple[Client, Client]) -> None:
    here, there = nodes
    run = here.run_tool(SLUG, wait=None).json()
    arrivals = []
    with there.stream("GET", f"/runs/{run['run_id']}/events") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data: "):
                arrivals.append((time.monotonic(), line))
    told = [line for _, line in arrivals if "Steg" in line]
    assert [f"Steg {step}" in line for step, line in enumerate(told)] == [True] * 3
    assert '"succeeded"' in arrivals[-1][1]
    # Told as it happened, not all at the end: the steps are 0.3 s apart.
    assert arrivals[-1][0] - arrivals[0][0] > 0.5


def test_a_lost_connection_goes_on_after_the_last_event_seen(nodes: tuple[Client, Client]) -> None:
    here, there = nodes
    run = here.run_tool(SLUG, wait=30).json()
    with here.stream("GET", f"/runs/{run['run_id']}/events") as response:
        everything = read_events(response)
    assert [event["event"] for event in everything] == ["status", *["progress"] * 3, "status"]
    seen = everything[1]["id"]
    headers = {"last-event-id": seen}
    with there.stream("GET", f"/runs/{run['run_id']}/events", headers=headers) as response:
        assert read_events(response) == everything[2:]


@pytest.mark.parametrize("last_id", ["0-0", "nonsense", "99999999999999-0"])
def test_a_strange_last_id_still_tells_how_it_ended(
    nodes: tuple[Client, Client], last_id: str
) -> None:
    here, _ = nodes
    run = here.run_tool(SLUG, wait=30).json()
    headers = {"last-event-id": last_id}
    with here.stream("GET", f"/runs/{run['run_id']}/events", headers=headers) as response:
        assert '"succeeded"' in read_events(response)[-1]["data"]


def test_nobody_listens_to_a_foreign_run(service: Service, nodes: tuple[Client, Client]) -> None:
    run = nodes[0].run_tool(SLUG, wait=None).json()
    with closing(service.client("bo")) as stranger:
        assert stranger.get(f"/runs/{run['run_id']}/events").status_code == 404
