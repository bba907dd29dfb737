"""Lifecycle rules as servers keep them: rules of others that reach our objects, and none at all."""

from datetime import UTC, datetime
from typing import Any

from s3_servers import Nodes, TestStore

from app.settings import Settings
from app.store.lifecycle import (
    LifecycleReport,
    LifecycleWatch,
    check_lifecycle,
    init_storage,
    install_lifecycle,
    wanted_rules,
)
from app.store.object_types import NotSupported

THEIRS = "somebody-elses"
SOON, LATER = {"Days": 3}, {"Days": 40}
DATED = {"Date": datetime(2040, 1, 1, tzinfo=UTC)}
TAGGED = {"Tags": [{"Key": "a", "Value": "b"}]}


def rule(prefix: str, **says: Any) -> dict[str, Any]:
    return {"ID": THEIRS, "Status": "Enabled", "Filter": {"Prefix": prefix}} | says


def archive(storage_class: str, days: int) -> list[dict[str, Any]]:
    return [{"Days": days, "StorageClass": storage_class}]


EARLY = {
    "all": rule("", Expiration=SOON),
    "beginning": rule("sess", Expiration=SOON),
    "within": rule("sessions/files/", Expiration=SOON),
    "workspaces": rule("workspaces/", Expiration={"Days": 6}),
    "artifacts": rule("runs/", Expiration={"Days": 29}),
    "dated": rule("runs/", Expiration=DATED),
    "tagged": rule("", Expiration=SOON, Filter={"And": {"Prefix": "sessions/", **TAGGED}}),
    "all tagged": rule("", Expiration=SOON, Filter={"Tag": TAGGED["Tags"][0]}),
}
HARMLESS = {
    "elsewhere": rule("logs/", Expiration={"Days": 1}),
    "resembling": rule("sessions-of-others/", Expiration={"Days": 1}),
    "as late": rule("sessions/", Expiration={"Days": 7}),
    "later": rule("", Expiration=LATER),
    "disabled": rule("", Expiration=SOON, Status="Disabled"),
    "uploads": rule("", AbortIncompleteMultipartUpload={"DaysAfterInitiation": 2}),
}
ARCHIVED = {
    "archived": (rule("", Transitions=archive("GLACIER", 1)), (THEIRS,)),
    "archived late": (rule("sessions/", Transitions=archive("DEEP_ARCHIVE", 8)), ()),
    "readable": (rule("", Transitions=archive("STANDARD_IA", 30)), ()),
}


async def set_up(nodes: Nodes) -> tuple[TestStore, Settings]:
    store, settings = nodes.another().store, nodes.variant.settings(nodes.bucket)
    assert (await install_lifecycle(store, settings)).state == "complete"
    return store, settings


async def compare(store: TestStore, settings: Settings, theirs: dict[str, Any]) -> LifecycleReport:
    """Put a rule beside ours; what is found then, also after ours are installed again."""
    await store.put_lifecycle_rules([*wanted_rules(settings), theirs])
    report = await check_lifecycle(store, settings)
    assert await install_lifecycle(store, settings) == report
    ids = sorted(str(rule["ID"]) for rule in await store.lifecycle_rules())
    wanted = [str(rule["ID"]) for rule in wanted_rules(settings)]
    assert ids == sorted([*wanted, THEIRS]), "rules of others are left alone"
    return report


async def test_a_rule_of_others_that_deletes_ours_before_its_time_is_drift(nodes: Nodes) -> None:
    store, settings = await set_up(nodes)
    for name, theirs in EARLY.items():
        found = await compare(store, settings, theirs)
        assert found == LifecycleReport("drifted", (THEIRS,)), name


async def test_a_rule_of_others_that_harms_nothing_is_no_drift(nodes: Nodes) -> None:
    store, settings = await set_up(nodes)
    for name, theirs in HARMLESS.items():
        assert await compare(store, settings, theirs) == LifecycleReport("complete"), name


async def test_what_is_archived_before_its_time_is_drift(nodes: Nodes) -> None:
    store, settings = await set_up(nodes)
    for name, (theirs, differences) in ARCHIVED.items():
        found = await compare(store, settings, theirs)
        assert found.differences == differences, name


async def test_a_rule_of_ours_that_somebody_made_archive_is_drift(nodes: Nodes) -> None:
    """Its time to expire is as we want it: what was added counts as well."""
    settings = nodes.variant.settings(nodes.bucket)
    store: Any = nodes.another().store
    changed = wanted_rules(settings)
    changed[0]["Transitions"] = archive("GLACIER", 2)

    async def changed_rules() -> Any:
        return changed

    store.lifecycle_rules = changed_rules
    assert (await check_lifecycle(store, settings)).differences == (changed[0]["ID"],)


async def test_a_server_that_takes_no_rules_is_known_to_those_who_only_look(nodes: Nodes) -> None:
    """It answers ”no rules” to GET and 501 to PUT: `storage-init` tells the others."""
    settings = nodes.variant.settings(nodes.bucket)
    installing, looking = nodes.another().store, nodes.another().store

    async def refuse(_: Any) -> None:
        raise NotSupported("put_bucket_lifecycle_configuration")

    assert (await check_lifecycle(looking, settings)).state == "drifted", "nobody has tried yet"
    setattr(installing, "put_lifecycle_rules", refuse)  # noqa: B010 - a method of one object
    for _ in range(2):
        assert (await init_storage(installing, settings)).lifecycle.state == "unsupported"
        assert (await check_lifecycle(looking, settings)).state == "unsupported"
        assert await LifecycleWatch(looking, settings).find_state() == "unsupported"
    # A newer release of the server takes them: so do we, and remember nothing of it.
    assert (await init_storage(looking, settings)).lifecycle.state == "complete"
    assert await nodes.keys() == []
    await looking.put_lifecycle_rules(wanted_rules(settings)[:1])
    assert (await check_lifecycle(looking, settings)).state == "drifted"
