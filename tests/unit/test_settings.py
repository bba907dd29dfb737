"""Settings from the environment."""

import pytest

from app.domain.contract import MAX_RESULT_BYTES
from app.settings import Settings, SettingsError, load_settings
from workers.main import SWEEP_END_SECONDS


def test_defaults_are_those_of_the_product() -> None:
    settings = load_settings({})
    assert settings == Settings()
    assert settings.app_env == "production"
    assert settings.upload_max_files == 20
    assert settings.upload_max_file_bytes == 20_000_000
    assert settings.upload_max_total_bytes == 50_000_000
    assert settings.session_files_ttl_seconds == 86_400
    assert (settings.run_timeout_seconds, settings.sandbox_run_timeout_seconds) == (120, 60)
    assert settings.run_memory_bytes == 1024**3
    assert (settings.run_cpus, settings.run_processes) == (1.0, 256)
    assert settings.run_work_bytes == 512 * 1024**2
    assert settings.run_output_max_bytes == 200_000
    assert settings.run_result_max_bytes == 8 * 1024**2
    assert (settings.artifacts_max_files, settings.artifact_max_bytes) == (50, 50_000_000)
    assert settings.artifacts_max_total_bytes == 200_000_000
    assert (settings.run_max_unfinished, settings.run_queue_timeout_seconds) == (4, 600)
    assert (settings.run_max_attempts, settings.lifecycle_days) == (2, 7)
    assert settings.artifact_retention_days == 30
    assert settings.cookie_secure is True


def test_variables_are_read_by_their_upper_case_names_only() -> None:
    settings = load_settings(
        {"UPLOAD_MAX_FILES": "3", "RUN_CPUS": "0.5", "COOKIE_SECURE": "false", "s3_bucket": "x"}
    )
    assert settings.upload_max_files == 3
    assert settings.run_cpus == 0.5
    assert settings.cookie_secure is False
    assert settings.s3_bucket == Settings().s3_bucket
    assert load_settings({"HOME": "/x", "UPLOAD_MAX_FILESS": "0"}) == Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("UPLOAD_MAX_FILES", "0"),
        ("UPLOAD_MAX_FILES", "-1"),
        ("UPLOAD_MAX_FILES", "many"),
        ("UPLOAD_MAX_FILES", "1.5"),
        ("UPLOAD_MAX_FILES", ""),
        ("RUN_CPUS", "0"),
        ("COOKIE_SECURE", "perhaps"),
        ("APP_ENV", "prod"),
        ("SANDBOX", "none"),
        ("STORAGE_FENCE", "redis"),
        ("S3_ADDRESSING", "dns"),
        ("S3_SSE", "yes"),
        ("LOG_LEVEL", "INFO"),
        ("RUN_RESULT_MAX_BYTES", str(MAX_RESULT_BYTES + 1)),
        ("SWEEP_MAX_SECONDS", "3301"),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused_by_name(name: str, value: str) -> None:
    with pytest.raises(SettingsError) as refused:
        load_settings({name: value})
    assert name in str(refused.value).upper()
    assert "$" not in str(refused.value)


@pytest.mark.parametrize(
    ("days", "ttl_seconds", "is_enough"),
    [(7, 86_400, True), (3, 86_400, True), (2, 86_400, False), (7, 4 * 86_400, False)],
)
def test_lifecycle_rules_never_reach_a_live_set(
    days: int, ttl_seconds: int, is_enough: bool
) -> None:
    env = {"LIFECYCLE_DAYS": str(days), "SESSION_FILES_TTL_SECONDS": str(ttl_seconds)}
    if is_enough:
        assert load_settings(env).lifecycle_days == days
    else:
        with pytest.raises(SettingsError, match="LIFECYCLE_DAYS"):
            load_settings(env)


@pytest.mark.parametrize(
    ("lease", "heartbeat", "goes"), [(3, 60, False), (9, 5, False), (10, 5, True), (2, 1, True)]
)
def test_a_lease_outlives_a_heartbeat_that_comes_late(
    lease: int, heartbeat: int, goes: bool
) -> None:
    env = {"RUN_LEASE_SECONDS": str(lease), "RUN_HEARTBEAT_SECONDS": str(heartbeat)}
    if goes:
        assert load_settings(env).run_lease_seconds == lease
    else:
        with pytest.raises(SettingsError, match=r"RUN_LEASE_SECONDS .* RUN_HEARTBEAT_SECONDS"):
            load_settings(env)


def test_the_harder_bound_of_upload_buffers_is_not_the_lesser() -> None:
    env = {"UPLOAD_BUFFER_BYTES": "50000000", "UPLOAD_BUFFER_MAX_BYTES": "49999999"}
    with pytest.raises(SettingsError, match=r"UPLOAD_BUFFER_MAX_BYTES .* UPLOAD_BUFFER_BYTES"):
        load_settings(env)
    same = env | {"UPLOAD_BUFFER_MAX_BYTES": "50000000"}
    assert load_settings(same).upload_buffer_max_bytes == 50_000_000


def test_what_others_bound_may_go_up_to_there() -> None:
    env = {"RUN_RESULT_MAX_BYTES": str(MAX_RESULT_BYTES), "SWEEP_MAX_SECONDS": "3300"}
    settings = load_settings(env)
    assert (settings.run_result_max_bytes, settings.sweep_max_seconds) == (MAX_RESULT_BYTES, 3_300)
    assert settings.sweep_max_seconds + SWEEP_END_SECONDS <= 3_600, "the next sweep begins then"


def test_the_process_sandbox_is_refused_in_production() -> None:
    with pytest.raises(SettingsError, match="SANDBOX=process"):
        load_settings({"SANDBOX": "process"})
    with pytest.raises(SettingsError):
        load_settings({"SANDBOX": "process", "APP_ENV": "production"})
    for app_env in ("development", "test"):
        assert load_settings({"SANDBOX": "process", "APP_ENV": app_env}).sandbox == "process"


def test_settings_cannot_be_changed() -> None:
    settings = load_settings({})
    with pytest.raises(AttributeError):
        settings.upload_max_files = 1  # type: ignore[misc]
