"""From a raw result to what is stored and shown: the algorithm of ADR-0024, step by step."""

from collections.abc import Iterable
from typing import Any, Protocol

import msgspec

from app.domain.contract import CONTRACT_VERSION, STATUS_FAILED, STATUSES, ContractViolation
from app.domain.normalizer.actions import normalize_actions
from app.domain.normalizer.budget import Draft, fit
from app.domain.normalizer.canonical import Tally, clean_text, count_bytes, cut_text
from app.domain.normalizer.notices import NoticeLog
from app.domain.normalizer.outputs import name_output, normalize_output
from app.domain.normalizer.state import normalize_state
from app.domain.policy import DEFAULT_POLICY, UiPolicy

_WORDLESS_FAILURE = "Verktyget misslyckades utan att säga varför."


class Normalized(msgspec.Struct, frozen=True, kw_only=True):
    """What may be stored of a result.

    `ui_payload` holds `contract_version`, `outputs` and `next_actions`; `ui_payload_bytes` is its
    canonical JSON. `state` is None if the tool leaves its state unchanged. `notices` are the codes
    of the notices that the normalizer added, in the order in which they are shown. A failed
    result is normalized like any other: that its state does not count is the caller's rule. Its
    `error_summary` is never blank, also where the tool says nothing.
    `offers_steps` says whether the tool's own actions, or some of them, are among the next ones.
    """

    status: str
    error_summary: str | None
    ui_payload: dict[str, Any]
    ui_payload_bytes: bytes
    state: dict[str, Any] | None
    offers_steps: bool
    notices: tuple[str, ...]


class UiPayloadNormalizerProtocol(Protocol):
    """Takes a raw result, the backend's actions and the budgets (ADR-0024, protocol seams)."""

    def __call__(
        self, raw: Any, *, backend_actions: Iterable[Any] = (), policy: UiPolicy = DEFAULT_POLICY
    ) -> Normalized: ...


def normalize(
    raw: Any, *, backend_actions: Iterable[Any] = (), policy: UiPolicy = DEFAULT_POLICY
) -> Normalized:
    """Return what of a decoded result may be stored and shown; same input, same bytes.

    `raw` is plain JSON values, however wrong, as `decode_result` gives them; it is not changed, and
    faultless parts of it are shared with the answer. Actions come sorted by `action_id`, the
    tool's first, then the backend's. What was changed, cut or dropped is told by a notice output;
    notices about one output's content stand in its place, all others after the outputs.

    Raises:
        ContractViolation: `not_an_object`, `contract_version`, `status`, `outputs_not_a_list`,
            `next_actions_not_a_list` or `duplicate_action_id`.
    """
    status = _check(raw)
    log = NoticeLog()
    error_summary = _error_summary(raw.get("error_summary"), policy, log)
    if status == STATUS_FAILED and not (error_summary or "").strip():
        error_summary = _WORDLESS_FAILURE
    state = normalize_state(raw.get("state"), policy, log)
    raw_outputs = raw.get("outputs") or []
    looked_at = list(enumerate(raw_outputs[: policy.max_outputs], start=1))
    outputs = [normalize_output(output, position, policy, log) for position, output in looked_at]
    from_tool, from_backend = normalize_actions(
        raw.get("next_actions") or [], backend_actions, policy, log
    )
    draft = Draft(
        outputs=[output for output, _ in outputs],
        names=[name_output(position, output) for position, output in looked_at],
        replaced={index for index, (_, kept) in enumerate(outputs) if not kept},
        total=len(raw_outputs),
        from_tool=from_tool,
        from_backend=from_backend,
        log=log,
    )
    page = fit(draft, policy)
    return Normalized(
        status=status,
        error_summary=error_summary,
        ui_payload=page.payload,
        ui_payload_bytes=page.data,
        state=state,
        offers_steps=bool(draft.from_tool),
        notices=page.notices,
    )


def _check(raw: Any) -> str:
    """Return the status of a result whose basic members have their types (ADR-0024, step 1)."""
    if type(raw) is not dict:
        raise ContractViolation("not_an_object", "Verktygets resultat är inte ett JSON-objekt.")
    version = raw.get("contract_version")
    if type(version) is not int or version != CONTRACT_VERSION:
        raise ContractViolation(
            "contract_version",
            f"Verktygets resultat följer inte version {CONTRACT_VERSION} av kontraktet.",
        )
    status = raw.get("status")
    if type(status) is not str or status not in STATUSES:
        raise ContractViolation(
            "status", "Verktygets resultat säger inte om körningen lyckades eller misslyckades."
        )
    for member in ("outputs", "next_actions"):
        if type(raw.get(member)) not in (list, type(None)):
            raise ContractViolation(
                f"{member}_not_a_list", f"Verktygets resultat är fel: {member} är inte en lista."
            )
    return status


def _error_summary(raw: Any, policy: UiPolicy, log: NoticeLog) -> str | None:
    if raw is None:
        return None
    if type(raw) is not str:
        log.add("error_summary_invalid", "Felbeskrivningen är inte text och togs bort.")
        return None
    tally = Tally()
    summary = clean_text(raw, tally)
    log.report("Felbeskrivningen", tally)
    size = count_bytes(summary)
    if size > policy.max_error_summary_bytes:
        log.add(
            "error_summary_too_long",
            f"Felbeskrivningen är {size} byte och kortades till {policy.max_error_summary_bytes}.",
        )
    return cut_text(summary, policy.max_error_summary_bytes)
