"""What every sandbox does, whatever it is made of: the runner contract, limits, and no remains.

Each test takes `run`, which sees to it afterwards that nothing of the test's runs is left.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest
from sandboxes import (
    IMAGE,
    LIMITS,
    MIB,
    Runs,
    answer_of,
    as_tool,
    docker_sandbox,
    every_sandbox,
    fenced_sandboxes,
    find_docker_objects,
    run,
    wait_until,
)

from workers.sandbox import protocol
from workers.sandbox.base import InputFile, Outcome, Sandbox, SandboxJob, SandboxUnavailable
from workers.sandbox.confinement import GID, UIDS
from workers.sandbox.docker import DockerSandbox
from workers.sandbox.owner import name_owner

__all__ = ["run"]  # a fixture


# --- What goes in ----------------------------------------------------------------------------


@every_sandbox
async def test_files_and_form_values_arrive(run: Runs) -> None:
    files = {"åäö ÅÄÖ.html": "hallå".encode(), "tom.txt": b"", "action.json": b"{}"}
    result = await run(
        """
        import json, os
        from pathlib import Path
        def run_tool(input_dir, output_dir):
            manifest = json.loads(os.environ["SKRIPTOTEKET_INPUT_MANIFEST"])
            read = {f["name"]: Path(f["path"]).read_text() for f in manifest["files"]}
            return {"outputs": [{"kind": "json", "value": {
                "read": read,
                "listed": sorted(os.listdir(input_dir)),
                "bytes": [f["bytes"] for f in manifest["files"]],
                "inputs": json.loads(os.environ["SKRIPTOTEKET_INPUTS"]),
                "action": os.environ.get("SKRIPTOTEKET_ACTION"),
                "dirs": [os.environ["SKRIPTOTEKET_INPUT_DIR"] == input_dir,
                         os.environ["SKRIPTOTEKET_OUTPUT_DIR"] == output_dir,
                         os.path.dirname(os.environ["SKRIPTOTEKET_RESULT_PATH"]) == os.getcwd()],
            }}]}
        """,
        files=files,
        inputs={"titel": "Ö", "antal": 3},
    )
    assert result.outcome is Outcome.COMPLETED
    assert answer_of(result)["outputs"][0]["value"] == {
        "read": {name: data.decode() for name, data in files.items()},
        "listed": sorted(files),
        "bytes": [6, 0, 2],
        "inputs": {"titel": "Ö", "antal": 3},
        "action": None,
        "dirs": [True, True, True],
    }


@every_sandbox
async def test_file_of_50_mb_arrives_whole(run: Runs) -> None:
    data = os.urandom(1_000_000) * 50
    result = await run(
        """
        import hashlib
        print(next(line for line in open(f"/proc/{os.getppid()}/status") if "VmHWM" in line))
        with open(os.path.join(input_dir, "stor.bin"), "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
        """,
        files={"stor.bin": data},
    )
    assert answer_of(result)["outputs"][0]["html"] == hashlib.sha256(data).hexdigest()
    # The runner never held it in memory.
    assert int(result.stdout.text.split()[1]) < 40_000


@every_sandbox
async def test_action_of_300_kib_is_readable_and_subprocesses_start(run: Runs) -> None:
    state = {"text": "å" * 150 * 1024}
    action = json.dumps({"action_id": "a", "input": {}, "state": state}, ensure_ascii=False)
    result = await run(
        """
        import json, os, subprocess
        from skriptoteket_toolkit import get_action_parts
        def run_tool(input_dir, output_dir):
            action_id, _, state = get_action_parts()
            command = ["sh", "-c", "echo $SKRIPTOTEKET_OUTPUT_DIR"]
            said = [
                subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
                for env in (None, {**os.environ}, os.environ.copy())
            ]
            return {"outputs": [{"kind": "json", "value": {
                "id": action_id,
                "length": len(state["text"]),
                "same": os.environ["SKRIPTOTEKET_ACTION"] == os.getenv("SKRIPTOTEKET_ACTION"),
                "inputs": os.getenv("SKRIPTOTEKET_INPUTS"),
                "started": [s == output_dir + "\\n" for s in said],
            }}]}
        """,
        action=action.encode(),
    )
    assert answer_of(result)["outputs"][0]["value"] == {
        "id": "a",
        "length": 150 * 1024,
        "same": True,
        "inputs": None,
        "started": [True, True, True],
    }, result.stderr.text


@every_sandbox
async def test_worker_environment_does_not_reach_tool(
    run: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("S3_SECRET_KEY", "hemlig-nyckel")
    result = await run(
        """
        import subprocess
        print(dict(os.environ), subprocess.run(["env"], capture_output=True, text=True).stdout)
        print(open(f"/proc/{os.getpid()}/environ").read())
        """
    )
    assert "SKRIPTOTEKET_INPUT_DIR" in result.stdout.text
    assert "hemlig" not in result.stdout.text


@every_sandbox
async def test_home_and_temp_are_writable(run: Runs) -> None:
    result = await run(
        """
        import pathlib, tempfile
        (pathlib.Path.home() / "f").write_text("x")
        with tempfile.NamedTemporaryFile() as file:
            file.write(b"x")
        (pathlib.Path(input_dir) / "copy").write_text("x")
        """
    )
    assert answer_of(result)["status"] == "succeeded", result.stderr.text


# --- What comes back -------------------------------------------------------------------------


@every_sandbox
@pytest.mark.parametrize(
    ("body", "outputs"),
    [
        ("return '<p>å</p>'", [{"kind": "html_sandboxed", "html": "<p>å</p>"}]),
        ("return None", []),
        ("return {'outputs': [{'kind': 'notice', 'level': 'info', 'message': 'hej'}]}", 1),
        ("return {'outputs': ({'kind': 'json', 'value': float('nan')},)}", 1),
        ("return {'outputs': [{'kind': 'markdown', 'markdown': '\\ud800'}]}", 1),
        ("sys.exit()", []),
    ],
)
async def test_allowed_answers_succeed(run: Runs, body: str, outputs: object) -> None:
    result = await run(body)
    answer = answer_of(result)
    assert (result.outcome, result.exit_code) == (Outcome.COMPLETED, 0)
    assert (answer["status"], answer["next_actions"], answer["state"]) == ("succeeded", [], None)
    assert answer["outputs"] == outputs or len(answer["outputs"]) == outputs


@every_sandbox
async def test_state_and_actions_come_back(run: Runs) -> None:
    result = await run(
        "return {'next_actions': [{'action_id': 'a', 'label': 'A', 'kind': 'form', 'fields': []}],"
        " 'state': {'å': [1, None]}}"
    )
    answer = answer_of(result)
    assert answer["next_actions"][0]["action_id"] == "a"
    assert answer["state"] == {"å": [1, None]}


@every_sandbox
@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("return 17", "run_tool ska returnera"),
        ("return {'outputs': 'x'}", "outputs ska vara en lista"),
        ("return {'state': [1]}", "state ska vara ett objekt"),
        ("return {'outputs': [{1, 2}]}", "inte går att skriva som JSON"),
        ("x = []; x.append(x); return {'outputs': x}", "inte går att skriva som JSON"),
        ("from skriptoteket_toolkit import ToolUserError as E; raise E('Fel å')", "Fel å"),
        ("raise ValueError('hemlig detalj')", "oväntat fel"),
        ("sys.exit(3)", "felkod 3"),
        ("sys.exit('ord')", "felkod 1"),
        ("def f(): f()\nf()", "oväntat fel"),
        ("# whole\nother = 1", "saknar funktionen run_tool"),
        ("# whole\nrun_tool = 1", "saknar funktionen run_tool"),
        ("# whole\ndef (", "oväntat fel"),
        ("# whole\nimport finns_inte", "oväntat fel"),
    ],
)
async def test_failures_are_told_in_words(run: Runs, source: str, words: str) -> None:
    result = await run(source)
    answer = answer_of(result)
    assert (result.outcome, answer["status"]) == (Outcome.COMPLETED, "failed")
    assert result.exit_code != 0
    assert words in answer["error_summary"]
    assert "hemlig" not in answer["error_summary"]


@every_sandbox
async def test_traceback_begins_in_the_tool(run: Runs) -> None:
    result = await run("# whole\ndef run_tool(i, o):\n    raise ValueError('detalj å')\n")
    assert result.stderr.text.splitlines()[1].endswith('script.py", line 3, in run_tool')
    assert result.stderr.text.endswith("    raise ValueError('detalj å')\nValueError: detalj å\n")


@every_sandbox
async def test_entrypoint_is_configurable(run: Runs) -> None:
    result = await run("# whole\ndef start(i, o): return 'hej'", entrypoint="start")
    assert answer_of(result)["outputs"][0]["html"] == "hej"


@every_sandbox
@pytest.mark.parametrize(
    ("body", "exit_code"), [("os._exit(3)", 3), ("os.kill(os.getpid(), 11)", -11)]
)
async def test_tool_that_dies_without_answer_has_none(run: Runs, body: str, exit_code: int) -> None:
    result = await run(f"print('före', flush=True)\n{body}")
    assert (result.outcome, result.exit_code) == (Outcome.COMPLETED, exit_code)
    assert result.result_json is None
    assert result.stdout.text == "före\n"


@every_sandbox
async def test_fork_that_returns_does_not_answer_for_the_tool(run: Runs) -> None:
    result = await run(
        """
        if (child := os.fork()) == 0:
            return "barn"
        os.waitpid(child, 0)
        os._exit(0)
        """
    )
    assert (result.outcome, result.result_json) == (Outcome.COMPLETED, None)


@every_sandbox
async def test_progress_is_told_while_the_tool_runs(run: Runs) -> None:
    steps: list[tuple[float, str]] = []
    seen = asyncio.Event()

    async def on_progress(fraction: float, text: str) -> None:
        steps.append((fraction, text))
        seen.set()

    running = asyncio.create_task(
        run(
            """
            from skriptoteket_toolkit import progress
            progress(0.25, "läser å")
            time.sleep(0.7)
            for i in range(100):
                progress(0.5 + i / 200, "x" * 400)
                time.sleep(0.005)
            """,
            on_progress=on_progress,
        )
    )
    await asyncio.wait_for(seen.wait(), 10)
    assert not running.done()
    await running
    assert steps[0] == (0.25, "läser å")
    assert len(steps) < 15  # of 101: at a bounded rate
    assert steps[-1] == (0.995, "x" * 400)


@every_sandbox
async def test_slow_or_broken_listener_costs_the_run_nothing(run: Runs) -> None:
    async def on_progress(fraction: float, text: str) -> None:
        raise RuntimeError("listener")

    result = await run(
        """
        fd = int(os.environ["SKRIPTOTEKET_PROGRESS_FD"])
        for line in (b"", b"null", b"[]", b"{", b'{"fraction": "x", "text": 1}', b"9" * 5000,
                     b'{"fraction": NaN, "text": "x"}', b'{"fraction": 7, "text": "\\\\ud800"}'):
            os.write(fd, line + b"\\n")
        os.write(fd, b'{"fraction": 1, "text"')
        """,
        on_progress=on_progress,
    )
    assert answer_of(result)["status"] == "succeeded", result


@every_sandbox
async def test_artifacts_are_collected(run: Runs) -> None:
    result = await run(
        """
        import pathlib
        out = pathlib.Path(output_dir)
        (out / "sub" / "djup").mkdir(parents=True)
        (out / "rapport.pdf").write_bytes(b"%PDF" * 1000)
        (out / "sub" / "djup" / "åäö.txt").write_text("hallå")
        (out / "tom").touch()
        (out / "mappen-är-tom").mkdir()
        """
    )
    read = {a.path: a.spooled.read_bytes() for a in result.artifacts}
    assert read == {
        "rapport.pdf": b"%PDF" * 1000,
        "sub/djup/åäö.txt": "hallå".encode(),
        "tom": b"",
    }
    assert [a.bytes for a in result.artifacts] == [len(data) for data in read.values()]
    assert {a["path"] for a in answer_of(result)["artifacts"]} == set(read)


# --- Limits: what fits just so, and one more -------------------------------------------------


@every_sandbox
@pytest.mark.parametrize("excess", [0, 1])
@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("for i in range(5 + {}): open(f'{{output_dir}}/{{i}}', 'w')", "fler filer än de 5"),
        ("open(output_dir + '/a', 'wb').write(bytes(1_000_000 + {}))", "för stor fil: a"),
        (
            "for i, n in enumerate((1_000_000, 900_000, 100_000 + {})):\n"
            "    open(f'{{output_dir}}/{{i}}', 'wb').write(bytes(n))",
            "större än 2000000",
        ),
        (
            "open(os.environ['SKRIPTOTEKET_RESULT_PATH'], 'wb').write(b' ' * ({} + 1024 * 1024))\n"
            "os._exit(0)",
            "result.json",
        ),
    ],
    ids=["count", "each", "total", "result"],
)
async def test_limits_of_what_comes_back(run: Runs, body: str, words: str, excess: int) -> None:
    result = await run(body.format(excess))
    if excess:
        assert result.outcome is Outcome.VIOLATION
        assert words in (result.violation or "")
        assert (result.artifacts, result.result_json) == ((), None)
    else:
        assert (result.outcome, result.violation) == (Outcome.COMPLETED, None)


@every_sandbox
@pytest.mark.parametrize(
    "plant",
    [
        "os.symlink('/etc/passwd', output_dir + '/x')",
        "os.symlink(input_dir, output_dir + '/x')",
        "os.symlink('/nonexistent', output_dir + '/x')",
        "os.rmdir(output_dir); os.symlink('/etc', output_dir)",
        "os.mkfifo(output_dir + '/x')",
        "import socket; s = socket.socket(socket.AF_UNIX); os.chdir(output_dir); s.bind('x')",
        "os.mkfifo(os.environ['SKRIPTOTEKET_RESULT_PATH']); os._exit(0)",
        "os.symlink('/etc/passwd', os.environ['SKRIPTOTEKET_RESULT_PATH']); os._exit(0)",
        "os.mkdir(os.environ['SKRIPTOTEKET_RESULT_PATH']); os._exit(0)",
        "open(os.fsencode(output_dir) + b'/\\xff', 'w')",
        "open(output_dir + '/a\\n', 'w')",
        "[open(f'{output_dir}/{name}', 'w') for name in ('a', 'A')]",
        "[open(f'{output_dir}/{name}', 'w') for name in ('\\u00e5', 'a\\u030a')]",
        "os.makedirs(output_dir + '/d' * 40); open(output_dir + '/d' * 40 + '/f', 'w')",
        "[os.mkdir(f'{output_dir}/{i}') for i in range(2000)]",
        "[open(f'{output_dir}/{i}', 'w').close() for i in range(20_000)]",
    ],
)
async def test_what_is_no_plain_file_is_refused(run: Runs, plant: str) -> None:
    result = await run(plant)
    assert result.outcome is Outcome.VIOLATION, result
    assert result.violation
    assert result.artifacts == ()
    assert result.result_json is None


@every_sandbox
async def test_refusal_names_what_is_refused(run: Runs) -> None:
    result = await run("os.mkdir(output_dir + '/å'); os.symlink('/etc', output_dir + '/å/x')")
    assert result.violation is not None
    assert "länk" in result.violation
    assert "å/x" in result.violation


@fenced_sandboxes
async def test_devices_cannot_be_made(run: Runs) -> None:
    result = await run(
        """
        import stat
        try:
            os.mknod(output_dir + "/null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        except PermissionError:
            print("nej")
        """
    )
    assert result.stdout.text == "nej\n"


@every_sandbox
@pytest.mark.parametrize("stream", [1, 2])
async def test_flood_is_capped_and_counted(run: Runs, stream: int) -> None:
    result = await run(f"for _ in range(500): os.write({stream}, b'x' * 100_000)")
    captured, other = (
        (result.stdout, result.stderr) if stream == 1 else (result.stderr, result.stdout)
    )
    assert (captured.bytes, len(captured.text), captured.truncated) == (50_000_000, 10_000, True)
    assert (other.bytes, other.text, other.truncated) == (0, "", False)
    assert answer_of(result)["status"] == "succeeded"


@every_sandbox
async def test_time_limit_ends_everything_and_keeps_what_was_written(run: Runs) -> None:
    began = time.monotonic()
    result = await run(
        """
        import signal, subprocess
        for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(s, signal.SIG_IGN)
        print("började å")
        print("fel", file=sys.stderr)
        open(output_dir + "/halv.txt", "w").write("halv")
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                while True:
                    pass
        time.sleep(1000)
        """,
        timeout_seconds=1,
    )
    assert result.outcome is Outcome.TIMED_OUT
    # The runner's second has begun when we hear of it.
    assert 0.9 <= result.duration_seconds < 3
    assert time.monotonic() - began < 6
    assert (result.stdout.text, result.stderr.text) == ("började å\n", "fel\n")
    assert [a.path for a in result.artifacts] == ["halv.txt"]
    assert result.result_json is None


@every_sandbox
async def test_daemon_or_closed_streams_do_not_hold_up_the_run(run: Runs) -> None:
    result = await run(
        """
        import subprocess, threading
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        if os.fork() == 0:
            os.setsid()
            time.sleep(1000)
        threading.Thread(target=time.sleep, args=(1000,)).start()
        os.close(0), os.close(1), os.close(2), os.close(3)
        return "klar"
        """
    )
    assert answer_of(result)["outputs"][0]["html"] == "klar"
    assert result.duration_seconds < 3


@every_sandbox
async def test_memory_bomb_is_out_of_memory(run: Runs) -> None:
    result = await run(
        "kept = []\nwhile True: kept.append(bytearray(16 * 1024 * 1024))",
        memory_bytes=160 * MIB,
        work_bytes=16 * MIB,
    )
    assert result.outcome is Outcome.OUT_OF_MEMORY, result


@fenced_sandboxes
async def test_fork_bomb_hits_a_limit(run: Runs) -> None:
    result = await run(
        """
        made = 0
        try:
            while made < 5000:
                if os.fork() == 0:
                    time.sleep(1000)
                made += 1
        except BlockingIOError:
            print(made)
        """,
        processes=64,
    )
    assert answer_of(result)["status"] == "succeeded"
    assert int(result.stdout.text) <= 310  # the process sandbox knows no smaller limit


@every_sandbox
async def test_disk_filler_is_told(run: Runs) -> None:
    result = await run(
        """
        for i in range(200):
            with open(f"{input_dir}/{i}", "wb") as file:
                file.write(bytes(1024 * 1024))
            time.sleep(0.01)
        """,
        work_bytes=16 * MIB,
    )
    if result.outcome is Outcome.VIOLATION:  # where no file system bounds it
        assert "diskutrymme" in (result.violation or "")
    else:
        assert "diskutrymme" in answer_of(result)["error_summary"]


@fenced_sandboxes
async def test_answer_is_written_although_the_disk_is_full(run: Runs) -> None:
    result = await run(
        """
        with open(input_dir + "/full", "wb", buffering=0) as file:
            try:
                while True:
                    file.write(bytes(1000))
            except OSError:
                return "ändå"
        """,
        work_bytes=4 * MIB,
    )
    assert answer_of(result)["outputs"][0]["html"] == "ändå"


# --- The fence -------------------------------------------------------------------------------


@fenced_sandboxes
async def test_no_network(run: Runs) -> None:
    result = await run(
        """
        import socket
        # Not by if_nameindex(): that asks over netlink, which a container may not either.
        names = [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line]
        reached = []
        for address in ("169.254.169.254", "1.1.1.1", "172.17.0.1"):
            try:
                socket.create_connection((address, 80), timeout=2).close()
                reached.append(address)
            except OSError:
                pass
        try:
            reached.append(socket.getaddrinfo("example.org", 80))
        except OSError:
            pass
        print(names, reached)
        """
    )
    assert result.stdout.text == "['lo'] []\n"


@fenced_sandboxes
async def test_the_rest_of_the_system_is_read_only_and_out_of_sight(run: Runs) -> None:
    result = await run(
        """
        wrote = []
        for path in ("/etc/x", "/usr/x", "/var/x", os.path.dirname(os.__file__) + "/x", "/x"):
            try:
                open(path, "w").close()
                wrote.append(path)
            except OSError:
                pass
        processes = [p for p in os.listdir("/proc") if p.isdigit()]
        print(wrote, len(processes) < 6, os.path.exists("/var/run/docker.sock"))
        caps = [line.split()[1] for line in open("/proc/self/status") if line.startswith("Cap")]
        print(set(caps), [l.split()[1] for l in open("/proc/self/status") if "NoNewPrivs" in l])
        """
    )
    assert result.stdout.text == "[] True False\n{'0000000000000000'} ['1']\n", result


@docker_sandbox
async def test_container_is_locked_down(run: Runs) -> None:
    result = await run(
        """
        import resource
        print(os.getuid(), os.getgid(), os.getgroups(), os.path.exists("/var/run/docker.sock"))
        mounts = [line.split() for line in open("/proc/mounts")]
        print([m[2] for m in mounts if m[1] in ("/work", "/tmp")], "ro" in mounts[0][3].split(","))
        print(resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE))
        """
    )
    user, mounts, limits = result.stdout.text.splitlines()
    uid, rest = user.split(" ", 1)
    assert int(uid) in UIDS
    assert rest in (f"{GID} [] False", f"{GID} [{GID}] False")
    assert mounts == "['tmpfs', 'tmpfs'] True"
    assert limits == "(1024, 1024) (0, 0)"


@docker_sandbox
async def test_each_run_is_a_user_of_its_own_who_has_a_name_and_a_home(run: Runs) -> None:
    source = """
        import getpass, pathlib, pwd
        found = pwd.getpwuid(os.getuid())
        print(os.getuid(), getpass.getuser(), found.pw_name, found.pw_dir, pathlib.Path.home())
        del os.environ["LOGNAME"], os.environ["USER"], os.environ["HOME"]
        print(getpass.getuser(), pathlib.Path("~").expanduser())
        (pathlib.Path(output_dir) / "a.txt").write_text("a")
        assert (pathlib.Path(output_dir) / "a.txt").owner() == "runner"
    """
    results = await asyncio.gather(run(source), run(source))
    uids = set()
    for result in results:
        uid, rest = result.stdout.text.split(" ", 1)
        assert rest == "runner runner /tmp /tmp\nrunner /tmp\n", result
        uids.add(int(uid))
    assert len(uids) == 2 and uids <= set(UIDS)


@docker_sandbox
async def test_the_engine_s_runtime_can_be_chosen(sandbox: Sandbox, tmp_path: Path) -> None:
    chosen = DockerSandbox(image=IMAGE, runtime="runc")
    await chosen.start()
    assert answer_of(await Runs(chosen, tmp_path)("return 'hej'"))["status"] == "succeeded"
    await chosen.aclose()
    missing = DockerSandbox(image=IMAGE, runtime="no-such-runtime")
    await missing.start()
    with pytest.raises(SandboxUnavailable, match="no-such-runtime"):
        await Runs(missing, tmp_path)("return 'hej'")
    with pytest.raises(SandboxUnavailable, match="no-such-runtime"):
        await missing.check()
    await missing.aclose()
    assert find_docker_objects(name_owner()) == []


@every_sandbox
async def test_tool_that_kills_its_runner_gets_nowhere(run: Runs, sandbox: Sandbox) -> None:
    result = await run(
        """
        import signal, subprocess
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1)
        """
    )
    # The first process of a namespace cannot be killed from within it.
    assert result.outcome in (Outcome.CRASHED, Outcome.COMPLETED)
    if sandbox.name == "docker":
        assert (result.outcome, result.result_json) == (Outcome.CRASHED, None)


@every_sandbox
async def test_tool_that_stops_its_runner_is_timed_out(
    run: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "BACKSTOP_SECONDS", 1.0)
    result = await run(
        "import signal\nos.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(1000)",
        timeout_seconds=1,
    )
    assert result.outcome is Outcome.TIMED_OUT


@every_sandbox
async def test_tool_cannot_open_its_runners_streams_or_memory(run: Runs) -> None:
    result = await run(
        """
        opened = []
        for name in ("fd/0", "fd/1", "fd/2", "fd/3", "fd/4", "mem", "environ", "cwd"):
            try:
                os.close(os.open(f"/proc/{os.getppid()}/{name}", os.O_RDWR))
                opened.append(name)
            except OSError:
                pass
        print(opened)
        """
    )
    assert result.stdout.text == "[]\n"


@every_sandbox
@pytest.mark.parametrize(
    "forged",
    [
        r"b'X\0\0\0\x3c' + b'{\"exit_code\":0,\"timed_out\":false,\"out_of_memory\":false}' + b'Z'",
        r"b'T\xff\xff\xff\xff'",
        r"b'\0' * 1000",
        r"os.urandom(1_000_000)",
    ],
)
async def test_forged_frames_break_nothing(run: Runs, forged: str) -> None:
    result = await run(
        f"""
        for pid in (1, os.getppid()):
            for fd in range(1, 10):
                try:
                    if not os.readlink(f"/proc/{{pid}}/fd/{{fd}}").startswith("pipe:"):
                        continue
                    with open(f"/proc/{{pid}}/fd/{{fd}}", "wb", buffering=0) as file:
                        os.set_blocking(file.fileno(), False)
                        file.write({forged})
                except OSError:
                    pass
        return "egen"
        """,
        timeout_seconds=5,
    )
    assert result.outcome in (Outcome.COMPLETED, Outcome.VIOLATION, Outcome.CRASHED)
    after = await run("return 'hej'")
    assert answer_of(after)["outputs"][0]["html"] == "hej"


# --- Nothing is left -------------------------------------------------------------------------


@every_sandbox
async def test_cancelled_run_is_killed(run: Runs) -> None:
    began = asyncio.Event()

    async def on_progress(fraction: float, text: str) -> None:
        began.set()

    running = asyncio.create_task(
        run(
            """
            import subprocess
            from skriptoteket_toolkit import progress
            subprocess.Popen(["sleep", "1000"], start_new_session=True)
            progress(0.1, "igång")
            time.sleep(1000)
            """,
            on_progress=on_progress,
        )
    )
    await asyncio.wait_for(began.wait(), 10)
    cancelled_at = time.monotonic()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert time.monotonic() - cancelled_at < 5
    assert run.find_left_over() == []


@every_sandbox
async def test_run_that_is_asked_to_stop_is_killed_and_says_what_it_printed(run: Runs) -> None:
    began, stop = asyncio.Event(), asyncio.Event()

    async def on_progress(fraction: float, text: str) -> None:
        began.set()

    running = asyncio.create_task(
        run(
            """
            import signal, subprocess
            from skriptoteket_toolkit import output_path, progress
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            subprocess.Popen(["sleep", "1000"], start_new_session=True)
            print("så långt")
            print("trots allt", file=sys.stderr)
            output_path("halv").write_text("x")
            progress(0.1, "igång")
            time.sleep(1000)
            """,
            on_progress=on_progress,
            stop=stop,
        )
    )
    await asyncio.wait_for(began.wait(), 10)
    stop.set()
    result = await asyncio.wait_for(running, 2)
    assert result.outcome is Outcome.CANCELLED
    assert (result.stdout.text, result.stderr.text) == ("så långt\n", "trots allt\n")
    assert (result.result_json, result.artifacts) == (None, ())


@every_sandbox
async def test_run_that_was_asked_to_stop_before_it_began_is_cancelled(run: Runs) -> None:
    stop = asyncio.Event()
    stop.set()
    result = await run("time.sleep(30)", stop=stop)
    assert result.outcome is Outcome.CANCELLED
    assert result.duration_seconds < 2


@every_sandbox
async def test_run_cancelled_at_any_moment_leaves_nothing(run: Runs) -> None:
    for delay in (0, 0.005, 0.02, 0.05, 0.1, 0.2):
        running = asyncio.create_task(run("return 'hej'", files={"a": bytes(100_000)}))
        await asyncio.sleep(delay)
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        # A run that ended before it was cancelled has its container removed behind its back.
        await wait_until(lambda: run.find_left_over() == [], 10)


@every_sandbox
async def test_runs_at_once_do_not_mix(run: Runs) -> None:
    results = await asyncio.gather(
        *(run(f"time.sleep(0.2); print({i}); return '{i}'", files={"a": b"x"}) for i in range(6))
    )
    for number, result in enumerate(results):
        assert answer_of(result)["outputs"][0]["html"] == str(number)
        assert result.stdout.text == f"{number}\n"


@every_sandbox
async def test_killed_worker_leaves_nothing_running(
    run: Runs, sandbox: Sandbox, request: pytest.FixtureRequest
) -> None:
    kind = request.node.callspec.params["sandbox"]
    program = f"""
import asyncio, sys, tempfile
from pathlib import Path
sys.path[:0] = {sys.path!r}
from sandboxes import Runs, make_sandbox, name_owner
async def main():
    sandbox = make_sandbox({kind!r})
    await sandbox.start()
    runs = Runs(sandbox, Path({str(run.directory)!r}))
    tempfile.tempdir = str(runs.temp)
    async def on_progress(fraction, text):
        print(name_owner(), flush=True)
    await runs('''
        import subprocess
        from skriptoteket_toolkit import progress
        subprocess.Popen(["sleep", "1000"], start_new_session=True)
        progress(0.1, "igång")
        time.sleep(1000)
    ''', on_progress=on_progress)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as worker:
        assert worker.stdout is not None
        owner = (await asyncio.to_thread(worker.stdout.readline)).decode().strip()
        assert owner
        worker.send_signal(signal.SIGKILL)

    def is_gone() -> bool:
        left = [entry for entry in run.find_left_over() if not entry.startswith("/")]
        return not left and (kind not in ("docker", "warm") or not find_docker_objects(owner))

    await wait_until(is_gone, 15)
    for path in run.temp.iterdir():  # an empty directory may stay; nobody is there to remove it
        subprocess.run(["rm", "-rf", str(path)], check=True)


def test_limits_of_the_suite_are_smaller_than_what_it_sends() -> None:
    assert LIMITS.work_bytes > 50_000_000 > LIMITS.artifact_max_bytes
    assert Path(IMAGE).name == IMAGE.rpartition("/")[2]


@every_sandbox
async def test_trial_of_a_sandbox_that_works_leaves_nothing(run: Runs, sandbox: Sandbox) -> None:
    await sandbox.check()
    await wait_until(lambda: not run.find_left_over(), 10)


@every_sandbox
async def test_input_file_that_is_missing_is_told_at_once_and_is_not_the_sandbox_s_fault(
    run: Runs, tmp_path: Path
) -> None:
    job = SandboxJob(
        run_id=uuid4(),
        source=as_tool("return 'hej'"),
        entrypoint="run_tool",
        files=[InputFile("a.txt", tmp_path / "missing", 5)],
        limits=LIMITS,
    )
    async with asyncio.timeout(10):
        with pytest.raises(FileNotFoundError):
            await run.sandbox.run(job, spool=tmp_path)
