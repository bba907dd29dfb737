"""Lifecycle rules of the bucket: the safety net behind the sweep, never the clock.

S3 counts whole days since an object's creation, and reading does not refresh it; that is why sets
in use have their blobs renewed. Rules of others in the same bucket are left alone; those that reach
our objects before ours do are told of.
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
from app.store.objects import PROBE_PREFIX, ObjectStore

RULE_PREFIX = "skriptoteket-"
ABORT_RULE = f"{RULE_PREFIX}abort-uploads"
ABORT_AFTER_DAYS = 1
WATCH_SECONDS = 60.0
WATCH_TIMEOUT_SECONDS = 2.0  # less than who asks has for it, such as a readiness check
# Some servers answer ”no rules” and refuse to take any. That we tried stands here, for those who
# only look, as long as there are no rules: with some, it would go by them.
UNSUPPORTED_KEY = f"{PROBE_PREFIX}no-lifecycle-rules"
# What is moved there has to be asked for hours before it can be read.
ARCHIVES = frozenset({"GLACIER", "DEEP_ARCHIVE"})

log = get_log(__name__)

# complete: as wanted. without_abort: the server refuses or drops the abort rule, the sweep does it.
# unsupported: the server knows no rules, the sweep does all of it. drifted: somebody changed them,
# or added one of their own that deletes or archives what is ours before its time.
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
        RequestRefused: it does not want to tell.
    """
    try:
        rules = await objects.lifecycle_rules()
    except NotSupported:
        return LifecycleReport("unsupported")
    if not rules and await objects.find(UNSUPPORTED_KEY) is not None:
        return LifecycleReport("unsupported")
    found, wanted = _comparable(rules), _comparable(wanted_rules(settings))
    ours = {
        rule_id
        for rule_id in wanted.keys() | found.keys()
        if rule_id.startswith(RULE_PREFIX) and wanted.get(rule_id) != found.get(rule_id)
    }
    theirs = {_name_rule(rule) for rule in rules if _is_early(rule, settings)}
    differences = tuple(sorted(ours | theirs))
    if differences == (ABORT_RULE,) and ABORT_RULE not in found:
        return LifecycleReport("without_abort", differences)
    return LifecycleReport("drifted" if differences else "complete", differences)


class LifecycleWatch:
    """How the rules stand, for those who ask often: S3 is asked once a minute at most."""

    def __init__(self, objects: ObjectStore, settings: Settings) -> None:
        self._objects, self._settings = objects, settings
        self._turn = asyncio.Lock()
        self._report: LifecycleReport | None = None
        self._ask_at = 0.0

    async def find_state(self) -> LifecycleState | None:
        """Return the state, or None while the server does not tell; never raises for that."""
        async with self._turn:
            if time.monotonic() >= self._ask_at:
                before, self._report = self._report, await self._ask()
                if self._report is not None and self._report != before:
                    tell = log.warning if self._report.state == "drifted" else log.info
                    tell("storage.lifecycle", **msgspec.to_builtins(self._report))
            return None if self._report is None else self._report.state

    async def _ask(self) -> LifecycleReport | None:
        try:
            async with asyncio.timeout(WATCH_TIMEOUT_SECONDS):
                return await check_lifecycle(self._objects, self._settings)
        except (AppError, RequestRefused, TimeoutError) as error:
            log.warning("storage.lifecycle_unknown", error=repr(error))
            return None
        finally:
            # Also after a failure: a server in trouble needs no more questions.
            self._ask_at = time.monotonic() + WATCH_SECONDS


async def install_lifecycle(objects: ObjectStore, settings: Settings) -> LifecycleReport:
    """Install the rules unless they stand already, and report what stands then.

    Raises:
        Unavailable; RequestRefused: the server refuses even plain expiry rules
    """
    before = await check_lifecycle(objects, settings)
    if before.state == "complete":
        return before
    rules = wanted_rules(settings)
    try:
        others = [
            rule
            for rule in await objects.lifecycle_rules()
            if not str(rule.get("ID", "")).startswith(RULE_PREFIX)
        ]
        await objects.put_lifecycle_rules([*others, *rules])
    except NotSupported:
        await objects.put(UNSUPPORTED_KEY, b"")
        return LifecycleReport("unsupported")
    except RequestRefused:
        # Some servers refuse the whole configuration for the one rule that they do not know.
        plain = [rule for rule in rules if rule["ID"] != ABORT_RULE]
        await objects.put_lifecycle_rules([*others, *plain])
    await objects.delete([UNSUPPORTED_KEY])
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
            _prefix_of(rule),
            rule.get("Expiration", {}).get("Days"),
            rule.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation"),
        )
        for rule in rules
    }


def _prefix_of(rule: Mapping[str, Any]) -> str:
    """Return the prefix that a rule is for, wherever it stands; tags and sizes do not count."""
    chosen = rule.get("Filter", {})
    prefix = chosen.get("And", chosen).get("Prefix", rule.get("Prefix", ""))
    return str(prefix or "")


def _name_rule(rule: Mapping[str, Any]) -> str:
    return str(rule.get("ID") or f"a rule for {_prefix_of(rule) or 'the whole bucket'}")


def _is_early(rule: Mapping[str, Any], settings: Settings) -> bool:
    """Tell whether a rule, ours or not, ends the use of an object of ours before our rules do.

    What tags or sizes it asks for does not matter: nobody is to rely on ours not having them.
    """
    if rule.get("Status") != "Enabled":
        return False
    ends = [rule.get("Expiration", {})]
    ends += [move for move in rule.get("Transitions", ()) if move.get("StorageClass") in ARCHIVES]
    days = [0 if "Date" in end else end["Days"] for end in ends if "Date" in end or "Days" in end]
    theirs = _prefix_of(rule)
    return any(
        min(days, default=lives_days) < lives_days
        for prefix, lives_days in _lifetimes(settings).items()
        if theirs.startswith(prefix) or prefix.startswith(theirs)
    )


def _lifetimes(settings: Settings) -> dict[str, int]:
    """Return for how many days our rules leave objects alone, by prefix."""
    return {
        rule["Filter"]["Prefix"]: rule["Expiration"]["Days"]
        for rule in wanted_rules(settings)
        if "Expiration" in rule
    }
