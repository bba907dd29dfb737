"""Processes that run the sweep's real command; some come to a halt at a stage that a test chose.

All are forked from one that has imported what they need, so that tens of them cost little. A child
is the command and nothing else: it may be killed. The product knows nothing of it: what speaks to
S3, and what notes a sweep's progress, is wrapped here.
"""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import Path
from typing import Any, NoReturn

from places import Place

from app import cli
from app.devstack import end_with_parent
from app.store import objects, session_sweep, sweep_ledger

START_SECONDS = 60
COMMAND = ("cleanup_expired_session_files", "--json")


@dataclass(frozen=True)
class Stage:
    """Where a sweep halts: before, half through or after the `number`th step of a kind."""

    step: str
    number: int = 1
    when: str = "after"

    def __str__(self) -> str:
        return f"{self.when} {self.step} {self.number}"


@dataclass(frozen=True)
class Command:
    """A sweep to be run; `ahead_seconds` is how far the S3 server's clock seems to be ahead."""

    place: Place
    stage: Stage | None = None
    ahead_seconds: float = 0
    shard_sets: int = session_sweep.SHARD_SETS


# --- The tests' side --------------------------------------------------------------------------


@dataclass(frozen=True)
class Sweeper:
    """A child that runs a command."""

    directory: Path
    name: str

    @property
    def pid(self) -> int:
        return int(self._file("pid").read_text())

    @property
    def is_halted(self) -> bool:
        return self._file("halted").exists()

    @property
    def exit_code(self) -> int | None:
        """Minus the signal that ended it, None while it runs."""
        path = self._file("exit")
        return int(path.read_text()) if path.exists() else None

    @property
    def output(self) -> str:
        return self._file("out").read_text("utf-8")

    def kill(self) -> None:
        """End it as a power cut would, at the stage that it has reached."""
        self._wait(lambda: self.is_halted or self.exit_code is not None)
        assert self.exit_code is None, f"it never reached its stage: {self.output[-2000:]}"
        os.kill(self.pid, signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        """Return its exit code when it has ended."""
        self._wait(lambda: self.exit_code is not None)
        code = self.exit_code
        assert code is not None
        return code

    def _wait(self, look: Any) -> None:
        end = time.monotonic() + START_SECONDS
        while not look():
            assert time.monotonic() < end, f"{self.name}: {self.output[-2000:]}"
            time.sleep(0.02)

    def _file(self, kind: str) -> Path:
        return self.directory / f"{self.name}.{kind}"


@contextmanager
def run_sweeps(directory: Path, commands: Mapping[str, Command]) -> Iterator[dict[str, Sweeper]]:
    """Start all commands at about the same moment; what is still running at the end is killed."""
    directory.mkdir(parents=True)
    plan = {
        name: {
            "environment": command.place.environment,
            "stage": command.stage and vars(command.stage),
            "ahead_seconds": command.ahead_seconds,
            "shard_sets": command.shard_sets,
        }
        for name, command in commands.items()
    }
    (directory / "plan.json").write_text(json.dumps(plan))
    parent = subprocess.Popen(
        [sys.executable, __file__, str(directory)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.DEVNULL,
        preexec_fn=end_with_parent,
    )
    try:
        yield {name: Sweeper(directory, name) for name in commands}
    finally:
        parent.kill()  # Its children end with it.
        parent.wait()


# --- The processes' side ----------------------------------------------------------------------


class Halt:
    """Halts everything that this process does at S3, and notes it, when its stage is reached."""

    def __init__(self, sweeper: Sweeper, stage: Stage | None) -> None:
        self._sweeper, self._stage = sweeper, stage
        self._counts: Counter[str] = Counter()
        self._is_halted = False

    @asynccontextmanager
    async def around(self, step: str, do_half: Any = None) -> AsyncIterator[None]:
        if self._is_halted:
            await asyncio.Event().wait()
        self._counts[step] += 1
        number = self._counts[step]
        await self._reach(step, number, "before")
        if do_half is not None and self._stage == Stage(step, number, "half"):
            await do_half()
            await self._reach(step, number, "half")
        yield
        await self._reach(step, number, "after")

    async def _reach(self, step: str, number: int, when: str) -> None:
        if self._stage == Stage(step, number, when):
            self._is_halted = True
            self._sweeper._file("halted").touch()
            await asyncio.Event().wait()


class WrappedStore(objects.ObjectStore):
    """A bucket whose server's clock is ahead, and whose calls may halt."""

    halt: Halt
    ahead: timedelta

    async def _call(self, operation: str, **params: Any) -> dict[str, Any]:
        call = super()._call

        async def do_half() -> None:
            doomed = params["Delete"]["Objects"]
            half = params | {"Delete": {"Objects": doomed[: len(doomed) // 2]}}
            await call(operation, **half)

        async with self.halt.around(_name_step(operation, params), do_half):
            answer = await call(operation, **params)
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        served_at = parsedate_to_datetime(headers["date"]) + self.ahead
        headers["date"] = format_datetime(served_at, usegmt=True)
        return answer


def _name_step(operation: str, params: dict[str, Any]) -> str:
    """Name a call by what it means to a sweep."""
    key = str(params.get("Key") or params.get("Prefix") or "")
    if operation == "delete_objects":
        key = str((params["Delete"]["Objects"] or [{"Key": ""}])[0]["Key"])
    return f"{operation.partition('_')[0]} {key.split('/')[1] if '/' in key else key}"


def _run(sweeper: Sweeper, plan: dict[str, Any]) -> NoReturn:
    end_with_parent()
    os.environ.clear()
    os.environ.update(plan["environment"])
    # Whatever fails here is for the test to read.
    out = os.open(sweeper._file("out"), os.O_WRONLY | os.O_CREAT)
    os.dup2(out, 1)
    os.dup2(out, 2)
    halt = Halt(sweeper, Stage(**plan["stage"]) if plan["stage"] else None)
    WrappedStore.halt, WrappedStore.ahead = halt, timedelta(seconds=plan["ahead_seconds"])
    objects.ObjectStore = WrappedStore  # type: ignore[misc]
    session_sweep.SHARD_SETS = sweep_ledger.SHARD_SETS = plan["shard_sets"]
    for name in ("begin_sweep", "save_shard", "end_sweep"):
        setattr(sweep_ledger, name, _halting(halt, name, getattr(sweep_ledger, name)))
    sys.argv = ["skriptoteket", *COMMAND]
    code = 1
    try:
        cli.main()
    except SystemExit as ended:
        code = int(ended.code or 0)
    finally:
        sys.stdout.flush()
        os._exit(code)


def _halting(halt: Halt, name: str, work: Any) -> Any:
    async def do(*args: Any) -> Any:
        async with halt.around(name):
            return await work(*args)

    return do


def _main(directory: Path) -> None:
    running = {}
    for name, plan in json.loads((directory / "plan.json").read_bytes()).items():
        sweeper = Sweeper(directory, name)
        pid = os.fork()
        if pid == 0:
            _run(sweeper, plan)
        running[pid] = sweeper
        _write_whole(sweeper._file("pid"), str(pid))
    while running:
        pid, status = os.wait()
        _write_whole(running.pop(pid)._file("exit"), str(os.waitstatus_to_exitcode(status)))


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        _main(Path(sys.argv[1]))
