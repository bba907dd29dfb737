"""The bytes between a worker and the runner in its sandbox: one job in, one outcome back.

Each direction begins with `MAGIC`, whose last byte is the version. The rest is frames: one byte
of kind, four bytes of length (big-endian), then that many bytes. The worker's side of the
same frames is `workers/sandbox/wire.py`, and a test keeps the two in step.

Request: `JOB` (JSON, see below), then without frames the bytes that it declares, in this order:
source, inputs, action (where present), and every file. The worker keeps the stream open until it
has its answer: end of file while the tool runs means that the worker is gone, and ends the run.
One byte `STOP` there means that the user cancelled: the tool is killed, and what it printed is
answered all the same.

    {"entrypoint": "run_tool", "source": bytes, "inputs": bytes | null, "action": bytes | null,
     "files": [{"name", "bytes"}], "limits": {…}, "alone": bool, "watch_work": bool,
     "lifetime_seconds": how long the runner may live from TAKEN on}

Response: `READY` once, when everything is imported and a job may come (a pooled runner waits
here). `TAKEN` when the whole job has arrived: before it the tool has certainly not run. `PROGRESS`
(JSON) while the tool runs. `EXITED` (JSON) when it has ended and nothing of it
is alive. Then `STDOUT`, `STDERR` (eight bytes: how much there was; then what was kept), `RESULT`
(result.json as it lies there, absent when there is none), for each artifact `ARTIFACT` (JSON:
path, bytes) and `DATA` until its bytes are complete, at most one `REFUSED` (JSON: what broke the
contract), and `END`.
"""

import json
import os
from typing import Any, BinaryIO

MAGIC = b"SKR\x02"

JOB = b"J"
STOP = b"C"
READY = b"R"
TAKEN = b"K"
PROGRESS = b"P"
EXITED = b"X"
STDOUT = b"O"
STDERR = b"E"
RESULT = b"T"
ARTIFACT = b"A"
DATA = b"D"
REFUSED = b"V"
END = b"Z"

CHUNK_BYTES = 256 * 1024
JOB_MAX_BYTES = 1024 * 1024


class Lost(Exception):
    """The worker went away, or sent what no worker sends."""


def read_exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise Lost("the request ended early")
    return data


def read_job(stream: BinaryIO) -> dict[str, Any]:
    """Read the request up to its declared bytes, which the caller takes from `stream`."""
    if read_exactly(stream, len(MAGIC)) != MAGIC:
        raise Lost("another protocol version")
    head = read_exactly(stream, 5)
    length = int.from_bytes(head[1:], "big")
    if head[:1] != JOB or length > JOB_MAX_BYTES:
        raise Lost("not a job")
    job: dict[str, Any] = json.loads(read_exactly(stream, length))
    return job


def send_all(fd: int, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def send(fd: int, kind: bytes, payload: bytes = b"") -> None:
    send_all(fd, kind + len(payload).to_bytes(4, "big"))
    send_all(fd, payload)


def send_json(fd: int, kind: bytes, value: dict[str, Any]) -> None:
    send(fd, kind, json.dumps(value).encode())
