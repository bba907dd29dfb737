"""Vega-Lite restrictions (ADR-0024): inline data only, no way out of the page, bounded work.

The whole specification is walked, whatever the place: a rule that knew only the places where
Vega-Lite reads today would be passed by nesting. Only rows of inline data are not looked into,
since there a key is a column's name. A clean specification is shown unchanged; one that breaks a
rule is dropped by the caller.
"""

from typing import Any

import msgspec

from app.domain.normalizer.measure import measure
from app.domain.normalizer.notices import quote
from app.domain.policy import UiPolicy

_COMPOSITIONS = frozenset({"layer", "concat", "hconcat", "vconcat", "spec"})

# The order decides which code a specification gets that breaks several rules.
RULES = (
    "vega_data_url",
    "vega_named_data",
    "vega_data_not_inline",
    "vega_too_many_rows",
    "vega_image_mark",
    "vega_href_channel",
    "vega_url_channel",
    "vega_external_config",
    "vega_external_resource",
    "vega_schema",
    "vega_too_deep",
    "vega_too_many_layers",
    "vega_too_many_views",
)

_WORDS = {
    "vega_data_url": "data får inte hämtas från en adress (url), bara ligga i data.values",
    "vega_data_not_inline": "data får bara ligga som en lista i data.values eller datasets",
    "vega_image_mark": "bilder (mark: image) är inte tillåtna",
    "vega_href_channel": "länkar (href) är inte tillåtna",
    "vega_url_channel": "adresser (url) i encoding och mark är inte tillåtna",
    "vega_external_config": "inställningar (config, embedOptions) får inte hämtas utifrån",
    "vega_external_resource": "diagrammet får inte hämta resurser eller styra sidans element",
    "vega_schema": "$schema måste vara Vega-Lite",
}


class _Node(msgspec.Struct):
    """A part of the specification: the key it lies under and what encloses it."""

    value: Any
    key: str = ""
    depth: int = 0
    copies: int = 1
    in_config: bool = False


def check_spec(spec: dict[str, Any], policy: UiPolicy) -> dict[str, str]:
    """Return the broken rules, code → Swedish words with figures, in the order of `RULES`.

    The specification is canonical JSON within the caps on bytes and nesting. Linear in its size.
    """
    check = _Check(policy)
    check.walk(spec)
    return {code: check.broken[code] for code in RULES if code in check.broken}


class _Check:
    """One walk over one specification."""

    def __init__(self, policy: UiPolicy) -> None:
        self.policy = policy
        self.broken: dict[str, str] = {}
        self._defined: set[str] = set()
        self._used: set[str] = set()
        self._depth = 0
        self._layers = 0
        self._views = 0
        self._rows = 0

    def walk(self, spec: dict[str, Any]) -> None:
        pending = [_Node(spec)]
        while pending:
            node = pending.pop()
            if type(node.value) is dict:
                self._visit(node, pending)
            elif type(node.value) is list:
                pending += [msgspec.structs.replace(node, value=item) for item in node.value]
            elif type(node.value) is str:
                self._visit_text(node)
        self._conclude()

    def _visit(self, node: _Node, pending: list[_Node]) -> None:
        copies = node.copies * _repeats(node.value.get("repeat"))
        if "mark" in node.value:
            self._views += copies
        for key, value in node.value.items():
            if key == "data":
                self._visit_source(value)
            elif key == "datasets" and type(value) is dict:
                self._defined.update(value)
                for dataset in value.values():
                    self._visit_dataset(dataset)
            elif key == "url":
                self._break(_blame_url(node))
            elif key == "href":
                self._break("vega_href_channel")
            elif key == "element" or (key == "usermeta" and _holds(value, "embedOptions")):
                self._break(
                    "vega_external_config" if key == "usermeta" else "vega_external_resource"
                )
            elif key == "$schema":
                if type(value) is not str or "/schema/vega-lite/" not in value:
                    self._break("vega_schema")
            elif key == "config" and type(value) is not dict:
                self._break("vega_external_config")
            elif key in ("mark", "type") and _is_image(value):
                self._break("vega_image_mark")
            elif key == "keyvals" and type(value) is dict:
                self._break("vega_data_not_inline")  # Transform impute: a sequence of any length.
            else:
                depth = node.depth + (key in _COMPOSITIONS and type(value) in (list, dict))
                self._depth = max(self._depth, depth)
                if key == "layer" and type(value) is list:
                    self._layers += len(value) * copies
                in_config = node.in_config or key == "config"
                pending.append(_Node(value, key, depth, copies, in_config))

    def _visit_text(self, node: _Node) -> None:
        text = node.value
        if node.in_config and ("://" in text or text.startswith("//")):
            self._break("vega_external_config")
        if "url(" in text.lower():  # In a colour or a cursor this makes the browser fetch it.
            self._break("vega_external_resource")

    def _visit_source(self, source: Any) -> None:
        if source is None:
            return
        if type(source) is not dict:
            self._break("vega_data_not_inline")
            return
        if "url" in source or _holds(source.get("format"), "url"):
            self._break("vega_data_url")
            return
        name = source.get("name")
        if "values" in source:
            if type(name) is str:
                self._defined.add(name)
            self._visit_dataset(source["values"])
        elif type(name) is str and not source.keys() - {"name", "format"}:
            self._used.add(name)
        else:
            self._break("vega_data_not_inline")

    def _visit_dataset(self, values: Any) -> None:
        if type(values) is list:
            self._rows = max(self._rows, len(values))
        elif type(values) is dict:
            # GeoJSON or TopoJSON: `format.property` may make any list inside it the rows.
            if "url" in values:
                self._break("vega_data_url")
            rows = measure(values, self.policy.max_vega_bytes).longest_array
            self._rows = max(self._rows, rows)
        else:
            self._break("vega_data_not_inline")

    def _break(self, code: str) -> None:
        self.broken[code] = _WORDS[code]

    def _conclude(self) -> None:
        undefined = self._used - self._defined
        if undefined:
            self.broken["vega_named_data"] = (
                f"data hänvisar till {quote(min(undefined))}, som inte finns i datasets"
            )
        for code, unit, count, cap in (
            ("vega_too_many_rows", "rader i en datamängd", self._rows, self.policy.max_vega_rows),
            ("vega_too_deep", "nivåer av diagram", self._depth, self.policy.max_vega_depth),
            ("vega_too_many_layers", "lager", self._layers, self.policy.max_vega_layers),
            ("vega_too_many_views", "deldiagram", self._views, self.policy.max_vega_views),
        ):
            if count > cap:
                self.broken[code] = f"{count} {unit}, högst {cap} är tillåtna"


def _holds(value: Any, key: str) -> bool:
    return type(value) is dict and key in value


def _is_image(value: Any) -> bool:
    return type(value) is str and value.strip().lower() == "image"


def _blame_url(node: _Node) -> str:
    if node.in_config:
        return "vega_external_config"
    return "vega_url_channel" if node.key in ("encoding", "mark") else "vega_data_url"


def _repeats(repeat: Any) -> int:
    """Return how many views a `repeat` makes of its `spec`."""
    if type(repeat) is list:
        return max(1, len(repeat))
    if type(repeat) is not dict:
        return 1
    count = 1
    for member in ("row", "column", "layer"):
        if type(repeat.get(member)) is list:
            count *= max(1, len(repeat[member]))
    return count
