"""Outputs: each is rebuilt from the members that its kind has, or replaced by a notice."""

import re
from collections.abc import Callable
from typing import Any

from app.domain.normalizer.canonical import Tally, count_bytes
from app.domain.normalizer.measure import Measure, clean_measured, measure
from app.domain.normalizer.notices import NoticeLog, Place, Rejected, make_notice, quote
from app.domain.normalizer.tables import build_table
from app.domain.normalizer.vega import check_spec
from app.domain.policy import UiPolicy

_LEVELS = ("info", "warning", "error")
_NOTICE_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")


def name_output(position: int, raw: Any) -> str:
    """Return what messages call an output: its place from 1, and its kind."""
    kind = _kinds.get(_kind_of(raw))
    return f"Resultat {position} ({kind.name})" if kind else f"Resultat {position}"


def normalize_output(
    raw: Any, position: int, policy: UiPolicy, log: NoticeLog
) -> tuple[dict[str, Any], bool]:
    """Return the output within its caps and True, or the notice in its place and False."""
    place = Place(name_output(position, raw), policy, NoticeLog(), Tally())
    try:
        output = _build(raw, place)
    except Rejected as rejected:
        notice = make_notice(rejected.code, rejected.message, policy.max_message_bytes)
        return notice, False
    # What was noted on the way counts only if the output is shown.
    place.log.report(place.where, place.tally)
    log.extend(place.log)
    return output, True


def _build(raw: Any, place: Place) -> dict[str, Any]:
    if type(raw) is not dict:
        raise place.reject("output_invalid", "det är inte ett objekt")
    kind = _kinds.get(_kind_of(raw))
    if kind is None or raw["kind"] not in place.policy.output_kinds:
        raise place.reject("output_kind_unknown", f"sorten {quote(raw.get('kind'))} är okänd")
    output = kind.build(raw, place)
    place.note_unknown(len(raw.keys() - kind.members))
    return output


def _kind_of(raw: Any) -> str:
    kind = raw.get("kind") if type(raw) is dict else None
    return kind if type(kind) is str else ""


def _text(raw: dict[str, Any], member: str, place: Place) -> str:
    value = raw.get(member)
    if type(value) is not str:
        raise place.reject("output_invalid", f"{member} saknas eller är inte text")
    return value


def _build_notice(raw: dict[str, Any], place: Place) -> dict[str, Any]:
    message = _text(raw, "message", place)
    cap = place.policy.max_message_bytes
    level = raw.get("level")
    if type(level) is not str or level not in _LEVELS:
        place.note("notice_level_unknown", "nivån är okänd och visas som ”info”")
        level = "info"
    output = {
        "kind": "notice",
        "level": level,
        "message": place.shorten(message, cap, "message_too_long", "texten"),
    }
    code = raw.get("code")
    if type(code) is str and _NOTICE_CODE.fullmatch(code):
        output["code"] = code
    elif code is not None:
        place.note("notice_code_invalid", "koden går inte att använda och togs bort")
    return output


def _build_markdown(raw: dict[str, Any], place: Place) -> dict[str, Any]:
    text = _text(raw, "markdown", place)
    cap = place.policy.max_markdown_bytes
    return {
        "kind": "markdown",
        "markdown": place.shorten(text, cap, "markdown_too_long", "texten"),
    }


def _build_html(raw: dict[str, Any], place: Place) -> dict[str, Any]:
    html = place.clean(_text(raw, "html", place))
    size, cap = count_bytes(html), place.policy.max_html_bytes
    # Not shortened: a cut inside a tag, a style or a table changes what the rest means.
    if size > cap:
        raise place.reject("html_too_large", f"det är {size} byte, högst {cap} visas")
    return {"kind": "html_sandboxed", "html": html}


def _build_table(raw: dict[str, Any], place: Place) -> dict[str, Any]:
    return _with_title(build_table(raw, place), raw, place)


def _build_json(raw: dict[str, Any], place: Place) -> dict[str, Any]:
    if "value" not in raw:
        raise place.reject("output_invalid", "value saknas")
    policy = place.policy
    found = measure(raw["value"], policy.max_json_bytes)
    # Not shortened: data with parts missing is other data.
    for code, unit, figure, cap in (
        ("json_too_deep", "nivåer", found.depth, policy.max_json_depth),
        ("json_too_many_keys", "nycklar", found.keys, policy.max_json_keys),
        (
            "json_array_too_long",
            "element i en lista",
            found.longest_array,
            policy.max_json_array_length,
        ),
    ):
        if figure > cap:
            raise place.reject(code, f"{_least(found)}{figure} {unit}, högst {cap} visas")
    value = _clean_within(raw["value"], found, policy.max_json_bytes, "json_too_large", place)
    return _with_title({"kind": "json", "value": value}, raw, place)


def _build_chart(raw: dict[str, Any], place: Place) -> dict[str, Any]:
    spec = raw.get("spec")
    if type(spec) is not dict:
        raise place.reject("vega_invalid", "spec saknas eller är inte ett objekt")
    policy = place.policy
    found = measure(spec, policy.max_vega_bytes)
    cap = policy.max_vega_json_depth
    if found.depth > cap:
        raise place.reject(
            "vega_too_deep", f"{_least(found)}{found.depth} nivåer JSON, högst {cap} visas"
        )
    spec = _clean_within(spec, found, policy.max_vega_bytes, "vega_too_large", place)
    broken = check_spec(spec, policy)
    if broken:
        raise place.reject(next(iter(broken)), "; ".join(broken.values()))
    return {"kind": "vega_lite", "spec": spec}


def _clean_within(value: Any, found: Measure, cap: int, code: str, place: Place) -> Any:
    value, size = clean_measured(value, found, place.tally)
    if size is None or size > cap:
        shown = f"mer än {cap}" if size is None else size
        raise place.reject(code, f"det är {shown} byte, högst {cap} visas")
    return value


def _least(found: Measure) -> str:
    return "" if found.complete else "minst "


def _with_title(output: dict[str, Any], raw: dict[str, Any], place: Place) -> dict[str, Any]:
    title = raw.get("title")
    if type(title) is str:
        cap = place.policy.max_title_bytes
        output["title"] = place.shorten(title, cap, "title_too_long", "rubriken")
    elif title is not None:
        place.note("title_invalid", "rubriken är inte text och togs bort")
    return output


class _Kind:
    """An output kind: what messages call it, its members, and how it is built."""

    def __init__(
        self, name: str, members: str, build: Callable[[dict[str, Any], Place], dict[str, Any]]
    ) -> None:
        self.name = name
        self.members = frozenset(members.split()) | {"kind"}
        self.build = build


_kinds = {
    "notice": _Kind("meddelande", "level message code", _build_notice),
    "markdown": _Kind("text", "markdown", _build_markdown),
    "table": _Kind("tabell", "title columns rows", _build_table),
    "json": _Kind("JSON", "title value", _build_json),
    "html_sandboxed": _Kind("HTML", "html", _build_html),
    "vega_lite": _Kind("diagram", "spec", _build_chart),
}
