"""Running a tool of the script bank or a curated app as the platform does, in this process.

Every result goes through the normalizer, which must find nothing to change. What `act` takes is
what the run before offered, with values that fit its fields. No run may use the network.
"""

import importlib.util
import json
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest
from requirements import is_required

from app import curated
from app.domain.curated import CuratedApp
from app.domain.inputs import coerce_values
from app.domain.normalizer import normalize
from app.domain.policy import DEFAULT_POLICY, UiPolicy
from app.domain.tools import InputField, check_source, is_slug, parse_input_schema
from app.usecases.seed import SCRIPT_BANK, ToolFolder

RUNNER = SCRIPT_BANK.parent / "runner"
sys.path.append(str(RUNNER))

Files = Mapping[str, str | bytes]


def get_script(name: str) -> Path:
    """Return where the script of a tool or of a curated app lies, by the name of its folder."""
    scripts = (SCRIPT_BANK / name / "tool.py", curated.FOLDER / name / "app.py")
    (script,) = (path for path in scripts if path.exists())
    return script


def load_tool(name: str) -> ModuleType:
    """Import the script of a tool or of a curated app."""
    spec = importlib.util.spec_from_file_location(f"script_bank_{name}", get_script(name))
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def read_sample(name: str) -> dict[str, bytes]:
    """Return the sample files of a script by name; `inputs.json` among them is for the form."""
    paths = sorted(get_script(name).with_name("sample").iterdir())
    return {path.name: path.read_bytes() for path in paths if path.name != "inputs.json"}


def check_catalogue_entry(name: str) -> ToolFolder:
    """Return a tool's `meta.json`, after the checks that seeding the catalogue makes."""
    script = get_script(name)
    meta = msgspec.json.decode(script.with_name("meta.json").read_bytes(), type=ToolFolder)
    assert is_slug(meta.slug)
    parse_input_schema(meta.input_schema)
    check_source(script.read_text("utf-8"), meta.entrypoint)
    return meta


def get_app(app_id: str) -> CuratedApp:
    """Return a curated app's catalogue entry, after the checks that a release makes."""
    (app,) = (app for app in curated.load_curated_apps() if app.app_id == app_id)
    return app


def expects_pango() -> bool:
    """Say whether WeasyPrint works here, or must: SKRIPTOTEKET_REQUIRE_WEASYPRINT=1."""
    try:
        import weasyprint  # noqa: F401
    except (ImportError, OSError):
        return is_required("WEASYPRINT")
    return True


@dataclass
class Result:
    """What a run returned, what of it is shown, and what lies in its output directory."""

    raw: dict[str, Any]
    payload: dict[str, Any]
    files: dict[str, bytes]

    @property
    def notices(self) -> str:
        return "\n".join(o["message"] for o in self.outputs("notice"))

    @property
    def offered(self) -> list[str]:
        return [action["action_id"] for action in self.payload["next_actions"]]

    def outputs(self, kind: str) -> list[dict[str, Any]]:
        return [output for output in self.payload["outputs"] if output["kind"] == kind]

    def table(self, title: str = "") -> list[list[Any]]:
        """Return the only table whose title begins so: its header and its rows."""
        (found,) = (o for o in self.outputs("table") if o.get("title", "").startswith(title))
        keys = [column["key"] for column in found["columns"]]
        header = [column["label"] for column in found["columns"]]
        return [header, *([row.get(key) for key in keys] for row in found["rows"])]

    def action(self, action_id: str) -> dict[str, Any]:
        (action,) = (a for a in self.payload["next_actions"] if a["action_id"] == action_id)
        return dict(action)

    def field(self, action_id: str, name: str) -> dict[str, Any]:
        (found,) = (f for f in self.action(action_id)["fields"] if f["name"] == name)
        return dict(found)

    def options(self, action_id: str, name: str) -> list[str]:
        """Return what a user can choose from, as it reads."""
        return [option["label"] for option in self.field(action_id, name).get("options", [])]


@dataclass
class Session:
    """A user with one tool: uploads, then actions on what was uploaded.

    `state` is kept from run to run as the service keeps it; `result` is that of the last run.
    """

    tool: ModuleType
    root: Path
    patch: pytest.MonkeyPatch
    policy: UiPolicy = DEFAULT_POLICY
    state: dict[str, Any] = field(default_factory=dict)
    files: Files = field(default_factory=dict)
    result: Result = field(init=False)

    @property
    def notices(self) -> str:
        return self.result.notices

    def start(self, files: Files | None = None, **inputs: object) -> Result:
        """Run the tool anew; without files it is run on none."""
        self.files = files or {}
        self.patch.delenv("SKRIPTOTEKET_ACTION", raising=False)
        self.patch.setenv("SKRIPTOTEKET_INPUTS", json.dumps(inputs))
        return self._run()

    def act(self, action_id: str, **form: object) -> Result:
        """Take an action that was offered, with what it filled in unless `form` says else."""
        action = self.result.action(action_id)
        fields = msgspec.convert(action["fields"], list[InputField])
        values, problems = coerce_values(fields, {**action.get("prefill", {}), **form})
        assert problems == {}
        return self.send(action_id, values)

    def send(self, action_id: str, values: Mapping[str, object]) -> Result:
        """Take an action, offered or not, with any values."""
        payload = {"action_id": action_id, "input": values, "state": self.state}
        self.patch.delenv("SKRIPTOTEKET_INPUTS", raising=False)
        self.patch.setenv("SKRIPTOTEKET_ACTION", json.dumps(payload))
        return self._run()

    def _run(self) -> Result:
        input_dir, output_dir = self.root / "work" / "input", self.root / "work" / "output"
        for folder in (input_dir, output_dir):
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.iterdir():
                old.unlink()
        manifest = []
        for name, content in self.files.items():
            path = input_dir / name
            size = path.write_bytes(content.encode() if isinstance(content, str) else content)
            manifest.append({"name": name, "path": str(path), "bytes": size})
        self.patch.setenv("SKRIPTOTEKET_INPUT_MANIFEST", json.dumps({"files": manifest}))
        self.patch.setenv("SKRIPTOTEKET_INPUT_DIR", str(input_dir))
        self.patch.setenv("SKRIPTOTEKET_OUTPUT_DIR", str(output_dir))
        self.patch.chdir(self.root / "work")
        with _watch_sockets() as opened:
            answer = self.tool.run_tool(str(input_dir), str(output_dir))
        assert opened == [], "a tool may not catch the refusal and go on"
        raw = json.loads(json.dumps(answer, allow_nan=False))
        result = {"contract_version": 2, "status": "succeeded", **raw}
        checked = normalize(result, policy=self.policy)
        assert checked.notices == ()
        files = {path.name: path.read_bytes() for path in sorted(output_dir.iterdir())}
        assert len(files) <= 50
        if checked.state is not None:
            self.state = checked.state
        self.result = Result(raw, checked.ui_payload, files)
        return self.result


@contextmanager
def _watch_sockets() -> Iterator[list[object]]:
    """Refuse every socket, and list those that were asked for."""
    opened: list[object] = []

    def refuse(*args: object, **kwargs: object) -> None:
        opened.append((args, kwargs))
        raise AssertionError("a tool reached for the network")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "socket", refuse)
        yield opened
