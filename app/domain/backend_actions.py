"""Actions that the service itself offers beside a tool's own (ADR-0024, protocol seams)."""

from typing import Any, Protocol

from app.domain.contract import STATUS_SUCCEEDED
from app.domain.policy import UiPolicy
from app.domain.runs import ClaimedRun, RunKind

# A colon is not likely in a tool's own ids; one that uses the same breaks the contract.
START_OVER_ID = "skriptoteket:start_over"
CLEAR_FILES_FIELD = "clear_files"
_START_OVER: dict[str, Any] = {
    "action_id": START_OVER_ID,
    "label": "Börja om",
    "kind": "form",
    "fields": [
        {"name": CLEAR_FILES_FIELD, "label": "Ta också bort de sparade filerna", "kind": "boolean"}
    ],
}


class BackendActionProviderProtocol(Protocol):
    """Says what the service offers beside the steps of a run's decoded result."""

    def __call__(
        self, run: ClaimedRun, raw: Any, policy: UiPolicy, /
    ) -> tuple[dict[str, Any], ...]: ...


def offer_backend_actions(
    run: ClaimedRun, raw: Any, policy: UiPolicy, /
) -> tuple[dict[str, Any], ...]:
    """Offer "Börja om" in every interactive session: after a step, or where there is a next one.

    It takes one of the places that the policy has for actions. A failed run offers nothing: what
    the last success offered still holds.
    """
    if not isinstance(raw, dict) or raw.get("status") != STATUS_SUCCEEDED:
        return ()
    is_interactive = run.kind is RunKind.ACTION or bool(raw.get("next_actions"))
    return (_START_OVER,) if is_interactive else ()
