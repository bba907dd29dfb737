"""`skriptoteket dev`: starts everything, says where, keeps its data, and stops everything."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

START_SECONDS = 90
STOP_SECONDS = 40


@contextmanager
def dev(data_dir: Path, *options: str) -> Iterator[tuple["subprocess.Popen[bytes]", Path]]:
    ready_file = data_dir.with_suffix(".ready.json")
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "app.cli", "dev", "--port", "0"),
            *("--data-dir", str(data_dir), "--ready-file", str(ready_file), *options),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"SANDBOX": "process"},
    )
    try:
        yield process, ready_file
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=STOP_SECONDS)


def wait_until_ready(process: "subprocess.Popen[bytes]", ready_file: Path) -> dict[str, Any]:
    deadline = time.monotonic() + START_SECONDS
    while not ready_file.exists():
        assert process.poll() is None, process.stderr and process.stderr.read().decode()
        assert time.monotonic() < deadline, "dev did not become ready"
        time.sleep(0.1)
    described: dict[str, Any] = json.loads(ready_file.read_text())
    return described


def is_running(pid: int) -> bool:
    try:
        # A zombie has ended: it only waits for somebody to look.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + STOP_SECONDS
    while alive := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, f"still running: {alive}"
        time.sleep(0.1)


@contextmanager
def log_in(described: dict[str, Any], role: str, node: int = 0) -> Iterator[httpx.Client]:
    user = next(user for user in described["users"] if user["role"] == role)
    with httpx.Client(base_url=f"{described['urls'][node]}/api/v1", timeout=30) as client:
        login = {"username": user["username"], "password": user["password"]}
        client.post("/auth/login", json=login).raise_for_status()
        client.headers["x-csrftoken"] = client.cookies["csrftoken"]
        yield client


@pytest.mark.soak
def test_two_at_once_describe_themselves_and_stop_whole(stacks_dir: Path) -> None:
    with (
        dev(stacks_dir / "one", "--api-nodes", "2") as (first, first_file),
        dev(stacks_dir / "two") as (second, second_file),
    ):
        one, two = wait_until_ready(first, first_file), wait_until_ready(second, second_file)
        assert len(one["urls"]) == 2 and len(two["urls"]) == 1
        assert not set(one["urls"]) & set(two["urls"])
        assert sorted(user["role"] for user in one["users"]) == sorted(
            ["admin", "contributor", "user", "user"]
        )
        assert set(one["s3"]) == {"endpoint", "access_key", "secret_key", "bucket"}
        for described in (one, two):
            for node in range(len(described["urls"])):
                with log_in(described, "user", node) as client:
                    assert client.get("/tools").json()["items"]
        pids = one["api_pids"] + one["worker_pids"] + two["api_pids"] + two["worker_pids"]
        assert all(is_running(pid) for pid in pids)
        check_that_data_has_one_owner(stacks_dir / "one")
        assert first.poll() is None
        first.send_signal(signal.SIGTERM)
        second.send_signal(signal.SIGTERM)
        assert first.wait(STOP_SECONDS) == 0
        assert second.wait(STOP_SECONDS) == 0
        wait_until_gone(pids)
        assert not first_file.exists()


def check_that_data_has_one_owner(data_dir: Path) -> None:
    """Start another stack where one is running: it is refused, with words that say so."""
    second = subprocess.run(
        [
            *(sys.executable, "-m", "app.cli", "dev", "--port", "0"),
            *("--data-dir", str(data_dir)),
        ],
        capture_output=True,
        timeout=START_SECONDS,
        check=False,
    )
    assert second.returncode == 1
    assert b"another stack is running" in second.stderr


@pytest.mark.soak
def test_data_is_kept_between_starts_even_after_a_kill(stacks_dir: Path) -> None:
    with dev(stacks_dir / "kept") as (process, ready_file):
        described = wait_until_ready(process, ready_file)
        with log_in(described, "contributor") as client:
            body = {"slug": "kvar", "title": "Kvar"}
            client.post("/editor/tools", json=body).raise_for_status()
        process.kill()
        process.wait()
        # Nobody is left to stop them: the kernel does.
        wait_until_gone(described["api_pids"] + described["worker_pids"])
    ready_file.unlink()
    with dev(stacks_dir / "kept") as (process, ready_file):
        described = wait_until_ready(process, ready_file)
        with log_in(described, "contributor") as client:
            slugs = [tool["slug"] for tool in client.get("/editor/tools").json()["items"]]
            assert "kvar" in slugs


@pytest.mark.parametrize("variable", ["UPLOAD_MAX_FILES=0", "SANDBOX=jail", "LIFECYCLE_DAYS=1"])
def test_a_setting_that_cannot_be_is_named(variable: str) -> None:
    name, value = variable.split("=")
    answer = subprocess.run(
        [sys.executable, "-m", "app.cli", "migrate"],
        env=os.environ | {name: value},
        capture_output=True,
        text=True,
        check=False,
    )
    assert answer.returncode == 1
    assert name in answer.stderr.upper()
    assert "Traceback" not in answer.stderr
