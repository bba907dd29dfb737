"""The worker's side of the runner protocol against answers that no honest runner gives."""

import asyncio
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from workers.sandbox import protocol
from workers.sandbox import wire as worker_wire
from workers.sandbox.base import (
    InputFile,
    Outcome,
    SandboxJob,
    SandboxLimits,
    SandboxResult,
)
from workers.sandbox.protocol import RunnerNotStarted, exchange
from workers.sandbox.wire import MAGIC

RUNNER = Path(__file__).resolve().parents[2] / "infra" / "runner"

LIMITS = SandboxLimits(
    timeout_seconds=5,
    memory_bytes=1,
    cpus=1,
    processes=1,
    work_bytes=1000,
    output_max_bytes=10,
    result_max_bytes=100,
    artifacts_max_files=3,
    artifact_max_bytes=1000,
    artifacts_max_total_bytes=1500,
)
EXITED = {"exit_code": 0, "timed_out": False, "out_of_memory": False}

Play = Callable[..., Awaitable[SandboxResult]]


class Sink:
    """Takes the request; `fails` is what a runner that went away does to it."""

    def __init__(self, fails: bool = False) -> None:
        self.data, self.fails = bytearray(), fails

    def write(self, data: bytes, /) -> None:
        self.data += data

    async def drain(self) -> None:
        if self.fails:
            raise BrokenPipeError


def frame(kind: bytes, payload: bytes | dict[str, Any] = b"", length: int | None = None) -> bytes:
    if isinstance(payload, dict):
        payload = json.dumps(payload).encode()
    size = len(payload) if length is None else length
    return kind + size.to_bytes(4, "big") + payload


def stream_of(kind: bytes, text: bytes = b"", total: int | None = None) -> bytes:
    return frame(kind, (len(text) if total is None else total).to_bytes(8, "big") + text)


TAKEN = frame(b"K")
RAN = TAKEN + frame(b"X", EXITED) + stream_of(b"O", b"ut") + stream_of(b"E", b"fel")


def artifact(path: str, data: bytes = b"x") -> bytes:
    declared = frame(b"A", {"path": path, "bytes": len(data)})
    return declared + (frame(b"D", data) if data else b"")


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """Read an answer as it would come from a runner, ended by the end of the stream."""

    async def play(answer: bytes, *, sink: Sink | None = None, ends: bool = True) -> SandboxResult:
        source = asyncio.StreamReader()
        source.feed_data(answer)
        if ends:
            source.feed_eof()
        job = SandboxJob(run_id=uuid4(), source="", entrypoint="run_tool", files=[], limits=LIMITS)
        return await exchange(job, source, sink or Sink(), spool=tmp_path, alone=True)

    return play


def test_both_sides_speak_the_same_protocol() -> None:
    wire = load_runner_module("runner_wire")
    ours, theirs = vars(worker_wire), vars(wire)
    words = {name for name, value in theirs.items() if isinstance(value, bytes)}
    assert {name: ours[name] for name in words} == {name: theirs[name] for name in words}
    assert worker_wire.CHUNK_BYTES >= wire.CHUNK_BYTES


async def test_whole_answer_is_read(play: Play, tmp_path: Path) -> None:
    answer = (
        TAKEN
        + frame(b"P", {"fraction": 0.5, "text": "halvvägs"})
        + frame(b"X", {**EXITED, "exit_code": 3})
        + stream_of(b"O", b"0123456789", total=77)
        + stream_of(b"E", b"\xff\x00")
        + frame(b"T", b"{}")
        + artifact("sub/å.txt", b"data")
        + artifact("tom", b"")
        + frame(b"Z")
    )
    result = await play(answer)
    assert (result.outcome, result.exit_code) == (Outcome.COMPLETED, 3)
    assert (result.stdout.text, result.stdout.bytes, result.stdout.truncated) == (
        "0123456789",
        77,
        True,
    )
    assert (result.stderr.text, result.stderr.truncated) == ("\ufffd\ufffd", False)
    assert result.result_json == b"{}"
    assert [(a.path, a.bytes, a.spooled.read_bytes()) for a in result.artifacts] == [
        ("sub/å.txt", 4, b"data"),
        ("tom", 0, b""),
    ]
    assert all(a.spooled.parent == tmp_path and a.spooled.name.isascii() for a in result.artifacts)


async def test_request_carries_everything_in_order(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"inneh")
    job = SandboxJob(
        run_id=uuid4(),
        source="å",
        entrypoint="start",
        files=[InputFile("ö.txt", tmp_path / "blob", 5)],
        limits=LIMITS,
        inputs=b"{}",
        action=b"[]",
    )
    source, sink = asyncio.StreamReader(), Sink()
    source.feed_data(RAN + frame(b"Z"))
    await exchange(job, source, sink, spool=tmp_path, alone=True, watch_work=True)
    assert sink.data.startswith(MAGIC + b"J")
    length = int.from_bytes(sink.data[5:9], "big")
    header = json.loads(sink.data[9 : 9 + length])
    assert header["files"] == [{"name": "ö.txt", "bytes": 5}]
    assert (header["entrypoint"], header["source"]) == ("start", 2)
    assert (header["alone"], header["watch_work"]) == (True, True)
    assert header["limits"]["timeout_seconds"] == 5
    assert bytes(sink.data[9 + length :]) == "å".encode() + b"{}[]" + b"inneh"


@pytest.mark.parametrize("cut", range(len(RAN + frame(b"T", b"{}") + artifact("a"))))
async def test_stream_cut_anywhere_is_a_crash_or_no_start(play: Play, cut: int) -> None:
    answer = (RAN + frame(b"T", b"{}") + artifact("a"))[:cut]
    if cut < len(TAKEN):
        with pytest.raises(RunnerNotStarted):
            await play(answer)
        return
    result = await play(answer)
    assert (result.outcome, result.result_json, result.artifacts) == (Outcome.CRASHED, None, ())


@pytest.mark.parametrize(
    "answer",
    [
        TAKEN + frame(b"?"),
        TAKEN + frame(b"Z"),
        TAKEN + frame(b"X", b"{"),
        TAKEN + frame(b"X", b"[" * 5000),
        TAKEN + frame(b"X", {**EXITED, "exit_code": 10**9}),
        TAKEN + frame(b"X", {"exit_code": 0}),
        TAKEN + frame(b"X", b"", length=2**32 - 1),
        TAKEN + frame(b"P", {"fraction": 2, "text": ""}),
        TAKEN + frame(b"P", {"fraction": 0.5, "text": "x" * 501}),
        TAKEN + frame(b"P", b'{"fraction": NaN, "text": ""}'),
        TAKEN + frame(b"X", EXITED) + stream_of(b"E"),
        TAKEN + frame(b"X", EXITED) + frame(b"O", b"1234567"),
        TAKEN + frame(b"X", EXITED) + stream_of(b"O", b"x" * 11),
        RAN + frame(b"X", EXITED),
        RAN + frame(b"T", b"x" * 101),
        RAN + frame(b"T", b"", length=2**31),
        RAN + frame(b"T", b"{}") + frame(b"T", b"{}"),
        RAN + artifact("a") + frame(b"T", b"{}"),
        RAN + frame(b"D", b"x"),
        RAN + frame(b"A", {"path": "a", "bytes": -1}),
        RAN + frame(b"A", {"path": "a", "bytes": 2**70}),
        RAN + frame(b"A", {"path": "a", "bytes": 1001}),
        RAN + frame(b"A", {"path": "a", "bytes": 3}) + frame(b"D", b"1234"),
        RAN + frame(b"A", {"path": "a", "bytes": 3}) + frame(b"D", b""),
        RAN + frame(b"A", {"path": "a", "bytes": 3}) + frame(b"Z"),
        RAN + frame(b"A", b'{"path": "\xff", "bytes": 1}'),
        RAN + frame(b"A", b'{"path": "\\ud800", "bytes": 1}') + frame(b"D", b"x"),
        RAN + b"".join(artifact(str(i), b"") for i in range(4)),
        RAN + artifact("a", bytes(1000)) + artifact("b", bytes(501)),
        RAN + artifact("a") + artifact("A"),
        RAN + artifact("\u00e5") + artifact("a\u030a"),
        RAN + artifact("stra\u00dfe") + artifact("STRASSE"),
        RAN + frame(b"V", {"reason": "link", "path": "x\n\u202e"}),
        RAN + frame(b"V", {"reason": "{limits}", "path": ""}),
        RAN + frame(b"V", b"null"),
        RAN + frame(b"Z", b"more"),
    ],
)
async def test_answer_that_breaks_a_rule_is_a_violation(
    play: Play, answer: bytes, tmp_path: Path
) -> None:
    result = await play(answer + frame(b"Z"))
    assert result.outcome is Outcome.VIOLATION
    assert result.violation
    assert result.violation.isprintable()
    assert (result.result_json, result.artifacts) == (None, ())
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 1500


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "..",
        "/",
        "/etc/passwd",
        "a/",
        "a//b",
        "a/./b",
        "../a",
        "a/../../b",
        "a\0b",
        "a\nb",
        "a\x7fb",
        "x" * 256,
        "å" * 128,
        "/".join(["x" * 200] * 6),
    ],
)
async def test_unusable_artifact_paths_are_refused(play: Play, path: str, tmp_path: Path) -> None:
    result = await play(RAN + artifact(path) + frame(b"Z"))
    assert result.outcome is Outcome.VIOLATION
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["x" * 255, "a b", "...", "~", "å/ä/ö", "-rf", "C:\\x"])
async def test_odd_but_harmless_paths_are_taken(play: Play, path: str) -> None:
    result = await play(RAN + artifact(path) + frame(b"Z"))
    assert [a.path for a in result.artifacts] == [path]


async def test_planted_file_in_the_spool_is_not_written_through(play: Play, tmp_path: Path) -> None:
    outside = tmp_path.with_name(f"{tmp_path.name}-outside")
    (tmp_path / "artifact-0000").symlink_to(outside)
    with pytest.raises(FileExistsError):
        await play(RAN + artifact("a") + frame(b"Z"))
    assert not outside.exists()


async def test_silent_runner_is_ended_by_the_clock(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "START_SECONDS", 0.05)
    monkeypatch.setattr(protocol, "BACKSTOP_SECONDS", -4.95)
    monkeypatch.setattr(protocol, "COLLECT_SECONDS", 0.05)
    with pytest.raises(RunnerNotStarted):
        await play(b"", ends=False)
    assert (await play(TAKEN, ends=False)).outcome is Outcome.TIMED_OUT
    assert (await play(RAN, ends=False)).outcome is Outcome.VIOLATION


async def test_silence_after_the_end_of_the_tool_is_not_waited_out(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(protocol, "FRAME_SECONDS", 0.05)
    began = time.monotonic()
    result = await play(RAN + artifact("a")[:-1], ends=False)
    assert result.outcome is Outcome.VIOLATION
    assert time.monotonic() - began < protocol.COLLECT_SECONDS / 10


async def test_runner_that_stops_reading_is_judged_by_its_answer(play: Play) -> None:
    assert (await play(TAKEN, sink=Sink(fails=True))).outcome is Outcome.CRASHED


@pytest.mark.parametrize(("there", "error"), [(b"kort", ValueError), (None, FileNotFoundError)])
@pytest.mark.parametrize("answer", [b"", TAKEN], ids=["waits", "lies"])
async def test_file_that_cannot_be_sent_whole_is_told_as_such_and_at_once(
    tmp_path: Path, there: bytes | None, error: type[Exception], answer: bytes
) -> None:
    if there is not None:
        (tmp_path / "blob").write_bytes(there)
    job = SandboxJob(
        run_id=uuid4(),
        source="",
        entrypoint="run_tool",
        files=[InputFile("a", tmp_path / "blob", 5)],
        limits=LIMITS,
    )
    source = asyncio.StreamReader()  # a runner waits for all that was declared, and says nothing
    source.feed_data(answer)
    async with asyncio.timeout(1):
        with pytest.raises(error):
            await exchange(job, source, Sink(), spool=tmp_path, alone=True)


@settings(
    max_examples=300,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(junk=st.binary(max_size=200), start=st.sampled_from([TAKEN, RAN, RAN + frame(b"T", b"{}")]))
def test_junk_never_raises(junk: bytes, start: bytes, tmp_path_factory: Any) -> None:
    async def read() -> SandboxResult:
        source = asyncio.StreamReader()
        source.feed_data(start + junk)
        source.feed_eof()
        job = SandboxJob(run_id=uuid4(), source="", entrypoint="x", files=[], limits=LIMITS)
        spool = tmp_path_factory.mktemp("spool")
        return await exchange(job, source, Sink(), spool=spool, alone=True)

    assert asyncio.run(read()).outcome in set(Outcome)


# --- The runner's own side -------------------------------------------------------------------


def test_runner_does_the_job_of_a_worker_of_the_release_before(tmp_path: Path) -> None:
    header = {
        "entrypoint": "run_tool",
        "source": 0,
        "inputs": None,
        "action": None,
        "files": [],
        "limits": asdict(LIMITS),
        "alone": False,
        "watch_work": False,
    }
    with subprocess.Popen(
        [sys.executable, "-I", str(RUNNER / "runner.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={"SKRIPTOTEKET_WORK": str(tmp_path)},
    ) as runner:
        assert runner.stdin is not None and runner.stdout is not None
        runner.stdin.write(MAGIC + frame(b"J", header))
        runner.stdin.flush()
        assert runner.stdout.read(14) == MAGIC + frame(b"R") + TAKEN
        assert runner.stdout.read()[-5:] == frame(b"Z")


# --- The runner's own walk, where a test needs powers that no tool has -----------------------


def load_runner_module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, RUNNER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def test_walk_refuses_devices(tmp_path: Path) -> None:
    import os
    import stat

    collect = load_runner_module("runner_collect")
    try:
        os.mknod(tmp_path / "null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root makes devices")
    with pytest.raises(collect.Refused, match="not_a_regular_file"):
        list(collect.walk_artifacts(str(tmp_path), max_files=9, max_bytes=9, max_total_bytes=9))


def test_walk_does_not_follow_a_directory_that_became_a_link(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect = load_runner_module("runner_collect")
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "sub" / "passwd").write_text("tool")
    found = collect.walk_artifacts(
        str(tmp_path / "out"), max_files=9, max_bytes=99, max_total_bytes=99
    )
    honest = collect._open_below

    def swap(top: int, path: str) -> int:
        if path == "sub" and not (tmp_path / "out" / "sub").is_symlink():
            (tmp_path / "out" / "sub").rename(tmp_path / "moved")
            (tmp_path / "out" / "sub").symlink_to("/etc")
        return honest(top, path)  # type: ignore[no-any-return]

    monkeypatch.setattr(collect, "_open_below", swap)
    with pytest.raises(collect.Refused, match="unreadable"):
        list(found)
