#!/usr/bin/env bash
# Have a Docker daemon: leave one that answers alone, else start the one installed here and wait.
# Installs nothing. Ends with 1 when there is no daemon to be had; the daemon's log says why.
set -euo pipefail

LOG=${DOCKERD_LOG:-/var/log/dockerd.log}
WAIT_SECONDS=${DOCKERD_WAIT_SECONDS:-60}

version() { timeout 10 docker version --format '{{.Server.Version}}' 2>/dev/null; }

if ! command -v docker >/dev/null; then
    echo "start-docker: no docker command; install docker.io (and iptables)" >&2
    exit 1
fi
if answer=$(version); then
    echo "Docker $answer is running already"
    exit 0
fi
if ! command -v dockerd >/dev/null; then
    echo "start-docker: no daemon answers and dockerd is not installed" >&2
    exit 1
fi
if ((EUID != 0)); then
    echo "start-docker: no daemon answers, and only root can start one" >&2
    exit 1
fi

if [[ ${DOCKER_HOST:-unix:///var/run/docker.sock} != unix:///var/run/docker.sock ]]; then
    echo "start-docker: the daemon that DOCKER_HOST names does not answer" >&2
    exit 1
fi

# A killed daemon leaves its number behind, which may be another process's by now. One that is alive
# and slow to answer is left alone: two on the same files would destroy them.
if [[ -e /var/run/docker.pid ]]; then
    if grep -qs dockerd "/proc/$(</var/run/docker.pid)/comm"; then
        echo "start-docker: dockerd runs as process $(</var/run/docker.pid) but does not answer" >&2
        exit 1
    fi
    rm -f /var/run/docker.pid
fi
# In a session of its own, so that it outlives the shell or the CI step that starts it.
setsid dockerd >>"$LOG" 2>&1 </dev/null &
daemon=$!
for ((waited = 0; waited < WAIT_SECONDS * 2; waited++)); do
    if answer=$(version); then
        echo "Docker $answer started in $((waited / 2)) s (log: $LOG)"
        exit 0
    fi
    if ! kill -0 "$daemon" 2>/dev/null; then
        break
    fi
    sleep 0.5
done
tail -20 "$LOG" >&2
echo "start-docker: dockerd did not answer (log: $LOG)" >&2
exit 1
