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

# A killed daemon leaves its number behind, which may be another process's by now, or that of a
# zombie, whose command line is empty. One that is alive gets time to answer or to end, and is then
# left alone: two on the same files would destroy them.
is_alive() { tr '\0' ' ' 2>/dev/null <"/proc/$2/cmdline" | grep -q "^[^ ]*$1"; }
if [[ -e /var/run/docker.pid ]]; then
    pid=$(</var/run/docker.pid)
    for ((waited = 0; waited < 20; waited++)); do
        is_alive dockerd "$pid" || break
        if answer=$(version); then
            echo "Docker $answer is running already"
            exit 0
        fi
        sleep 0.5
    done
    if is_alive dockerd "$pid"; then
        echo "start-docker: dockerd runs as process $pid but does not answer" >&2
        exit 1
    fi
    rm -f /var/run/docker.pid
fi
# The daemon takes a zombie for its containerd and waits for that in vain.
containerd_pid=/var/run/docker/containerd/containerd.pid
if [[ -e $containerd_pid ]] && ! is_alive containerd "$(<"$containerd_pid")"; then
    rm -f "$containerd_pid"
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
