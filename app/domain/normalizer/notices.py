"""What the normalizer tells the user about what it changed: outputs of kind `notice`, in Swedish.

What is replaced leaves its notice in its own place (`Rejected`). What is shortened, repaired or
dropped is gathered by code (`NoticeLog`) and told after the outputs, one notice for each code, so
that a result with many small faults does not crowd out its own content.
"""

from typing import Any

from app.domain.normalizer.canonical import Tally, clean_text, count_bytes, cut_text
from app.domain.policy import UiPolicy

MAX_LINES = 20

# What `Tally` counts: the notice's code and the words that follow the number.
_REPAIRS = {
    "number_not_finite": "tal är inte ändliga (NaN eller oändligt) och visas som tomma",
    "character_removed": "tecken som inte kan sparas (NUL eller ensamma surrogat) togs bort",
    "integer_as_text": "heltal är för stora för att visas exakt som tal och visas som text",
    "integer_too_large": "heltal har fler än 4299 siffror och visas som tomma",
    "key_clash": "nycklar är lika när otillåtna tecken tagits bort; den första behölls",
    "value_not_json": "värden är inte JSON och togs bort",
}


class Rejected(Exception):
    """An output, action or field cannot be kept; its notice has this code and message."""

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)


class NoticeLog:
    """Lines by code, in the order in which the codes first came up."""

    def __init__(self) -> None:
        self._lines: dict[str, list[str]] = {}
        self._left_out: Tally = Tally()

    def __len__(self) -> int:
        return len(self._lines)

    def add(self, code: str, line: str) -> None:
        lines = self._lines.setdefault(code, [])
        if len(lines) < MAX_LINES:
            lines.append(line)
        else:
            self._left_out[code] += 1

    def report(self, where: str, tally: Tally) -> None:
        """Add a line for each kind of repair that was counted at one place."""
        for code, words in _REPAIRS.items():
            if tally[code]:
                self.add(code, f"{where}: {tally[code]} {words}.")

    def extend(self, other: "NoticeLog") -> None:
        for code, lines in other._lines.items():
            for line in lines:
                self.add(code, line)
            self._left_out[code] += other._left_out[code]

    def outputs(self, max_message_bytes: int) -> list[dict[str, Any]]:
        """Return one notice for each code."""
        found = []
        for code, lines in self._lines.items():
            left_out = self._left_out[code]
            more = [f"… och {left_out} till."] if left_out else []
            found.append(make_notice(code, "\n".join(lines + more), max_message_bytes))
        return found


class Place:
    """A place in a result: what messages call it, the caps there, and where its notices go."""

    def __init__(self, where: str, policy: UiPolicy, log: NoticeLog, tally: Tally) -> None:
        self.where = where
        self.policy = policy
        self.log = log
        self.tally = tally

    def inside(self, name: str) -> "Place":
        return Place(f"{self.where}, {name}", self.policy, self.log, self.tally)

    def note(self, code: str, text: str) -> None:
        self.log.add(code, f"{self.where}: {text}.")

    def reject(self, code: str, reason: str) -> Rejected:
        return Rejected(code, f"{self.where} visas inte: {reason}.")

    def clean(self, text: str) -> str:
        return clean_text(text, self.tally)

    def name(
        self, raw: dict[str, Any], member: str, max_bytes: int, *, min_bytes: int = 1
    ) -> str | None:
        """Return a cleaned name within its cap, or None. Names are never shortened.

        A shortened one would be another name, which the tool would not find again.
        """
        name = raw.get(member)
        if type(name) is not str or len(name) > max_bytes:
            return None
        name = self.clean(name)
        return name if min_bytes <= count_bytes(name) <= max_bytes else None

    def label(self, raw: dict[str, Any], fallback: str) -> str:
        """Return the raw object's label within its cap, or the fallback if it has none."""
        label = raw.get("label")
        if type(label) is not str:
            self.note("label_missing", f"{quote(fallback)} saknar etikett och visas med sitt namn")
            label = fallback
        return self.shorten(label, self.policy.max_label_bytes, "label_too_long", "en etikett")

    def note_unknown(self, count: int) -> None:
        if count:
            self.note("members_unknown", f"{count} okända egenskaper togs bort")

    def shorten(self, text: str, max_bytes: int, code: str, name: str) -> str:
        """Return the text cleaned and cut to its cap; a cut is noted with the true figures."""
        text = self.clean(text)
        size = count_bytes(text)
        if size > max_bytes:
            self.note(code, f"{name} är {size} byte och kortades till {max_bytes}")
        return cut_text(text, max_bytes)


def make_notice(code: str, message: str, max_message_bytes: int) -> dict[str, Any]:
    """Return a system notice as an output."""
    return {
        "kind": "notice",
        "level": "warning",
        "message": cut_text(message, max_message_bytes),
        "code": code,
    }


def quote(value: Any) -> str:
    """Return an untrusted word for use in a message: short, printable, in Swedish quotes."""
    text = value if isinstance(value, str) else type(value).__name__
    shown = "".join(char if char.isprintable() else "�" for char in text[:60])
    return f"”{shown}{'…' if len(text) > 60 else ''}”"
