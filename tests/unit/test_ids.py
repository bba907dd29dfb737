"""Time-ordered ids: versions, order, and groups that know each other."""

from datetime import UTC, datetime, timedelta
from uuid import RFC_4122

from app.domain.ids import Uuid7Group, group_of, new_uuid7

NOW = datetime(2026, 1, 16, 12, tzinfo=UTC)


def test_ids_are_version_7_and_in_the_order_of_time() -> None:
    group = Uuid7Group()
    for make in (new_uuid7, group.new):
        ids = [make(NOW + timedelta(milliseconds=n)) for n in range(50)]
        assert {(i.version, i.variant) for i in ids} == {(7, RFC_4122)}
        assert ids == sorted(ids)
        assert len(set(ids)) == 50


def test_a_group_has_something_in_common_that_no_other_has() -> None:
    groups = [Uuid7Group() for _ in range(100)]
    marks = [{group_of(group.new(NOW)) for _ in range(5)} for group in groups]
    assert all(len(mark) == 1 for mark in marks)
    others = [{group_of(new_uuid7(NOW))} for _ in range(100)]
    assert len(set.union(*marks, *others)) == 200


def test_a_group_makes_4096_ids_within_a_millisecond() -> None:
    group = Uuid7Group()
    assert len({group.new(NOW) for _ in range(4096)}) == 4096
