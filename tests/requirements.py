"""What a machine may lack: its tests are skipped there, and fail where it has to be, as in CI."""

import os
from typing import Literal, NoReturn

import pytest

Requirement = Literal["DOCKER", "CEPH", "WEASYPRINT", "PROMTOOL", "FAKETIME"]


def is_required(what: Requirement) -> bool:
    """Say whether SKRIPTOTEKET_REQUIRE_{what}=1."""
    return os.environ.get(f"SKRIPTOTEKET_REQUIRE_{what}") == "1"


def skip_for_want_of(what: Requirement, reason: str) -> NoReturn:
    """Skip the test, or fail it where that is not allowed."""
    if is_required(what):
        pytest.fail(f"{reason}, and SKRIPTOTEKET_REQUIRE_{what}=1")
    pytest.skip(reason)
