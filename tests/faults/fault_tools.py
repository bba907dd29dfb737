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


def seen_by(run: dict) -> dict[str, str]:
    """The files that a run of TELL saw: name → SHA-256."""
    return run["ui_payload"]["outputs"][0]["value"]
