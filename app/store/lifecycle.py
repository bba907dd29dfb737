"""Lifecycle rules of the bucket: the safety net behind the sweep, never the clock.

S3 counts whole days since an object's creation, and reading does not refresh it; that is why sets
in use have their blobs renewed. Rules of others in the same bucket are left alone.
"""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from app.errors import AppError
from app.log import get_log
from app.settings import Settings
from app.store.object_types import NotSupported, RequestRefused
from app.store.objects import ObjectStore

RULE_PREFIX = "skriptoteket-"
ABORT_RULE = f"{RULE_PREFIX}abort-uploads"
ABORT_AFTER_DAYS = 1
WATCH_SECONDS = 60.0
WATCH_TIMEOUT_SECONDS = 3.0

log = get_log(__name__)

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


class LifecycleWatch:
    """How the rules stand, for those who ask often: S3 is asked once a minute at most."""

    def __init__(self, objects: ObjectStore, settings: Settings) -> None:
        self._objects, self._settings = objects, settings
        self._turn = asyncio.Lock()
        self._state: LifecycleState | None = None
        self._ask_at = 0.0

    async def find_state(self) -> LifecycleState | None:
        """Return the state, or None while the server does not tell; never raises for that."""
        async with self._turn:
            if time.monotonic() >= self._ask_at:
                self._state = await self._ask()
                # Also after a failure: a server in trouble needs no more questions.
                self._ask_at = time.monotonic() + WATCH_SECONDS
            return self._state

    async def _ask(self) -> LifecycleState | None:
        try:
            async with asyncio.timeout(WATCH_TIMEOUT_SECONDS):
                return (await check_lifecycle(self._objects, self._settings)).state
        except (AppError, RequestRefused, TimeoutError) as error:
            log.warning("storage.lifecycle_unknown", error=repr(error))
            return None


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
