#!/bin/sh
# Run a command that sees cgroup v2 alone, on a machine that has v1 beside it, at the machine's own speed:
#   tests/vm/unified.sh .venv/bin/pytest tests/integration/test_odd_cgroups.py -k runc
# What no controller is needed for works as with v2: freezing, threads, killing, moving. Controllers stay v1's, so limits
# don't, and crun needs CAP_SYS_RESOURCE here. For all of it there is the virtual machine, tests/vm/run.py.
if [ -z "$UNIFIED" ]; then
    exec env UNIFIED=yes unshare --mount --propagation unchanged "$0" "$@"
fi
set -e
mount --make-rprivate /
umount --recursive --lazy /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
exec "$@"
