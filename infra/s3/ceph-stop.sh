#!/usr/bin/env bash
# Stop what ceph-start.sh started in DATA_DIR.
#
#   ceph-stop.sh DATA_DIR [--delete]     --delete also removes DATA_DIR
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: ceph-stop.sh DATA_DIR [--delete]" >&2; exit 1; }
DIR=$(realpath "$1")
DELETE=no
[ "${2:-}" != --delete ] || DELETE=yes
[ -f "$DIR/ceph.conf" ] || { echo "ceph-stop.sh: $DIR holds no cluster" >&2; exit 1; }

# A zombie (ended, not yet reaped) has an empty command line.
alive() { grep -qz . "/proc/$1/cmdline" 2>/dev/null; }

for name in radosgw osd mon; do
    file=$DIR/$name.pid
    [ -f "$file" ] || continue
    pid=$(cat "$file")
    # End our own daemon only: its command line names our configuration.
    if tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null | grep -qF -- "-c $DIR/ceph.conf"; then
        # The gateway keeps no state and is slow to end on TERM; data that is to be deleted need
        # not be saved either.
        if [ $DELETE = no ] && [ $name != radosgw ]; then
            kill -TERM "$pid" 2>/dev/null || true
            for _ in $(seq 200); do alive "$pid" || break; sleep 0.1; done
        fi
        kill -KILL "$pid" 2>/dev/null || true
        for _ in $(seq 50); do alive "$pid" || break; sleep 0.1; done
    fi
    rm -f "$file"
done
[ $DELETE = no ] || rm -rf "$DIR"
