"""The only reader of the environment. One frozen struct, made once by the entry points."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Positive = Annotated[int, Meta(gt=0)]
NotNegative = Annotated[int, Meta(ge=0)]
MIB = 1024 * 1024


class SettingsError(Exception):
    """The environment holds a value that cannot be used; the message names the variable."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """All settings. A field `name` is read from the variable `NAME`; units are in the names."""

    app_env: Literal["production", "development", "test"] = "production"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    database_url: str = "postgresql://skriptoteket@localhost/skriptoteket"
    database_pool_size: Positive = 10
    redis_url: str = "redis://localhost:6379/0"
    queue_name: str = "skriptoteket:queue"

    s3_endpoint_url: str | None = None
    s3_region: str = "us-east-1"
    s3_access_key: str | None = None
    s3_secret_key: str | None = None
    s3_bucket: str = "skriptoteket"
    s3_addressing: Literal["auto", "path", "virtual"] = "auto"
    s3_sse: Literal["AES256", "aws:kms"] | None = None
    s3_max_connections: Positive = 32
    s3_timeout_seconds: Positive = 20
    storage_fence: Literal["none", "postgres"] = "none"
    lifecycle_days: Positive = 7
    lifecycle_day_seconds: Positive = 86_400  # some servers can shorten a day, to try their rules
    artifact_retention_days: Positive = 30
    run_retention_days: Positive = 180  # then a run goes with its payload and its artifacts
    session_files_ttl_seconds: Positive = 86_400
    sweep_requests_per_second: Positive = 200  # the sweep never asks S3 faster
    # What is left then comes first in the next hour, which has to hold a sweep and its end.
    sweep_max_seconds: Annotated[int, Meta(gt=0, le=3_300)] = 2_700

    upload_max_files: Positive = 20
    upload_max_file_bytes: Positive = 20_000_000
    upload_max_total_bytes: Positive = 50_000_000
    upload_max_field_bytes: Positive = 1_000_000
    upload_buffer_bytes: Positive = 40 * MIB
    upload_buffer_max_bytes: Positive = 256 * MIB  # only while slow clients hold the former
    upload_idle_seconds: Positive = 30

    login_ttl_seconds: Positive = 14 * 86_400
    login_attempts: Positive = 10
    login_window_seconds: Positive = 300
    cookie_secure: bool = True

    sandbox: Literal["auto", "docker", "process"] = "auto"
    runner_image: str = "skriptoteket-runner"
    runner_runtime: str | None = None  # another OCI runtime of the engine, such as runsc
    # Containers that wait for a run, with modules imported that tools are likely to want.
    runner_pool_size: NotNegative = 4
    runner_pool_bytes: Positive = 768 * MIB
    runner_pool_max_age_seconds: Positive = 900
    runner_preload: str = "pandas openpyxl docx pypdf jinja2 markdown_it PIL.Image weasyprint"
    run_timeout_seconds: Positive = 120
    sandbox_run_timeout_seconds: Positive = 60
    run_memory_bytes: Positive = 1024 * MIB
    run_cpus: Annotated[float, Meta(gt=0)] = 1.0
    run_processes: Positive = 256
    run_work_bytes: Positive = 512 * MIB
    run_output_max_bytes: Positive = 200_000
    run_result_max_bytes: Annotated[int, Meta(gt=0, le=8 * MIB)] = 8 * MIB  # the contract's limit
    run_max_attempts: Positive = 2
    run_queue_timeout_seconds: Positive = 600
    run_lease_seconds: Positive = 15  # at least two heartbeats
    run_heartbeat_seconds: Positive = 5
    run_sweep_seconds: Positive = 10
    run_max_unfinished: Positive = 4
    artifacts_max_files: Positive = 50
    artifact_max_bytes: Positive = 50_000_000
    artifacts_max_total_bytes: Positive = 200_000_000
    worker_concurrency: Positive = 4
    worker_grace_seconds: Positive = 20
    # Blobs of session files, kept by the workers of a machine for its next runs. Between workers
    # of one user; None: skriptoteket/blobs in that user's caches.
    worker_cache_dir: str | None = None
    worker_cache_bytes: NotNegative = 2_000_000_000  # 0: no cache
    xdg_cache_home: str = "~/.cache"
    worker_ready_file: str | None = None  # made when the worker takes runs, removed at its end

    @property
    def cache_directory(self) -> Path:
        """Where workers keep blobs; a leading `~` is not expanded yet."""
        if self.worker_cache_dir:
            return Path(self.worker_cache_dir)
        return Path(self.xdg_cache_home or "~/.cache") / "skriptoteket" / "blobs"


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the settings from the environment (or the mapping given).

    Raises:
        SettingsError: a variable holds a value of the wrong kind, or two do not go together.
    """
    env = os.environ if environ is None else environ
    raw = {name: env[name.upper()] for name in Settings.__struct_fields__ if name.upper() in env}
    try:
        settings = msgspec.convert(raw, Settings, strict=False)
    except msgspec.ValidationError as error:
        raise SettingsError(f"settings: {error}".replace("`$.", "`").replace("$.", "")) from None
    _check_pairs(settings)
    return settings


def _check_pairs(settings: Settings) -> None:
    """Refuse values that are each right and do not go together."""
    day_seconds, ttl_seconds = settings.lifecycle_day_seconds, settings.session_files_ttl_seconds
    if settings.lifecycle_days * day_seconds < 2 * ttl_seconds + day_seconds:
        # Rules count whole days from creation: a shorter period could delete a live set.
        raise SettingsError("LIFECYCLE_DAYS must be at least 2 x SESSION_FILES_TTL_SECONDS + 1 day")
    if settings.run_lease_seconds < 2 * settings.run_heartbeat_seconds:
        # A heartbeat that comes late must not cost the run.
        raise SettingsError("RUN_LEASE_SECONDS must be at least 2 x RUN_HEARTBEAT_SECONDS")
    if settings.upload_buffer_max_bytes < settings.upload_buffer_bytes:
        raise SettingsError("UPLOAD_BUFFER_MAX_BYTES must be at least UPLOAD_BUFFER_BYTES")
    if settings.app_env == "production" and settings.sandbox == "process":
        raise SettingsError("SANDBOX=process is no security boundary: not with APP_ENV=production")
