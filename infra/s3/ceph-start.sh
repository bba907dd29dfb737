#!/usr/bin/env bash
# Start a throw-away Ceph cluster of one machine with an S3 gateway: the real server of the tests.
#
#   ceph-start.sh DATA_DIR PORT
#
# Needs (Debian 12): apt-get install --no-install-recommends radosgw ceph-mon ceph-osd ceph-common
# One monitor, one OSD and one gateway run as the calling user; every file lies under DATA_DIR and
# only the loopback address is bound. Returns when the endpoint answers; ceph-stop.sh ends it.
#
# Environment:
#   S3_ACCESS_KEY, S3_SECRET_KEY   keys of the user that is made            (test / testsecret)
#   OSD_STORE                      memstore (RAM, fast) or bluestore (disk)  (memstore)
#   LC_SECONDS                     length of a lifecycle "day"; 0: real days (0)
set -euo pipefail

die() { echo "ceph-start.sh: $*" >&2; exit 1; }
[ $# -eq 2 ] || die "usage: ceph-start.sh DATA_DIR PORT"
mkdir -p "$1"
DIR=$(realpath "$1") PORT=$2
HERE=$(dirname "$(realpath "$0")")
ACCESS=${S3_ACCESS_KEY:-test} SECRET=${S3_SECRET_KEY:-testsecret}
STORE=${OSD_STORE:-memstore}
export PATH=$PATH:/usr/sbin:/sbin
for tool in ceph-mon ceph-osd radosgw ceph radosgw-admin monmaptool; do
    command -v "$tool" >/dev/null || die "$tool is not installed"
done
[ ${#DIR} -le 80 ] || die "DATA_DIR is too long: a unix socket path holds 107 bytes"
[ ! -f "$DIR/ceph.conf" ] || die "$DIR holds a cluster already"
taken() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
! taken "$PORT" || die "port $PORT is in use"

MON_PORT=""
for _ in $(seq 50); do
    port=$((20000 + RANDOM % 10000))
    taken $port || { MON_PORT=$port; break; }
done
[ -n "$MON_PORT" ] || die "found no free port for the monitor"
FSID=$(cat /proc/sys/kernel/random/uuid)
CONF=$DIR/ceph.conf
mkdir -p "$DIR/mon" "$DIR/osd"

cat >"$CONF" <<EOF
[global]
fsid = $FSID
mon_host = v2:127.0.0.1:$MON_PORT
# Only loopback is bound and the cluster is thrown away: no cephx inside it. The gateway asks for
# "secure" by default, which does not exist without cephx.
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
ms_mon_client_mode = crc
ms_bind_msgr1 = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
run_dir = $DIR
admin_socket = $DIR/\$name.asok
log_file = $DIR/\$name.log
log_to_stderr = false
keyring = $DIR/keyring
# One OSD holds the only copy.
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_crush_chooseleaf_type = 0
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 2000
# Do not wait a second before each change of the maps: a start makes eight pools.
paxos_propose_interval = 0.05

[mon]
mon_data = $DIR/mon
mon_data_avail_warn = 1
mon_data_avail_crit = 0
mon_cluster_log_file = $DIR/cluster.log

[osd]
osd_data = $DIR/osd
osd_objectstore = $STORE
osd_memory_target = 939524096
bluestore_block_size = 21474836480
bluestore_block_db_create = false
bluestore_block_wal_create = false
memstore_device_bytes = 8589934592
osd_class_load_list = *
osd_class_default_list = *
osd_scrub_load_threshold = 0

[client]
rgw_frontends = beast endpoint=127.0.0.1:$PORT
rgw_enable_usage_log = false
rgw_enable_ops_log = false
rgw_thread_pool_size = 64
rgw_rados_pool_pg_num_min = 4
rgw_gc_obj_min_wait = 60
rgw_gc_processor_period = 60
EOF
if [ "${LC_SECONDS:-0}" -gt 0 ]; then
    echo "rgw_lc_debug_interval = $LC_SECONDS" >>"$CONF"
fi

fail() { echo "ceph-start.sh: $*; logs are in $DIR" >&2; "$HERE/ceph-stop.sh" "$DIR" || true; exit 1; }
trap 'fail "line $LINENO failed"' ERR
ceph_() { ceph -c "$CONF" --connect-timeout 20 "$@"; }
alive() { kill -0 "$(cat "$DIR/$1.pid")" 2>/dev/null; }
# run NAME COMMAND...: start in a session of its own, with the pid in NAME.pid
run() {
    local name=$1
    shift
    setsid "$@" >>"$DIR/$name.out" 2>&1 </dev/null &
    echo $! >"$DIR/$name.pid"
}

monmaptool --create --clobber --fsid "$FSID" --addv a "[v2:127.0.0.1:$MON_PORT]" "$DIR/monmap" >/dev/null
ceph-mon -c "$CONF" -i a --mkfs --monmap "$DIR/monmap"
run mon ceph-mon -c "$CONF" -i a -f
OSD_UUID=$(cat /proc/sys/kernel/random/uuid)
ceph_ osd new "$OSD_UUID" >/dev/null
ceph-osd -c "$CONF" -i 0 --mkfs --osd-uuid "$OSD_UUID" >>"$DIR/osd.out" 2>&1
run osd ceph-osd -c "$CONF" -i 0 -f
# Pools that are made before the OSD is up cost seconds of retries.
for _ in $(seq 200); do
    alive osd || fail "ceph-osd ended"
    case $(ceph_ osd stat 2>/dev/null) in *" 1 up"*) break ;; esac
    sleep 0.1
done
timeout 120 radosgw-admin -c "$CONF" user create --uid=test --display-name=test \
    --access-key="$ACCESS" --secret="$SECRET" >"$DIR/user.json" 2>>"$DIR/radosgw-admin.out"
run radosgw radosgw -c "$CONF" -n client.rgw -f
for _ in $(seq 600); do
    alive radosgw || fail "radosgw ended"
    ! taken "$PORT" || break
    sleep 0.1
done
taken "$PORT" || fail "radosgw does not listen on $PORT"
echo "S3 endpoint http://127.0.0.1:$PORT access key $ACCESS secret key $SECRET"
