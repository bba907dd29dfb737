"""Time-ordered ids."""

import os
import uuid
from datetime import datetime


def new_uuid7(now: datetime) -> uuid.UUID:
    """Make a UUIDv7 (RFC 9562 §5.7): 48 bits of milliseconds, then random bits.

    Ordered by creation to the millisecond, so index pages and object listings stay local.
    """
    return _make_uuid7(now, int.from_bytes(os.urandom(10)))


def uuid7_floor(at: datetime) -> uuid.UUID:
    """Return the least UUIDv7 of a moment: all that were made before it are less."""
    return _make_uuid7(at, 0)


class Uuid7Group:
    """Makes UUIDv7 that tell of each other that they belong together.

    They share the random half (`group_of`) and differ in time and in a counter before it, which
    RFC 9562 §6.2 allows (method 1); at most 4096 of them within a millisecond.
    """

    def __init__(self) -> None:
        self._tail = int.from_bytes(os.urandom(8))
        self._count = 0

    def new(self, now: datetime) -> uuid.UUID:
        self._count += 1
        return _make_uuid7(now, (self._count & 0xFFF) << 64 | self._tail)


def group_of(value: uuid.UUID) -> int:
    """Return what ids of one `Uuid7Group` have in common, and no others."""
    return value.int & (2**62 - 1)


def _make_uuid7(now: datetime, low: int) -> uuid.UUID:
    milliseconds = int(now.timestamp() * 1000)
    value = (milliseconds & (2**48 - 1)) << 80 | low
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=value)
