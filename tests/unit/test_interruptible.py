"""Work that is ended for a reason: the reason comes out of it, and nothing of it goes on."""

import asyncio
import time
from typing import NoReturn

import pytest

from workers.interruptible import Interruptible
from workers.retries import retry


class Reason(Exception):
    pass


class Away(Exception):
    pass


async def test_the_reason_is_raised_and_the_task_goes_on() -> None:
    work = Interruptible()
    reason = Reason()
    asyncio.get_running_loop().call_soon(work.interrupt, reason)
    asyncio.get_running_loop().call_soon(work.interrupt, Reason("too late: the first holds"))
    with pytest.raises(Reason) as raised, work:
        await asyncio.sleep(10)
    assert raised.value is reason
    await asyncio.sleep(0)
    with pytest.raises(Reason), work:
        raise AssertionError("the next block does not begin")


async def test_the_inner_block_of_two_is_ended_by_the_outer_ones_reason() -> None:
    outer, inner = Interruptible(), Interruptible()
    asyncio.get_running_loop().call_soon(outer.interrupt, Reason())
    with pytest.raises(Reason), outer, inner:
        await asyncio.sleep(10)
    with inner:
        await asyncio.sleep(0)


async def test_a_cleaning_up_that_fails_does_not_hide_the_reason() -> None:
    work = Interruptible()
    asyncio.get_running_loop().call_soon(work.interrupt, Reason())
    with pytest.raises(Reason), work:
        try:
            await asyncio.sleep(10)
        finally:
            raise Away


async def test_a_block_that_returns_has_not_been_interrupted() -> None:
    work = Interruptible()
    asyncio.get_running_loop().call_soon(work.interrupt, Reason())
    with work:
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            result = "it was done already"
    assert result
    await asyncio.sleep(0)


async def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def be_cancelled() -> None:
        with Interruptible():
            await asyncio.sleep(10)

    task = asyncio.create_task(be_cancelled())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_what_fails_as_it_is_ended_is_not_tried_again() -> None:
    tries = 0

    async def fail_when_ended() -> NoReturn:
        nonlocal tries
        tries += 1
        try:
            await asyncio.sleep(10)
        finally:
            raise Away

    work = Interruptible()
    asyncio.get_running_loop().call_later(0.01, work.interrupt, Reason())
    with pytest.raises(Reason), work:
        await retry(fail_when_ended, Away, until=time.monotonic() + 60, report=lambda _: None)
    assert tries == 1


async def test_what_stays_away_is_given_up_in_time() -> None:
    seen: list[Away] = []

    async def fail() -> NoReturn:
        raise Away

    started = time.monotonic()
    with pytest.raises(Away):
        await retry(fail, Away, until=started + 0.3, report=seen.append)
    assert seen
    assert 0.3 <= time.monotonic() - started < 5
