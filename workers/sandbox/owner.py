"""Which worker made a container or a directory: a name that tells others whether it lives."""

import hashlib
import os
from pathlib import Path

LEFT_OVER_SECONDS = 10.0  # how often one looks for what dead workers left
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def name_owner() -> str:
    """Name this process: machine since its start, PID namespace, PID, and when it started."""
    return f"{_name_view()}/{os.getpid()}/{_started(os.getpid())}"


def is_gone(owner: str) -> bool:
    """Tell whether a process is certainly gone; one that cannot be seen from here may live."""
    if not is_in_sight(owner):
        return False
    _, pid, started = owner.split("/")
    return _started(int(pid)) != started


def is_in_sight(owner: str) -> bool:
    """Tell whether a process that lives could be seen from here."""
    view, _, process = owner.partition("/")
    return view == _name_view() and process.partition("/")[0].isdigit() and process.count("/") == 1


def _name_view() -> str:
    namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116
    view = f"{_BOOT_ID.read_text().strip()}/{namespace}"
    # Short: it goes into paths of directories, below which tools make sockets.
    return hashlib.sha256(view.encode()).hexdigest()[:12]


def _started(pid: int) -> str | None:
    """When a process started, in ticks since boot: PIDs are used again, both together are not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name in parentheses may hold anything; the fields follow the last one.
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] == b"Z" else fields[19].decode()
