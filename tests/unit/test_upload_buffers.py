"""The byte budget of uploads, and bodies that can be sent twice."""

import asyncio
import os

import pytest

from app.store import upload_buffers
from app.store.upload_buffers import PART_BYTES, BufferBudget, PartBody


async def test_budget_serves_in_order_and_survives_a_cancelled_wait() -> None:
    budget = BufferBudget(PART_BYTES, PART_BYTES)
    await budget.reserve(PART_BYTES)
    order: list[str] = []

    async def wait(name: str) -> None:
        await budget.reserve(PART_BYTES)
        order.append(name)
        budget.release(PART_BYTES)

    tasks = [asyncio.create_task(wait(name)) for name in "abc"]
    await asyncio.sleep(0)
    tasks[0].cancel()
    budget.release(PART_BYTES)
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order == ["b", "c"]
    assert budget.free_bytes == PART_BYTES


async def test_body_is_sent_from_its_start_each_time() -> None:
    data = os.urandom(300_000)
    body = PartBody(bytearray(data))
    for _ in range(2):
        assert b"".join([bytes(piece) async for piece in body]) == data
    assert (body.seek(0, 2), body.tell(), body.seek(0)) == (300_000, 300_000, 0)
    assert body.read(10) == data[:10]
    assert len(body) == 300_000


async def test_slow_holders_do_not_starve_others_but_the_harder_cap_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(upload_buffers, "PATIENCE_SECONDS", 0.02)
    budget = BufferBudget(PART_BYTES, 2 * PART_BYTES)
    await budget.reserve(PART_BYTES)  # a client that sends slowly holds all of it
    async with asyncio.timeout(1):
        await budget.reserve(PART_BYTES)
    third = asyncio.create_task(budget.reserve(PART_BYTES))
    await asyncio.sleep(0.1)
    assert not third.done()
    budget.release(PART_BYTES)
    await asyncio.sleep(0.1)
    assert third.done()
    assert budget.free_bytes == -PART_BYTES
