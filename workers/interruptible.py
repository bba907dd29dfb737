"""Work that others may end, for a reason that they give: `asyncio.timeout`, but not for time."""

import asyncio
from types import TracebackType


class Interruptible:
    """Blocks of work, one after the other, that `interrupt` ends.

    What is not in a block goes on undisturbed: cleaning up after one, say, or writing its end.
    """

    def __init__(self) -> None:
        self._reason: Exception | None = None
        self._task: asyncio.Task[object] | None = None

    def interrupt(self, reason: Exception) -> None:
        """Cancel the block, or the next one as it begins: it raises `reason`; the first holds.

        A block that returns all the same has not been interrupted.
        """
        if self._reason is None:
            self._reason = reason
            if self._task is not None:
                self._task.cancel()

    def __enter__(self) -> None:
        if self._reason is not None:
            raise self._reason
        self._task = asyncio.current_task()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self._task = self._task, None
        if self._reason is None or task is None:
            return
        task.uncancel()
        if error is not None:
            # Cleaning up may have failed too, and then that is what comes out of the block.
            raise self._reason from error
