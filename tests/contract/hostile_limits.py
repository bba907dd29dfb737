"""Hostile tools that want more than their share: of memory, disk, processes, time."""

from hostile_tools import (
    BRIEF,
    MIB,
    NOTHING,
    OUT_OF_MEMORY,
    SUCCEEDED,
    TIMED_OUT,
    TOOL_FAILED,
    VIOLATION,
    Hostile,
)

EXHAUSTION = [
    Hostile(
        "fork bomb",
        """
        while True:
            try:
                os.fork()
            except OSError:
                pass
        """,
        TIMED_OUT,
        limits=BRIEF | {"processes": 32},
    ),
    Hostile(
        "thread bomb",
        """
        while True:
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        """,
        TOOL_FAILED,
        "oväntat fel",
        limits={"processes": 32},
    ),
    Hostile(
        "memory bomb",
        "kept = []\nwhile True: kept.append(bytearray(16 * 1024 * 1024))",
        OUT_OF_MEMORY,
        "för mycket minne",
        limits={"memory_bytes": 128 * MIB, "work_bytes": 16 * MIB},
    ),
    Hostile(
        "memory bomb of many processes",
        """
        for _ in range(8):
            if os.fork() == 0:
                kept = [bytearray(b"x") * (1 << 24) for _ in range(1000)]
        kept = [bytearray(b"x") * (1 << 24) for _ in range(1000)]
        """,
        OUT_OF_MEMORY,
        "för mycket minne",
        limits={"memory_bytes": 128 * MIB, "work_bytes": 16 * MIB},
    ),
    Hostile(
        "memory bomb of files in memory",
        """
        for directory in ("/tmp", input_dir, "/dev/shm"):
            attempt(directory, shutil.copyfile, "/dev/zero", directory + "/fill")
        """,
        OUT_OF_MEMORY,
        "för mycket minne",
        limits={"memory_bytes": 96 * MIB, "work_bytes": 64 * MIB},
    ),
    Hostile(
        "memory that cannot be swapped or moved",
        """
        libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        block = ctypes.create_string_buffer(64 << 20)
        group = "/sys/fs/cgroup/memory"
        no_swap = (read(group + ".swap.max") == b"0\\n" if os.path.exists(group + ".swap.max")
                   else read(group + "/memory.memsw.limit_in_bytes")
                   == read(group + "/memory.limit_in_bytes"))
        print(libc.mlock(block, len(block)), no_swap)
        """,
        SUCCEEDED,
        reports="-1 True\n",
    ),
    Hostile(
        "disk filler",
        """
        for number in range(100):
            with open(f"{input_dir}/{number}", "wb") as file:
                file.write(bytes(1 << 20))
        """,
        TOOL_FAILED,
        "fyllde sitt diskutrymme",
        limits={"work_bytes": 16 * MIB},
    ),
    Hostile(
        "100 000 small artifacts",
        """
        for number in range(100_000):
            try:
                os.close(os.open(f"{output_dir}/{number}", os.O_CREAT | os.O_WRONLY))
            except OSError:
                break
        """,
        VIOLATION,
        "fler filer än de 5",
    ),
    Hostile(
        "endless output",
        """
        if os.fork() == 0:
            while True:
                os.write(1, b"ut " * 10_000)
        while True:
            os.write(2, b"fel " * 10_000)
        """,
        TIMED_OUT,
        limits=BRIEF,
    ),
    Hostile(
        "endless progress",
        r"""
        while True:
            os.write(3, b'{"fraction": 0.5, "text": "' + b"x" * 3000 + b'"}\n')
        """,
        TIMED_OUT,
        limits=BRIEF,
    ),
    Hostile(
        "more processor than is its share",
        """
        until = time.monotonic() + 1
        for _ in range(4):
            if os.fork() == 0:
                while time.monotonic() < until:
                    pass
                os._exit(0)
        for _ in range(4):
            os.wait()
        used = os.times()
        share = [read(path).split()[0] for path in
                 glob.glob("/sys/fs/cgroup/cpu.max")
                 + glob.glob("/sys/fs/cgroup/cpu/cpu.cfs_quota_us")]
        print(used.children_user + used.children_system < 1, share)
        """,
        SUCCEEDED,
        reports="True [b'50000']\n",
        limits={"cpus": 0.5},
    ),
    Hostile(
        "every descriptor, pipe and socket there is",
        """
        kept = []
        try:
            while True:
                kept += [os.pipe(), socket.socketpair()]
        except OSError:
            pass
        for pair in kept[::2]:
            os.close(pair[0]), os.close(pair[1])
        print(len(kept) < 1024)
        """,
        SUCCEEDED,
        reports="True\n",
    ),
]


TIME = [
    Hostile("sleep past the limit", "time.sleep(1000)", TIMED_OUT, limits=BRIEF),
    Hostile(
        "ignoring SIGTERM, in a session of its own",
        """
        for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP}:
            signal.signal(number, signal.SIG_IGN)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(1000)
        subprocess.run(["sleep", "1000"], start_new_session=True)
        """,
        TIMED_OUT,
        limits=BRIEF,
    ),
    Hostile(
        "a daemon that outlives the tool",
        """
        if os.fork() == 0:
            os.setsid()
            if os.fork():
                os._exit(0)
            os.closerange(0, 100)
            time.sleep(1000)
        """,
        SUCCEEDED,
    ),
    Hostile(
        "clock tricks",
        """
        attempt("set", time.clock_settime, time.CLOCK_REALTIME, 0)
        attempt("adjust", syscall, {"x86_64": 159, "aarch64": 171}[os.uname().machine], 0)
        os.environ["TZ"] = "Mars/Olympus"
        time.tzset()
        time.time = time.monotonic = lambda: 0
        signal.setitimer(signal.ITIMER_REAL, 0)
        print(got, flush=True)
        threading.Event().wait()
        """,
        TIMED_OUT,
        reports=NOTHING,
        limits=BRIEF,
    ),
]
