"""The payload as a whole: at most so many outputs and so many bytes, notices included."""

from typing import Any

import msgspec

from app.domain.contract import CONTRACT_VERSION
from app.domain.normalizer.canonical import canonical_json
from app.domain.normalizer.notices import NoticeLog, make_notice, quote
from app.domain.policy import UiPolicy


class Draft(msgspec.Struct, kw_only=True):
    """A payload that may still be too large.

    `names[i]` is what messages call `outputs[i]`; `replaced` holds the indexes where one of our
    notices stands in for an output. `total` counts the tool's outputs, also those that were never
    looked at because they are too many.
    """

    outputs: list[dict[str, Any]]
    names: list[str]
    replaced: set[int]
    total: int
    from_tool: list[dict[str, Any]]
    from_backend: list[dict[str, Any]]
    log: NoticeLog


class Page(msgspec.Struct):
    """A payload: its bytes, how many of the draft's outputs it shows, the codes of our notices."""

    payload: dict[str, Any]
    data: bytes
    shown: int
    notices: tuple[str, ...]


def fit(draft: Draft, policy: UiPolicy) -> Page:
    """Return the payload within both caps.

    Over the budget, actions may take half of it: beyond that the largest go first, since otherwise
    one giant action would cost every output. Then the largest outputs are replaced, ties by
    position, and only if even that is not enough (with the backend's actions alone it could be)
    the other actions go.
    """
    page = _compose(draft, policy)
    if len(page.data) > policy.max_payload_bytes:
        _drop_actions(draft, policy.max_payload_bytes // 2, policy)
        _replace_outputs(draft, _compose(draft, policy), policy)
        page = _compose(draft, policy)
    if len(page.data) > policy.max_payload_bytes:
        _drop_actions(draft, 0, policy)
        page = _compose(draft, policy)
    return page


def _compose(draft: Draft, policy: UiPolicy) -> Page:
    told = draft.log.outputs(policy.max_message_bytes)
    kept = len(draft.outputs)
    if draft.total + len(told) > policy.max_outputs:
        kept = max(0, min(kept, policy.max_outputs - len(told) - 1))
        message = (
            f"Verktyget gav {draft.total} resultat. Sidan rymmer {policy.max_outputs}, "
            f"meddelanden inräknade: de första {kept} visas."
        )
        told.insert(0, make_notice("too_many_outputs", message, policy.max_message_bytes))
    payload = {
        "contract_version": CONTRACT_VERSION,
        "outputs": draft.outputs[:kept] + told[: policy.max_outputs],
        "next_actions": draft.from_tool + draft.from_backend,
    }
    in_place = [draft.outputs[index] for index in sorted(draft.replaced) if index < kept]
    notices = tuple(str(notice["code"]) for notice in in_place + told)
    return Page(payload, canonical_json(payload), kept, notices)


def _drop_actions(draft: Draft, allowance: int, policy: UiPolicy) -> None:
    """Drop the largest actions, the tool's before the backend's, until they take the allowance."""
    sizes = {
        str(action["action_id"]): len(canonical_json(action)) + 1
        for action in draft.from_tool + draft.from_backend
    }
    taken = sum(sizes.values())
    for source in (draft.from_tool, draft.from_backend):
        for action in sorted(
            source, key=lambda item: (-sizes[item["action_id"]], item["action_id"])
        ):
            if taken <= allowance:
                return
            name = str(action["action_id"])
            source.remove(action)
            taken -= sizes[name]
            draft.log.add(
                "actions_too_large",
                f"Nästa steg {quote(name)} ({sizes[name]} byte) togs bort: allt som visas får "
                f"vara högst {policy.max_payload_bytes} byte.",
            )


def _replace_outputs(draft: Draft, page: Page, policy: UiPolicy) -> None:
    """Replace the largest of the outputs shown, ties by position, until the page fits."""
    excess = len(page.data) - policy.max_payload_bytes
    sizes = [len(canonical_json(output)) for output in draft.outputs[: page.shown]]
    for index in sorted(range(len(sizes)), key=lambda index: (-sizes[index], index)):
        if excess <= 0:
            return
        notice = make_notice(
            "payload_too_large",
            f"{draft.names[index]} visas inte: det är {sizes[index]} byte, och allt som visas får "
            f"tillsammans vara högst {policy.max_payload_bytes} byte.",
            policy.max_message_bytes,
        )
        saved = sizes[index] - len(canonical_json(notice))
        if saved > 0:
            draft.outputs[index] = notice
            draft.replaced.add(index)
            excess -= saved
