"""Work that is seen through although its caller is cancelled."""

import asyncio

import pytest

from app.concurrency import run_to_end


async def test_value_and_error_are_the_work_s_own() -> None:
    async def fail() -> None:
        raise ValueError("fel")

    assert await run_to_end(asyncio.sleep(0, "klart")) == "klart"
    with pytest.raises(ValueError, match="fel"):
        await run_to_end(fail())


@pytest.mark.parametrize("fails", [False, True])
async def test_work_ends_before_the_cancellation_goes_on(
    fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    begun, may_end, ended = asyncio.Event(), asyncio.Event(), False

    async def work() -> None:
        nonlocal ended
        begun.set()
        await may_end.wait()
        ended = True
        if fails:
            raise ValueError("fel")

    task = asyncio.create_task(run_to_end(work()))
    await begun.wait()
    for _ in range(3):  # however often
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended
    assert ("cleanup.failed" in caplog.text) is fails
