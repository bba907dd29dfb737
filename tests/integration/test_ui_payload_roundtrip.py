"""What the normalizer made comes back from a real `jsonb` column as the same bytes."""

import json
import math
import struct
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.devstack import DevStack
from app.domain.normalizer import canonical_json, normalize

pytestmark = pytest.mark.asyncio(loop_scope="session")

BATCH = 200


@pytest.fixture(scope="module")
async def connection(devstack: DevStack) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(devstack.database_url)
    try:
        await connection.execute(
            "CREATE TEMP TABLE payloads (id int PRIMARY KEY, ui_payload jsonb NOT NULL)"
        )
        yield connection
    finally:
        await connection.close()


async def _store(connection: asyncpg.Connection, payloads: list[bytes]) -> list[str]:
    """Return the text that PostgreSQL gives for each stored payload."""
    await connection.execute("TRUNCATE payloads")
    rows = [(index, data.decode()) for index, data in enumerate(payloads)]
    await connection.executemany("INSERT INTO payloads VALUES ($1, $2)", rows)
    found = await connection.fetch("SELECT ui_payload FROM payloads ORDER BY id")
    return [row["ui_payload"] for row in found]


def _raw(value: Any) -> dict[str, Any]:
    return {
        "contract_version": 2,
        "status": "succeeded",
        "outputs": [
            {"kind": "json", "value": value},
            {
                "kind": "table",
                "columns": [{"key": "a", "label": "A"}],
                "rows": [{"a": value}],
                "title": "Å",
            },
            {"kind": "vega_lite", "spec": {"mark": "bar", "title": value}},
        ],
        "next_actions": [
            {
                "action_id": "a",
                "label": "A",
                "kind": "form",
                "fields": [{"name": "x", "label": "X", "kind": "text"}],
                "prefill": {"x": value},
            }
        ],
        "state": {"value": value},
    }


async def _check(connection: asyncpg.Connection, values: list[Any]) -> None:
    made = [normalize(_raw(value)) for value in values]
    payloads = [item.ui_payload_bytes for item in made]
    states = [canonical_json(item.state) for item in made]
    for sent, stored in zip(
        payloads + states, await _store(connection, payloads + states), strict=True
    ):
        assert canonical_json(msgspec.json.decode(stored)) == sent
        assert canonical_json(json.loads(stored)) == sent


_SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(min_value=-(10**40), max_value=10**40)
    | st.floats()
    | st.floats(min_value=1e14, max_value=1e18)
    | st.text(st.characters(), max_size=10)
)
_VALUES = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=6)
        | st.dictionaries(st.text(st.characters(), max_size=6), inner, max_size=6)
    ),
    max_leaves=25,
)


async def test_any_value_comes_back_as_the_same_bytes(connection: asyncpg.Connection) -> None:
    # Hypothesis calls plain functions: it draws here, and the checks run in batches below.
    drawn: list[Any] = []

    @settings(
        max_examples=1000,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(value=_VALUES)
    def draw(value: Any) -> None:
        drawn.append(value)

    draw()
    for start in range(0, len(drawn), BATCH):
        await _check(connection, drawn[start : start + BATCH])


@pytest.mark.parametrize(
    "value",
    [
        [1e22, -1e22, 1e16, 1e15, 9999999999999998.0, 1.7976931348623157e308, -1e300],
        [0.0, -0.0, 1.0, -1.0, 100.0, 1e-7, 5e-324, 2.2250738585072014e-308, 0.1, 1 / 3],
        [2**53, 2**53 + 1, -(2**53) - 1, 2**63, 2**64, 2**64 + 1, 10**22, 10**308, 10**4298],
        [math.nan, math.inf, -math.inf, True, None],
        [
            "\x00",
            "\ud800",
            "\u2028",
            "\x7f",
            "\x1f",
            "\\u0000",
            '"',
            "/",
            "😀",
            "e\u0301",
            "\uffff",
        ],
        {"b": 1, "a": 2, "å": 3, "aa": 4, "": 5, "😀": 6, "\uffff": 7, "B": 8, "a\x00": 9},
    ],
    ids=["large floats", "small floats", "integers", "not finite", "texts", "keys"],
)
async def test_hard_cases_come_back_as_the_same_bytes(
    connection: asyncpg.Connection, value: Any
) -> None:
    await _check(connection, [value])


async def test_floats_of_all_bit_patterns_come_back(connection: asyncpg.Connection) -> None:
    # Every exponent, with mantissas that make the shortest and the longest digits.
    mantissas = [0, 1, 0x5555555555555, 0x8000000000000, 0xFFFFFFFFFFFFF]
    floats = [
        struct.unpack("d", struct.pack("Q", exponent << 52 | mantissa))[0]
        for exponent in range(2047)
        for mantissa in mantissas
    ]
    await _check(
        connection, [floats[start : start + 1500] for start in range(0, len(floats), 1500)]
    )
