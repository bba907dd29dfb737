"""Räknare: a demonstration of state and actions, one number that survives from step to step.

Every step is kept as the count before it and what was done, newest last, so undo gives back exactly
what was there; only the latest steps are kept.
"""

from dataclasses import asdict, dataclass, field
from typing import Any

from skriptoteket_toolkit import (
    ToolUserError,
    action,
    get_action_parts,
    integer_field,
    markdown,
    notice,
    read_inputs,
    table,
)

STEPS_MAX = 50
# Larger integers do not survive every JSON reader on the way (RFC 8259 §6).
COUNT_MAX = 2**53 - 1


@dataclass
class Counter:
    """The count, the size of the latest step, and the steps that can be undone."""

    count: int = 0
    step: int = 1
    steps: list[dict[str, Any]] = field(default_factory=list)

    def move_to(self, count: int, text: str) -> None:
        """Raises ToolUserError beyond the largest integer, before anything has changed."""
        if abs(count) > COUNT_MAX:
            raise ToolUserError("Så långt kan räknaren inte räkna. Ta ett mindre steg.")
        self.steps = [*self.steps, {"before": self.count, "text": text}][-STEPS_MAX:]
        self.count = count


def run_tool(input_dir: str, output_dir: str) -> dict[str, object]:
    """Begin at the form's `start`, or take one step from the state's count."""
    action_id, values, state = get_action_parts()
    kept: dict[str, Any] = state
    message = None
    if action_id is None:
        start = read_inputs().get("start")
        counter = Counter(count=start if isinstance(start, int) else 0)
    else:
        counter = Counter(**kept)
        message = take_step(counter, action_id, values)
    outputs = [markdown(f"# {format_count(counter.count)}")]
    if message:
        outputs.insert(0, notice(message))
    if counter.steps:
        outputs.append(show_steps(counter))
    return {"outputs": outputs, "next_actions": offer_actions(counter), "state": asdict(counter)}


def take_step(counter: Counter, action_id: str, values: dict[str, Any]) -> str | None:
    """Change the counter; return what the user should know besides the new count.

    Raises:
        ToolUserError: a step below 1, a count beyond the largest, or an unknown action.
    """
    if action_id == "undo":
        if not counter.steps:
            return "Det finns inget att ångra."
        counter.count = counter.steps.pop()["before"]
        return None
    if action_id == "zero":
        counter.move_to(0, "Nollställde")
        return None
    if action_id not in {"add", "subtract"}:
        raise ToolUserError("Räknaren känner inte till det steget.")
    step = values["step"]
    if step < 1:
        raise ToolUserError("Steget ska vara minst 1.")
    sign, word = (1, "Lade till") if action_id == "add" else (-1, "Drog ifrån")
    counter.move_to(counter.count + sign * step, f"{word} {format_count(step)}")
    counter.step = step
    return None


def show_steps(counter: Counter) -> dict[str, object]:
    """Make a table of the steps, newest first, each with the count that it led to."""
    counts = [step["before"] for step in counter.steps[1:]] + [counter.count]
    rows = [
        {"step": step["text"], "count": format_count(count)}
        for step, count in zip(counter.steps, counts, strict=True)
    ]
    return table([("step", "Steg"), ("count", "Blev")], rows[::-1], title="Senaste stegen")


def offer_actions(counter: Counter) -> list[dict[str, object]]:
    """Offer the steps; undo only when there is something to undo."""
    fields = [integer_field("step", "Steg", required=True)]
    prefill = {"step": counter.step}
    actions = [
        action("add", "Lägg till", fields, prefill),
        action("subtract", "Dra ifrån", fields, prefill),
        action("zero", "Nollställ"),
    ]
    if counter.steps:
        actions.append(action("undo", "Ångra"))
    return actions


def format_count(number: int) -> str:
    """Write a number as in Swedish: groups of three, and a real minus sign."""
    return f"{number:,}".replace(",", "\u00a0").replace("-", "−")
