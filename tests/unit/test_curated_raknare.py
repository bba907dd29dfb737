"""Räknare: the count survives from step to step, every step can be undone, bounds hold."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pytest

from app.domain.inputs import coerce_values
from app.domain.normalizer import normalize
from app.domain.policy import CURATED_POLICY
from app.domain.tools import InputField, check_source, is_slug, parse_input_schema

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "app" / "curated" / "raknare"
sys.path.append(str(ROOT / "infra" / "runner"))

from skriptoteket_toolkit import ToolUserError  # noqa: E402


def _load_app() -> ModuleType:
    spec = importlib.util.spec_from_file_location("curated_raknare", FOLDER / "app.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


app = _load_app()


class Session:
    """A user's session, as the service keeps it: the state goes through the normalizer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.env = monkeypatch
        self.state: dict[str, Any] = {}
        self.payload: dict[str, Any] = {}

    def start(self, **inputs: Any) -> str:
        self.env.delenv("SKRIPTOTEKET_ACTION", raising=False)
        self.env.setenv("SKRIPTOTEKET_INPUTS", json.dumps(inputs))
        return self._run()

    def act(self, action_id: str, **values: Any) -> str:
        (offered,) = [a for a in self.payload["next_actions"] if a["action_id"] == action_id]
        fields = msgspec.convert(offered["fields"], list[InputField])
        values, problems = coerce_values(fields, {**offered.get("prefill", {}), **values})
        assert not problems
        action = {"action_id": action_id, "input": values, "state": self.state}
        self.env.setenv("SKRIPTOTEKET_ACTION", json.dumps(action))
        self.env.delenv("SKRIPTOTEKET_INPUTS", raising=False)
        return self._run()

    def _run(self) -> str:
        raw = {"contract_version": 2, "status": "succeeded", **app.run_tool("input", "output")}
        result = normalize(json.loads(json.dumps(raw)), policy=CURATED_POLICY)
        assert result.notices == ()
        self.payload, self.state = result.ui_payload, result.state or self.state
        texts = [o["markdown"] for o in self.payload["outputs"] if o["kind"] == "markdown"]
        return texts[0].removeprefix("# ").replace("\u00a0", " ")

    @property
    def offered(self) -> list[str]:
        return [action["action_id"] for action in self.payload["next_actions"]]


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Session:
    return Session(monkeypatch)


def test_entry_is_a_tool_of_the_catalogue() -> None:
    meta = json.loads((FOLDER / "meta.json").read_text("utf-8"))
    assert meta["app_id"] == meta["slug"] == "raknare" and is_slug(meta["slug"])
    (field,) = parse_input_schema(meta["input_schema"])
    assert (field.name, field.kind, field.required) == ("start", "integer", False)
    check_source((FOLDER / "app.py").read_text("utf-8"), meta["entrypoint"])


def test_count_survives_from_step_to_step(session: Session) -> None:
    assert session.start() == "0"
    assert session.act("add") == "1"
    assert session.act("add", step=10) == "11"
    assert session.act("subtract", step=1500) == "−1 489"
    assert session.act("add") == "11"  # the step is remembered too


def test_count_begins_where_the_user_says(session: Session) -> None:
    assert session.start(start=40) == "40"
    assert session.act("add", step=2) == "42"


def test_every_step_can_be_undone_also_a_reset(session: Session) -> None:
    session.start(start=5)
    assert "undo" not in session.offered
    session.act("add", step=3)
    assert session.act("zero") == "0"
    assert session.act("undo") == "8"
    assert session.act("undo") == "5"
    assert "undo" not in session.offered


def test_steps_are_shown_newest_first_with_what_they_led_to(session: Session) -> None:
    session.start()
    session.act("add", step=3)
    session.act("subtract", step=1)
    (table,) = [o for o in session.payload["outputs"] if o["kind"] == "table"]
    assert table["rows"] == [
        {"step": "Drog ifrån 1", "count": "2"},
        {"step": "Lade till 3", "count": "3"},
    ]


def test_only_the_latest_steps_are_kept(session: Session) -> None:
    session.start()
    for _ in range(app.STEPS_MAX + 10):
        session.act("add")
    assert len(session.state["steps"]) == app.STEPS_MAX
    for _ in range(app.STEPS_MAX):
        left = session.act("undo")
    assert left == "10" and "undo" not in session.offered


@pytest.mark.parametrize("step", [0, -1])
def test_step_is_at_least_one(session: Session, step: int) -> None:
    session.start()
    with pytest.raises(ToolUserError, match="minst 1"):
        session.act("add", step=step)


def test_count_stays_an_integer_that_json_can_carry(session: Session) -> None:
    session.start(start=2**53 - 1)
    with pytest.raises(ToolUserError, match="mindre steg"):
        session.act("add")
    assert session.act("subtract") == "9 007 199 254 740 990"
