"""Memory of uploads: a byte budget a node, and a part's bytes as a request body.

Invariant: whoever waits for a buffer holds only buffers that are on their way to the server. What
others hold may fill slowly, as slowly as their clients send: so a wait that lasts is let over the
budget, up to a second, harder one.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator

# S3 takes no less than 5 MiB for a part that is not the last; each part costs a round trip.
PART_BYTES = 8 * 1024 * 1024
# Fast uploads give back a buffer in a fraction of this; who waits longer waits for slow clients.
PATIENCE_SECONDS = 3.0
SLICE_BYTES = 128 * 1024


class BufferBudget:
    """Bytes that all uploads of this process may hold in part buffers; first come, first served."""

    def __init__(self, total_bytes: int, max_bytes: int) -> None:
        """`total_bytes` is the budget; waits that last are let over it, up to `max_bytes`."""
        # One part must fit, or nothing would ever be uploaded.
        self.total_bytes = max(total_bytes, PART_BYTES)
        self.free_bytes = self.total_bytes
        self._overdraft_bytes = max(max_bytes - self.total_bytes, 0)
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    async def reserve(self, count: int) -> None:
        """Wait until `count` bytes are free and take them. The caller must release them."""
        if not self._waiting and count <= self.free_bytes:
            self.free_bytes -= count
            return
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        self._waiting.append((count, turn))
        loop.call_later(PATIENCE_SECONDS, self._overdraw, count, turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release(count)  # Served and cancelled at the same moment.
            else:
                self._waiting.remove((count, turn))
                self._serve()
            raise

    def release(self, count: int) -> None:
        self.free_bytes += count
        self._serve()

    def _overdraw(self, count: int, turn: asyncio.Future[None]) -> None:
        if turn.done():
            return
        if count <= self.free_bytes + self._overdraft_bytes:
            self._waiting.remove((count, turn))
            self.free_bytes -= count
            turn.set_result(None)
        else:
            asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._overdraw, count, turn)

    def _serve(self) -> None:
        while self._waiting and self._waiting[0][0] <= self.free_bytes:
            count, turn = self._waiting.popleft()
            if not turn.done():
                self.free_bytes -= count
                turn.set_result(None)


class PartBody:
    """Bytes as a request body that is sent in slices, without a copy, as often as is needed.

    The drivers ask for three things: `read` marks it as a file, `seek` and `tell` rewind and
    measure it, and iteration (always from the start) feeds the socket; a large `bytes` would be
    copied whole into the transport.
    """

    def __init__(self, data: bytearray) -> None:
        self._data = data
        self._position = 0

    def __len__(self) -> int:
        return len(self._data)

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = 0) -> int:
        base = (0, self._position, len(self._data))[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, count: int = -1) -> bytes:
        end = None if count < 0 else self._position + count
        chunk = bytes(self._data[self._position : end])
        self._position += len(chunk)
        return chunk

    async def __aiter__(self) -> AsyncIterator[memoryview]:
        view = memoryview(self._data)
        for start in range(0, len(view), SLICE_BYTES):
            yield view[start : start + SLICE_BYTES]
            await asyncio.sleep(0)  # A fast socket never waits; the loop's others must run too.
