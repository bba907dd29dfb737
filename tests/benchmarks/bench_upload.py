"""How long an upload of 50 MB takes through a node, beside the same bytes sent straight to S3.

    python tests/benchmarks/bench_upload.py [--rounds N]
        [--endpoint URL --access-key KEY --secret-key KEY]

Without `--endpoint` the embedded S3 server is measured and, where it is installed, Ceph's gateway.
"Straight" is aioboto3's `put_object` of the same files, one after another and all together; its
client is open and warm. "Through a node" is a whole POST .../run: a form over a bare socket, who
asks, the rules, S3, the commit, the queue. Measured in turns, so that a slow moment of the machine
hits all alike. Prints medians and their ratio (the aim is 1.25 at most) and asserts none.
"""

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import aioboto3

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "faults"), str(TESTS.parent)]

from fault_tools import FILE_FIELD, IDLE  # noqa: E402
from machine import CEPH_KEYS, run_ceph  # noqa: E402
from raw_http import END, RawUpload, part  # noqa: E402
from service import Service  # noqa: E402

from app.dev import DevService, run_service  # noqa: E402
from app.devstack import S3_ACCESS_KEY, S3_SECRET_KEY, free_port  # noqa: E402

SLUG = "bench_upload"
MB = 1_000_000
VARIANTS = {"3 files of 20, 20 and 10 MB": (20, 20, 10), "1 file of 50 MB": (50,)}
SEND_BYTES = 1 << 20


@dataclass(frozen=True)
class Server:
    name: str
    endpoint: str
    access_key: str
    secret_key: str

    def overrides(self) -> dict[str, str]:
        return {
            "S3_ENDPOINT_URL": self.endpoint,
            "S3_ACCESS_KEY": self.access_key,
            "S3_SECRET_KEY": self.secret_key,
        }


class Straight:
    """aioboto3 as anybody would use it."""

    def __init__(self, server: Server, bucket: str) -> None:
        self._runner = asyncio.Runner()
        self._stack: Any = None
        self._client = self._runner.run(self._open(server))
        self._bucket = bucket

    async def _open(self, server: Server) -> Any:
        self._stack = aioboto3.Session().client(
            "s3",
            endpoint_url=server.endpoint,
            region_name="us-east-1",
            aws_access_key_id=server.access_key,
            aws_secret_access_key=server.secret_key,
        )
        return await self._stack.__aenter__()

    def put(self, files: list[bytes], *, together: bool) -> float:
        return self._runner.run(self._put(files, together))

    async def _put(self, files: list[bytes], together: bool) -> float:
        keys = [f"bench/{uuid4()}" for _ in files]
        started = time.perf_counter()
        puts = [
            self._client.put_object(Bucket=self._bucket, Key=key, Body=body)
            for key, body in zip(keys, files, strict=True)
        ]
        if together:
            await asyncio.gather(*puts)
        else:
            for put in puts:
                await put
        seconds = time.perf_counter() - started
        for key in keys:
            await self._client.delete_object(Bucket=self._bucket, Key=key)
        return seconds

    def close(self) -> None:
        self._runner.run(self._stack.__aexit__(None, None, None))
        self._runner.close()


def upload(url: str, token: str, files: list[bytes]) -> float:
    """Send the files to a session of their own through the node."""
    context = f"bench-{uuid4()}"
    head = part("session_context") + context.encode() + b"\r\n"
    heads = [part("files", f"{number}.bin") for number in range(len(files))]
    length = len(head) + len(END) + sum(map(len, heads)) + sum(len(f) + 2 for f in files)
    started = time.perf_counter()
    with RawUpload(url, f"/tools/{SLUG}/run", token, length) as sending:
        sending.send(head)
        for file_head, file in zip(heads, files, strict=True):
            sending.send(file_head)
            view = memoryview(file)
            for start in range(0, len(view), SEND_BYTES):
                sending.send(view[start : start + SEND_BYTES])
            sending.send(b"\r\n")
        sending.send(END)
        status, _, answer = sending.answer()
    seconds = time.perf_counter() - started
    if status != 202:
        raise SystemExit(f"the node answered {status}: {answer}")
    return seconds


def measure(running: DevService, server: Server, rounds: int) -> None:
    service = Service(running)
    service.publish(SLUG, IDLE, FILE_FIELD)
    with closing(service.client()) as browser:
        token = browser.post("/auth/tokens", json={"name": "bench"}).raise_for_status().json()
    straight = Straight(server, running.stack.s3_bucket)
    print(f"{server.name}: 50 MB, medians of {rounds} rounds in turns")
    for words, sizes in VARIANTS.items():
        files = [os.urandom(size * MB) for size in sizes]
        ways = {
            "through a node": lambda files=files: upload(running.urls[0], token["token"], files),
            "straight, one by one": lambda files=files: straight.put(files, together=False),
            "straight, together": lambda files=files: straight.put(files, together=True),
        }
        times: dict[str, list[float]] = {way: [] for way in ways}
        for turn in range(rounds + 1):
            # In another order each time: what comes after a large upload pays for it too.
            for way in _rotated(list(ways), turn):
                seconds = ways[way]()
                if turn:  # The first warms caches and connections.
                    times[way].append(seconds)
        medians = {way: statistics.median(values) for way, values in times.items()}
        print(f"  {words}")
        for way, median in medians.items():
            spread = f"{min(times[way]):.3f} to {max(times[way]):.3f}"
            ratio = medians["through a node"] / median
            print(f"    {way:<22} {median:.3f} s  ({spread})   ratio {ratio:.2f}")
    straight.close()


def _rotated(ways: list[str], turn: int) -> list[str]:
    start = turn % len(ways)
    return ways[start:] + ways[:start]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--endpoint", help="an S3 server of your own; it gets a bucket")
    parser.add_argument("--access-key", default="")
    parser.add_argument("--secret-key", default="")
    args = parser.parse_args()
    settings = {
        "LOG_LEVEL": "error",
        "UPLOAD_MAX_FILE_BYTES": str(50 * MB),
        "RUN_MAX_UNFINISHED": "100000",  # Nobody works here: only the way in is measured.
    }
    with ExitStack() as stack:
        servers: list[Server | None] = [None]
        if args.endpoint:
            servers = [Server("S3", args.endpoint, args.access_key, args.secret_key)]
        else:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-ceph-")))
            endpoint = stack.enter_context(run_ceph(root / "ceph"))
            if endpoint is not None:
                servers.append(Server("Ceph's S3 gateway", endpoint, *CEPH_KEYS))
        for server in servers:
            overrides = settings | (server.overrides() if server else {})
            with (
                tempfile.TemporaryDirectory(prefix="bench-upload-") as name,
                run_service(
                    Path(name), ports=[free_port()], workers=0, overrides=overrides
                ) as running,
            ):
                embedded = Server(
                    "Embedded S3", running.stack.s3_endpoint, S3_ACCESS_KEY, S3_SECRET_KEY
                )
                measure(running, server or embedded, args.rounds)


if __name__ == "__main__":
    main()
