"""Names of uploaded files, and limits."""

import pytest

from app.domain.files import UploadLimits, check_unique_names, normalize_file_name
from app.errors import (
    AppError,
    DuplicateFileNames,
    FileTooLarge,
    InvalidFileName,
    TooManyFiles,
    UploadTooLarge,
)


@pytest.mark.parametrize(
    ("raw", "name"),
    [
        ("elever.csv", "elever.csv"),
        ("A\u030angstro\u0308m.txt", "\u00c5ngstr\u00f6m.txt"),
        (".htaccess", ".htaccess"),
        ("...", "..."),
        (" mellanslag .txt ", " mellanslag .txt "),
        ("action.json", "action.json"),
        ("a" * 255, "a" * 255),
        ("å" * 127 + "a", "å" * 127 + "a"),
        ("👩‍🏫.txt", "👩‍🏫.txt"),
    ],
)
def test_name_is_taken_in_nfc(raw: str, name: str) -> None:
    assert normalize_file_name(raw) == name


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ("", "empty"),
        ("  ", "empty"),
        (".", "reserved"),
        ("..", "reserved"),
        ("a/b", "separator"),
        ("..\\b", "separator"),
        ("a\x00b", "control_character"),
        ("a\nb", "control_character"),
        ("a\x7fb", "control_character"),
        ("\ud800", "control_character"),
        ("a" * 256, "too_long"),
        ("å" * 128, "too_long"),
    ],
)
def test_unusable_name_is_refused_with_its_reason(raw: str, reason: str) -> None:
    with pytest.raises(InvalidFileName) as refused:
        normalize_file_name(raw)
    assert refused.value.details["reason"] == reason
    refused.value.detail.encode()  # The answer itself must be encodable.
    str(refused.value.details).encode()


@pytest.mark.parametrize(
    "names",
    [
        ("a.txt", "a.txt"),
        ("Å.txt", "å.txt"),
        ("\u00c5.txt", "A\u030a.txt"),
        ("stra\u00dfe", "STRASSE"),
        ("ᾳ", "\u1fbc"),
    ],
)
def test_names_equal_after_folding_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(DuplicateFileNames):
        check_unique_names(names)


def test_different_names_are_taken() -> None:
    check_unique_names(["a.txt", "b.txt", "a.txt.bak", "a"])


LIMITS = UploadLimits(max_files=2, max_file_bytes=10, max_total_bytes=15)


def test_limits_are_inclusive() -> None:
    LIMITS.check_file_count(2)
    LIMITS.check_sizes("a", 10, 15)


@pytest.mark.parametrize(
    ("file_bytes", "total_bytes", "error"), [(11, 11, FileTooLarge), (6, 16, UploadTooLarge)]
)
def test_one_byte_over_is_refused(file_bytes: int, total_bytes: int, error: type[AppError]) -> None:
    with pytest.raises(error):
        LIMITS.check_sizes("a", file_bytes, total_bytes)


def test_one_file_over_is_refused() -> None:
    with pytest.raises(TooManyFiles):
        LIMITS.check_file_count(3)
