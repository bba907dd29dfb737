"""Tools for the tests of faults: cheap ones that tell what they were given."""

FILE_FIELD = [{"kind": "file", "name": "files", "label": "Filer"}]

# Does nothing at all.
IDLE = """
def run_tool(input_dir, output_dir):
    return None
"""

# Says which files it saw and what was in them, and offers itself as the next step.
TELL = """
import hashlib
import pathlib
import time

import skriptoteket_toolkit as toolkit


def run_tool(input_dir, output_dir):
    seconds = (toolkit.read_inputs() or {}).get("seconds") or 0
    time.sleep(float(seconds))
    seen = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(pathlib.Path(input_dir).iterdir())
    }
    return {
        "outputs": [{"kind": "json", "title": "seen", "value": seen}],
        "next_actions": [
            {"action_id": "again", "label": "Igen", "kind": "form", "fields": [
                {"name": "seconds", "label": "Sekunder", "kind": "number"}
            ]}
        ],
        "state": {"seen": seen},
    }
"""
TELL_SCHEMA = [*FILE_FIELD, {"kind": "number", "name": "seconds", "label": "Sekunder"}]

# Keeps every word that it was given since it began, in order.
CHAIN = """
import skriptoteket_toolkit as toolkit


def run_tool(input_dir, output_dir):
    action_id, form, state = toolkit.get_action_parts()
    word = form["word"] if action_id else toolkit.read_inputs()["word"]
    return {
        "next_actions": [toolkit.action("again", "Igen", [toolkit.string_field("word", "Ord")])],
        "state": {"words": [*state.get("words", []), word]},
    }
"""
CHAIN_SCHEMA = [{"kind": "string", "name": "word", "label": "Ord"}]

# Takes a step for as long as it is told to, says so half way, and leaves as many files as wanted.
STEP = """
import pathlib
import time

import skriptoteket_toolkit as toolkit


def run_tool(input_dir, output_dir):
    action_id, form, state = toolkit.get_action_parts()
    form = form if action_id else toolkit.read_inputs()
    seconds = float(form.get("seconds") or 0)
    time.sleep(seconds / 2)
    toolkit.progress(0.5, "halvvägs")
    time.sleep(seconds / 2)
    step = state.get("step", 0) + 1
    for number in range(int(form.get("artifacts") or 0)):
        toolkit.output_path(f"{number}.txt").write_text(f"{step}")
    fields = [
        toolkit.number_field("seconds", "Sekunder"), toolkit.number_field("artifacts", "Filer")
    ]
    return {
        "outputs": [toolkit.json_output(
            {path.name: path.read_text() for path in pathlib.Path(input_dir).iterdir()}
        )],
        "next_actions": [toolkit.action("step", "Steg", fields)],
        "state": {"step": step},
    }
"""
STEP_SCHEMA = [
    *FILE_FIELD,
    {"kind": "number", "name": "seconds", "label": "Sekunder"},
    {"kind": "number", "name": "artifacts", "label": "Filer"},
]


def seen_by(run: dict) -> dict[str, str]:
    """The files that a run of TELL saw: name → SHA-256."""
    return run["ui_payload"]["outputs"][0]["value"]
