"""What a worker says when it cannot begin: one line in its log, and an exit code."""

import logging
from typing import Any

import pytest

from app.errors import Unavailable
from app.settings import Settings
from app.store.object_types import ConditionalWritesMissing, RequestRefused
from workers import main as worker


@pytest.mark.parametrize(
    ("error", "fields"),
    [
        (Unavailable("database"), {"dependency": "database"}),
        (ConditionalWritesMissing("set STORAGE_FENCE=postgres"), {}),
        (RequestRefused("head_bucket", 400, "InvalidBucketName"), {}),
    ],
)
def test_why_a_worker_cannot_start_is_one_event(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    fields: dict[str, Any],
) -> None:
    async def fail(_: Settings) -> None:
        raise error

    monkeypatch.setattr(worker, "run_worker", fail)
    monkeypatch.setattr(worker, "load_settings", Settings)
    monkeypatch.setattr(worker, "configure_logging", lambda level: None)
    with caplog.at_level(logging.ERROR), pytest.raises(SystemExit) as ended:
        worker.main()
    assert ended.value.code == 1
    record = caplog.records[-1]
    assert (record.getMessage(), record.exc_info) == ("worker.cannot_start", None)
    told = getattr(record, "fields")  # noqa: B009 - unknown to the type
    assert told == {"error": str(error)} | fields
