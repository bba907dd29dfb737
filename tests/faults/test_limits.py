"""The limits of an upload end it at once: the answer comes before the client has sent it all."""

import http.client
import json
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

import pytest
from cluster import Cluster, Process, eventually
from fault_tools import FILE_FIELD, IDLE
from raw_http import BOUNDARY, END, RawUpload, form, part, zeros

SLUG = "idle_limits"
FILE_MAX = 20_000_000
TOTAL_MAX = 50_000_000
# What may be on its way when the answer is made: buffers of sockets, and of the node's parts.
IN_FLIGHT = 6_000_000

ONE_FILE_TOO_LARGE = [("big.bin", 60_000_000)]
TOO_LARGE_TOGETHER = [(f"{number}.bin", 17_000_000) for number in range(6)]
TOO_MANY = [(f"{number}.bin", 400_000) for number in range(60)]


@pytest.fixture(scope="module")
def tool_id(cluster: Cluster, nodes: list[Process]) -> str:
    return str(cluster.publish(nodes[0], SLUG, IDLE, FILE_FIELD)["tool_id"])


def length_of(pieces: Iterable[bytes]) -> int:
    return sum(len(piece) for piece in pieces)


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
@pytest.mark.parametrize(
    ("files", "code", "fits"),
    [
        pytest.param(ONE_FILE_TOO_LARGE, "file_too_large", FILE_MAX, id="one-file"),
        pytest.param(TOO_LARGE_TOGETHER, "upload_too_large", TOTAL_MAX, id="together"),
        pytest.param(TOO_MANY, "too_many_files", 20 * 400_000, id="many"),
    ],
)
def test_files_past_a_limit_are_refused_before_all_is_sent(
    cluster: Cluster,
    nodes: list[Process],
    tool_id: str,
    framing: str,
    files: list[tuple[str, int]],
    code: str,
    fits: int,
) -> None:
    total = length_of(form(files))
    # An announced length alone would say that it is too much: this one still has to be read.
    length = min(total, 55_000_000) if framing == "content-length" else None
    token = cluster.token(nodes[0])
    with RawUpload(nodes[0].url, f"/tools/{SLUG}/run", token, length) as upload:
        status, headers, problem = upload.send_until_answered(form(files), 0.0005)
    assert (status, problem["code"]) == (413, code)
    assert headers["connection"] == "close"
    assert fits - IN_FLIGHT < upload.sent_bytes < fits + IN_FLIGHT < total
    eventually(lambda: cluster.blobs(tool_id) == [] and cluster.open_uploads() == [])


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
@pytest.mark.parametrize("field", ["inputs", "session_context", "session_files_mode", "other"])
def test_text_part_of_300_megabytes_is_refused_at_its_cap(
    cluster: Cluster, nodes: list[Process], tool_id: str, framing: str, field: str
) -> None:
    length = 300_000_000 if framing == "content-length" else None
    token = cluster.token(nodes[0])
    with RawUpload(nodes[0].url, f"/tools/{SLUG}/run", token, length) as upload:
        pieces = _text_part(field)
        status, _, problem = upload.send_until_answered(pieces, 0.0005)
    if field == "other" and framing == "chunked":
        assert (status, problem["code"]) == (400, "malformed_request")
    else:
        assert status == 413
    assert upload.sent_bytes < IN_FLIGHT


def _text_part(field: str) -> Iterator[bytes]:
    yield part(field)
    yield from zeros(300_000_000)
    yield b"\r\n" + END


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
@pytest.mark.parametrize("excess", [0, 1])
@pytest.mark.parametrize(
    ("files", "code"),
    [
        pytest.param([("a.bin", FILE_MAX)], "file_too_large", id="one-file"),
        pytest.param(
            [(f"{number}.bin", TOTAL_MAX // 20) for number in range(20)],
            "upload_too_large",
            id="together",
        ),
        pytest.param([(f"{number}.bin", 0) for number in range(20)], "too_many_files", id="many"),
    ],
)
def test_upload_at_the_limit_is_taken_and_one_more_is_not(
    cluster: Cluster,
    nodes: list[Process],
    workers: list[Process],
    tool_id: str,
    framing: str,
    excess: int,
    files: list[tuple[str, int]],
    code: str,
) -> None:
    if code == "too_many_files":
        files = files + [("one-more.bin", 0)] * excess
    else:
        files = [*files[:-1], (files[-1][0], files[-1][1] + excess)]
    length = length_of(form(files)) if framing == "content-length" else None
    token = cluster.token(nodes[0])
    with RawUpload(nodes[0].url, f"/tools/{SLUG}/run", token, length) as upload:
        status, _, answer = upload.send_until_answered(form(files))
    if excess:
        assert (status, answer["code"]) == (413, code)
    else:
        assert status == 202, answer


@pytest.mark.parametrize("framing", ["content-length", "chunked"])
@pytest.mark.parametrize(
    ("files", "code"),
    [
        pytest.param([("a.bin", 21_000_000)], "file_too_large", id="21MB"),
        pytest.param([(f"{n}.bin", 17_000_000) for n in range(3)], "upload_too_large", id="51MB"),
        pytest.param([(f"{n}.bin", 100_000) for n in range(21)], "too_many_files", id="21-files"),
        pytest.param(None, "field_too_large", id="300MB-text"),
    ],
)
def test_client_that_sends_everything_before_it_reads_gets_the_answer(
    cluster: Cluster,
    nodes: list[Process],
    tool_id: str,
    framing: str,
    files: list[tuple[str, int]] | None,
    code: str,
) -> None:
    pieces = _text_part("inputs") if files is None else form(files)
    headers = {
        "Authorization": f"Bearer {cluster.token(nodes[0])}",
        "Content-Type": f"multipart/form-data; boundary={BOUNDARY}",
    }
    if framing == "content-length":
        length = 300_000_200 if files is None else length_of(form(files))
        headers["Content-Length"] = str(length)
    # This one raises as soon as it cannot send, without a look at what has come back.
    connection = http.client.HTTPConnection(urlsplit(nodes[0].url).netloc, timeout=60)
    try:
        path = f"/api/v1/tools/{SLUG}/run"
        connection.request("POST", path, pieces, headers, encode_chunked=framing == "chunked")
        answer = connection.getresponse()
        problem = json.loads(answer.read())
    finally:
        connection.close()
    codes = {code, "upload_too_large"} if files is None else {code}
    assert answer.status == 413 and problem["code"] in codes


def test_program_that_uploads_too_much_gets_the_answer(
    cluster: Cluster, nodes: list[Process], tool_id: str
) -> None:
    with cluster.client(nodes[0]) as client:
        answer = client.run_tool(SLUG, files=[("a.bin", bytes(30_000_000))])
    assert (answer.status_code, answer.json()["code"]) == (413, "file_too_large")
