"""Outputs: each is rebuilt from the members that its kind has, or replaced by a notice."""

import re
from typing import Any

from app.domain.normalizer.canonical import (
    Tally,
    canonical_json,
    clean_text,
    clean_value,
    count_bytes,
    cut_text,
)
from app.domain.normalizer.measure import Measure, encoded_bytes, measure
from app.domain.normalizer.notices import NoticeLog, Rejected, make_notice, quote
from app.domain.normalizer.tables import build_table
from app.domain.normalizer.vega import check_spec
from app.domain.policy import UiPolicy

_NAMES = {
    "notice": "meddelande",
    "markdown": "text",
    "table": "tabell",
    "json": "JSON",
    "html_sandboxed": "HTML",
    "vega_lite": "diagram",
}
_MEMBERS = {
    "notice": {"kind", "level", "message", "code"},
    "markdown": {"kind", "markdown"},
    "table": {"kind", "title", "columns", "rows"},
    "json": {"kind", "title", "value"},
    "html_sandboxed": {"kind", "html"},
    "vega_lite": {"kind", "spec"},
}
_LEVELS = ("info", "warning", "error")
_NOTICE_CODE = re.compile(r"[a-z][a-z0-9_]{0,63}")


def name_output(position: int, raw: Any) -> str:
    """Return what messages call an output: its place from 1, and its kind."""
    kind = raw.get("kind") if type(raw) is dict else None
    name = _NAMES.get(kind) if type(kind) is str else None
    return f"Resultat {position} ({name})" if name else f"Resultat {position}"


def normalize_output(raw: Any, position: int, policy: UiPolicy, log: NoticeLog) -> dict[str, Any]:
    """Return the output within its caps, or the notice that stands in its place."""
    found = NoticeLog()
    tally = Tally()
    where = name_output(position, raw)
    try:
        output = _build(raw, where, policy, found, tally)
    except Rejected as rejected:
        return make_notice(rejected.code, rejected.message, policy.max_message_bytes)
    found.report(where, tally)
    log.extend(found)
    return output


def is_replaced(raw: Any, output: dict[str, Any]) -> bool:
    """Tell whether one of our notices stands in for the raw output."""
    if output["kind"] != "notice":
        return False
    return (
        type(raw) is not dict or raw.get("kind") != "notice" or type(raw.get("message")) is not str
    )


def _build(raw: Any, where: str, policy: UiPolicy, log: NoticeLog, tally: Tally) -> dict[str, Any]:
    if type(raw) is not dict:
        raise Rejected("output_invalid", f"{where} visas inte: det är inte ett objekt.")
    kind = raw.get("kind")
    if type(kind) is not str or kind not in policy.output_kinds or kind not in _MEMBERS:
        raise Rejected("output_kind_unknown", f"{where} visas inte: sorten {quote(kind)} är okänd.")
    if kind == "notice":
        output = _build_notice(raw, where, policy, log, tally)
    elif kind == "markdown":
        output = _build_markdown(raw, where, policy, log, tally)
    elif kind == "table":
        output = build_table(raw, where, policy, log, tally)
    elif kind == "json":
        output = _build_json(raw, where, policy, tally)
    elif kind == "html_sandboxed":
        output = _build_html(raw, where, policy, tally)
    else:
        output = _build_chart(raw, where, policy, tally)
    if kind in ("table", "json"):
        _add_title(output, raw, where, policy, log, tally)
    unknown = sum(1 for key in raw if key not in _MEMBERS[kind])
    if unknown:
        log.add("members_unknown", f"{where}: {unknown} okända egenskaper togs bort.")
    return output


def _text(raw: dict[str, Any], member: str, where: str, tally: Tally) -> str:
    value = raw.get(member)
    if type(value) is not str:
        raise Rejected("output_invalid", f"{where} visas inte: {member} saknas eller är inte text.")
    return clean_text(value, tally)


def _cut(text: str, max_bytes: int, code: str, where: str, log: NoticeLog) -> str:
    size = count_bytes(text)
    if size <= max_bytes:
        return text
    log.add(code, f"{where} är {size} byte och kortades till {max_bytes}.")
    return cut_text(text, max_bytes)


def _build_notice(
    raw: dict[str, Any], where: str, policy: UiPolicy, log: NoticeLog, tally: Tally
) -> dict[str, Any]:
    message = _text(raw, "message", where, tally)
    message = _cut(message, policy.max_message_bytes, "message_too_long", where, log)
    level = raw.get("level")
    if type(level) is not str or level not in _LEVELS:
        log.add("notice_level_unknown", f"{where}: nivån är okänd och visas som ”info”.")
        level = "info"
    output = {"kind": "notice", "level": level, "message": message}
    code = raw.get("code")
    if type(code) is str and _NOTICE_CODE.fullmatch(code):
        output["code"] = code
    elif "code" in raw:
        log.add("members_unknown", f"{where}: koden går inte att använda och togs bort.")
    return output


def _build_markdown(
    raw: dict[str, Any], where: str, policy: UiPolicy, log: NoticeLog, tally: Tally
) -> dict[str, Any]:
    text = _text(raw, "markdown", where, tally)
    text = _cut(text, policy.max_markdown_bytes, "markdown_too_long", where, log)
    return {"kind": "markdown", "markdown": text}


def _build_html(raw: dict[str, Any], where: str, policy: UiPolicy, tally: Tally) -> dict[str, Any]:
    html = _text(raw, "html", where, tally)
    size = count_bytes(html)
    # Not shortened: a cut inside a tag, a style or a table changes what the rest means.
    if size > policy.max_html_bytes:
        raise Rejected(
            "html_too_large",
            f"{where} visas inte: det är {size} byte, högst {policy.max_html_bytes} visas.",
        )
    return {"kind": "html_sandboxed", "html": html}


def _build_json(raw: dict[str, Any], where: str, policy: UiPolicy, tally: Tally) -> dict[str, Any]:
    # Not shortened: data with parts missing is other data.
    if "value" not in raw:
        raise Rejected("output_invalid", f"{where} visas inte: value saknas.")
    value = raw["value"]
    found = measure(value, policy.max_json_bytes)
    if found.depth > policy.max_json_depth:
        _reject_json("json_too_deep", where, "nivåer", found.depth, policy.max_json_depth)
    if found.keys > policy.max_json_keys:
        _reject_json("json_too_many_keys", where, "nycklar", found.keys, policy.max_json_keys)
    if found.longest_array > policy.max_json_array_length:
        _reject_json(
            "json_array_too_long",
            where,
            "element i en lista",
            found.longest_array,
            policy.max_json_array_length,
        )
    value, size = clean_and_weigh(value, found, tally)
    if size is None or size > policy.max_json_bytes:
        _reject_json("json_too_large", where, "byte", size, policy.max_json_bytes)
    return {"kind": "json", "value": value}


def _reject_json(code: str, where: str, unit: str, size: int | None, cap: int) -> None:
    shown = f"mer än {cap}" if size is None else str(size)
    raise Rejected(code, f"{where} visas inte: {shown} {unit}, högst {cap} visas.")


def clean_and_weigh(value: Any, found: Measure, tally: Tally) -> tuple[Any, int | None]:
    """Return the canonical value and its bytes; None bytes if it is too large to be weighed.

    The value's depth has been checked. A value without faults is returned as it is.
    """
    size = encoded_bytes(value, found)
    if found.oversize:
        return value, size
    if size is None or found.needs_cleaning or _may_hold_nul(value):
        value = clean_value(value, tally)
        size = len(canonical_json(value))
    return value, size


def _may_hold_nul(value: Any) -> bool:
    return b"\\u0000" in canonical_json(value)


def _build_chart(raw: dict[str, Any], where: str, policy: UiPolicy, tally: Tally) -> dict[str, Any]:
    spec = raw.get("spec")
    if type(spec) is not dict:
        raise Rejected("vega_invalid", f"{where} visas inte: spec saknas eller är inte ett objekt.")
    found = measure(spec, policy.max_vega_bytes)
    if found.depth > policy.max_vega_json_depth:
        raise Rejected(
            "vega_too_deep",
            f"{where} visas inte: {found.depth} nivåer, högst {policy.max_vega_json_depth} visas.",
        )
    spec, size = clean_and_weigh(spec, found, tally)
    if size is None or size > policy.max_vega_bytes:
        shown = f"mer än {policy.max_vega_bytes}" if size is None else str(size)
        raise Rejected(
            "vega_too_large",
            f"{where} visas inte: {shown} byte, högst {policy.max_vega_bytes} visas.",
        )
    broken = check_spec(spec, policy)
    if broken:
        reasons = "; ".join(broken.values())
        raise Rejected(next(iter(broken)), f"{where} visas inte: {reasons}.")
    return {"kind": "vega_lite", "spec": spec}


def _add_title(
    output: dict[str, Any],
    raw: dict[str, Any],
    where: str,
    policy: UiPolicy,
    log: NoticeLog,
    tally: Tally,
) -> None:
    title = raw.get("title")
    if type(title) is str:
        text = clean_text(title, tally)
        output["title"] = _cut(
            text, policy.max_title_bytes, "title_too_long", f"{where}: rubriken", log
        )
    elif title is not None:
        log.add("title_invalid", f"{where}: rubriken är inte text och togs bort.")
