"""User files: names that can be trusted everywhere, limits, and what a stored set says of them."""

import unicodedata
from collections.abc import Iterable

import msgspec

from app.errors import (
    DuplicateFileNames,
    FileTooLarge,
    InvalidFileName,
    TooManyFiles,
    UploadTooLarge,
)

MAX_NAME_BYTES = 255  # NAME_MAX of Linux file systems: the name must fit in the runner's volume.


class StoredFile(msgspec.Struct, frozen=True):
    """One file of a set: its name, size in bytes, SHA-256 in hex and the blob that holds it."""

    name: str
    bytes: int
    sha256: str
    content_type: str
    blob_id: str


class UploadLimits(msgspec.Struct, frozen=True):
    """Caps of one upload, each inclusive."""

    max_files: int
    max_file_bytes: int
    max_total_bytes: int

    def check_file_count(self, count: int) -> None:
        if count > self.max_files:
            raise TooManyFiles(
                f"Högst {self.max_files} filer kan laddas upp på en gång.",
                details={"max_files": self.max_files},
            )

    def check_sizes(self, name: str, file_bytes: int, total_bytes: int) -> None:
        """Refuse as soon as a running count passes a cap; call for every chunk."""
        if file_bytes > self.max_file_bytes:
            raise FileTooLarge(
                f"Filen ”{name}” är större än {_megabytes(self.max_file_bytes)}.",
                details={"name": name, "max_bytes": self.max_file_bytes},
            )
        if total_bytes > self.max_total_bytes:
            raise UploadTooLarge(
                f"Filerna är tillsammans större än {_megabytes(self.max_total_bytes)}.",
                details={"max_bytes": self.max_total_bytes},
            )


def normalize_file_name(raw: str) -> str:
    """Return the name in Unicode NFC, or refuse it.

    Raises:
        InvalidFileName: empty, `.`, `..`, with a separator or a control character, not encodable
            as UTF-8, or longer than 255 bytes; `details["reason"]` says which.
    """
    name = unicodedata.normalize("NFC", raw)
    if not name.strip():
        raise _refused(name, "empty", "En fil saknar namn.")
    if name in {".", ".."}:
        raise _refused(name, "reserved", f"En fil kan inte heta ”{name}”.")
    if "/" in name or "\\" in name:
        raise _refused(name, "separator", "Filnamn får inte innehålla / eller \\.")
    # Cc: control characters; Cs: lone surrogates, which have no UTF-8 form.
    if any(unicodedata.category(char) in {"Cc", "Cs"} for char in name):
        raise _refused(name, "control_character", "Filnamn får inte innehålla osynliga styrtecken.")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise _refused(name, "too_long", f"Filnamnet är för långt (högst {MAX_NAME_BYTES} byte).")
    return name


def check_unique_names(names: Iterable[str]) -> None:
    """Refuse names that are equal after NFC and case folding: some file systems merge them.

    Raises:
        DuplicateFileNames: with the first such name in `details`.
    """
    seen: set[str] = set()
    for name in names:
        # NFC again: folding can produce sequences that are canonically equal yet not identical.
        key = unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
        if key in seen:
            raise DuplicateFileNames(
                f"Två av filerna heter ”{name}” (stora och små bokstäver räknas lika). "
                "Byt namn på den ena.",
                details={"name": name},
            )
        seen.add(key)


def _refused(name: str, reason: str, detail: str) -> InvalidFileName:
    printable = "".join(char if char.isprintable() else "�" for char in name)
    return InvalidFileName(detail, details={"reason": reason, "name": printable[:100]})


def _megabytes(count: int) -> str:
    return f"{count / 1_000_000:g} MB".replace(".", ",")
