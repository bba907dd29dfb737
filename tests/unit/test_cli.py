"""What a command says when it cannot do its work: a line for a person, and an exit code."""

import sys
from typing import Any

import pytest

from app import cli
from app.errors import Unavailable
from app.settings import SettingsError
from app.store.object_types import ConditionalWritesMissing, RequestRefused


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (SettingsError("LIFECYCLE_DAYS must be more"), "LIFECYCLE_DAYS must be more"),
        (Unavailable("s3"), "otillgänglig. Försök igen om en stund. (s3)"),
        (ConditionalWritesMissing("set STORAGE_FENCE=postgres"), "set STORAGE_FENCE=postgres"),
        (RequestRefused("put_bucket", 400, "InvalidBucketName"), "put_bucket: 400 InvalidBucket"),
        (ConnectionRefusedError("no route"), "no route"),
    ],
)
def test_what_an_operator_can_act_on_is_told_in_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: Exception,
    words: str,
) -> None:
    async def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(cli, "init_storage", fail)
    monkeypatch.setattr(cli, "configure_logging", lambda level: None)
    monkeypatch.setattr(sys, "argv", ["skriptoteket", "storage-init"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    told = capsys.readouterr()
    assert (ended.value.code, told.out) == (1, "")
    assert told.err.startswith("skriptoteket: ") and words in told.err
    assert told.err.count("\n") == 1
