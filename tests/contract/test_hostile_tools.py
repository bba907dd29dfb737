"""Tools that attack: their users see an honest word, the machine stays whole, and so does whoever
comes next. The modules `hostile_*` are the table; `infra/runner/THREATS.md` says what protects.
"""

import asyncio
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import pytest
import pytest_asyncio
from hostile_answers import ANSWERS, FILES, USER_FILES
from hostile_escapes import HOST, KERNEL
from hostile_limits import EXHAUSTION, TIME
from hostile_neighbours import NETWORK, RUNNER
from hostile_tools import CANARY, Hostile
from sandboxes import (
    IMAGE,
    LIMITS,
    MIB,
    Runs,
    docker_sandbox,
    run,
    wait_until,
)

from app.domain.runs import ClaimedRun, FinishedRun, RunKind, RunStatus
from workers.results import ResultReader
from workers.sandbox import protocol
from workers.sandbox.base import Outcome, SandboxResult
from workers.sandbox.confinement import (
    GID,
    MASKED_PATHS,
    READ_ONLY_PATHS,
    UIDS,
    make_host_config,
)
from workers.sandbox.engine import LABEL, OWNER_LABEL
from workers.sandbox.owner import name_owner

__all__ = ["run"]  # a fixture

CASES = [
    *(*EXHAUSTION, *TIME, *ANSWERS, *FILES, *USER_FILES),
    *(*HOST, *KERNEL, *NETWORK, *RUNNER),
]
# What attacks the runner, which waited for the tool here; other limits would go cold.
WARM_CASES = [case for case in RUNNER if not case.limits]
BEGAN_AT = int(time.time())
GONE_SECONDS = 10
MORE_DESCRIPTORS = 16  # of the engine's client: it keeps some connections
MORE_BYTES = 64 * MIB

# What comes next: an ordinary tool, which also looks around for what was left to it.
ORDINARY = f"""
    import json
    with open(input_dir + "/a.txt") as file, open(output_dir + "/b.txt", "w") as copy:
        copy.write(file.read().upper())
    planted = [path for top in ("/tmp", "/work", "/dev/shm", "/dev/mqueue")
               for path, folders, files in os.walk(top) for name in folders + files
               if {CANARY!r} in name]
    processes = [p for p in os.listdir("/proc") if p.isdigit()]
    print(planted, len(processes))
    return {{"outputs": [{{"kind": "markdown", "markdown": "klart"}}]}}
"""


@dataclass(frozen=True)
class Footprint:
    """What this process holds: no tool may make it hold more."""

    descriptors: int
    peak_bytes: int


def measure_footprint() -> Footprint:
    status = Path("/proc/self/status").read_text()
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    return Footprint(len(list(Path("/proc/self/fd").iterdir())), int(peak[1]) * 1024)


@pytest_asyncio.fixture(scope="module")
async def before(sandbox: Any, tmp_path_factory: pytest.TempPathFactory) -> Footprint:
    """What is held when runs have been done and nothing has attacked yet."""
    runs = Runs(sandbox, tmp_path_factory.mktemp("before"))
    await asyncio.gather(*(runs(ORDINARY, files={"a.txt": bytes(MIB)}) for _ in range(3)))
    return measure_footprint()


@pytest.fixture(autouse=True)
def impatience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for what a stopped or forged runner will never send."""
    monkeypatch.setattr(protocol, "BACKSTOP_SECONDS", 2.0)
    monkeypatch.setattr(protocol, "COLLECT_SECONDS", 2.0)


def see(result: SandboxResult) -> FinishedRun:
    """Turn a sandbox's result into what the user sees of it, as a worker does."""
    claimed = ClaimedRun(
        id=uuid4(),
        tool_id=uuid4(),
        user_id=uuid4(),
        session_id=uuid4(),
        context="default",
        kind=RunKind.INITIAL,
        source_kind="tool_version",
        attempt=1,
        lease_owner="test",
        superseded=False,
        inputs={},
        action=None,
        files=(),
        session_has_files=False,
        source="",
        entrypoint="run_tool",
    )
    return ResultReader()(claimed, result)


@pytest.mark.docker
@pytest.mark.parametrize(
    ("sandbox", "case"),
    [
        *(pytest.param("docker", case, id=case.tried) for case in CASES),
        *(pytest.param("warm", case, id=f"warm: {case.tried}") for case in WARM_CASES),
    ],
    indirect=["sandbox"],
    scope="session",
)
async def test_hostile_tool_harms_nobody(run: Runs, before: Footprint, case: Hostile) -> None:
    result = await run(case.tool, files=case.files(), **case.limits)  # type: ignore[arg-type]
    finished = see(result)
    seen = finished.status + (f": {finished.error_code}" if finished.error_code else "")
    if finished.status is RunStatus.TIMED_OUT:
        seen = finished.status.value
    shown = (finished.error_summary, result.stdout.text, result.stderr.text)
    assert seen == case.sees, shown
    assert case.words in (finished.error_summary or ""), shown
    if case.reports is not None:
        assert finished.stdout.text == case.reports, shown
    for captured in (finished.stdout, finished.stderr):
        assert len(captured.text) <= LIMITS.output_max_bytes
    assert len(finished.ui_payload or b"") < MIB

    await do_ordinary_run(run)

    await wait_until(lambda: not run.find_left_over(), GONE_SECONDS)
    assert find_stray_processes() == []
    assert find_strange_files(run.directory) == []
    after = measure_footprint()
    assert after.descriptors <= before.descriptors + MORE_DESCRIPTORS
    assert after.peak_bytes <= before.peak_bytes + MORE_BYTES


async def do_ordinary_run(run: Runs) -> None:
    """Do a run as there are thousands: it works, and finds nothing of those before it."""
    result = await run(ORDINARY, files={"a.txt": b"hej"})
    finished = see(result)
    assert finished.status is RunStatus.SUCCEEDED, result
    assert finished.stdout.text == "[] 3\n"  # init, the runner and itself
    assert [artifact.path for artifact in finished.artifacts] == ["output/b.txt"]
    assert result.artifacts[0].spooled.read_bytes() == b"HEJ"


def find_stray_processes() -> list[str]:
    """List processes of this machine that belong to a container of ours, by their cgroup."""
    client = docker.from_env()
    try:
        wanted = {"type": "container", "event": "create", "label": f"{OWNER_LABEL}={name_owner()}"}
        events = client.api.events(
            since=BEGAN_AT, until=f"{time.time():.6f}", filters=wanted, decode=True
        )
        made = [event["Actor"]["ID"] for event in events]
        # Those that are there wait for a run to come: nothing else was left.
        waiting = {found["Id"] for found in client.api.containers(all=True)}
    finally:
        client.close()
    assert made, "no container was ever made: this would find nothing"
    strays = []
    for entry in Path("/proc").iterdir():
        try:
            groups = (entry / "cgroup").read_text() if entry.name.isdigit() else ""
        except OSError:  # it ended meanwhile
            continue
        if any(container in groups for container in made if container not in waiting):
            strays.append(entry.name)
    return strays


def find_strange_files(directory: Path) -> list[str]:
    """List what runs wrote on this machine that is no artifact in a spool."""
    strange = []
    for path in directory.rglob("*"):
        name, info = str(path.relative_to(directory)), path.lstat()
        is_ours = re.fullmatch(r"temp|blob-\d+-\d+|spool-[0-9a-f-]{36}", name)
        is_artifact = re.fullmatch(r"spool-[0-9a-f-]{36}/artifact-\d{4}", name)
        # A copy of our own: no link, no other's inode, nobody else's and no program.
        is_plain = stat.S_ISREG(info.st_mode) and info.st_nlink == 1
        if not is_ours and not (is_artifact and is_plain and info.st_mode & 0o7777 == 0o600):
            strange.append(name)
    places = [Path(place) for place in ("/", "/etc", "/tmp", "/var/tmp", "/root", "/dev/shm")]
    places += [Path.cwd(), Path.home(), directory, *directory.parents]
    return strange + [str(place) for place in places if (place / CANARY).exists()]


# --- What the table cannot say ----------------------------------------------------------------


@docker_sandbox
async def test_tool_that_steals_the_stop_is_stopped(run: Runs) -> None:
    began, stop = asyncio.Event(), asyncio.Event()

    async def on_progress(fraction: float, text: str) -> None:
        began.set()

    running = asyncio.create_task(
        run(
            """
            from skriptoteket_toolkit import progress
            fd = os.open("/proc/1/fd/0", os.O_RDONLY)
            os.kill(os.getppid(), 19)
            progress(0.1, "lyssnar")
            while True:
                os.read(fd, 1)
            """,
            on_progress=on_progress,
            stop=stop,
        )
    )
    await asyncio.sleep(1)  # its runner is stopped, so there is no progress to wait for
    stop.set()
    result = await asyncio.wait_for(running, 10)
    assert result.outcome is Outcome.CANCELLED
    await do_ordinary_run(run)


@docker_sandbox
async def test_tools_at_once_do_not_see_each_other(run: Runs) -> None:
    secret = uuid4().hex
    hide = f"""
        import socket
        for path in ("/tmp/hemlig", "/dev/shm/hemlig", input_dir + "/hemlig"):
            with open(path, "w") as file:
                file.write({secret!r})
        heard = socket.socket(socket.AF_UNIX)
        heard.bind("\\0hemlig")
        heard.listen()
        tcp = socket.create_server(("127.0.0.1", 4711))
        os.environ["HEMLIG"] = {secret!r}
        time.sleep(2)
        return "orörd"
    """
    seek = """
        import signal, socket
        found = []
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            for path in ("/tmp/hemlig", "/dev/shm/hemlig", input_dir + "/hemlig"):
                found += [path] if os.path.exists(path) else []
            for family, address in ((socket.AF_UNIX, "\\0hemlig"),
                                    (socket.AF_INET, ("127.0.0.1", 4711))):
                with socket.socket(family) as attempt:
                    found += [address] if attempt.connect_ex(address) == 0 else []
            for pid in range(1, 300):
                if pid not in (1, os.getpid(), os.getppid()):
                    try:
                        os.kill(pid, signal.SIGKILL)
                        found.append(pid)
                    except ProcessLookupError:
                        pass
            time.sleep(0.1)
        print(found)
    """
    hidden, sought = await asyncio.gather(run(hide), run(seek))
    assert see(hidden).status is RunStatus.SUCCEEDED, hidden
    assert sought.stdout.text == "[]\n", sought
    assert secret not in repr(sought)


@docker_sandbox
async def test_tool_does_not_use_up_what_the_kernel_gives_each_user(run: Runs) -> None:
    send = """
        import array, socket
        left, right = socket.socketpair()
        right_to_nothing = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0] * 250))]
        def send_descriptors(times):
            for _ in range(times):
                left.sendmsg([b"x"], right_to_nothing)
    """
    greedy = f"""
        {send}
        try:
            send_descriptors(100)
        except OSError as error:
            print(error.errno == 109)  # ETOOMANYREFS: it has all that there are
        time.sleep(2)
    """
    modest = f"""
        {send}
        time.sleep(1)
        send_descriptors(1)
    """
    used_up, result = await asyncio.gather(run(greedy), run(modest))
    assert used_up.stdout.text == "True\n", used_up
    assert see(result).status is RunStatus.SUCCEEDED, result.stderr.text


@docker_sandbox
async def test_what_tools_need_is_allowed(run: Runs) -> None:
    result = await run(
        """
        import asyncio, ctypes, fcntl, mmap, shutil, sqlite3, subprocess
        import multiprocessing as mp
        from multiprocessing import shared_memory
        for method in ("fork", "spawn", "forkserver"):
            with mp.get_context(method).Pool(2) as pool:
                assert pool.map(abs, [-1, -2]) == [1, 2]
        with mp.Manager() as manager:
            assert list(manager.list([1])) == [1]
        block = shared_memory.SharedMemory(create=True, size=1000)
        block.close(), block.unlink()
        async def talk():
            server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0)
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            assert await reader.read() == b""
            writer.close()
            said = await asyncio.create_subprocess_exec("echo", "hej", stdout=-1)
            assert (await said.communicate())[0].strip() == b"hej"
        asyncio.run(talk())
        for mode in ("wal", "delete"):
            table = sqlite3.connect(f"/tmp/{mode}.db")
            table.execute(f"pragma journal_mode={mode}")
            table.execute("create table t (a)")
            table.close()
        with open("/tmp/wal.db", "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            os.posix_fallocate(file.fileno(), 0, 1 << 20)
            mmap.mmap(file.fileno(), 0).close()
        array = (ctypes.c_int * 3)(3, 1, 2)
        order = ctypes.CFUNCTYPE(ctypes.c_int, *[ctypes.POINTER(ctypes.c_int)] * 2)
        ctypes.CDLL(None).qsort(array, 3, 4, order(lambda a, b: a[0] - b[0]))
        assert list(array) == [1, 2, 3]
        shell = '''
            cd /tmp; mkdir a; echo hej | tr a-z A-Z | sort > a/b; cp -a a c; mv c d; ln -s b d/e
            tar cf - d | tar tf - | grep -q d/b; sed -i s/H/J/ a/b; gzip a/b; mkfifo f; df . | cat
            touch -d yesterday d/b; chmod 600 d/b; find d -name b | xargs cat; date; id; nproc
            timeout 5 true; nice true; (sleep 9 & kill $!); cat <(echo x); mktemp
        '''
        subprocess.run(["bash", "-ec", shell], check=True, stdout=subprocess.DEVNULL)
        shutil.make_archive("/tmp/x", "zip", "/tmp/d")
        shutil.copytree("/tmp/d", "/tmp/g", symlinks=True)
        """
    )
    assert see(result).status is RunStatus.SUCCEEDED, result.stderr.text
    assert result.stderr.text == ""


@docker_sandbox
async def test_what_is_masked_is_empty_and_what_is_read_only_stays_so(run: Runs) -> None:
    result = await run(
        f"""
        told, written = [], []
        for path in {MASKED_PATHS!r}:
            try:
                told += os.listdir(path) if os.path.isdir(path) else filter(None, open(path))
            except FileNotFoundError:  # not on this kernel
                pass
        for top in {READ_ONLY_PATHS!r}:
            for path in [top, *(os.path.join(d, f) for d, _, fs in os.walk(top) for f in fs)]:
                try:
                    os.close(os.open(path, os.O_WRONLY))
                    written.append(path)
                except OSError:
                    pass
        print(told, written)
        """
    )
    assert result.stdout.text == "[] []\n", result


@docker_sandbox
async def test_nothing_that_the_engine_masks_by_itself_is_missing(engine: docker.APIClient) -> None:
    made = engine.create_container(IMAGE, labels={LABEL: "1", OWNER_LABEL: name_owner()})
    try:
        own = engine.inspect_container(made["Id"])["HostConfig"]
    finally:
        engine.remove_container(made["Id"], force=True, v=True)
    assert set(own["MaskedPaths"]) <= set(MASKED_PATHS)
    assert set(own["ReadonlyPaths"]) <= set(READ_ONLY_PATHS)


@pytest.fixture
def engine(sandbox: Any) -> Iterator[docker.APIClient]:
    """The engine itself; `sandbox` has seen to it that it is there."""
    client = docker.from_env(version="auto")
    yield client.api
    client.close()


@docker_sandbox
async def test_confinement_costs_no_time_to_speak_of(engine: docker.APIClient) -> None:
    ours = make_host_config(LIMITS, {LABEL: "1"}, UIDS[0], runtime=None, cpu_count=0)
    # The same limits and mounts, as confined as the engine does it by itself.
    theirs = {key: ours[key] for key in ours if key not in ("MaskedPaths", "ReadonlyPaths")}
    theirs |= {"SecurityOpt": ["no-new-privileges:true"], "CgroupnsMode": ""}

    def start(host_config: dict[str, Any]) -> float:
        began = time.perf_counter()
        made = engine.create_container(
            IMAGE,
            entrypoint=["/bin/true"],
            user=f"{UIDS[0]}:{GID}",
            network_disabled=True,
            labels={LABEL: "1", OWNER_LABEL: name_owner()},
            host_config=host_config | {"AutoRemove": False},
        )
        try:
            engine.start(made["Id"])
            assert engine.wait(made["Id"])["StatusCode"] == 0
            return time.perf_counter() - began
        finally:
            engine.remove_container(made["Id"], force=True, v=True)

    pairs = [await asyncio.to_thread(lambda: (start(ours), start(theirs))) for _ in range(7)]
    # The quickest of each: what else this machine does makes single ones slower, never quicker.
    our_seconds, their_seconds = (min(each) for each in zip(*pairs, strict=True))
    assert our_seconds - their_seconds < 0.05
