"""A multipart upload over a bare socket: sent in steps, left half-way, or never read from."""

import json
import select
import socket
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

BOUNDARY = "boundary-of-a-test"
END = f"--{BOUNDARY}--\r\n".encode()


def part(name: str, filename: str | None = None) -> bytes:
    """The head of a part; its content follows, then CRLF."""
    file = "" if filename is None else f'; filename="{filename}"'
    return (f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n').encode()


def form(files: Iterable[tuple[str, int]], **fields: str) -> Iterator[bytes]:
    """A form with fields and then files of so many bytes, in pieces that never get large."""
    for name, value in fields.items():
        yield part(name) + value.encode() + b"\r\n"
    for filename, size in files:
        yield part("files", filename)
        yield from zeros(size)
        yield b"\r\n"
    yield END


def zeros(size: int) -> Iterator[bytes]:
    piece = b"x" * 65_536
    for _ in range(size // len(piece)):
        yield piece
    yield piece[: size % len(piece)]


class RawUpload:
    """One POST of a form; without `length` it is sent chunked."""

    def __init__(self, url: str, path: str, token: str, length: int | None = None) -> None:
        host = urlsplit(url)
        self._is_chunked = length is None
        self.sent_bytes = 0
        self._received = b""
        self._socket = socket.create_connection((host.hostname or "", host.port or 80), timeout=60)
        # What is sent has left us: on a busy machine this kernel would keep megabytes of it.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 64 * 1024)
        size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
        head = (
            f"POST /api/v1{path} HTTP/1.1\r\nHost: {host.netloc}\r\n"
            f"Authorization: Bearer {token}\r\n{size}\r\n"
            f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
        )
        self._socket.sendall(head.encode())

    def __enter__(self) -> "RawUpload":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes | memoryview) -> None:
        if not data:
            return
        if self._is_chunked:
            self._socket.sendall(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._socket.sendall(data)
        self.sent_bytes += len(data)

    def finish(self) -> None:
        if self._is_chunked:
            self._socket.sendall(b"0\r\n\r\n")

    def send_until_answered(
        self, pieces: Iterable[bytes], patience_seconds: float = 0.0
    ) -> tuple[int, dict[str, str], Any]:
        """Send piece by piece until the whole answer is there; waits for it only at the end."""
        for piece in pieces:
            self.send(piece)
            if self._take(patience_seconds) and (answer := self._parse()) is not None:
                return answer
        self.finish()
        return self.answer()

    def answer(self) -> tuple[int, dict[str, str], Any]:
        """Wait for the answer: (status, headers in lower case, JSON body)."""
        while (answer := self._parse()) is None:
            assert self._take(60), f"no answer, or half of one: {self._received!r}"
        return answer

    def _take(self, seconds: float) -> bool:
        if not select.select([self._socket], [], [], seconds)[0]:
            return False
        received = self._socket.recv(65_536)
        self._received += received
        return bool(received)

    def _parse(self) -> tuple[int, dict[str, str], Any] | None:
        head, gap, body = self._received.partition(b"\r\n\r\n")
        if not gap:
            return None
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        if len(body) < int(headers["content-length"]):
            return None
        return int(status_line.split()[1]), headers, json.loads(body)
