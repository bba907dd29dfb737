"""Hostile tools that look for the machine and a way out of their container."""

from hostile_tools import CRASHED, NOTHING, SUCCEEDED, Hostile

from workers.sandbox.confinement import GID

_READ_HOST = """
for path in ("/proc/kcore", "/proc/kmsg", "/dev/kmsg", "/dev/mem", "/proc/sysrq-trigger",
             "/proc/cmdline", "/proc/keys", "/proc/timer_list", "/proc/modules", "/proc/kallsyms",
             "/proc/partitions", "/proc/diskstats", "/proc/config.gz", "/proc/slabinfo",
             "/etc/shadow", "/root/.ssh/id_ed25519", "/var/run/docker.sock",
             "/sys/firmware/dmi/tables/DMI", "/sys/class/dmi/id/product_uuid",
             "/sys/devices/virtual/dmi/id/board_asset_tag", "/sys/hypervisor/uuid",
             "/sys/kernel/debug", "/sys/kernel/tracing", "/sys/fs/pstore", "/sys/fs/bpf"):
    if attempt(path, os.listdir if os.path.isdir(path) else read, path) in (b"", []):
        got.remove(path)  # masked
"""

HOST = [
    Hostile("what /proc and /sys tell", _READ_HOST + "print(got)", SUCCEEDED, reports=NOTHING),
    Hostile(
        "writing to the kernel",
        """
        for path in ("/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe",
                     "/proc/sys/vm/panic_on_oom", "/proc/sys/net/ipv4/ip_forward",
                     "/proc/sys/fs/binfmt_misc/register", "/proc/sysrq-trigger",
                     "/proc/irq/default_smp_affinity", "/sys/power/state",
                     "/sys/kernel/uevent_helper", "/sys/class/net/lo/mtu",
                     "/proc/self/uid_map", "/proc/self/attr/current", "/sys/kernel/profiling"):
            attempt(path, write, path, "1")
        print(got)
        """,
        SUCCEEDED,
        reports=NOTHING,
    ),
    Hostile(
        "out through cgroups",
        """
        for pattern in ("release_agent", "notify_on_release", "cgroup.procs", "tasks",
                        "memory.limit_in_bytes", "memory.max", "pids.max", "cpu.cfs_quota_us",
                        "cpu.max", "devices.allow", "cgroup.subtree_control"):
            for top in ("/sys/fs/cgroup/", "/sys/fs/cgroup/*/"):
                for path in glob.glob(top + pattern):
                    attempt(path, write, path, "-1")
        for path in glob.glob("/sys/fs/cgroup/*"):
            attempt(path, os.mkdir, path + "/x")
        # Its own groups look like the root of all: no id of its container, no neighbours.
        groups = {line.rpartition(":")[2] for line in open("/proc/self/cgroup").read().split()}
        print(got, groups)
        """,
        SUCCEEDED,
        reports="[] {'/'}\n",
    ),
    Hostile(
        "writing where others would find it",
        """
        for directory in ("/", "/etc", "/usr/bin", "/opt/skriptoteket", "/opt/packages", "/var/tmp",
                          "/root", "/home", "/run", "/dev", "/mnt", os.path.dirname(os.__file__),
                          "/dev/mqueue", "/proc/1/root/etc", "/proc/self/cwd/../etc"):
            attempt(directory, write, f"{directory}/{CANARY}")
        print(got)
        """,
        SUCCEEDED,
        reports=NOTHING,
    ),
    Hostile(
        "planting code for who comes next",
        """
        import site
        for directory in (site.getusersitepackages(), "/tmp", "/dev/shm", input_dir, "/work"):
            os.makedirs(directory, exist_ok=True)
            write(f"{directory}/{CANARY}")
            write(f"{directory}/sitecustomize.py", "raise SystemExit('planterad')")
            write(f"{directory}/{CANARY}.pth", "import os; os._exit(1)")
        """,
        SUCCEEDED,
    ),
    Hostile(
        "setuid attempts",
        """
        for name in ("setuid", "setgid", "seteuid", "setegid"):
            attempt(name, getattr(os, name), 0)
        attempt("setgroups", os.setgroups, [0])
        attempt("chown", os.chown, input_dir, 0, 0)
        attempt("setuid file", os.setresuid, 0, 0, 0)
        shutil.copy("/usr/bin/id", "/tmp/id")
        os.chmod("/tmp/id", 0o6755)
        attempt("execute", subprocess.run, ["/tmp/id"])
        # In what the user may download nothing is left of such a mode.
        shutil.copy("/usr/bin/true", output_dir)
        os.chmod(output_dir + "/true", 0o6777)
        status = dict(line.split(":", 1) for line in open("/proc/self/status"))
        lent = subprocess.run("find / -xdev -perm /6000 -type f", shell=True, text=True,
                              capture_output=True).stdout
        print(len({*os.getresuid()}), 0 in os.getresuid(), {*os.getresgid()})
        print(got, {status[f"Cap{kind}"].strip("0\\t\\n") for kind in ("Inh", "Prm", "Eff", "Bnd",
              "Amb")}, status["NoNewPrivs"].strip(), status["Seccomp"].strip(), repr(lent))
        """,
        SUCCEEDED,
        reports=f"1 False {{{GID}}}\n[] {{''}} 1 2 ''\n",
    ),
    Hostile(
        "a program of its own",
        """
        import mmap
        program = read("/usr/bin/true") + open("/usr/bin/true", "rb").read()[1000:]
        for directory in (input_dir, output_dir, "/tmp", "/dev/shm"):
            path = f"{directory}/program"
            with open(path, "wb") as file:
                file.write(program)
            os.chmod(path, 0o755)
            attempt(path, subprocess.run, [path])
            attempt(path, ctypes.CDLL, path)
            with open(path, "rb") as file:
                attempt(path, mmap.mmap, file.fileno(), 0, mmap.MAP_PRIVATE,
                        mmap.PROT_READ | mmap.PROT_EXEC)
            linker = glob.glob("/lib*/ld-linux-*.so*") + glob.glob("/lib/*/ld-linux-*.so*")
            if subprocess.run([linker[0], path], stderr=subprocess.DEVNULL).returncode == 0:
                got.append("linker")
            os.unlink(path)
        attempt("memfd", os.memfd_create, "x")
        print(got)
        """,
        SUCCEEDED,
        reports=NOTHING,
    ),
    Hostile(
        "32-bit system calls",
        r"""
        import mmap
        if os.uname().machine == "x86_64":  # mov eax, 20 (getpid); int 0x80; ret
            code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
            code.write(b"\xb8\x14\0\0\0\xcd\x80\xc3")
            address = ctypes.addressof(ctypes.c_char.from_buffer(code))
            print(ctypes.CFUNCTYPE(ctypes.c_int)(address)(), flush=True)
        os._exit(1)
        """,
        CRASHED,
        "utan resultat",
        reports="",
    ),
]


# Each with its number on x86-64 and on arm64: libc has no wrappers for all of them.
_SYSCALLS = """
    acct 163 89, add_key 248 217, bpf 321 280, chroot 161 51, clock_settime 227 112,
    delete_module 176 106, fanotify_init 300 262, finit_module 313 273, fsopen 430 430,
    init_module 175 105, inotify_init1 294 26, io_setup 206 0, io_uring_setup 425 425,
    ioprio_set 251 30, kcmp 312 272, kexec_load 246 104, keyctl 250 219,
    landlock_create_ruleset 444 444, mbind 237 235, memfd_create 319 279, mlockall 151 230,
    mount 165 40, mount_setattr 442 442, move_mount 429 429, mq_open 240 180, msgget 68 186,
    name_to_handle_at 303 264, open_by_handle_at 304 265, open_tree 428 428,
    perf_event_open 298 241, pidfd_getfd 438 438, pivot_root 155 41, pkey_alloc 330 289,
    process_madvise 440 440, process_vm_readv 310 270, process_vm_writev 311 271, ptrace 101 117,
    quotactl 179 60, reboot 169 142, request_key 249 218, sched_setscheduler 144 119,
    seccomp 317 277, semget 64 190, sethostname 170 161, setns 308 268, settimeofday 164 170,
    shmget 29 194, splice 275 76, swapon 167 224, syslog 103 116, tee 276 77, umount2 166 39,
    unshare 272 97, userfaultfd 323 282, vhangup 153 58, vmsplice 278 75
"""

KERNEL = [
    Hostile(
        "system calls that nothing here needs",
        f"""
        import errno
        this = ["x86_64", "aarch64"].index(os.uname().machine)
        for name, *numbers in map(str.split, {_SYSCALLS!r}.split(",")):
            try:
                syscall(int(numbers[this]), -1, -1, -1, -1, -1, -1)
                got.append(name)
            except OSError as error:
                if error.errno != errno.EPERM:  # it got as far as the kernel
                    got.append((name, errno.errorcode[error.errno]))
        print(got)
        """,
        SUCCEEDED,
        reports=NOTHING,
    ),
    Hostile(
        "namespaces of its own",
        """
        clone, clone3 = {"x86_64": (56, 435), "aarch64": (220, 435)}[os.uname().machine]
        for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
            attempt(hex(flag), syscall, clone, flag | signal.SIGCHLD, 0, 0, 0, 0)
        attempt("clone3", syscall, clone3, 0, 0)
        attempt("personality", syscall, {56: 135, 220: 92}[clone], 0x0040000)  # without ASLR
        for command in (["unshare", "-Ur", "true"], ["chroot", "/tmp", "true"],
                        ["mount", "-t", "tmpfs", "x", "/tmp"], ["su", "-c", "true"]):
            if subprocess.run(command, stderr=subprocess.DEVNULL,
                              stdin=subprocess.DEVNULL).returncode == 0:
                got.append(command)
        print(got)
        """,
        SUCCEEDED,
        reports=NOTHING,
    ),
    Hostile(
        "sockets that reach the kernel's corners",
        """
        # Netlink, packets, Bluetooth, ALG, VSOCK, TIPC, XDP, SMC; then raw IP, ICMP, SCTP, DCCP.
        for family in (16, 17, 31, 38, 40, 30, 44, 43, 21, 9, 3, 4, 5):
            for kind in (1, 2, 3, 5):
                attempt((family, kind), lambda: socket.socket(family, kind, 0).close())
        for family in (2, 10):
            for kind, protocol in ((3, 1), (3, 255), (2, 1), (1, 132), (6, 33), (2, 136), (1, 262)):
                attempt((family, protocol), lambda: socket.socket(family, kind, protocol).close())
        attempt("pair", socket.socketpair, 30, 1)
        print(got)
        """,
        SUCCEEDED,
        reports=NOTHING,
    ),
    Hostile(
        "keystrokes into a terminal",
        """
        import fcntl, termios
        for path in ("/dev/ptmx", "/dev/tty", "/dev/pts/0", "/dev/console"):
            fd = attempt(path, os.open, path, os.O_RDWR | os.O_NOCTTY)
            if fd is not None:
                got.remove(path)
                attempt("push", fcntl.ioctl, fd, termios.TIOCSTI, b"x")
                attempt("unlock", fcntl.ioctl, fd, 0x40045431, bytes(4))
                attempt("discipline", fcntl.ioctl, fd, termios.TIOCSETD, bytes(4))
                # The kernel takes 32 bits of the command; a filter of 64 would be passed by.
                attempt("high bits", syscall, {"x86_64": 16, "aarch64": 29}[os.uname().machine],
                        fd, ctypes.c_ulong(1 << 32 | termios.TIOCSTI), b"x")
        print(got)
        """,
        SUCCEEDED,
        reports=NOTHING,
    ),
]
