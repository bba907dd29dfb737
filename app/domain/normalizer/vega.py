"""Vega-Lite restrictions (ADR-0024): inline data only, no way out of the page, bounded work.

The whole specification is walked, whatever the place: a rule that knew only the places where
Vega-Lite reads today would be passed by nesting. Only rows of inline data are not looked into,
since there a key is a column's name. A specification that breaks a rule is dropped by the caller,
never repaired.
"""

from typing import Any, NamedTuple

from app.domain.normalizer.measure import measure
from app.domain.normalizer.notices import quote
from app.domain.policy import UiPolicy

_COMPOSITIONS = frozenset({"layer", "concat", "hconcat", "vconcat", "spec"})

# Code and words, in the order that decides which code a specification with several faults gets.
_FORBIDDEN = {
    "vega_data_url": "data får inte hämtas från en adress (url), bara ligga i data.values",
    "vega_data_not_inline": "data får bara ligga som en lista i data.values eller datasets",
    "vega_image_mark": "bilder (mark: image) är inte tillåtna",
    "vega_href_channel": "länkar (href) är inte tillåtna",
    "vega_url_channel": "adresser (url) i encoding och mark är inte tillåtna",
    "vega_external_config": "inställningar (config, embedOptions) får inte hämtas utifrån",
    "vega_external_resource": "diagrammet får inte hämta resurser eller styra sidans element",
    "vega_cursor_expression": "muspekaren (cursor) får inte räknas fram, bara anges som text",
    "vega_schema": "$schema måste vara Vega-Lite",
}


class _Node(NamedTuple):
    """A list or object of the specification, the key it lies under and what encloses it."""

    value: Any
    key: str
    depth: int
    copies: int
    in_config: bool


def check_spec(spec: dict[str, Any], policy: UiPolicy) -> dict[str, str]:
    """Return the broken rules, code → Swedish words with the true figures; empty if there are none.

    The specification is canonical JSON within the caps on bytes and nesting. Depth counts nested
    compositions: a single view has 0. Layers are counted together over the whole specification, as
    are views, each as often as `repeat` shows it. Linear in the specification's size.
    """
    check = _Check(policy)
    check.walk(spec)
    return check.broken()


class _Check:
    """One walk over one specification."""

    def __init__(self, policy: UiPolicy) -> None:
        self._policy = policy
        self._forbidden: set[str] = set()
        self._defined: set[str] = set()
        self._used: set[str] = set()
        self._parts = 0
        self._depth = 0
        self._layers = 0
        self._views = 0
        self._rows = 0

    def walk(self, spec: dict[str, Any]) -> None:
        pending = [_Node(spec, "", 0, 1, False)]
        while pending and not self._is_too_complex():
            node = pending.pop()
            if type(node.value) is dict:
                self._visit_object(node, pending)
            else:
                self._visit_list(node, pending)

    def broken(self) -> dict[str, str]:
        cap = self._policy.max_vega_parts
        if self._is_too_complex():
            # Alone: what else was found before the walk ended depends on the order of keys.
            return {"vega_too_complex": f"mer än {cap} listor och objekt utanför data"}
        found = {code: words for code, words in _FORBIDDEN.items() if code in self._forbidden}
        undefined = self._used - self._defined
        if undefined:
            name = quote(min(undefined))
            found["vega_named_data"] = f"data hänvisar till {name}, som inte finns i datasets"
        policy = self._policy
        for code, unit, figure, cap in (
            ("vega_too_many_rows", "rader i en datamängd", self._rows, policy.max_vega_rows),
            ("vega_too_deep", "nivåer av diagram", self._depth, policy.max_vega_depth),
            ("vega_too_many_layers", "lager", self._layers, policy.max_vega_layers),
            ("vega_too_many_views", "deldiagram", self._views, policy.max_vega_views),
        ):
            if figure > cap:
                found[code] = f"{figure} {unit}, högst {cap} är tillåtna"
        return found

    def _is_too_complex(self) -> bool:
        return self._parts > self._policy.max_vega_parts

    def _visit_list(self, node: _Node, pending: list[_Node]) -> None:
        for item in node.value:
            if type(item) is str:
                self._visit_text(item, node.in_config)
            elif type(item) is dict or type(item) is list:
                self._parts += 1
                if self._is_too_complex():
                    return
                pending.append(node._replace(value=item))

    def _visit_object(self, node: _Node, pending: list[_Node]) -> None:
        copies = node.copies * _count_copies(node.value.get("repeat"))
        self._views += copies if "mark" in node.value else 0
        for key, value in node.value.items():
            code = _find_forbidden(key, value, node)
            if code is not None:
                self._forbidden.add(code)
            elif key == "data":
                self._visit_source(value, node, pending)
            elif key == "datasets" and type(value) is dict:
                self._defined.update(value)
                for dataset in value.values():
                    self._visit_rows(dataset)
                    if type(dataset) is dict:
                        self._parts += 1
                        pending.append(node._replace(value=dataset, key=key))
            elif key == "repeat" and type(value) is dict:
                self._visit_repeat(value, node._replace(key=key, copies=copies), pending)
            elif type(value) is str:
                self._visit_text(value, node.in_config)
            elif type(value) is dict or type(value) is list:
                self._parts += 1
                depth = node.depth + (key in _COMPOSITIONS)
                self._depth = max(self._depth, depth)
                if key == "layer":
                    self._layers += len(value) * copies
                in_config = node.in_config or key == "config"
                pending.append(_Node(value, key, depth, copies, in_config))

    def _visit_repeat(self, repeat: dict[str, Any], node: _Node, pending: list[_Node]) -> None:
        """Count the layers that it makes, once: a copy of the view is a layer of it already."""
        others = dict(repeat)
        if type(repeat.get("layer")) is list:
            fields = others.pop("layer")
            self._layers += node.copies if fields else 0
            self._parts += 1
            pending.append(node._replace(value=fields))
        self._parts += 1
        pending.append(node._replace(value=others))

    def _visit_text(self, text: str, in_config: bool) -> None:
        if in_config and ("://" in text or text.startswith("//")):
            self._forbidden.add("vega_external_config")
        # In a colour or a cursor this makes the browser fetch it.
        if "url(" in text or "url(" in text.lower():
            self._forbidden.add("vega_external_resource")

    def _visit_source(self, source: Any, node: _Node, pending: list[_Node]) -> None:
        if source is None:
            return
        if type(source) is not dict:
            self._forbidden.add("vega_data_not_inline")
            return
        others = {key: value for key, value in source.items() if key != "values"}
        self._parts += 1
        pending.append(_Node(others, "data", node.depth, node.copies, node.in_config))
        name = source.get("name")
        if "values" in source:
            self._visit_rows(source["values"])
            if type(name) is str:
                self._defined.add(name)
        elif type(name) is str and others.keys() <= {"name", "format", "url"}:
            self._used.add(name)
        elif "url" not in source:
            self._forbidden.add("vega_data_not_inline")

    def _visit_rows(self, values: Any) -> None:
        if type(values) is list:
            self._rows = max(self._rows, len(values))
        elif type(values) is dict and "url" in values:
            self._forbidden.add("vega_data_url")
        elif type(values) is dict:
            # GeoJSON or TopoJSON: `format.property` may make any list inside it the rows.
            found = measure(values, self._policy.max_vega_bytes)
            self._rows = max(self._rows, found.longest_array)
        else:
            # Text would be parsed in the browser, into rows that nobody has counted.
            self._forbidden.add("vega_data_not_inline")


def _find_forbidden(key: str, value: Any, node: _Node) -> str | None:
    """Return the code of the rule that a member breaks by being there."""
    if key == "url":
        if node.in_config:
            return "vega_external_config"
        return "vega_url_channel" if node.key in ("encoding", "mark") else "vega_data_url"
    if key == "href":
        return "vega_href_channel"
    if key in ("mark", "type") and type(value) is str and value.strip().lower() == "image":
        return "vega_image_mark"
    if key == "config" and type(value) is not dict:
        return "vega_external_config"
    if key == "usermeta" and type(value) is dict and "embedOptions" in value:
        return "vega_external_config"  # vega-embed obeys it: loader, config and patch addresses.
    if key == "cursor" and type(value) not in (str, type(None)):
        return "vega_cursor_expression"  # A text that is put together could say url(…).
    if key == "name" and value == "cursor" and node.key in ("params", "signals"):
        return "vega_cursor_expression"  # What Vega calls the pointer itself, whatever the mark.
    if key == "element":
        return "vega_external_resource"  # A parameter bound to any element of the page.
    if key == "$schema" and (type(value) is not str or "/schema/vega-lite/" not in value):
        return "vega_schema"  # vega-embed would take it for Vega, which has other ways to load.
    if key == "keyvals" and type(value) is dict:
        return "vega_data_not_inline"  # Transform `impute`: a sequence of any length.
    return None


def _count_copies(repeat: Any) -> int:
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
