"""Measure the normalizer: maximal valid payloads against msgspec decoding plus encoding the bytes.

    python tests/benchmarks/bench_normalizer.py [--rounds N]

Prints the median CPU time of both, and their ratio; issue 3 aims at 12 or less for the mixed
payload. The two alternate, so that a slow moment hits both. The results are already decoded, as
they are when `normalize` gets them.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import msgspec

from app.domain.normalizer import normalize
from app.domain.policy import DEFAULT_POLICY

Output = dict[str, Any]

OUTPUTS = DEFAULT_POLICY.max_outputs
NAMES = ("Anna", "Björn", "Cecilia", "Åsa", "Örjan", "Mohammed", "Li")


def _table(rows: int) -> Output:
    columns = [{"key": f"c{index}", "label": f"Kolumn {index}"} for index in range(8)]
    return {
        "kind": "table",
        "title": "Resultat",
        "columns": columns,
        "rows": [
            {
                "c0": f"{NAMES[row % 7]} {row}",
                "c1": row,
                "c2": row / 7,
                "c3": row % 2 == 0,
                "c4": None,
                "c5": "9B",
                "c6": "Godkänd",
                "c7": row * 1000,
            }
            for row in range(rows)
        ],
    }


def _json(items: int) -> Output:
    value = [
        {"id": index, "namn": NAMES[index % 7], "poäng": [index, 2.5]} for index in range(items)
    ]
    return {"kind": "json", "value": value}


def _chart(rows: int) -> Output:
    values = [{"x": row, "y": row / 3, "grupp": NAMES[row % 7]} for row in range(rows)]
    encoding = {"x": {"field": "x", "type": "quantitative"}, "y": {"field": "y"}}
    return {
        "kind": "vega_lite",
        "spec": {"mark": "line", "encoding": encoding, "data": {"values": values}},
    }


def _markdown(paragraphs: int) -> Output:
    return {"kind": "markdown", "markdown": "Eleven når målen för åk 9. " * paragraphs}


def _actions() -> list[dict[str, Any]]:
    choices = [{"value": str(index), "label": f"Val {index}"} for index in range(20)]
    fields = [
        {"name": f"f{index}", "label": "Fält", "kind": "enum", "options": choices}
        for index in range(5)
    ]
    return [
        {"action_id": f"a{index}", "label": "Nästa", "kind": "form", "fields": fields}
        for index in range(10)
    ]


PAYLOADS: dict[str, list[Callable[[int], Output]]] = {
    "mixed": [_table, _json, _chart, _markdown, _table],
    "tables": [_table],
    "json": [_json],
    "charts": [_chart],
    "text": [_markdown],
}


def build_payload(makers: list[Callable[[int], Output]]) -> dict[str, Any]:
    """Return the largest result of 50 outputs that the default policy keeps whole."""
    best: dict[str, Any] = {}
    low, high = 1, 3000
    while low <= high:
        size = (low + high) // 2
        outputs = [makers[index % len(makers)](size) for index in range(OUTPUTS)]
        raw = {
            "contract_version": 2,
            "status": "succeeded",
            "outputs": outputs,
            "next_actions": _actions(),
            "state": None,
        }
        if normalize(raw).notices:
            high = size - 1
        else:
            best, low = raw, size + 1
    return best


def _time(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=30)
    rounds = parser.parse_args().rounds
    for name, makers in PAYLOADS.items():
        raw = build_payload(makers)
        data = normalize(raw).ui_payload_bytes
        coding, normalizing = [], []
        for _ in range(rounds):
            coding.append(_time(lambda data=data: msgspec.json.encode(msgspec.json.decode(data))))
            normalizing.append(_time(lambda raw=raw: normalize(raw)))
        base, median = statistics.median(coding), statistics.median(normalizing)
        print(
            f"{name:8} {len(data) / 1024:6.0f} KiB, {len(raw['outputs'])} outputs: "
            f"decode+encode {base * 1000:6.2f} ms, normalize {median * 1000:6.2f} ms, "
            f"ratio {median / base:5.1f}"
        )


if __name__ == "__main__":
    main()
