"""Which worker made a container: a name that tells others on the same machine whether it lives."""

import os
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def name_owner() -> str:
    """Name this process: machine since its start, PID namespace, PID, and when it started."""
    return f"{_name_view()}/{os.getpid()}/{_started(os.getpid())}"


def is_gone(owner: str) -> bool:
    """Tell whether a process is certainly gone; one that cannot be seen from here may live."""
    view, _, process = owner.rpartition("/")
    view, _, pid = view.rpartition("/")
    if view != _name_view() or not pid.isdigit():
        return False
    return _started(int(pid)) != process


def _name_view() -> str:
    namespace = os.stat("/proc/self/ns/pid").st_ino  # noqa: PTH116
    return f"{_BOOT_ID.read_text().strip()}/{namespace}"


def _started(pid: int) -> str | None:
    """When a process started, in ticks since boot: PIDs are used again, both together are not."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name in parentheses may hold anything; the fields follow the last one.
    fields = stat.rpartition(b")")[2].split()
    return None if fields[0] == b"Z" else fields[19].decode()
