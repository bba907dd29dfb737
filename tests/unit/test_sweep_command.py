"""What the commands that sweep tell whoever runs them, a person or cron."""

from argparse import Namespace

import msgspec
import pytest

from app.cli import EXIT_TRY_LATER, _print_swept
from app.store.sweep_types import SweepReport


@pytest.mark.parametrize(
    ("report", "code"),
    [
        (SweepReport(deleted_sets=3), 0),
        (SweepReport(deleted_sets=3, failed=1, failed_keys=["sessions/x"]), 1),
        (None, EXIT_TRY_LATER),
    ],
)
def test_exit_code_tells_whether_all_was_swept(
    report: SweepReport | None, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _print_swept(report, Namespace(json=True)) == code
    if report is not None:
        assert msgspec.json.decode(capsys.readouterr().out, type=SweepReport) == report
