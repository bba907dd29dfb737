"""Hands: a run's own directory of links to cached files, and of what it is downloading.

Invariant: a hand is locked for as long as its holder lives. The kernel gives the lock back when
that dies, so a hand that can be locked belongs to nobody and may be removed.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4


@contextmanager
def hold_hand(hands: Path) -> Iterator[Path]:
    """Make a hand and remove it at the end.

    A path in it that outlives the block leads nowhere, never to a file of somebody else: that is
    why holders have names and not the numbers of open files.

    Raises:
        OSError
    """
    hand, lock = _make_hand(hands)
    try:
        yield hand
    finally:
        shutil.rmtree(hand, ignore_errors=True)
        os.close(lock)


def remove_dead_hands(hands: Path) -> None:
    """Remove what killed holders left behind."""
    for hand in hands.iterdir():
        try:
            lock = os.open(hand, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # Removed since, or nothing of ours.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(hand, ignore_errors=True)
        except BlockingIOError:
            pass  # It is held.
        finally:
            os.close(lock)


def _make_hand(hands: Path) -> tuple[Path, int]:
    while True:
        hand = hands / uuid4().hex
        hand.mkdir(mode=0o700)
        try:
            lock = os.open(hand, os.O_RDONLY | os.O_DIRECTORY)
        except FileNotFoundError:
            continue  # A sweep came before the lock, as it may until the lock is ours.
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(lock).st_nlink > 0:
                return hand, lock
        except BlockingIOError:
            pass
        except OSError:
            os.close(lock)
            raise
        os.close(lock)
