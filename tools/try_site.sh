#!/bin/sh
# A node build as a site makes and uses one: try_site.sh [--builds|--plugins] [DIRECTORY], as root; see docs/site.md.
#
# Makes wheels of this tree in two versions, builds a node of each twice and compares the bytes, and then in an empty
# Debian (debootstrap): installs, verifies, runs a pod, upgrades and downgrades under it, removes. Then the same with a
# node of plugins from examples/, whose wheels come from a directory, and from an index. All mounts, processes and the
# network are in namespaces of its own, and gone at the end; the cgroup is /crinoid-site-trial.
# With --builds nothing is done but the builds: for what a machine with systemd does with them (make test-systemd).
# With --plugins nothing is done but the node of plugins.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
only=
case "${1:-}" in --builds | --plugins) only=${1#--} && shift ;; esac
work=${1:-/var/tmp/crinoid-site-trial}
bin=$here/.venv/bin
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$work/wheels" "$work/tree"
say() { printf '\n== %s\n' "$*"; }

say "wheels of this tree, as 0.1.0 and 0.1.1, and of what it needs"
rm -rf "$work/tree" "$work"/wheels/crinoid[-_]*.whl "$work"/site-* && mkdir "$work/tree"
(cd "$here" && cp -a core plugins src packaging docs pyproject.toml README.md CHANGELOG.md LICENSE "$work/tree")
find "$work/tree" -name __pycache__ -prune -exec rm -rf {} +
rm -rf "$work"/tree/src/*.egg-info
for version in 0.1.0 0.1.1; do
    SETUPTOOLS_SCM_PRETEND_VERSION=$version "$bin/pip" wheel --quiet --no-deps --no-build-isolation \
        --wheel-dir "$work/wheels" "$work/tree"
done
plugins="crinoid-wasm crinoid-extension-guard crinoid-registry-http"
for name in $plugins; do
    cp -a "$here/examples/$name" "$work/tree/$name"
    "$bin/pip" wheel --quiet --no-deps --no-build-isolation --wheel-dir "$work/wheels" "$work/tree/$name"
done
[ -e "$work/wheels/.whole-with-plugins" ] || "$bin/pip" download --quiet --only-binary=:all: --dest "$work/wheels" \
    --find-links "$work/wheels" crinoid==0.1.0 $plugins
touch "$work/wheels/.whole-with-plugins"

[ "$only" = plugins ] || for version in 0.1.0 0.1.1; do
    say "node build of $version, twice"
    for copy in a b; do
        site=$work/site-$copy-$version
        mkdir -p "$site/certs.d/docker.io"
        cp -a "$work/wheels" "$site/wheels"
        rm -f "$site"/wheels/.whole*
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

[ "$only" != builds ] || exit 0

root=$work/root
if [ ! -e "$work/base/etc/debian_version" ]; then
    say "an empty Debian"
    unshare --mount --propagation private debootstrap --variant=minbase \
        --include=python3,conmon,runc,libnftables1,iproute2 bookworm "$work/base" http://deb.debian.org/debian >"$work/debootstrap.log"
fi

# enter: run /root/trial of a copy of the empty Debian, as the first process of namespaces; exit where it fails.
enter() {
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
        exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive \
            sh /root/trial
    " || status=$?
    find /sys/fs/cgroup -depth -type d -path '*/crinoid-site-trial*' -exec rmdir {} + 2>/dev/null || :
    [ $status = 0 ] || { echo "failed: $status"; tail -30 "$root/root/daemon.log"; exit $status; }
}
fresh_root() { rm -rf "$root" && cp -a "$work/base" "$root"; }

try_versions() {
fresh_root
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
enter
}

build_with_plugins() {
    python3=$bin/python
    say "an index of the wheels, on loopback"
    for wheel in "$work"/wheels/*.whl; do
        project=$(basename "$wheel" | sed 's/-.*//' | tr 'A-Z_.' 'a-z--')
        mkdir -p "$work/site-index/$project" && ln "$wheel" "$work/site-index/$project"
    done
    (cd "$work/site-index" && exec "$python3" -u -m http.server --bind 127.0.0.1 0) >"$work/index.log" 2>&1 &
    server=$!
    trap 'kill $server' EXIT
    until port=$(sed -n 's/.* port \([0-9]*\) .*/\1/p' "$work/index.log") && [ "$port" ]; do kill -0 $server; sleep 0.1; done

    for copy in directory index locked; do
        say "node build with plugins: $copy"
        site=$work/site-plugins-$copy
        mkdir -p "$site"
        cat >"$site/config.toml" <<-END
			[pods]
			cgroup_root = "/crinoid-site-trial"
			cgroup_driver = "cgroupfs"
			[network]
			driver = "host"
			[images]
			sources = ["mirror"]
			[registries.mirror]
			driver = "http"
			options = { url = "http://127.0.0.1:8099/" }
			[runtimes.wasm]
			driver = "wasm"
			[extensions.guard]
			driver = "guard"
			options.allow = ["registry.example/team/*"]
		END
        cat >"$site/site.toml" <<-END
			name = "crinoid-plugged"
			version = "1.0"
			config = ["config.toml"]
			runtime_classes.wasm = "wasm"
			crinoid.version = "==0.1.0"
			[plugins]
			crinoid-wasm = ">=0.1,<0.2"
			crinoid-extension-guard = ">=0.1,<0.2"
			crinoid-registry-http = ">=0.1,<0.2"
			[wheels]
		END
        case $copy in
            directory) ln -s "$work/wheels" "$site/wheels" && echo 'directory = "wheels"' >>"$site/site.toml" ;;
            index) echo "index = \"http://127.0.0.1:$port/\"" >>"$site/site.toml" ;;
            locked) echo "index = \"http://127.0.0.1:$port/\"" >>"$site/site.toml"
                cp "$work/site-plugins-directory/site.lock" "$site" ;;
        esac
        (cd "$site" && "$bin/crinoid" build site.toml)
        (cd "$work/site-plugins-directory/dist" && sha256sum -- *) | (cd "$site/dist" && sha256sum --check)
    done
    kill $server && trap - EXIT
    grep ^wasmtime== "$work/site-plugins-directory/site.lock"

    say "another wasmtime of the same name is refused"
    site=$work/site-plugins-changed
    cp -a "$work/site-plugins-directory" "$site" && rm -r "$site/wheels" "$site/dist" && mkdir "$site/wheels"
    ln "$work"/wheels/*.whl "$site/wheels"
    wheel=$(echo "$site"/wheels/wasmtime-*.whl)
    cp "$wheel" "$wheel.new" && echo >>"$wheel.new" && mv "$wheel.new" "$wheel"
    if (cd "$site" && "$bin/crinoid" build site.toml) >"$site/said" 2>&1; then echo "it was taken"; exit 1; fi
    cat "$site/said" && grep -q "the wheel wasmtime .* has the hash" "$site/said"
}

try_plugins() {
fresh_root
cp "$work"/site-plugins-directory/dist/*.deb "$work"/site-plugins-directory/dist/*.build.json "$root/root"
PYTHONPATH=$here/tests:$here/examples/crinoid-wasm "$bin/python" -c "
from pathlib import Path
from crinoid_wasm import samples
from support.images import Entry, ImageConfig, build_image, make_layer
config = ImageConfig(os='wasi', architecture='wasm', entrypoint=('/app.wasm',), cmd=())
for name, content in ('team', samples.SLEEPS), ('others', samples.ENDS):  # of one content one name would be enough
    layer = make_layer([Entry(path='app.wasm', content=content, mode=0o755)])
    build_image(Path('$root/root/www/registry.example', name, 'app'), '1', [layer], config)"

cat >"$root/root/trial" <<'END'
set -eu
say() { printf '\n== %s\n' "$*"; }
say "install and verify"
dpkg -i /root/crinoid-plugged_1.0_amd64.deb
crinoid build verify
crinoid build verify /root/crinoid-plugged_1.0_amd64.build.json
cat /opt/crinoid/share/runtimeclasses.yaml
grep -E '^(crinoid-|wasmtime)' /opt/crinoid/share/licenses/INDEX
say "the plugins"
crinoid plugins | tee /root/plugins
for name in crinoid-wasm crinoid-extension-guard crinoid-registry-http; do grep -q "$name" /root/plugins; done
crinoid config check
say "a pod: pulled by one, run by another, let in by the third"
(cd /root/www && exec python3 -m http.server --bind 127.0.0.1 8099) >/root/www.log 2>&1 &
crinoid serve 2>/root/daemon.log &
for _ in $(seq 300); do [ -S /run/crinoid/crinoid.sock ] && break; sleep 0.2; done
crinoid ctl pull --runtime wasm registry.example/team/app:1
crinoid ctl run --runtime wasm --network host --name module registry.example/team/app:1
for _ in $(seq 100); do [ "$(crinoid ctl logs module)" = ready ] && break; sleep 0.2; done
[ "$(crinoid ctl logs module)" = ready ] && crinoid ctl ps && crinoid ctl pods
say "an image that the guard does not let in"
if crinoid ctl run --runtime wasm --network host --name other registry.example/others/app:1 2>/root/said; then exit 1; fi
cat /root/said && grep -q 'registry.example/team/\*' /root/said
crinoid ctl rmp --all --force
say "remove"
for process in /proc/[0-9]*; do
    if tr '\0' ' ' <"$process/cmdline" 2>/dev/null | grep -q ' -m crinoid serve'; then kill "${process#/proc/}"; fi
done
dpkg --purge crinoid-plugged
[ ! -e /opt/crinoid ] && [ ! -e /usr/bin/crinoid ]
say "done"
END
enter
}

[ "$only" = plugins ] || try_versions
build_with_plugins
try_plugins
