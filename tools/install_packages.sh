#!/bin/sh
# Installs the Debian packages that crinoid, its demo and its tests run on, where they are missing, and says which.
# With the argument "demo" only those that crinoid and its demo take.
# One line a program: where it is, and the package that has it.
set -eu
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
export PATH
missing=
need() { command -v "$1" >/dev/null 2>&1 || [ -e "$1" ] || missing="$missing $2"; }

need runc runc
need crun crun
need conmon conmon
need catatonit catatonit
need /usr/lib/cni/bridge containernetworking-plugins
need iptables iptables
need nft nftables
need ip iproute2
need unshare util-linux
need busybox busybox-static
need docker-registry docker-registry
need skopeo skopeo
if [ "${1:-}" != demo ]; then
    need criu criu
    need umoci umoci
    need openssl openssl
    need containerd containerd
    need faketime faketime
    need mkfs.xfs xfsprogs
    need mkfs.btrfs btrfs-progs
fi

[ -z "$missing" ] && exit 0
if [ "$(id -u)" -ne 0 ]; then
    echo "These Debian packages are missing:$missing" >&2
    echo "Run this command as root, and it installs them; crinoid needs root anyway." >&2
    exit 1
fi
if ! command -v apt-get >/dev/null 2>&1; then
    echo "These Debian packages are missing, and there is no apt-get to install them with:$missing" >&2
    exit 1
fi
echo "Installing these Debian packages:$missing"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
# Services of these packages stay off: a policy that forbids starting any of them, for this call only.
policy=/usr/sbin/policy-rc.d
made=
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    made=1
    trap 'rm -f "$policy"' EXIT
fi
# shellcheck disable=SC2086  # the list is meant to be split
apt-get install -y -qq --no-install-recommends $missing >/dev/null
[ -z "$made" ] || rm -f "$policy"
trap - EXIT
