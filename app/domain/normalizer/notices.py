"""What the normalizer tells the user about what it changed: outputs of kind `notice`, in Swedish.

What is replaced leaves its notice in its own place (`Rejected`). What is shortened, repaired or
dropped is gathered by code (`NoticeLog`) and told after the outputs, one notice for each code, so
that a result with many small faults does not crowd out its own content.
"""

from typing import Any

from app.domain.normalizer.canonical import Tally, cut_text

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
