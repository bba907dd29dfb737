"""The last step before the runner in the process sandbox: puts what fences there are around itself.

Run as a program of its own, inside the namespaces that `unshare` made: `python fence.py '{…}'`
(see `Fence`). Standard library only: it imports nothing of ours. It ends by becoming the runner,
or with exit code 0 when there is none to become, which is how a kernel is probed.
"""

import ctypes
import json
import os
import resource
import sys
from dataclasses import dataclass

MIB = 1024 * 1024
SHARED_MEMORY_BYTES = 64 * MIB
OPEN_FILES = 1024

_MS_NOSUID, _MS_NODEV = 2, 4
_SYS_MOUNT_SETATTR = 442  # the same number on x86-64 and arm64
_AT_FDCWD, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = -100, 0x8000, 1
_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 24, 38
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Fence:
    """What to fence: the runner's work directory, its limits, and which namespaces it is in."""

    root: str
    runner: str | None
    work_bytes: int
    memory_bytes: int
    processes: int
    cpu_seconds: int
    in_user_namespace: bool
    in_pid_namespace: bool
    in_mount_namespace: bool


def main() -> None:
    fence = Fence(**json.loads(sys.argv[1]))
    if fence.in_pid_namespace and fence.in_mount_namespace:
        _cap_pids(fence.processes)
    if fence.in_mount_namespace:
        _make_read_only()
        _mount_tmpfs(fence.root, fence.work_bytes)
        # Semaphores need the first; in the second are the sockets of the machine's services.
        for path in ("/dev/shm", "/run"):  # noqa: S108
            if os.path.isdir(path):  # noqa: PTH112
                _mount_tmpfs(path, SHARED_MEMORY_BYTES)
    os.makedirs(os.environ["HOME"], 0o700, exist_ok=True)  # noqa: PTH103
    os.chdir(fence.root)
    _drop_powers()
    _set_limits(fence)
    if fence.runner is not None:
        os.execv(sys.executable, [sys.executable, "-I", fence.runner])  # noqa: S606


def _cap_pids(processes: int) -> None:
    """Let the namespace have only so many processes, where the kernel counts per namespace.

    It does from 6.14 on. Before, this file is the whole machine's, and root may write it: so the
    version decides, not an attempt. It takes no number below 301.
    """
    if _kernel() >= (6, 14):
        try:
            with open("/proc/sys/kernel/pid_max", "w") as file:  # noqa: PTH123
                file.write(str(max(301, processes)))
        except OSError:
            return  # RLIMIT_NPROC is left, which does not bind root


def _make_read_only() -> None:
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY, 0, 0, 0)
    _check(
        _libc.syscall(
            _SYS_MOUNT_SETATTR,
            _AT_FDCWD,
            b"/",
            _AT_RECURSIVE,
            ctypes.byref(attributes),
            ctypes.sizeof(attributes),
        )
    )


def _mount_tmpfs(path: str, size_bytes: int) -> None:
    options = f"size={size_bytes},mode=0700".encode()
    _check(_libc.mount(b"tmpfs", os.fsencode(path), b"tmpfs", _MS_NOSUID | _MS_NODEV, options))


def _drop_powers() -> None:
    """Give up every capability for good, so that none of the mounts can be undone."""
    capability = 0
    while _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0) == 0:
        capability += 1
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    nothing = (ctypes.c_uint32 * 6)()
    _libc.capset(ctypes.byref(header), ctypes.byref(nothing))
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _set_limits(fence: Fence) -> None:
    # Libraries reserve address space that they never touch, so it is given twice what memory is.
    limits = {
        resource.RLIMIT_AS: 2 * fence.memory_bytes,
        resource.RLIMIT_DATA: fence.memory_bytes,
        resource.RLIMIT_FSIZE: fence.work_bytes,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CPU: fence.cpu_seconds,
        resource.RLIMIT_CORE: 0,
    }
    # Elsewhere the count is of all the user's processes, and the first fork would fail.
    if fence.in_user_namespace and _kernel() >= (5, 14):
        limits[resource.RLIMIT_NPROC] = fence.processes
    for limit, value in limits.items():
        hard = resource.getrlimit(limit)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (value, value))


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int("".join(filter(str.isdigit, minor)) or 0)


def _check(result: int) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


if __name__ == "__main__":
    main()
