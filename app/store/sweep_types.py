"""What a sweep of session files is given, and what it tells."""

from datetime import datetime

import msgspec

SHARD_SETS = 5_000


class SweepReport(msgspec.Struct, kw_only=True):
    """What a sweep saw and did; of a dry run, what one would do.

    `scanned` counts all sets, `oldest_access`, `files`, `bytes` and `unexplained` what is left of
    them; the last three and `orphans` are of the `walked_sets`, whose blobs were listed.
    `unreadable` are manifests and journals that could not be decoded, `failed` what S3 refused to
    read or delete of one set, journal or upload; of both, the keys hold the first 100.
    `is_complete` is False when its time was up before all was swept: the next sweep begins with the
    rest. `requests` to S3 count those made in vain too.
    """

    dry_run: bool = False
    is_complete: bool = True
    scanned: int = 0
    oldest_access: datetime | None = None
    expired: int = 0
    in_use: int = 0
    deleted_sets: int = 0
    deleted_files: int = 0
    deleted_bytes: int = 0
    resumed: int = 0
    walked_sets: int = 0
    files: int = 0
    bytes: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    missing_manifests: int = 0
    unexplained: int = 0
    unreadable: int = 0
    unreadable_keys: list[str] = []
    failed: int = 0
    failed_keys: list[str] = []
    aborted_uploads: int = 0
    requests: dict[str, int] = {}
    duration_seconds: float = 0.0


class ShardCount(msgspec.Struct, kw_only=True):
    """What is left in a range of sets, from `first_path` up to `end_path` (None: the last).

    All but `sets` and `oldest_access` is counted only where the blobs were walked.
    """

    first_path: str
    end_path: str | None = None
    is_walked: bool = False
    sets: int = 0
    oldest_access: datetime | None = None
    files: int = 0
    bytes: int = 0
    orphans: int = 0
    orphan_bytes: int = 0
    unexplained: int = 0


class Reach(msgspec.Struct, frozen=True, kw_only=True):
    """A range of sets for a sweep: up to, not including, `end_path` (None: the last).

    `cuts` are the paths in between at which shards are known to begin. Orphans are found where
    blobs are walked.
    """

    first_path: str = ""
    end_path: str | None = None
    cuts: tuple[str, ...] = ()
    walk_blobs: bool = True


WHOLE_BUCKET = Reach()
