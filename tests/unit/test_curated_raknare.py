"""Räknare: the count survives from step to step, every step can be undone, bounds hold."""

from pathlib import Path

import pytest
from script_bank import Result, Session, get_app, load_tool
from skriptoteket_toolkit import ToolUserError

from app.domain.policy import CURATED_POLICY
from app.domain.tools import is_slug

app = load_tool("raknare")


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Session:
    return Session(app, tmp_path, monkeypatch, CURATED_POLICY)


def count(result: Result) -> str:
    (text, *_) = result.outputs("markdown")
    return str(text["markdown"]).removeprefix("# ").replace("\u00a0", " ")


def test_entry_is_a_tool_of_the_catalogue() -> None:
    entry = get_app("raknare")
    assert entry.app_id == entry.slug == "raknare" and is_slug(entry.slug)
    (field,) = entry.input_schema
    assert (field.name, field.kind, field.required) == ("start", "integer", False)


def test_count_survives_from_step_to_step(session: Session) -> None:
    assert count(session.start()) == "0"
    assert count(session.act("add")) == "1"
    assert count(session.act("add", step=10)) == "11"
    assert count(session.act("subtract", step=1500)) == "−1 489"
    assert count(session.act("add")) == "11"  # the step is remembered too


def test_count_begins_where_the_user_says(session: Session) -> None:
    assert count(session.start(start=40)) == "40"
    assert count(session.act("add", step=2)) == "42"


def test_every_step_can_be_undone_also_a_reset(session: Session) -> None:
    session.start(start=5)
    assert "undo" not in session.result.offered
    session.act("add", step=3)
    assert count(session.act("zero")) == "0"
    assert count(session.act("undo")) == "8"
    assert count(session.act("undo")) == "5"
    assert "undo" not in session.result.offered


def test_steps_are_shown_newest_first_with_what_they_led_to(session: Session) -> None:
    session.start()
    session.act("add", step=3)
    session.act("subtract", step=1)
    (table,) = session.result.outputs("table")
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
        left = count(session.act("undo"))
    assert left == "10" and "undo" not in session.result.offered


@pytest.mark.parametrize("step", [0, -1])
def test_step_is_at_least_one(session: Session, step: int) -> None:
    session.start()
    with pytest.raises(ToolUserError, match="minst 1"):
        session.act("add", step=step)


def test_count_stays_an_integer_that_json_can_carry(session: Session) -> None:
    session.start(start=2**53 - 1)
    with pytest.raises(ToolUserError, match="mindre steg"):
        session.act("add")
    assert count(session.act("subtract")) == "9 007 199 254 740 990"
