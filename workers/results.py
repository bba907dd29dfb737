"""What a sandbox's result means for its run: status, payload, state and error."""

from dataclasses import dataclass

import msgspec

from app.domain.backend_actions import BackendActionProviderProtocol, offer_backend_actions
from app.domain.contract import ContractViolation, decode_result
from app.domain.normalizer import UiPayloadNormalizerProtocol, normalize
from app.domain.policy import UiPolicyProviderProtocol, policy_for
from app.domain.runs import Artifact, ClaimedRun, FinishedRun, RunStatus
from app.store import runs
from workers.sandbox.base import Outcome, SandboxResult


def end_without_result(status: RunStatus, code: str, words: str) -> FinishedRun:
    """Say how a run ends that has nothing to show."""
    return FinishedRun(status=status, error_code=code, error_summary=words)


@dataclass(frozen=True)
class ResultReader:
    """Reads results by the protocol seams of ADR-0024: budgets, backend actions and normalizer."""

    find_policy: UiPolicyProviderProtocol = policy_for
    offer_actions: BackendActionProviderProtocol = offer_backend_actions
    normalize: UiPayloadNormalizerProtocol = normalize

    def __call__(self, run: ClaimedRun, result: SandboxResult) -> FinishedRun:
        """Say how the run ends; whatever the tool wrote, it ends."""
        stdout, stderr = result.stdout, result.stderr
        artifacts = tuple(Artifact(f"output/{a.path}", a.bytes) for a in result.artifacts)

        def failed(status: RunStatus, code: str, words: str) -> FinishedRun:
            finished = end_without_result(status, code, words)
            return msgspec.structs.replace(
                finished, stdout=stdout, stderr=stderr, artifacts=artifacts
            )

        match result.outcome:
            case Outcome.CANCELLED:
                return failed(RunStatus.CANCELLED, "cancelled", runs.CANCELLED)
            case Outcome.TIMED_OUT:
                return failed(RunStatus.TIMED_OUT, "timed_out", "Verktyget tog för lång tid.")
            case Outcome.OUT_OF_MEMORY:
                words = "Verktyget behövde för mycket minne."
                return failed(RunStatus.FAILED, "out_of_memory", words)
            case Outcome.VIOLATION:
                words = result.violation or "Verktyget bröt mot kontraktet."
                return failed(RunStatus.FAILED, "contract_violation", words)
        if result.result_json is None:
            words = "Verktyget avslutades utan resultat."
            return failed(RunStatus.FAILED, "tool_crashed", words)
        try:
            raw = decode_result(result.result_json)
            policy = self.find_policy(run.source_kind)
            actions = self.offer_actions(run, raw, policy)
            normalized = self.normalize(raw, backend_actions=actions, policy=policy)
        except ContractViolation as violation:
            return failed(RunStatus.FAILED, "contract_violation", str(violation))
        succeeded = normalized.status == "succeeded"
        return FinishedRun(
            status=RunStatus.SUCCEEDED if succeeded else RunStatus.FAILED,
            error_code=None if succeeded else "tool_failed",
            error_summary=None if succeeded else normalized.error_summary,
            ui_payload=normalized.ui_payload_bytes,
            is_interactive=normalized.offers_steps,
            state=normalized.state,
            artifacts=artifacts,
            stdout=stdout,
            stderr=stderr,
        )
