"""The UI payload normalizer (ADR-0024): a pure function from a raw result to stored bytes.

Nothing else may write a run's `ui_payload`. One module for each concern: canonical (bytes and
numbers), measure (bounded figures), weight (bytes of a state's entries), notices, state, outputs,
tables, vega, actions and fields, budget; payload puts them together.
"""

from app.domain.normalizer.canonical import canonical_json
from app.domain.normalizer.payload import Normalized, UiPayloadNormalizerProtocol, normalize

__all__ = ["Normalized", "UiPayloadNormalizerProtocol", "canonical_json", "normalize"]
