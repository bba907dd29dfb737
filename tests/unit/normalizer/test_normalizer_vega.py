"""Every Vega-Lite restriction of ADR-0024, each hidden in every place that a chart can nest."""

from collections.abc import Callable
from typing import Any

import pytest
from raw_results import chart, markdown, messages, result

from app.domain.normalizer import normalize
from app.domain.policy import DEFAULT_POLICY

Spec = dict[str, Any]

_VIEW: Spec = {"mark": "point", "encoding": {"x": {"field": "a"}}}
_INLINE: Spec = {"values": [{"a": 1}]}


def _rows(count: int) -> list[Spec]:
    return [{"a": 1}] * count


def _nested(levels: int, operator: str) -> Spec:
    spec: Spec = _VIEW
    for _ in range(levels):
        spec = {operator: spec} if operator == "spec" else {operator: [spec]}
    return spec


# A fragment of a view that breaks one rule, and the code that its notice must have.
VIOLATIONS: dict[str, tuple[str, Spec]] = {
    "data.url": ("vega_data_url", {"data": {"url": "https://a.example/x.csv"}}),
    "data.url beside values": ("vega_data_url", {"data": {"values": [], "url": "x.csv"}}),
    "named data with url": ("vega_data_url", {"data": {"name": "a", "url": "x.csv"}}),
    "data.format with url": (
        "vega_data_url",
        {"data": {"values": [], "format": {"schema": {"url": "x"}}}},
    ),
    "url of geo shapes": (
        "vega_data_url",
        {"data": {"url": "world.json", "format": {"type": "topojson", "feature": "land"}}},
    ),
    "url in lookup": (
        "vega_data_url",
        {"transform": [{"lookup": "a", "from": {"data": {"url": "b.csv"}, "key": "a"}}]},
    ),
    "url in datasets": ("vega_data_url", {"datasets": {"d": {"url": "b.csv"}}}),
    "url in a list of datasets": ("vega_data_url", {"datasets": [{"url": "b.csv"}]}),
    "unknown name": ("vega_named_data", {"data": {"name": "elsewhere"}}),
    "unknown name in lookup": (
        "vega_named_data",
        {"transform": [{"lookup": "a", "from": {"data": {"name": "elsewhere"}}}]},
    ),
    "generated rows": (
        "vega_data_not_inline",
        {"data": {"sequence": {"start": 0, "stop": 1e9}}},
    ),
    "imputed rows": (
        "vega_data_not_inline",
        {"transform": [{"impute": "a", "keyvals": {"start": 0, "stop": 1000000000}}]},
    ),
    "rows as text": ("vega_data_not_inline", {"data": {"values": "a,b\n1,2"}}),
    "dataset as text": ("vega_data_not_inline", {"datasets": {"d": "a,b\n1,2"}}),
    "data as text": ("vega_data_not_inline", {"data": "x.csv"}),
    "graticule": ("vega_data_not_inline", {"data": {"graticule": True}}),
    "rows": ("vega_too_many_rows", {"data": {"values": _rows(4001)}}),
    "rows in datasets": ("vega_too_many_rows", {"datasets": {"a": [], "d": _rows(4001)}}),
    "rows in lookup": (
        "vega_too_many_rows",
        {"transform": [{"lookup": "a", "from": {"data": {"values": _rows(4001)}}}]},
    ),
    "rows in an object": ("vega_too_many_rows", {"data": {"values": {"inner": _rows(4001)}}}),
    "image mark": ("vega_image_mark", {"mark": "image"}),
    "image mark as object": ("vega_image_mark", {"mark": {"type": "image", "width": 9}}),
    "href channel": ("vega_href_channel", {"encoding": {"href": {"field": "a"}}}),
    "href of a mark": ("vega_href_channel", {"mark": {"type": "bar", "href": "https://a"}}),
    "href in a condition": (
        "vega_href_channel",
        {"encoding": {"x": {"condition": {"test": "1", "href": "https://a"}}}},
    ),
    "url channel": ("vega_url_channel", {"encoding": {"url": {"field": "a"}}}),
    "url of a mark": ("vega_url_channel", {"mark": {"type": "bar", "url": "https://a"}}),
    "config as address": ("vega_external_config", {"config": "https://a.example/c.json"}),
    "config with address": ("vega_external_config", {"config": {"x": ["https://a.example"]}}),
    "config with url": ("vega_external_config", {"config": {"mark": {"url": "a"}}}),
    "href in config": ("vega_href_channel", {"config": {"mark": {"href": "https://a"}}}),
    "embed options": (
        "vega_external_config",
        {"usermeta": {"embedOptions": {"config": "https://a.example"}}},
    ),
    "address in a colour": (
        "vega_external_resource",
        {"mark": {"type": "bar", "cursor": "URL(x)"}},
    ),
    "address in a list": ("vega_external_resource", {"encoding": {"range": ["url(//a)"]}}),
    "cursor from an expression": (
        "vega_cursor_expression",
        {"mark": {"type": "bar", "cursor": {"expr": "'ur'+'l(https://a.example/x)'"}}},
    ),
    "cursor from a signal": (
        "vega_cursor_expression",
        {"view": {"cursor": {"signal": "'ur'+'l(https://a.example/x)'"}}},
    ),
    "cursor from an expression in a style": (
        "vega_cursor_expression",
        {"config": {"style": {"bar": {"cursor": {"expr": "datum.a"}}}}},
    ),
    "parameter that is the cursor": (
        "vega_cursor_expression",
        {"params": [{"name": "cursor", "expr": "'ur'+'l(//a.example)'"}]},
    ),
    "signal that is the cursor": (
        "vega_cursor_expression",
        {"config": {"signals": [{"name": "cursor", "update": "'ur'+'l(//a.example)'"}]}},
    ),
    "bound element": (
        "vega_external_resource",
        {"params": [{"name": "p", "bind": {"element": "#password"}}]},
    ),
    "not Vega-Lite": ("vega_schema", {"$schema": "https://vega.github.io/schema/vega/v5.json"}),
    "layers": ("vega_too_many_layers", {"layer": [_VIEW] * 17}),
    "repeated layers": (
        "vega_too_many_layers",
        {"repeat": {"layer": ["a"] * 17}, "spec": _VIEW},
    ),
    "layers in repeated views": (
        "vega_too_many_layers",
        {"repeat": ["a"] * 9, "spec": {"layer": [_VIEW] * 2}},
    ),
    "depth": ("vega_too_deep", _nested(9, "hconcat")),
    "views": ("vega_too_many_views", {"concat": [_VIEW] * 101}),
    "repeated views": (
        "vega_too_many_views",
        {"repeat": {"row": ["a"] * 11, "column": ["b"] * 10}, "spec": _VIEW},
    ),
    "parts": ("vega_too_complex", {"transform": [{"filter": []}] * 5001}),
}

HIDDEN: dict[str, Callable[[Spec], Spec]] = {
    "at the top": lambda spec: spec,
    "layer": lambda spec: {"layer": [_VIEW, spec]},
    "concat": lambda spec: {"concat": [_VIEW, spec]},
    "hconcat": lambda spec: {"hconcat": [spec, _VIEW]},
    "vconcat": lambda spec: {"vconcat": [_VIEW, _VIEW, spec]},
    "facet": lambda spec: {"facet": {"field": "a"}, "spec": spec},
    "inside facet itself": lambda spec: {"facet": {"row": spec}, "spec": _VIEW},
    "repeat": lambda spec: {"repeat": ["a"], "spec": spec},
    "lookup": lambda spec: {"transform": [{"lookup": "a", "from": {"more": spec}}]},
    "transform": lambda spec: {"transform": [{"filter": {"and": [spec]}}]},
    "config": lambda spec: {"config": {"view": {"deep": [spec]}}},
    "beside datasets": lambda spec: {"datasets": {"d": [{"a": 1}]}, "layer": [spec]},
    "inside data": lambda spec: {"data": {"values": [], "more": spec}},
    "an object among datasets": lambda spec: {"datasets": {"d": {"deep": [spec]}}},
    "six deep": lambda spec: {
        "vconcat": [{"hconcat": [{"concat": [{"layer": [{"spec": {"layer": [spec]}}]}]}]}]
    },
}
# Inside config an address is the config's fault, whatever its key.
_IN_CONFIG = {"vega_data_url": "vega_external_config", "vega_url_channel": "vega_external_config"}


@pytest.mark.parametrize("hidden", HIDDEN)
@pytest.mark.parametrize("violation", VIOLATIONS)
def test_broken_rule_is_found_wherever_it_hides(violation: str, hidden: str) -> None:
    code, fragment = VIOLATIONS[violation]
    spec = HIDDEN[hidden]({"mark": "bar"} | fragment)

    found = normalize(result(markdown("före"), {"kind": "vega_lite", "spec": spec}, markdown()))

    outputs = found.ui_payload["outputs"]
    expected = {code}
    if hidden == "config":
        expected.add(_IN_CONFIG.get(code, code))
    assert found.notices[0] in expected
    assert [output["kind"] for output in outputs] == ["markdown", "notice", "markdown"]
    assert outputs[1]["message"].startswith("Resultat 2 (diagram) visas inte: ")


@pytest.mark.parametrize(
    ("code", "spec", "figures"),
    [
        ("vega_too_many_rows", {"data": {"values": _rows(4001)}}, ("4001", "4000")),
        ("vega_too_many_layers", {"layer": [_VIEW] * 17}, ("17", "16")),
        ("vega_too_deep", _nested(9, "layer"), ("9", "8")),
    ],
)
def test_notice_says_the_true_figures(code: str, spec: Spec, figures: tuple[str, str]) -> None:
    told = messages(normalize(result({"kind": "vega_lite", "spec": spec})), code)
    assert all(figure in told for figure in figures)


_TWO_LAYERS: Spec = {"layer": [_VIEW] * 2}


@pytest.mark.parametrize(
    ("repeat", "spec", "layers"),
    [
        ({"layer": ["a"] * 17}, _VIEW, 17),
        ({"row": ["a"] * 2, "layer": ["b"] * 9}, _VIEW, 18),
        ({"row": ["a"] * 2, "column": ["b"] * 3, "layer": ["c"] * 4}, _VIEW, 24),
        ({"row": ["a"] * 3, "column": ["b"] * 3}, _TWO_LAYERS, 18),
        # Each of the six is a layer, and has two of its own.
        ({"layer": ["a"] * 6}, _TWO_LAYERS, 18),
        ({"layer": ["a"] * 6}, {"repeat": {"layer": ["b"] * 2}, "spec": _VIEW}, 18),
    ],
)
def test_repeated_layers_are_counted_once(repeat: Spec, spec: Spec, layers: int) -> None:
    found = normalize(result({"kind": "vega_lite", "spec": {"repeat": repeat, "spec": spec}}))
    assert f"{layers} lager, högst 16" in messages(found, "vega_too_many_layers")


@pytest.mark.parametrize(
    "spec",
    [
        {"data": {"values": _rows(4000)}, "mark": "bar"},
        {
            "data": _INLINE,
            "repeat": {"layer": ["a", "b", "c", "d", "e"]},
            "spec": {"mark": "line", "encoding": {"y": {"field": {"repeat": "layer"}}}},
        },
        {"repeat": {"layer": ["a"] * 16}, "spec": _VIEW},
        {"repeat": {"row": ["a"] * 2, "column": ["b"] * 2, "layer": ["c"] * 4}, "spec": _VIEW},
        {"repeat": {"layer": []}, "spec": {"layer": [_VIEW] * 16}},
        {"mark": {"type": "bar", "cursor": "pointer"}, "config": {"view": {"cursor": None}}},
        {"params": [{"name": "bredd", "expr": "2 + 2"}], "name": "cursor", **_VIEW},
        {"datasets": {"a": _rows(4000), "b": _rows(4000)}, "data": {"name": "a"}, "mark": "bar"},
        {"data": {"name": "d", "values": []}, "layer": [{"data": {"name": "d"}, "mark": "bar"}]},
        {"layer": [_VIEW] * 16},
        {"data": None, "concat": [_VIEW] * 100},
        _nested(8, "hconcat"),
        _nested(8, "spec"),
        {"data": {"values": [{"url": "https://a", "href": "b", "type": "image"}]}, "mark": "bar"},
        {
            "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
            "title": "Se https://skolan.example",
            "config": {"axis": {"grid": False}},
            "usermeta": {"author": "Lärare"},
            **_VIEW,
        },
        {
            "data": {"values": {"type": "Topology"}, "format": {"type": "topojson"}},
            "mark": "geoshape",
        },
        {
            "repeat": {"row": ["a", "b"], "column": ["c"]},
            "spec": {
                "transform": [{"lookup": "a", "from": {"data": _INLINE, "key": "a"}}],
                **_VIEW,
            },
        },
        {"transform": [{"filter": "datum.a > 1"}] * 100, "mark": {"type": "bar", "tooltip": True}},
    ],
)
def test_honest_chart_is_shown_unchanged(spec: Spec) -> None:
    found = normalize(result({"kind": "vega_lite", "spec": spec}))
    assert found.notices == ()
    assert found.ui_payload["outputs"][0]["spec"] == spec


def test_code_does_not_depend_on_the_order_of_keys() -> None:
    spec = {"mark": "image", "data": {"url": "x"}, "layer": [_VIEW] * 20, "config": "https://x"}
    backwards = dict(reversed(spec.items()))

    first = normalize(result({"kind": "vega_lite", "spec": spec}))
    second = normalize(result({"kind": "vega_lite", "spec": backwards}))

    assert first.ui_payload_bytes == second.ui_payload_bytes
    assert first.notices == ("vega_data_url",)
    told = messages(first, "vega_data_url")
    assert "image" in told
    assert "20 lager" in told
    assert "config" in told


@pytest.mark.parametrize("spec", [None, [], "bar", 1, {"mark": {"type": {}}, "layer": {"a": []}}])
def test_anything_may_stand_for_a_spec(spec: Any) -> None:
    normalize(result({"kind": "vega_lite", "spec": spec}, {"kind": "vega_lite"}))


def test_not_a_number_in_rows_becomes_null_and_the_chart_stays() -> None:
    found = normalize(result(chart(data={"values": [{"a": float("nan")}]})))
    assert found.ui_payload["outputs"][0]["spec"]["data"] == {"values": [{"a": None}]}
    assert found.notices == ("number_not_finite",)


def test_policy_that_allows_no_charts_drops_them() -> None:
    from msgspec.structs import replace

    policy = replace(DEFAULT_POLICY, output_kinds=frozenset({"markdown"}))
    found = normalize(result(chart()), policy=policy)
    assert found.notices == ("output_kind_unknown",)
