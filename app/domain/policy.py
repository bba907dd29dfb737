"""Budgets and allowlists of the UI payload: the figures of ADR-0024, and those it leaves open.

Every cap is inclusive: what is exactly at it passes unchanged. Bytes of a text are its UTF-8
bytes; bytes of a value are those of its canonical JSON.
"""

from typing import Protocol

import msgspec

from app.domain.runs import SourceKind

KIB = 1024

OUTPUT_KINDS = frozenset({"notice", "markdown", "table", "json", "html_sandboxed", "vega_lite"})
FIELD_KINDS = frozenset({"string", "text", "integer", "number", "boolean", "enum", "multi_enum"})


class UiPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """One profile. Fields without a default differ between the profiles of ADR-0024."""

    name: str
    max_state_bytes: int
    max_payload_bytes: int
    max_outputs: int
    max_next_actions: int
    max_fields: int
    max_markdown_bytes: int
    max_html_bytes: int
    max_json_bytes: int
    max_json_depth: int
    max_json_keys: int
    max_json_array_length: int
    max_table_rows: int
    max_table_columns: int
    max_cell_bytes: int
    max_enum_options: int
    max_multi_enum_options: int

    output_kinds: frozenset[str] = OUTPUT_KINDS
    field_kinds: frozenset[str] = FIELD_KINDS

    # Vega-Lite: the same for both profiles.
    max_vega_bytes: int = 512 * KIB
    max_vega_rows: int = 4000
    max_vega_depth: int = 8
    max_vega_layers: int = 16
    # Not in the ADR: concatenated and repeated views cost the browser as much as layers do, and
    # no honest chart nests its JSON this deep or has so many lists and objects outside its rows.
    max_vega_views: int = 100
    max_vega_json_depth: int = 64
    max_vega_parts: int = 5000

    # Not in the ADR, but everything has a cap (3-runner-contract.md).
    max_message_bytes: int = 8 * KIB
    max_title_bytes: int = 512
    max_label_bytes: int = 512
    max_key_bytes: int = 256
    max_name_bytes: int = 128
    max_option_value_bytes: int = 512
    max_prefill_text_bytes: int = 16 * KIB
    max_error_summary_bytes: int = 20_000


DEFAULT_POLICY = UiPolicy(
    name="default",
    max_state_bytes=64 * KIB,
    max_payload_bytes=768 * KIB,
    max_outputs=50,
    max_next_actions=10,
    max_fields=25,
    max_markdown_bytes=64 * KIB,
    max_html_bytes=96 * KIB,
    max_json_bytes=96 * KIB,
    max_json_depth=10,
    max_json_keys=1000,
    max_json_array_length=2000,
    max_table_rows=750,
    max_table_columns=40,
    max_cell_bytes=512,
    max_enum_options=100,
    max_multi_enum_options=200,
)

CURATED_POLICY = UiPolicy(
    name="curated",
    max_state_bytes=256 * KIB,
    max_payload_bytes=1024 * KIB,
    max_outputs=150,
    max_next_actions=25,
    max_fields=60,
    max_markdown_bytes=256 * KIB,
    max_html_bytes=192 * KIB,
    max_json_bytes=256 * KIB,
    max_json_depth=20,
    max_json_keys=5000,
    max_json_array_length=10_000,
    max_table_rows=2500,
    max_table_columns=80,
    max_cell_bytes=1024,
    max_enum_options=300,
    max_multi_enum_options=600,
)


class UiPolicyProviderProtocol(Protocol):
    """Decides which profile holds for a run (ADR-0024, protocol seams)."""

    def __call__(self, source_kind: SourceKind, /) -> UiPolicy: ...


def policy_for(source_kind: SourceKind, /) -> UiPolicy:
    """Return the profile of a run's source kind: only curated apps have the curated one."""
    return CURATED_POLICY if source_kind == "curated_app" else DEFAULT_POLICY
