"""Raw results as a tool could write them, and strategies for those that nobody would."""

from typing import Any

from hypothesis import strategies as st

from app.domain.normalizer import Normalized

Raw = dict[str, Any]


def result(*outputs: Any, actions: Any = None, state: Any = None, status: str = "succeeded") -> Raw:
    return {
        "contract_version": 2,
        "status": status,
        "outputs": list(outputs),
        "next_actions": [] if actions is None else actions,
        "state": state,
    }


def markdown(text: str = "hej") -> Raw:
    return {"kind": "markdown", "markdown": text}


def table(rows: list[Any], keys: tuple[str, ...] = ("a",)) -> Raw:
    columns = [{"key": key, "label": key.upper()} for key in keys]
    return {"kind": "table", "columns": columns, "rows": rows}


def action(action_id: str = "next", *fields: Raw, **members: Any) -> Raw:
    return {
        "action_id": action_id,
        "label": "Nästa",
        "kind": "form",
        "fields": list(fields),
        **members,
    }


def field(name: str = "x", kind: str = "string", **members: Any) -> Raw:
    return {"name": name, "label": "X", "kind": kind, **members}


def options(count: int) -> list[Raw]:
    return [{"value": f"v{index}", "label": f"Val {index}"} for index in range(count)]


def chart(**members: Any) -> Raw:
    spec = {"mark": "bar", "data": {"values": [{"a": 1}]}, "encoding": {"x": {"field": "a"}}}
    return {"kind": "vega_lite", "spec": spec | members}


def nest(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def messages(normalized: Normalized, code: str) -> str:
    """Return the text of all notices with a code, joined."""
    return "\n".join(
        output["message"]
        for output in normalized.ui_payload["outputs"]
        if output.get("code") == code
    )


# --- Strategies -----------------------------------------------------------------------------

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([2**53, 2**53 + 1, 2**64, -(2**70) - 1, 10**22, 10**400 + 1, 10**4299 + 1])
    | st.floats(allow_nan=True, allow_infinity=True)
    | st.sampled_from([1e16, 1e22, -0.0, 5e-324, 1.7e308, 0.1])
    | st.text(st.characters(), max_size=12)
    | st.sampled_from(["\x00", "a\x00", "\ud800", "a\udfffb", "é", "😀", "x" * 600, "url", "kind"])
)
KEYS = st.text(st.characters(), max_size=6) | st.sampled_from(["a", "a\x00", "a\ud800", "url"])
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=15,
)


def _member(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Mostly what belongs there, sometimes anything."""
    return st.one_of(strategy, strategy, strategy, JSON)


_texts = _member(st.text(st.characters(), max_size=20) | st.just("å" * 70_000))
_names = st.sampled_from(["a", "b", "c", "a\x00", "", "å" * 100])
_labels = _member(st.text(max_size=8) | st.just("ö" * 400))
_options = st.lists(
    _member(st.fixed_dictionaries({"value": _member(_names), "label": _labels})), max_size=4
)
_fields = _member(
    st.fixed_dictionaries(
        {
            "name": _member(_names),
            "label": _labels,
            "kind": _member(st.sampled_from(["string", "integer", "enum", "multi_enum", "file"])),
        },
        optional={"required": _member(st.booleans()), "options": _member(_options), "more": JSON},
    )
)
_rows = st.dictionaries(_names, SCALARS | JSON, max_size=4)
_columns = st.fixed_dictionaries({"key": _member(_names), "label": _labels})
_views = st.recursive(
    st.fixed_dictionaries({"mark": _member(st.sampled_from(["bar", "image"]))}),
    lambda inner: st.dictionaries(
        st.sampled_from(["layer", "concat", "spec", "data", "transform", "encoding", "config"]),
        st.lists(inner, max_size=3) | inner | JSON,
        max_size=3,
    ),
    max_leaves=6,
)
OUTPUTS = st.one_of(
    st.fixed_dictionaries({"kind": st.just("markdown"), "markdown": _texts}),
    st.fixed_dictionaries({"kind": st.just("html_sandboxed"), "html": _texts}),
    st.fixed_dictionaries(
        {"kind": st.just("notice"), "level": _member(st.just("info")), "message": _texts},
        optional={"code": _member(st.just("my_code"))},
    ),
    st.fixed_dictionaries(
        {
            "kind": st.just("table"),
            "columns": _member(st.lists(_member(_columns), max_size=4)),
            "rows": _member(st.lists(_member(_rows), max_size=4)),
        },
        optional={"title": _texts},
    ),
    st.fixed_dictionaries({"kind": st.just("json"), "value": JSON}, optional={"title": _texts}),
    st.fixed_dictionaries({"kind": st.just("vega_lite"), "spec": _member(_views)}),
    st.fixed_dictionaries({"kind": JSON}),
    JSON,
)
ACTIONS = _member(
    st.fixed_dictionaries(
        {
            "action_id": _member(st.text(max_size=6)),
            "label": _labels,
            "kind": _member(st.just("form")),
            "fields": _member(st.lists(_fields, max_size=4)),
        },
        optional={"prefill": _member(st.dictionaries(_names, JSON, max_size=3)), "more": JSON},
    )
)
RESULTS = st.fixed_dictionaries(
    {
        "contract_version": st.just(2),
        "status": st.sampled_from(["succeeded", "failed"]),
        "outputs": st.lists(OUTPUTS, max_size=6),
        "next_actions": st.lists(ACTIONS, max_size=4),
        "state": _member(st.dictionaries(KEYS, JSON, max_size=5)),
    },
    optional={"error_summary": _texts, "artifacts": JSON, "more": JSON},
)
ANYTHING = st.one_of(RESULTS, RESULTS, JSON, st.dictionaries(KEYS, JSON))
