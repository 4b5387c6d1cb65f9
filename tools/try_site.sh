#!/bin/sh
# A node build as a site makes and uses one: try_site.sh [--builds] [DIRECTORY], as root; see docs/site.md.
#
# Makes wheels of this tree in two versions, builds a node of each twice and compares the bytes, and then in an empty
# Debian (debootstrap): installs, verifies, runs a pod, upgrades and downgrades under it, removes. All mounts, processes
# and the network are in namespaces of its own, and gone at the end; the cgroup is /crinoid-site-trial.
# With --builds nothing is done but the builds: for what a machine with systemd does with them (make test-systemd).
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
if [ "${1:-}" = --builds ]; then builds_only=yes && shift; else builds_only=; fi
work=${1:-/var/tmp/crinoid-site-trial}
bin=$here/.venv/bin
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$work/wheels" "$work/tree"
say() { printf '\n== %s\n' "$*"; }

say "wheels of this tree, as 0.1.0 and 0.1.1, and of what it needs"
rm -rf "$work/tree" "$work"/wheels/crinoid-*.whl "$work"/site-* && mkdir "$work/tree"
(cd "$here" && cp -a core plugins src packaging docs pyproject.toml README.md CHANGELOG.md LICENSE "$work/tree")
find "$work/tree" -name __pycache__ -prune -exec rm -rf {} +
rm -rf "$work"/tree/src/*.egg-info
for version in 0.1.0 0.1.1; do
    SETUPTOOLS_SCM_PRETEND_VERSION=$version "$bin/pip" wheel --quiet --no-deps --no-build-isolation \
        --wheel-dir "$work/wheels" "$work/tree"
done
[ -e "$work/wheels/.whole" ] || "$bin/pip" download --quiet --only-binary=:all: --dest "$work/wheels" \
    --find-links "$work/wheels" crinoid==0.1.0
touch "$work/wheels/.whole"

for version in 0.1.0 0.1.1; do
    say "node build of $version, twice"
    for copy in a b; do
        site=$work/site-$copy-$version
        mkdir -p "$site/certs.d/docker.io"
        cp -a "$work/wheels" "$site/wheels"
        rm -f "$site/wheels/.whole"
        [ $copy = a ] || cp "$work/site-a-$version/site.lock" "$site"
        echo 'server = "https://registry-1.docker.io"' >"$site/certs.d/docker.io/hosts.toml"
        cat >"$site/config.toml" <<-END
			[pods]
			cgroup_root = "/crinoid-site-trial"
			cgroup_driver = "cgroupfs"
			[network]
			driver = "host"
			[server]
			group = "crinoid"
		END
        cat >"$site/site.toml" <<-END
			name = "crinoid-edge"
			version = "$version"
			groups = ["crinoid"]
			config = ["config.toml"]
			certs = "certs.d"
			crinoid.version = "==$version"
			wheels.directory = "wheels"
			runtime_classes.plain = "runc"
			unit.environment.HTTPS_PROXY = "http://proxy.example:3128"
		END
        (cd "$site" && "$bin/crinoid" build site.toml)
    done
    (cd "$work/site-a-$version/dist" && sha256sum -- *) | (cd "$work/site-b-$version/dist" && sha256sum --check)
done

[ -z "$builds_only" ] || exit 0

root=$work/root
if [ ! -e "$work/base/etc/debian_version" ]; then
    say "an empty Debian"
    unshare --mount --propagation private debootstrap --variant=minbase \
        --include=python3,conmon,runc,libnftables1,iproute2 bookworm "$work/base" http://deb.debian.org/debian >"$work/debootstrap.log"
fi
rm -rf "$root" && cp -a "$work/base" "$root"
cp "$work"/site-a-*/dist/*.deb "$work"/site-a-0.1.0/dist/*.tar.gz "$work"/site-a-*/dist/*.build.json "$root/root"
PYTHONPATH=$here/tests "$bin/python" -c "
from pathlib import Path
from support.images import build_busybox
build_busybox(Path('$root/root/layouts/busybox'), 'docker.io/library/busybox:1')"

cat >"$root/root/trial" <<'END'
set -eu
say() { printf '\n== %s\n' "$*"; }
pid() { crinoid ctl inspect --output json hello | python3 -c 'import json, sys; print(json.load(sys.stdin)["info"]["pid"])'; }
same() { [ "$(pid)" = "$before" ] && [ "$(crinoid ctl exec hello cat /proc/1/comm)" = sleep ] && echo "the container runs on: pid $before"; }
say "install 0.1.0"
dpkg -i /root/crinoid-edge_0.1.0_amd64.deb
crinoid --version
getent group crinoid
say "verify"
crinoid build verify
crinoid build verify /root/crinoid-edge_0.1.0_amd64.build.json
dpkg --verify crinoid-edge
say "a pod"
crinoid serve 2>/root/daemon.log &
daemon=$!
for _ in $(seq 300); do [ -S /run/crinoid/crinoid.sock ] && break; sleep 0.2; done
mv /root/layouts /var/lib/crinoid
crinoid ctl pull docker.io/library/busybox:1
crinoid ctl run --network host --image docker.io/library/busybox:1 --name hello -- sleep 10000
before=$(pid)
same
say "upgrade to 0.1.1 under it"
dpkg -i /root/crinoid-edge_0.1.1_amd64.deb
crinoid upgrade
crinoid --version
crinoid ctl version
same
crinoid build verify
crinoid build verify /root/crinoid-edge_0.1.0_amd64.build.json >/dev/null && exit 1 || echo "and it is no 0.1.0"
say "downgrade to 0.1.0 under it"
dpkg -i /root/crinoid-edge_0.1.0_amd64.deb
crinoid upgrade
crinoid --version
crinoid ctl version
same
crinoid build verify
say "a change is seen"
echo '# mine' >>/etc/crinoid/config.toml
crinoid build verify && exit 1 || :
say "remove, with the pod"
crinoid ctl rmp --all --force
for process in /proc/[0-9]*; do
    if tr '\0' ' ' <"$process/cmdline" 2>/dev/null | grep -q ' -m crinoid serve'; then kill "${process#/proc/}"; fi
done
dpkg --purge crinoid-edge
ls -d /opt/crinoid /usr/bin/crinoid 2>&1 || :
say "the tar, elsewhere, without installing anything"
mkdir /root/elsewhere && tar -xzf /root/crinoid-edge_0.1.0_amd64.tar.gz -C /root/elsewhere
mv /root/elsewhere/opt/crinoid /root/moved
/root/moved/bin/crinoid --version
/root/moved/bin/crinoid build verify --prefix-only
say "done"
END
say "in the empty Debian"
status=0
unshare --mount --propagation private --pid --fork --kill-child --net --uts --ipc sh -c "
    mount --bind '$root' '$root' && cd '$root'
    mount --rbind /sys sys && mount -t proc proc proc && mount -t tmpfs tmpfs run && mount -t tmpfs tmpfs dev
    for node in 'null 1 3' 'zero 1 5' 'full 1 7' 'random 1 8' 'urandom 1 9' 'tty 5 0'; do
        set -- \$node; mknod -m 666 dev/\$1 c \$2 \$3
    done
    mkdir dev/pts dev/shm && mount -t devpts -o newinstance,ptmxmode=666 devpts dev/pts && ln -s pts/ptmx dev/ptmx
    ln -s /proc/self/fd dev/fd && mount -t tmpfs tmpfs dev/shm && ip link set lo up
    mkdir -p old && pivot_root . old && cd / && umount --lazy old && rmdir old  # in a chroot exec would see the host
    exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive sh /root/trial
" || status=$?
find /sys/fs/cgroup -depth -type d -path '*/crinoid-site-trial*' -exec rmdir {} + 2>/dev/null || :
[ $status = 0 ] || { echo "failed: $status"; tail -30 "$root/root/daemon.log"; }
exit $status
