"""What benchmarks run on: Ceph's S3 gateway where it is installed, and the memory of a process."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.devstack import free_port
from app.settings import Settings

INFRA = Path(__file__).resolve().parents[2] / "infra" / "s3"
CEPH_KEYS = ("test", "testsecret")


@contextmanager
def run_ceph(directory: Path) -> Iterator[str | None]:
    """Run a throw-away cluster: its endpoint, or None where it cannot be started."""
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL}
    port = free_port()
    start, stop = str(INFRA / "ceph-start.sh"), str(INFRA / "ceph-stop.sh")
    if subprocess.run([start, str(directory), str(port)], check=False, **quiet).returncode != 0:
        yield None
        return
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        subprocess.run([stop, str(directory), "--delete"], check=True, **quiet)


def settings_for(endpoint: str, access_key: str, secret_key: str) -> Settings:
    return Settings(
        s3_endpoint_url=endpoint,
        s3_access_key=access_key,
        s3_secret_key=secret_key,
        s3_bucket="bench",
        s3_addressing="path",
    )


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
