"""A Docker engine of the tests' own: it may be stopped and killed, and nobody else is in it."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import docker
from cluster import eventually
from requirements import skip_for_want_of

from app.settings import Settings

IMAGE = os.environ.get("RUNNER_IMAGE", Settings().runner_image)
START_SECONDS = 30


class EngineMissing(Exception):
    """Such an engine cannot be had here; the message says why."""


class PrivateEngine:
    """`dockerd` with files, sockets and a containerd of its own, and without a network.

    It is in a network namespace of its own too: in the machine's, an engine that is to have no
    bridge would take away everybody's.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._daemon: subprocess.Popen[bytes] | None = None
        self.host = f"unix://{directory}/docker.sock"

    def start(self) -> None:
        """Start the daemon if it does not run, and wait until it answers."""
        if self._daemon is not None:
            return
        # It would wait in vain for the containerd of a daemon that was killed.
        (self._directory / "exec/containerd/containerd.pid").unlink(missing_ok=True)
        (self._directory / "docker.pid").unlink(missing_ok=True)
        with (self._directory / "dockerd.log").open("ab") as log:
            self._daemon = subprocess.Popen(
                [
                    *("unshare", "--net", "dockerd", "--host", self.host),
                    *("--data-root", str(self._directory / "data")),
                    *("--exec-root", str(self._directory / "exec")),
                    *("--pidfile", str(self._directory / "docker.pid")),
                    *("--bridge=none", "--iptables=false", "--ip6tables=false"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        eventually(self._answers, seconds=START_SECONDS)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End the daemon: by SIGTERM it ends its containers first, by SIGKILL they may live on."""
        if self._daemon is not None:
            self._daemon.send_signal(number)
            self._daemon.wait(60)
            self._daemon = None

    def client(self) -> docker.DockerClient:
        return docker.DockerClient(base_url=self.host)

    def load(self, image: str) -> None:
        """Copy an image from the engine that everybody uses."""
        load = ["docker", "-H", self.host, "load", "--quiet"]
        with subprocess.Popen(["docker", "save", image], stdout=subprocess.PIPE) as saved:
            loaded = subprocess.run(load, stdin=saved.stdout, capture_output=True, check=False)
        if saved.returncode or loaded.returncode:
            raise EngineMissing(f"cannot copy the image {image}: {loaded.stderr.decode()}")

    def run_slowly_ending(self, name: str, image: str) -> None:
        """Run a container that heeds no SIGTERM: an engine that is told to end waits for it.

        Meanwhile it has ended all the others, and answers on the connections that it has.
        """
        command = ["run", "--detach", "--rm", "--network=none", f"--name={name}"]
        sleep = ["--stop-timeout=3", "--entrypoint=sleep", image, "1000"]
        subprocess.run(
            ["docker", "-H", self.host, *command, *sleep], capture_output=True, check=True
        )

    def remove(self) -> None:
        self.stop()
        mounted = Path("/proc/self/mounts").read_text().splitlines()
        points = [line.split()[1] for line in mounted if f" {self._directory}/" in line]
        for point in reversed(points):
            subprocess.run(["umount", "--lazy", point], check=False)
        shutil.rmtree(self._directory, ignore_errors=True)

    def _answers(self) -> bool:
        if self._daemon is None or self._daemon.poll() is not None:
            log = (self._directory / "dockerd.log").read_text("utf-8", "replace")
            raise EngineMissing(f"dockerd does not start: {log[-2000:]}")
        # Not by the SDK, which forgets to close its socket when nobody is there.
        asked = ["docker", "-H", self.host, "version"]
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0


@contextmanager
def run_private_engine(directory: Path) -> Iterator[PrivateEngine]:
    """Run an engine that has the runner image; skips the test where there can be none."""
    directory.mkdir()
    engine = PrivateEngine(directory)
    try:
        try:
            if os.geteuid() != 0 or shutil.which("dockerd") is None:
                raise EngineMissing("only root can start one, with Docker installed")
            engine.start()
            engine.load(IMAGE)
        except EngineMissing as error:
            skip_for_want_of("DOCKER", f"no Docker engine of our own: {error}")
        yield engine
    finally:
        engine.remove()
