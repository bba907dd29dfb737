"""The main process of a sandbox: takes one job, watches the tool that it forks, sends the outcome.

Usage: `python3 runner.py [MODULE…]`, with the protocol of `runner_wire` on stdin and stdout. The
modules named are imported before the runner is ready, so that a tool finds them there. The work
directory is /work, or what SKRIPTOTEKET_WORK says. Standard library only.

The tool may do anything that its user may do, this process included (it can kill it). So nothing
here is a boundary: limits are enforced once more by the sandbox around, and every byte sent is
checked by the worker. What this process adds is that the tool cannot block it, fill its memory or
outlive its time, and that what a tool wrote before it was stopped still reaches its author.
"""

import contextlib
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import sys
import time
from typing import Any, BinaryIO, NoReturn

sys.path[:] = [*(p for p in sys.path if p != os.path.dirname(__file__)), os.path.dirname(__file__)]

import runner_tool  # noqa: E402
from runner_collect import Refused, measure_tree, open_result, walk_artifacts  # noqa: E402
from runner_wire import (  # noqa: E402
    ARTIFACT,
    CHUNK_BYTES,
    DATA,
    END,
    EXITED,
    MAGIC,
    PROGRESS,
    READY,
    REFUSED,
    RESULT,
    STDERR,
    STDOUT,
    STOP,
    TAKEN,
    Lost,
    read_exactly,
    read_job,
    send,
    send_all,
    send_json,
)

PROGRESS_INTERVAL_SECONDS = 0.1
PROGRESS_LINE_MAX_BYTES = 4096
PROGRESS_TEXT_MAX_CHARS = 500
PROGRESS_FD = 3
WORK_CHECK_SECONDS = 0.25
END_SECONDS = 5

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 1, 4, 36
_CLOCK_MONOTONIC, _SIGEV_SIGNAL = 1, 0


def main() -> int:
    root = os.environ.get("SKRIPTOTEKET_WORK", "/work")
    # What a library prints while it is imported must not get into the protocol.
    answer = os.dup(1)
    os.dup2(2, 1)
    # Other processes of our user cannot open our descriptors or memory through /proc.
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    request = open(0, "rb", buffering=CHUNK_BYTES, closefd=False)  # noqa: SIM115
    try:
        preload(sys.argv[1:])
        send_all(answer, MAGIC)
        send(answer, READY)
        job = read_job(request)
        variables = prepare_work(root, job, request)
        if "lifetime_seconds" in job:  # a worker of an older release does not say
            die_within(job["lifetime_seconds"])
        send(answer, TAKEN)
        run = ToolRun(root, job, answer)
        run.start(variables)
        run.watch()
        send_outcome(root, job, run, answer)
    except (Lost, BrokenPipeError) as error:
        print(f"runner: {error}", file=sys.stderr)
        return 1
    return 0


def preload(names: list[str]) -> None:
    """Import modules for the tool to come. One that cannot be imported is the tool's to miss."""
    for name in names:
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    # What is here now is shared with the tool's process for as long as neither writes to it.
    gc.collect()
    gc.freeze()


class _SignalEvent(ctypes.Structure):
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signal", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("unused", ctypes.c_char * 48),
    )


def die_within(seconds: float) -> None:
    """Have the kernel kill this process then: it does so also to one that a tool has stopped.

    With it goes its container. Until then a worker has its answer, or has ended the container; so
    this is for one whose worker died too.
    """
    libc = ctypes.CDLL(None)
    event = _SignalEvent(signal=signal.SIGKILL, notify=_SIGEV_SIGNAL)
    timer = ctypes.c_void_p()
    if libc.timer_create(_CLOCK_MONOTONIC, ctypes.byref(event), ctypes.byref(timer)) == 0:
        once = (ctypes.c_long * 4)(0, 0, int(seconds), int(seconds % 1 * 1e9))
        libc.timer_settime(timer, 0, ctypes.byref(once), None)


def prepare_work(root: str, job: dict[str, Any], request: BinaryIO) -> dict[str, str]:
    """Write the job's files below `root`. Returns the variables of the contract."""
    for name in ("input", "output"):
        os.mkdir(os.path.join(root, name), 0o700)
    with open(os.path.join(root, ".reserve"), "wb") as file:
        file.write(bytes(runner_tool.RESERVE_BYTES))
    with open(os.path.join(root, "script.py"), "wb") as file:
        file.write(read_exactly(request, job["source"]))
    payloads = {
        variable: read_exactly(request, job[part]).decode()
        for part, variable in (
            ("inputs", "SKRIPTOTEKET_INPUTS"),
            ("action", "SKRIPTOTEKET_ACTION"),
        )
        if job[part] is not None
    }
    manifest = []
    for entry in job["files"]:
        path = os.path.join(root, "input", entry["name"])
        _copy_in(request, path, entry["bytes"])
        manifest.append({"name": entry["name"], "path": path, "bytes": entry["bytes"]})
    return {
        "SKRIPTOTEKET_INPUT_DIR": os.path.join(root, "input"),
        "SKRIPTOTEKET_OUTPUT_DIR": os.path.join(root, "output"),
        "SKRIPTOTEKET_RESULT_PATH": os.path.join(root, "result.json"),
        "SKRIPTOTEKET_INPUT_MANIFEST": json.dumps({"files": manifest}, ensure_ascii=False),
        "SKRIPTOTEKET_PROGRESS_FD": str(PROGRESS_FD),
        **payloads,
    }


def _copy_in(request: BinaryIO, path: str, count: int) -> None:
    with open(path, "xb") as file:
        while count:
            chunk = read_exactly(request, min(count, CHUNK_BYTES))
            file.write(chunk)
            count -= len(chunk)


class Capture:
    """One stream of the tool: reads all, counts all, keeps the first `keep_bytes`."""

    def __init__(self, fd: int, keep_bytes: int) -> None:
        os.set_blocking(fd, False)
        self.fd, self.keep_bytes = fd, keep_bytes
        self.kept, self.total = bytearray(), 0

    def pump(self) -> bool:
        """Take what is there now, a bounded piece of it. False at the end of the stream."""
        try:
            chunk = os.read(self.fd, CHUNK_BYTES)
        except BlockingIOError:
            return True
        self.total += len(chunk)
        self.kept += chunk[: self.keep_bytes - len(self.kept)]
        return bool(chunk)

    def drain(self) -> None:
        """Take what a tool that has ended left in the pipe."""
        before = -1
        while before != self.total:
            before = self.total
            self.pump()


class Progress:
    """Lines of progress from the tool, passed on at a bounded rate and size."""

    def __init__(self, fd: int, answer: int) -> None:
        os.set_blocking(fd, False)
        self.fd, self.answer = fd, answer
        self.buffer = b""
        self.pending: dict[str, Any] | None = None
        self.sent_at = 0.0

    def pump(self) -> bool:
        try:
            chunk = os.read(self.fd, PROGRESS_LINE_MAX_BYTES)
        except BlockingIOError:
            return True
        *lines, self.buffer = (self.buffer + chunk).split(b"\n")
        self.buffer = self.buffer[:PROGRESS_LINE_MAX_BYTES]
        for line in reversed(lines):  # only the newest is worth telling
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                value = json.loads(line)
                fraction = min(max(float(value["fraction"]), 0.0), 1.0)
                if fraction == fraction:
                    text = str(value["text"])[:PROGRESS_TEXT_MAX_CHARS]
                    text = text.encode("utf-8", "replace").decode()  # no lone surrogates
                    self.pending = {"fraction": fraction, "text": text}
                    break
        return bool(chunk)

    def seconds_to_wait(self, now: float) -> float | None:
        """How long until the pending line may be sent; None when there is none."""
        if self.pending is None:
            return None
        return max(0.0, self.sent_at + PROGRESS_INTERVAL_SECONDS - now)

    def flush(self, now: float) -> None:
        if self.pending is not None:
            send_json(self.answer, PROGRESS, self.pending)
            self.pending, self.sent_at = None, now


class ToolRun:
    """The tool's process and all that came of it, from fork to the last one of its descendants."""

    def __init__(self, root: str, job: dict[str, Any], answer: int) -> None:
        self.root, self.job, self.answer = root, job, answer
        self.limits = job["limits"]
        self.exit_code: int | None = None
        self.timed_out = self.work_full = self.stopped = False

    def start(self, variables: dict[str, str]) -> None:
        pipes = [os.pipe() for _ in range(3)]
        self.wake, wake_end = os.pipe()
        for fd in (self.wake, wake_end):
            os.set_blocking(fd, False)
        # The end of a child makes this descriptor readable, so that one poll waits for everything.
        signal.set_wakeup_fd(wake_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self.oom_kills = _count_oom_kills()
        self.started = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self._become_tool([end for _, end in pipes], variables)
            finally:
                os._exit(runner_tool.EXIT_FAILED)
        for _, end in pipes:
            os.close(end)
        keep = self.limits["output_max_bytes"]
        self.stdout = Capture(pipes[0][0], keep)
        self.stderr = Capture(pipes[1][0], keep)
        self.progress = Progress(pipes[2][0], self.answer)

    def _become_tool(self, ends: list[int], variables: dict[str, str]) -> NoReturn:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.setsid()
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        high = [os.open(os.devnull, os.O_RDWR), *ends]
        for target, fd in enumerate(high):  # every fd here is above 3, so none is overwritten
            os.dup2(fd, target)
        os.closerange(PROGRESS_FD + 1, 1 << 20)
        # Closed first: from here on others may look into this process.
        _prctl(_PR_SET_DUMPABLE, 1)
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")  # when memory is out, the tool goes and not the runner
        os.chdir(self.root)
        runner_tool.set_environment(variables)
        sys.path.append(self.root)
        sys.argv = [os.path.join(self.root, "script.py")]
        for stream in (sys.stdout, sys.stderr):
            # By line: what a tool printed before it was killed is what its author needs to see.
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)  # type: ignore[union-attr]
        runner_tool.run_tool(self.root, self.job["entrypoint"])

    def watch(self) -> None:
        """Wait for the tool's end or its deadline, then end all that is left of it.

        Raises Lost when the worker went away meanwhile; nothing of the tool is alive then either.
        """
        try:
            self._watch()
        finally:
            self._end_everything()
        self.stdout.drain()
        self.stderr.drain()
        self.progress.pump()
        self.progress.flush(time.monotonic())

    def _watch(self) -> None:
        deadline = self.started + self.limits["timeout_seconds"]
        check_work_at = self.started + WORK_CHECK_SECONDS if self.job["watch_work"] else deadline
        poll = select.poll()
        readers = {r.fd: r for r in (self.stdout, self.stderr, self.progress)}
        for fd in (0, self.wake, *readers):
            poll.register(fd, select.POLLIN)
        while self.exit_code is None:
            now = time.monotonic()
            if now >= deadline:
                self.timed_out = True
                return
            if self.job["watch_work"] and now >= check_work_at:
                limit = self.limits["work_bytes"]
                self.work_full = measure_tree(self.root, limit) > limit
                if self.work_full:
                    return
                check_work_at = time.monotonic() + WORK_CHECK_SECONDS
            wait = min(deadline, check_work_at) - now
            pending = self.progress.seconds_to_wait(now)
            if pending == 0:
                self.progress.flush(now)
            elif pending is not None:
                wait = min(wait, pending)
            for fd, _ in poll.poll(max(0.0, wait) * 1000 + 1):
                if fd == 0:  # nothing else follows the job
                    self.stopped = os.read(0, 1) == STOP
                    if self.stopped:
                        return
                    raise Lost("the worker went away")
                if fd == self.wake:
                    with contextlib.suppress(BlockingIOError):
                        os.read(fd, 512)
                elif not readers[fd].pump():
                    poll.unregister(fd)
            self._reap()

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self.pid:
                    self.exit_code = os.waitstatus_to_exitcode(ended[1])

    def _end_everything(self) -> None:
        """Kill the tool and its descendants, whatever session or parent they gave themselves."""
        give_up_at = time.monotonic() + END_SECONDS
        while time.monotonic() < give_up_at:
            self._reap()
            if not self._kill_rest():
                return
            time.sleep(0.001)

    def _kill_rest(self) -> bool:
        if self.job["alone"]:  # all other processes here are the tool's; nobody can fork past this
            try:
                os.kill(-1, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                return False
            return True
        descendants = _find_descendants()
        for pid in descendants:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        return bool(descendants)

    @property
    def out_of_memory(self) -> bool:
        if self.exit_code == runner_tool.EXIT_OUT_OF_MEMORY:
            return True
        return bool(self.exit_code) and _count_oom_kills() > self.oom_kills


def send_outcome(root: str, job: dict[str, Any], run: ToolRun, answer: int) -> None:
    """Send all frames from EXITED to END."""
    exited = {
        "exit_code": run.exit_code,
        "timed_out": run.timed_out,
        "out_of_memory": run.out_of_memory and not run.timed_out,
    }
    send_json(answer, EXITED, exited)
    for kind, capture in ((STDOUT, run.stdout), (STDERR, run.stderr)):
        send(answer, kind, capture.total.to_bytes(8, "big") + capture.kept)
    try:
        if run.work_full:
            raise Refused("work_full")
        if not run.stopped:  # nobody wants the work of a run that was cancelled
            send_work(root, job["limits"], answer)
    except Refused as refused:
        send_json(answer, REFUSED, {"reason": refused.reason, "path": refused.path})
    send(answer, END)


def send_work(root: str, limits: dict[str, Any], answer: int) -> None:
    """Send result.json and the artifacts. Raises Refused at what cannot be taken."""
    result = open_result(os.path.join(root, "result.json"), limits["result_max_bytes"])
    if result is not None:
        with open(result.fd, "rb") as file:
            send(answer, RESULT, file.read(result.bytes))
    artifacts = walk_artifacts(
        os.path.join(root, "output"),
        max_files=limits["artifacts_max_files"],
        max_bytes=limits["artifact_max_bytes"],
        max_total_bytes=limits["artifacts_max_total_bytes"],
    )
    for found in artifacts:
        send_json(answer, ARTIFACT, {"path": found.path, "bytes": found.bytes})
        with open(found.fd, "rb", buffering=0) as file:
            left = found.bytes
            while left:
                if not (chunk := file.read(min(left, CHUNK_BYTES))):
                    raise Refused("changed", found.path)
                send(answer, DATA, chunk)
                left -= len(chunk)


def _find_descendants() -> list[int]:
    """List our descendants. Orphans come back to us (we are their subreaper), so none escapes."""
    parents: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                # The name in parentheses may hold anything; the fields follow the last one.
                parents[int(name)] = int(file.read().rpartition(b")")[2].split()[1])
    family = {os.getpid()}
    grown = True
    while grown:
        born = {pid for pid, parent in parents.items() if parent in family} - family
        family |= born
        grown = bool(born)
    return sorted(family - {os.getpid()})


def _count_oom_kills() -> int:
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with contextlib.suppress(OSError), open(path) as file:
            for line in file:
                if line.startswith("oom_kill "):
                    return int(line.split()[1])
    return 0


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
