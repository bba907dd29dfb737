"""Running a tool of the script bank as the platform does, in this process and without a network.

Every result goes through the normalizer, which must find nothing to change; every action is one
that the run before offered, and its values fit the offered fields.
"""

import importlib.util
import json
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from app.domain.inputs import coerce_values
from app.domain.normalizer import normalize
from app.domain.tools import InputField, check_source, is_slug, parse_input_schema
from app.usecases.seed import SCRIPT_BANK, ToolFolder

sys.path.append(str(SCRIPT_BANK.parent / "runner"))

Files = Mapping[str, str | bytes]


def load_tool(folder: str) -> ModuleType:
    """Import a tool's script."""
    path = SCRIPT_BANK / folder / "tool.py"
    spec = importlib.util.spec_from_file_location(f"script_bank_{folder}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def read_sample(folder: str) -> dict[str, bytes]:
    """Return a tool's sample files by name; `inputs.json` among them is for the form."""
    paths = sorted((SCRIPT_BANK / folder / "sample").iterdir())
    return {path.name: path.read_bytes() for path in paths if path.name != "inputs.json"}


def read_sample_inputs(folder: str) -> dict[str, object]:
    """Return the sample values of a tool's form."""
    data = (SCRIPT_BANK / folder / "sample" / "inputs.json").read_bytes()
    return msgspec.json.decode(data, type=dict[str, object])


def check_catalogue_entry(folder: str) -> ToolFolder:
    """Return a tool's `meta.json`, after the checks that seeding the catalogue makes."""
    path = SCRIPT_BANK / folder
    meta = msgspec.json.decode((path / "meta.json").read_bytes(), type=ToolFolder)
    assert is_slug(meta.slug)
    parse_input_schema(meta.input_schema)
    check_source((path / "tool.py").read_text("utf-8"), meta.entrypoint)
    return meta


@dataclass
class Result:
    """What a run returned, and what lies in its output directory."""

    raw: dict[str, Any]
    files: dict[str, bytes]

    @property
    def notices(self) -> str:
        return "\n".join(o["message"] for o in self.outputs("notice"))

    def outputs(self, kind: str) -> list[dict[str, Any]]:
        return [output for output in self.raw["outputs"] if output["kind"] == kind]

    def action(self, action_id: str) -> dict[str, Any]:
        (action,) = (a for a in self.raw["next_actions"] if a["action_id"] == action_id)
        return dict(action)

    def options(self, action_id: str, name: str) -> list[str]:
        (found,) = (f for f in self.action(action_id)["fields"] if f["name"] == name)
        return [option["value"] for option in found["options"]]


@dataclass
class Session:
    """A user with one tool: uploads, then actions on what was uploaded."""

    tool: ModuleType
    root: Path
    patch: pytest.MonkeyPatch
    files: dict[str, bytes] = field(default_factory=dict)

    def start(self, files: Files | None = None, **inputs: object) -> Result:
        """Run the tool anew; without files it is run on none."""
        self.files = {
            name: content.encode() if isinstance(content, str) else content
            for name, content in (files or {}).items()
        }
        self.patch.delenv("SKRIPTOTEKET_ACTION", raising=False)
        self.patch.setenv("SKRIPTOTEKET_INPUTS", json.dumps(inputs))
        return self._run()

    def act(self, before: Result, action_id: str, **form: object) -> Result:
        """Take an action that a run offered, with what it filled in unless `form` says else."""
        action = before.action(action_id)
        fields = [msgspec.convert(f, InputField) for f in action["fields"]]
        values, problems = coerce_values(fields, {**action.get("prefill", {}), **form})
        assert problems == {}
        payload = {"action_id": action_id, "input": values, "state": before.raw.get("state") or {}}
        self.patch.delenv("SKRIPTOTEKET_INPUTS", raising=False)
        self.patch.setenv("SKRIPTOTEKET_ACTION", json.dumps(payload))
        return self._run()

    def _run(self) -> Result:
        input_dir, output_dir = self.root / "work" / "input", self.root / "work" / "output"
        for folder in (input_dir, output_dir):
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.iterdir():
                old.unlink()
        for name, data in self.files.items():
            (input_dir / name).write_bytes(data)
        manifest = [
            {"name": name, "path": str(input_dir / name), "bytes": len(data)}
            for name, data in self.files.items()
        ]
        self.patch.setenv("SKRIPTOTEKET_INPUT_MANIFEST", json.dumps({"files": manifest}))
        self.patch.setenv("SKRIPTOTEKET_INPUT_DIR", str(input_dir))
        self.patch.setenv("SKRIPTOTEKET_OUTPUT_DIR", str(output_dir))
        self.patch.chdir(self.root / "work")
        self.patch.setattr(socket, "socket", _refuse)
        raw = json.loads(json.dumps(self.tool.run_tool(str(input_dir), str(output_dir))))
        checked = normalize({"contract_version": 2, "status": "succeeded", **raw})
        assert checked.notices == ()
        files = {path.name: path.read_bytes() for path in sorted(output_dir.iterdir())}
        assert len(files) <= 50
        return Result(raw, files)


def _refuse(*args: object, **kwargs: object) -> None:
    raise AssertionError("a tool of the script bank reached for the network")
