"""What confines a container: its `HostConfig`, in the words of the Engine API.

Every layer of it is said here and not left to an engine's defaults, which differ between versions.
What each is for, and what none of them keeps out, stands in `infra/runner/THREATS.md`.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

from workers.sandbox.base import SandboxLimits

# A run is a user of its own: the kernel counts some things for each user (descriptors on their
# way, bytes in pipes), and one run could use up another's. The image has a name for each of these,
# and an engine that remaps users a place: that has 65 536. For the one group nothing is counted.
UIDS = range(20_000, 24_096)
GID = 10001
USER = "runner"
TEMP_BYTES = 128 * 1024 * 1024
OPEN_FILES = 1024
LOCKED_BYTES = 8 * 1024 * 1024
SECCOMP_PROFILE = Path(__file__).resolve().parents[2] / "infra" / "runner" / "seccomp.json"

# The engine's own list, and what else tells of the machine: how it was booted, its disks, its
# kernel's options and modules, its serial numbers. A list given replaces the engine's.
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/cmdline",
    "/proc/config.gz",
    "/proc/diskstats",
    "/proc/interrupts",
    "/proc/kallsyms",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/modules",
    "/proc/partitions",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/swaps",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/dmi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/hypervisor",
)
READ_ONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


def make_host_config(
    limits: SandboxLimits, labels: dict[str, str], uid: int, *, runtime: str | None, cpu_count: int
) -> dict[str, Any]:
    """Return the confinement of one run; `cpu_count` 0 means an engine without CPU limits."""
    # What a run wrote is data, never a program: neither for execve nor for the dynamic linker.
    own = f"noexec,nosuid,nodev,nr_inodes=100k,uid={uid},gid={GID}"
    config: dict[str, Any] = {
        "AutoRemove": True,
        "NetworkMode": "none",
        "IpcMode": "private",
        "CgroupnsMode": "private",  # on cgroup v1 the engine's default is the host's
        "ReadonlyRootfs": True,
        "MaskedPaths": list(MASKED_PATHS),
        "ReadonlyPaths": list(READ_ONLY_PATHS),
        "Mounts": [
            {
                "Type": "volume",
                "Target": "/work",
                "VolumeOptions": {
                    "NoCopy": True,
                    "Labels": labels,
                    "DriverConfig": {
                        "Name": "local",
                        "Options": {
                            "type": "tmpfs",
                            "device": "tmpfs",
                            # An engine that remaps users mounts it as a user of the machine, who
                            # is nobody inside. There is one user inside, and outside only root
                            # gets this far.
                            "o": f"size={limits.work_bytes},{own},mode=0777",
                        },
                    },
                },
            }
        ],
        "Tmpfs": {"/tmp": f"size={TEMP_BYTES},{own},mode=0700"},  # noqa: S108
        "CapDrop": ["ALL"],
        "SecurityOpt": ["no-new-privileges:true", f"seccomp={load_seccomp_profile()}"],
        "Init": True,
        "Memory": limits.memory_bytes,
        "MemorySwap": limits.memory_bytes,  # the same: no swap on top
        "PidsLimit": limits.processes,
        "OomScoreAdj": 500,  # before anything of the host's own
        "Ulimits": _make_ulimits(limits),
        "LogConfig": {"Type": "none"},
    }
    if runtime is not None:
        config["Runtime"] = runtime
    if cpu_count:  # the engine refuses what its machine does not have
        config["NanoCpus"] = int(min(limits.cpus, cpu_count) * 1_000_000_000)
    return config


@cache
def load_seccomp_profile() -> str:
    """Return the system calls that are allowed, in the engine's JSON and without our comments."""
    profile: dict[str, Any] = json.loads(SECCOMP_PROFILE.read_bytes())
    for part in (profile, *profile["syscalls"]):
        del part["comment"]
    return json.dumps(profile, separators=(",", ":"))


def _make_ulimits(limits: SandboxLimits) -> list[dict[str, Any]]:
    # No limit of processes here: PidsLimit counts a container's own, whoever's they are.
    hard = {
        "nofile": OPEN_FILES,
        "fsize": limits.work_bytes,
        "memlock": LOCKED_BYTES,
        "msgqueue": 0,
        "core": 0,
    }
    return [{"Name": name, "Soft": value, "Hard": value} for name, value in hard.items()]
