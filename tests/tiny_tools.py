"""Tools for tests: small, quick, and they tell what they were given."""

from typing import Any

FILE_FIELD: dict[str, Any] = {"kind": "file", "name": "files", "label": "Filer"}
DO_FIELD: dict[str, Any] = {"kind": "string", "name": "do", "label": "Gör"}

# Shows its files with their hashes, its inputs and its action, counts its steps in the state, and
# offers `next`. `do`, in the form as in the step, makes it misbehave.
REPORTER = """
import hashlib
import os
import time
from pathlib import Path

from skriptoteket_toolkit import (
    ToolUserError, action, get_action_parts, integer_field, json_output, list_input_files,
    read_inputs, string_field,
)


def run_tool(input_dir, output_dir):
    action_id, form, state = get_action_parts()
    do = (form if action_id else read_inputs()).get("do", "")
    if do.startswith("sleep "):
        time.sleep(float(do.split()[1]))
    if do == "fail":
        raise ToolUserError("Det här gick inte.")
    if do == "crash":
        raise RuntimeError("unexpected")
    if do == "write":
        for number in range(3):
            Path(input_dir, f"extra-{number}").write_text("x")
    seen = {
        "files": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(Path(input_dir).iterdir())
        },
        "manifest": [file.name for file in list_input_files()],
        "inputs": read_inputs(),
        "has_action": "SKRIPTOTEKET_ACTION" in os.environ,
        "action": action_id,
        "form": form,
        "state": state,
    }
    steps = [*state.get("steps", []), action_id or "start"]
    fields = [string_field("do", "Gör"), integer_field("number", "Tal")]
    return {
        "outputs": [json_output(seen)],
        "next_actions": [] if do == "end" else [action("next", "Nästa", fields)],
        "state": None if do == "keep state" else {"steps": steps, "do": do},
    }
"""

# Works until it is told to go wrong in one of many ways; it leaves a trace in stderr first.
WRONG = """
import os
import sys
import time
from pathlib import Path

from skriptoteket_toolkit import (
    ToolUserError, action, get_action_parts, output_path, read_inputs, string_field,
)


def write_result(data):
    Path(os.environ["SKRIPTOTEKET_RESULT_PATH"]).write_bytes(data)
    os._exit(0)


def run_tool(input_dir, output_dir):
    action_id, form, state = get_action_parts()
    how = (form if action_id else read_inputs()).get("how", "")
    print("trace of", how, file=sys.stderr, flush=True)
    for path in Path(input_dir).iterdir():
        path.write_bytes(b"changed in the snapshot only")
    if how == "fail":
        raise ToolUserError("Det här gick inte.")
    if how == "crash":
        raise RuntimeError("unexpected")
    if how == "sleep":
        time.sleep(60)
    if how == "exit":
        os._exit(7)
    if how == "number":
        return 7
    if how == "garbage":
        write_result(b"\\xff{]")
    if how == "empty":
        write_result(b"")
    if how == "version":
        write_result(b'{"contract_version": 1, "status": "succeeded"}')
    if how == "status":
        write_result(b'{"contract_version": 2, "status": "done"}')
    if how == "outputs":
        write_result(b'{"contract_version": 2, "status": "succeeded", "outputs": {}}')
    if how == "twins":
        twin = action("twin", "Tvilling")
        return {"next_actions": [twin, twin], "state": {"lost": True}}
    if how == "link":
        output_path("secret").symlink_to("/etc/passwd")
    return {
        "next_actions": [action("next", "Nästa", [string_field("how", "Hur")])],
        "state": {"steps": state.get("steps", 0) + 1},
    }
"""
HOW_FIELD: dict[str, Any] = {"kind": "string", "name": "how", "label": "Hur"}

# Ends as soon as it has begun.
QUIET = """
def run_tool(input_dir, output_dir):
    return None
"""

# A page with a default style that an uploaded .css overrides (ST-12-07).
STYLED = """
from skriptoteket_toolkit import html, list_input_files, read_inputs

DEFAULT_CSS = "h1 { color: black }"


def run_tool(input_dir, output_dir):
    css = [file.path.read_text("utf-8") for file in list_input_files() if file.name == "stil.css"]
    style = css[0] if css else DEFAULT_CSS
    heading = read_inputs().get("heading", "Rubrik")
    return {"outputs": [html(f"<style>{style}</style><h1>{heading}</h1>")]}
"""

# Writes files with names that headers find hard.
WRITER = """
from skriptoteket_toolkit import output_path


def run_tool(input_dir, output_dir):
    output_path("siffror.bin").write_bytes(bytes(range(100)))
    output_path("mapp/Åäö “citat” \\"rakt\\" 100%.txt").write_text("räksmörgås", "utf-8")
    output_path("tom.txt").write_bytes(b"")
"""


def report(run: dict[str, Any]) -> dict[str, Any]:
    """Return what the reporter says that it saw."""
    assert run["status"] == "succeeded", run
    seen: dict[str, Any] = run["ui_payload"]["outputs"][0]["value"]
    return seen
