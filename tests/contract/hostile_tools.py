"""What a hostile tool is: what it tries, what its user sees then, and what it may find out.

Sources are bodies of `run_tool`. `attempt` notes what succeeded, so `nothing got through` is an
empty list; an error that is not the system's is a mistake of ours and fails the tool.
"""

import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field

# Planted wherever a tool can write: it may turn up nowhere else, and never in another run.
CANARY = "skriptoteket-rymling"
MIB = 1024 * 1024
SUCCEEDED, TIMED_OUT = "succeeded", "timed_out"
TOOL_FAILED, CRASHED = "failed: tool_failed", "failed: tool_crashed"
OUT_OF_MEMORY, VIOLATION = "failed: out_of_memory", "failed: contract_violation"
NOTHING = "[]\n"
BRIEF: dict[str, float] = {"timeout_seconds": 1}

_PRELUDE = f"""
import ctypes, glob, json, os, resource, shutil, signal, socket, stat, subprocess, sys, threading
import time
CANARY = {CANARY!r}
libc = ctypes.CDLL(None, use_errno=True)
got = []

def attempt(name, function, *args, **kwargs):
    try:
        value = function(*args, **kwargs)
    except OSError:
        return None
    got.append(name)
    return value

def write(path, text="x"):
    with open(path, "w") as file:
        file.write(text)

def read(path):
    with open(path, "rb") as file:
        return file.read(1000)

def syscall(number, *args):
    ctypes.set_errno(0)
    if libc.syscall(number, *args) == -1:
        raise OSError(ctypes.get_errno(), "")
"""


@dataclass(frozen=True)
class Hostile:
    """One attempt. `reports` is all that it may print; `limits` override those of the suite."""

    tried: str
    source: str
    sees: str
    words: str = ""
    reports: str | None = None
    files: Callable[[], dict[str, bytes]] = dict
    limits: dict[str, float] = field(default_factory=dict)

    @property
    def tool(self) -> str:
        """The source as a whole module."""
        body = textwrap.indent(textwrap.dedent(self.source), "    ")
        return f"{_PRELUDE}\ndef run_tool(input_dir, output_dir):\n{body}"
