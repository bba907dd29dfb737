"""The attached streams of a container: stdout to read, stdin to write, stderr kept aside.

The engine sends stdout and stderr in turns on one socket, each piece behind eight bytes: the
stream's number, three zeros, the length (big-endian).
"""

import asyncio
import socket

STDERR_KEEP_BYTES = 8 * 1024


class _Received(asyncio.StreamReader):
    """Knows that its end has come also when not all has been read."""

    has_ended = False

    def feed_eof(self) -> None:
        self.has_ended = True
        super().feed_eof()


class Attached:
    """One container's streams over the socket that the engine attached."""

    def __init__(self, received: _Received, stdin: asyncio.StreamWriter) -> None:
        self._received, self.stdin = received, stdin
        self._left = 0
        self.stderr = bytearray()

    @classmethod
    async def open(cls, connection: socket.socket) -> "Attached":
        """Go on with asyncio from here; the socket is ours."""
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        received = _Received()
        protocol = asyncio.StreamReaderProtocol(received)
        if connection.family == socket.AF_UNIX:
            transport, _ = await loop.create_unix_connection(lambda: protocol, sock=connection)
        else:
            transport, _ = await loop.create_connection(lambda: protocol, sock=connection)
        return cls(received, asyncio.StreamWriter(transport, protocol, received, loop))

    def close(self) -> None:
        self.stdin.transport.abort()  # unsent input is of no use to anyone

    @property
    def has_ended(self) -> bool:
        """True when the container, or the engine, is gone."""
        return self._received.has_ended or self.stdin.transport.is_closing()

    async def readexactly(self, n: int, /) -> bytes:
        """Read `n` bytes of stdout. Raises asyncio.IncompleteReadError at the end of the stream."""
        data = bytearray()
        while len(data) < n:
            if self._left == 0:
                self._left = await self._skip_to_stdout()
            piece = await self._received.readexactly(min(self._left, n - len(data)))
            self._left -= len(piece)
            data += piece
        return bytes(data)

    async def _skip_to_stdout(self) -> int:
        while True:
            head = await self._received.readexactly(8)
            length = int.from_bytes(head[4:], "big")
            if head[0] == 1:
                return length
            while length:
                piece = await self._received.readexactly(min(length, 64 * 1024))
                length -= len(piece)
                self.stderr += piece[: STDERR_KEEP_BYTES - len(self.stderr)]
