"""Time-ordered ids."""

import os
import uuid
from datetime import datetime


def new_uuid7(now: datetime) -> uuid.UUID:
    """Make a UUIDv7 (RFC 9562 §5.7): 48 bits of milliseconds, then random bits.

    Ordered by creation to the millisecond, so index pages and object listings stay local.
    """
    milliseconds = int(now.timestamp() * 1000)
    value = (milliseconds & (2**48 - 1)) << 80 | int.from_bytes(os.urandom(10))
    value = value & ~(0xF << 76) | 0x7 << 76
    value = value & ~(0x3 << 62) | 0x2 << 62
    return uuid.UUID(int=value)
