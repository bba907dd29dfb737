"""A node streams: what it holds does not grow with what is uploaded."""

from functools import partial
from pathlib import Path

import pytest
from cluster import Cluster, Process
from fault_tools import FILE_FIELD, IDLE
from racing import at_once
from raw_http import RawUpload, form

SLUG = "idle_memory"
UPLOADS = 10
FILES = [(f"{number}.bin", 16_600_000) for number in range(3)]
MOST_RISE_BYTES = 120_000_000


@pytest.fixture(scope="module")
def tool_id(cluster: Cluster, nodes: list[Process]) -> str:
    return str(cluster.publish(nodes[0], SLUG, IDLE, FILE_FIELD)["tool_id"])


def test_ten_uploads_of_50_megabytes_at_once_need_little_memory(
    cluster: Cluster, nodes: list[Process], workers: list[Process], tool_id: str
) -> None:
    with cluster.node() as node:
        assert upload(cluster, node, "warm-up") == 202
        before = memory_bytes(node, "VmRSS")
        Path(f"/proc/{node.pid}/clear_refs").write_text("5")  # proc(5): the peak starts anew
        contexts = [f"memory-{number}" for number in range(UPLOADS)]
        statuses = at_once([partial(upload, cluster, node, context) for context in contexts])
        rise = memory_bytes(node, "VmHWM") - before
    assert statuses == [202] * UPLOADS
    print(f"resident memory rose by {rise / 1e6:.0f} MB at most")
    assert rise < MOST_RISE_BYTES


def upload(cluster: Cluster, node: Process, context: str) -> int:
    """Send 50 MB into a session of its own, as fast as the node takes it: the status."""
    length = sum(len(piece) for piece in form(FILES, session_context=context))
    with RawUpload(node.url, f"/tools/{SLUG}/run", cluster.token(node), length) as sending:
        for piece in form(FILES, session_context=context):
            sending.send(piece)
        status, _, _ = sending.answer()
    return status


def memory_bytes(node: Process, name: str) -> int:
    lines = Path(f"/proc/{node.pid}/status").read_text("utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
