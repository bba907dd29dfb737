"""Lifecycle rules of the bucket: the safety net behind the sweep, never the clock.

S3 counts whole days since an object's creation, and reading does not refresh it; that is why sets
in use have their blobs renewed. Rules of others in the same bucket are left alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from app.settings import Settings
from app.store.object_types import NotSupported, RequestRefused
from app.store.objects import ObjectStore

RULE_PREFIX = "skriptoteket-"
ABORT_RULE = f"{RULE_PREFIX}abort-uploads"
ABORT_AFTER_DAYS = 1

# complete: as wanted. without_abort: the server refuses or drops the abort rule, the sweep does it.
# unsupported: the server knows no rules, the sweep does all of it. drifted: somebody changed them.
LifecycleState = Literal["complete", "without_abort", "unsupported", "drifted"]


class LifecycleReport(msgspec.Struct, frozen=True):
    """How the bucket's rules compare with those wanted; `differences` names rules by id."""

    state: LifecycleState
    differences: tuple[str, ...] = ()


class StorageReport(msgspec.Struct, frozen=True):
    """What `storage-init` did and found."""

    bucket: str
    created: bool
    conditional_writes: bool
    etag_form: str
    lifecycle: LifecycleReport


def wanted_rules(settings: Settings) -> list[dict[str, Any]]:
    """Return the rules for these settings, in the words of S3."""
    return [
        _expire("sessions", settings.lifecycle_days),
        _expire("workspaces", settings.lifecycle_days),
        _expire("runs", settings.artifact_retention_days),
        {
            "ID": ABORT_RULE,
            "Status": "Enabled",
            "Filter": {"Prefix": ""},
            "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": ABORT_AFTER_DAYS},
        },
    ]


async def check_lifecycle(objects: ObjectStore, settings: Settings) -> LifecycleReport:
    """Compare the bucket's rules with those wanted; changes nothing.

    Raises:
        Unavailable: the server is down or refuses us, which is not the same as having no rules.
    """
    try:
        found = _comparable(await objects.lifecycle_rules())
    except NotSupported:
        return LifecycleReport("unsupported")
    wanted = _comparable(wanted_rules(settings))
    differences = tuple(
        sorted(
            rule_id
            for rule_id in wanted.keys() | found.keys()
            if rule_id.startswith(RULE_PREFIX) and wanted.get(rule_id) != found.get(rule_id)
        )
    )
    if differences == (ABORT_RULE,) and ABORT_RULE not in found:
        return LifecycleReport("without_abort", differences)
    return LifecycleReport("drifted" if differences else "complete", differences)


async def install_lifecycle(objects: ObjectStore, settings: Settings) -> LifecycleReport:
    """Install the rules unless they stand already, and report what stands then.

    Raises:
        Unavailable; RequestRefused: the server refuses even plain expiry rules
    """
    before = await check_lifecycle(objects, settings)
    if before.state in {"complete", "unsupported"}:
        return before
    others = [
        rule
        for rule in await objects.lifecycle_rules()
        if not str(rule.get("ID", "")).startswith(RULE_PREFIX)
    ]
    rules = wanted_rules(settings)
    try:
        await objects.put_lifecycle_rules([*others, *rules])
    except NotSupported:
        return LifecycleReport("unsupported")
    except RequestRefused:
        # Some servers refuse the whole configuration for the one rule that they do not know.
        plain = [rule for rule in rules if rule["ID"] != ABORT_RULE]
        await objects.put_lifecycle_rules([*others, *plain])
    return await check_lifecycle(objects, settings)


async def init_storage(objects: ObjectStore, settings: Settings) -> StorageReport:
    """Create the bucket, install its rules and probe it; idempotent (`storage-init`).

    Raises:
        Unavailable
    """
    created = await objects.create_bucket()
    conditional = await objects.probe_conditional_writes()
    return StorageReport(
        bucket=settings.s3_bucket,
        created=created,
        conditional_writes=conditional.supported,
        etag_form=conditional.etag_form,
        lifecycle=await install_lifecycle(objects, settings),
    )


def _expire(prefix: str, days: int) -> dict[str, Any]:
    return {
        "ID": f"{RULE_PREFIX}{prefix}",
        "Status": "Enabled",
        "Filter": {"Prefix": f"{prefix}/"},
        "Expiration": {"Days": days},
    }


def _comparable(rules: Sequence[Mapping[str, Any]]) -> dict[str, tuple[Any, ...]]:
    """Reduce rules to what they say: servers move the prefix about and add fields of their own."""
    return {
        str(rule.get("ID", "")): (
            rule.get("Status"),
            rule.get("Filter", {}).get("Prefix", rule.get("Prefix", "")),
            rule.get("Expiration", {}).get("Days"),
            rule.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation"),
        )
        for rule in rules
    }
