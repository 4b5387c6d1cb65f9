"""crinoid config import: configurations as deployments write them, what comes of each, and what is said of the rest."""

import json
import os
import shutil
import socket
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from crinoid.core.cli.main import main
from crinoid.plugins.registries.distribution.hosts import check_hosts, find_endpoints

KUBEADM = """\
version = 2
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "registry.example/pause:3.9"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = true
"""
K3S = """\
version = 3
root = "/var/lib/rancher/k3s/agent/containerd"
state = "/run/k3s/containerd"
[grpc]
address = "/run/k3s/containerd/containerd.sock"
[plugins.'io.containerd.internal.v1.opt']
path = "/var/lib/rancher/k3s/agent/containerd"
[plugins.'io.containerd.grpc.v1.cri']
stream_server_address = "127.0.0.1"
stream_server_port = "0"
[plugins.'io.containerd.cri.v1.runtime']
enable_selinux = false
enable_unprivileged_ports = true
enable_unprivileged_icmp = true
device_ownership_from_security_context = false
[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
disable_snapshot_annotations = true
use_local_image_pull = true
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "rancher/mirrored-pause:3.6"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "/var/lib/rancher/k3s/agent/etc/containerd/certs.d"
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/var/lib/rancher/k3s/data/cni"]
conf_dir = "/var/lib/rancher/k3s/agent/etc/cni/net.d"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = false
"""
MANY = """\
version = 2
imports = ["conf.d/*.toml"]
oom_score = -999
[debug]
level = "warn"
[metrics]
address = "127.0.0.1:0"
[proxy_plugins.stargz]
type = "snapshot"
address = "/run/stargz.sock"
[plugins."io.containerd.grpc.v1.cri"]
max_concurrent_downloads = 10
stream_idle_timeout = "1h30m"
unset_seccomp_profile = "runtime/default"
ignore_image_defined_volumes = true
enable_unprivileged_ports = true
enable_cdi = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "/etc/cni/other.d"
ip_pref = "ipv6"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "stargz"
default_runtime_name = "fast"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.fast]
runtime_type = "io.containerd.runc.v2"
base_runtime_spec = "/etc/containerd/cri-base.json"
snapshotter = "native"
cni_conf_dir = "/etc/cni/fast.d"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.fast.options]
BinaryName = "/usr/bin/crun"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
runtime_type = "io.containerd.kata.v2"
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
endpoint = ["https://mirror.example", "https://registry-1.docker.io"]
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."localhost:5000"]
endpoint = ["http://localhost:5000"]
[plugins."io.containerd.grpc.v1.cri".registry.configs."mirror.example".tls]
ca_file = "/etc/ssl/mirror.crt"
[plugins."io.containerd.grpc.v1.cri".registry.configs."private.example:5000".tls]
insecure_skip_verify = true
[plugins."io.containerd.grpc.v1.cri".registry.configs."private.example:5000".auth]
username = "robot"
password = "s3cret:with colon"
[plugins."io.containerd.grpc.v1.cri".registry.configs."registry-1.docker.io".auth]
auth = "dXNlcjpwYXNz"
[plugins."io.containerd.grpc.v1.cri".somethingnew]
key = 1
"""
NVIDIA = """\
version = 2
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia]
privileged_without_host_devices = false
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.nvidia.options]
BinaryName = "{program}"
SystemdCgroup = true
"""


class Node:
    """The root of a node that is moved, and what comes of its files."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.to = root / "out"
        self.report = ""

    def put(self, files: dict[str, str]) -> None:
        for name, content in files.items():
            path = self.root / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)

    def run(self, *arguments: str, code: int = 0) -> Result:
        words = ["config", "import", "--sysroot", str(self.root), "--to", str(self.to), *arguments]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == code, (result.output, result.exception)
        return result

    def config(self, *arguments: str) -> dict[str, Any]:
        """Import, and return the configuration, which must be valid where it was written, too."""
        self.run(*arguments)
        self.report = (self.to / "imported.txt").read_text()
        checked = CliRunner().invoke(main, ["config", "check", "-c", str(self.to / "config.toml")])
        assert checked.exit_code == 0, checked.output
        return tomllib.loads((self.to / "config.toml").read_text())

    def lost(self) -> str:
        return self.report.partition("lost:\n")[2].partition("\ncarried:\n")[0].strip("\n")

    def endpoints(self, registry: str) -> list[str]:
        return [one.url for one in find_endpoints(registry, (self.to / "certs.d",), ())]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


@pytest.fixture
def without_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As without root: crun refuses some hosts, and these tests are not about it."""
    monkeypatch.setattr("crinoid.core.daemon.preflight.os.geteuid", lambda: 1000)


def containerd(text: str) -> dict[str, str]:
    return {"/etc/containerd/config.toml": text}


def test_what_kubeadm_s_guide_writes(node: Node) -> None:
    node.put(containerd(KUBEADM))
    config = node.config()
    assert config["pods"]["pause_image"] == "registry.example/pause:3.9"
    assert config["pods"]["cgroup_driver"] == "systemd"
    assert config["runtimes"]["runc"] == {"driver": "runc"}
    assert config["network"]["options"]["fallback"] == "none"
    # containerd 1 has them off, and a node that is moved should not let more through than it did
    assert config["pods"]["enable_unprivileged_ports"] is False
    assert node.lost() == ""


def test_what_k3s_makes_of_its_template(node: Node) -> None:
    certs = "/var/lib/rancher/k3s/agent/etc/containerd/certs.d/docker.io/hosts.toml"
    hosts = 'server = "https://registry-1.docker.io/v2"\n[host."https://mirror.example/v2"]\n'
    hosts += (
        'capabilities = ["pull", "resolve"]\n[host."https://mirror.example/v2".rewrite]\n"^rancher/(.*)" = "x/$1"\n'
    )
    node.put({"/var/lib/rancher/k3s/agent/etc/containerd/config.toml": K3S, certs: hosts})
    config = node.config()
    assert config["pods"]["pause_image"] == "rancher/mirrored-pause:3.6"
    assert config["pods"]["cgroup_driver"] == "cgroupfs"
    assert config["network"]["options"]["cni"]["conf_dir"] == "/var/lib/rancher/k3s/agent/etc/cni/net.d"
    assert config["network"]["options"]["cni"]["bin_dirs"] == ["/var/lib/rancher/k3s/data/cni"]
    assert config["extensions"]["nri"]["driver"] == "nri"  # containerd 2 has it on
    assert node.endpoints("docker.io") == ["https://mirror.example/v2", "https://registry-1.docker.io/v2"]
    assert 'host."https://mirror.example/v2".rewrite: crinoid does not know this key' in node.lost()
    assert "image adopt --from containerd --root /var/lib/rancher/k3s/agent/containerd" in node.report


@pytest.mark.usefixtures("without_drivers")
def test_many_settings_and_each_that_is_lost_is_named(node: Node) -> None:
    drop_in = '[plugins."io.containerd.grpc.v1.cri"]\nmax_concurrent_downloads = 5\nunheard_of = true\n'
    node.put({**containerd(MANY), "/etc/containerd/conf.d/a.toml": f"version = 2\n{drop_in}"})
    node.put({"/etc/ssl/mirror.crt": "the mirror's authority"})
    config = node.config()
    assert config["images"]["max_parallel_layers"] == 5
    assert config["streaming"]["idle_timeout_s"] == 5400.0
    assert config["log"]["level"] == "warning"
    assert config["metrics"]["listen"] == "127.0.0.1:0"
    assert config["pods"]["unset_seccomp"] == "runtime-default"
    assert config["pods"]["cdi_spec_dirs"] == []
    assert config["pods"]["enable_unprivileged_ports"] is True
    assert config["pods"]["default_runtime"] == "fast"
    fast = config["runtimes"]["fast"]
    assert (fast["driver"], fast["network"], fast["snapshotter"]) == ("crun", "fast", "native")
    assert config["networks"]["fast"]["options"]["conf_dir"] == "/etc/cni/fast.d"
    assert config["networks"]["fast"]["options"]["bin_dirs"] == ["/usr/lib/cni"]
    assert "kata" not in config["runtimes"]
    lost = node.lost()
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    for line, key in (
        (8, "proxy_plugins.stargz"),
        (15, f"{cri}.ignore_image_defined_volumes"),
        (23, f"{cri}.containerd.snapshotter"),
        (27, f"{cri}.containerd.runtimes.fast.base_runtime_spec"),
        (32, "runtime kata"),
        (MANY.splitlines().index("key = 1") + 1, f"{cri}.somethingnew.key: crinoid does not know this key"),
    ):
        assert any(words.startswith(f"  /etc/containerd/config.toml:{line}: {key}") for words in lost.splitlines()), key
    assert "/etc/containerd/conf.d/a.toml:4:" in lost
    assert "unheard_of" in lost


def test_mirrors_authorities_and_credentials_of_the_old_form(node: Node) -> None:
    node.put({**containerd(MANY), "/etc/ssl/mirror.crt": "the mirror's authority"})
    config = node.config()
    assert node.endpoints("docker.io") == ["https://mirror.example/v2", "https://registry-1.docker.io/v2"]
    assert node.endpoints("localhost:5000") == ["http://localhost:5000/v2"]
    mirror = find_endpoints("docker.io", (node.to / "certs.d",), ())[0]
    assert [path.read_text() for path in mirror.tls.ca] == ["the mirror's authority"]
    assert find_endpoints("private.example:5000", (node.to / "certs.d",), ())[0].tls.skip_verify
    assert config["registries"]["distribution"]["options"]["config_paths"] == [str(node.to / "certs.d")]
    assert check_hosts((node.to / "certs.d",)) == ((), ())
    credentials = node.to / "registry/config.json"
    assert credentials.stat().st_mode & 0o777 == 0o600
    auths = json.loads(credentials.read_text())["auths"]
    assert auths["https://index.docker.io/v1/"] == {"auth": "dXNlcjpwYXNz"}
    assert auths["private.example:5000"]["auth"] == "cm9ib3Q6czNjcmV0OndpdGggY29sb24="
    assert "s3cret" not in node.report + (node.to / "config.toml").read_text()
    assert "s3cret" not in node.run("--dry-run").output


def test_mirrors_beside_a_config_path_are_not_used_as_containerd_does_not(node: Node) -> None:
    table = (
        '[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/etc/containerd/certs.d:/etc/docker/certs.d"\n'
    )
    node.put(containerd(f"version = 2\n{table}"))
    node.put({"/etc/containerd/certs.d/a.example/hosts.toml": 'server = "https://b.example"\nheaders = 1\n'})
    node.put({f"/etc/docker/certs.d/c.example:5000/{name}": name for name in ("ca.crt", "me.cert", "me.key")})
    node.put({"/etc/docker/certs.d/d.example/me.cert": "a certificate without its key"})
    node.config()
    assert node.endpoints("a.example") == ["https://b.example/v2"]
    own = find_endpoints("c.example:5000", (node.to / "certs.d",), ())[0]
    assert [path.read_text() for path in own.tls.ca] == ["ca.crt"]
    assert [path.read_text() for pair in own.tls.client for path in pair] == ["me.cert", "me.key"]
    assert own.tls.client[0][1].stat().st_mode & 0o777 == 0o600
    assert "/etc/containerd/certs.d/a.example/hosts.toml:2: headers: crinoid does not know this key" in node.lost()
    assert "me.key is not there" in node.lost()


@pytest.mark.skipif(shutil.which("containerd") is None, reason="containerd, whose own default this reads, is not here")
def test_what_this_machine_s_containerd_prints_as_its_default_loses_nothing(node: Node) -> None:
    text = subprocess.run(["containerd", "config", "default"], check=True, capture_output=True, text=True).stdout
    node.put(containerd(text))
    config = node.config()
    assert config["pods"]["default_runtime"] == "runc"
    assert "does not know" not in node.report
    assert node.lost().replace("(AppArmor)", "") == "" or "(AppArmor)" in node.lost().splitlines()[0]


def test_a_program_that_is_not_there_leaves_its_handler_off_and_the_node_starts(node: Node) -> None:
    node.put(containerd(NVIDIA.format(program="/usr/bin/no-such-nvidia-container-runtime")))
    config = node.config()
    if os.geteuid() == 0:  # else no driver is made
        assert config["runtimes"]["nvidia"]["enabled"] is False
        assert "no-such-nvidia-container-runtime" in node.lost()
    assert config["pods"]["cgroup_driver"] == "systemd"


def test_a_wrapper_of_runc_is_a_slot_of_the_driver_for_any_oci_runtime(node: Node, tmp_path: Path) -> None:
    program = tmp_path / "nvidia-container-runtime"
    program.write_text("#!/bin/sh\necho 'runc version 1.1.5'\n")
    program.chmod(0o755)
    node.put(containerd(NVIDIA.format(program=program)))
    slot = node.config()["runtimes"]["nvidia"]
    assert slot == {"driver": "oci", "options": {"binary": str(program)}}
    assert node.lost() == ""


CRIO = """\
[crio]
storage_driver = "overlay"
[crio.api]
stream_idle_timeout = "2h"
[crio.runtime]
default_runtime = "crun"
cgroup_manager = "systemd"
default_sysctls = ["net.ipv4.ping_group_range = 0 2147483647"]
default_ulimits = ["nofile=1024:2048"]
default_env = ["TZ=UTC"]
pids_limit = 4096
log_level = "debug"
hooks_dir = ["/etc/hooks"]
additional_devices = ["/dev/fuse:/dev/fuse:rwm"]
conmon_cgroup = "pod"
[crio.runtime.runtimes.crun]
runtime_path = "/usr/bin/crun"
runtime_type = "oci"
allowed_annotations = ["io.containers.trace-syscall"]
[crio.runtime.runtimes.kata]
runtime_path = "/usr/bin/containerd-shim-kata-v2"
runtime_type = "vm"
[crio.runtime.workloads.management]
activation_annotation = "target.workload.openshift.io/management"
[crio.image]
pause_image = "registry.example/pause:3.10"
pinned_images = ["registry.example/*", "*keyword*"]
global_auth_file = "/var/lib/kubelet/config.json"
[crio.network]
network_dir = "/etc/cni/net.d/"
plugin_dirs = ["/opt/cni/bin/", "/usr/libexec/cni"]
[crio.metrics]
enable_metrics = true
metrics_port = 0
[crio.nri]
enable_nri = false
[crio.surprise]
key = 1
"""
REGISTRIES = """\
unqualified-search-registries = ["docker.io", "quay.io"]
[[registry]]
prefix = "docker.io"
location = "docker.io"
mirror-by-digest-only = true
[[registry.mirror]]
location = "mirror.example:5000/hub"
[[registry]]
location = "lab.example:5000"
insecure = true
[[registry]]
prefix = "evil.example"
blocked = true
[[registry]]
prefix = "old.example"
location = "new.example"
novel = true
[[registry]]
prefix = "a.example/team"
location = "b.example/team"
"""


@pytest.fixture
def crio_node(node: Node) -> Node:
    node.put({"/etc/crio/crio.conf": CRIO, "/etc/containers/registries.conf": REGISTRIES})
    node.put({"/etc/crio/crio.conf.d/10-more.conf": "[crio.runtime]\npids_limit = 0\n"})
    node.put({"/etc/hooks/first.json": "{}", "/etc/containers/certs.d/lab.example:5000/ca.crt": "lab's"})
    node.put({"/etc/containers/policy.json": '{"default": [{"type": "reject"}]}'})
    return node


@pytest.mark.usefixtures("without_drivers")
def test_crio_with_a_drop_in(crio_node: Node) -> None:
    config = crio_node.config()
    pods = config["pods"]
    assert (pods["cgroup_driver"], pods["default_runtime"], pods["pids_limit"]) == ("systemd", "crun", 0)
    assert pods["default_sysctls"] == {"net.ipv4.ping_group_range": "0 2147483647"}
    assert pods["default_ulimits"] == ["nofile=1024:2048"]
    assert pods["default_env"] == {"TZ": "UTC"}
    assert "CAP_NET_RAW" not in pods["default_capabilities"]  # CRI-O's default, which no key names
    assert config["runtimes"] == {"crun": {"driver": "crun", "options": {"binary": "/usr/bin/crun"}}}
    assert config["images"]["pinned"] == ["registry.example/*"]
    assert config["network"]["options"]["cni"]["bin_dirs"] == ["/opt/cni/bin/", "/usr/libexec/cni"]
    assert config["metrics"]["listen"] == "127.0.0.1:0"
    assert "nri" not in config["extensions"]
    assert "/var/lib/kubelet/config.json" in config["registries"]["distribution"]["options"]["docker_configs"]
    lost = crio_node.lost()
    for words in (
        "crio.conf:14: crio.runtime.additional_devices",
        "/etc/hooks/first.json",
        "crio.conf:19: crio.runtime.runtimes.crun.allowed_annotations",
        "crio.conf:20: runtime kata",
        "crio.runtime.workloads.management",
        "*keyword*",
        "crio.surprise.key: crinoid does not know this key",
        "/etc/containers/policy.json: (policy)",
    ):
        assert words in lost, words


@pytest.mark.usefixtures("without_drivers")
def test_an_option_that_is_refused_does_not_take_its_handler_along(node: Node) -> None:
    handler = "[crio.runtime.runtimes.crun]\ncontainer_create_timeout = 99999\n"
    node.put({"/etc/crio/crio.conf": f'[crio.runtime]\ndefault_runtime = "crun"\n{handler}'})
    config = node.config()
    assert config["pods"]["default_runtime"] == "crun"
    assert "enabled" not in config["runtimes"]["crun"]
    assert "crio.conf:3: runtimes.crun.options.deadlines.create_s" in node.lost()


def test_registries_conf(crio_node: Node) -> None:
    config = crio_node.config()
    certs = (crio_node.to / "certs.d",)
    assert crio_node.endpoints("docker.io") == ["https://mirror.example:5000/v2/hub", "https://registry-1.docker.io/v2"]
    assert find_endpoints("docker.io", certs, ())[0].capabilities == {"pull"}  # tags are asked of the registry itself
    assert crio_node.endpoints("lab.example:5000") == ["https://lab.example:5000/v2", "http://lab.example:5000/v2"]
    lab = find_endpoints("lab.example:5000", certs, ())[0].tls
    assert lab.skip_verify
    assert [path.read_text() for path in lab.ca] == ["lab's"]
    assert crio_node.endpoints("old.example") == ["https://new.example/v2"]
    assert config["extensions"]["policy"]["options"]["rules"] == [{"images": ["evil.example/*"], "action": "deny"}]
    assert config["extensions"]["policy"]["options"]["default"] == "allow"
    lost = crio_node.lost()
    assert "registries.conf:1: unqualified-search-registries" in lost
    assert "registry.old.example.novel" in lost
    assert "registries.conf:18: registry.a.example/team" in lost


def test_registries_conf_of_version_1_alone(node: Node) -> None:
    text = "[registries.search]\nregistries = ['a.example']\n[registries.insecure]\nregistries = ['b.example']\n"
    node.put({"/etc/containers/registries.conf": text + "[registries.block]\nregistries = ['c.example']\n"})
    node.put({"/etc/crio/crio.conf": ""})
    config = node.config()
    assert node.endpoints("b.example") == ["https://b.example/v2", "http://b.example/v2"]
    assert config["extensions"]["policy"]["options"]["rules"][0]["images"] == ["c.example/*"]
    assert "registries.search" in node.lost()
    assert config["pods"]["cgroup_driver"] == "systemd"


DOCKER = {
    "exec-opts": ["native.cgroupdriver=systemd"],
    "registry-mirrors": ["https://mirror.example/"],
    "insecure-registries": ["lab.example:5000", "10.0.0.0/8"],
    "default-ulimits": {"nofile": {"Name": "nofile", "Soft": 1024, "Hard": 4096}},
    "default-shm-size": "128M",
    "max-concurrent-downloads": 6,
    "storage-driver": "overlay2",
    "log-driver": "json-file",
    "log-opts": {"max-size": "10m"},
    "runtimes": {"fast": {"path": "crun", "runtimeArgs": ["--debug"]}},
    "default-runtime": "runc",
    "live-restore": True,
    "bip": "10.1.0.1/16",
    "unheard-of": 1,
}


@pytest.mark.usefixtures("without_drivers")
def test_docker(node: Node) -> None:
    node.put({"/etc/docker/daemon.json": json.dumps(DOCKER, indent=2)})
    config = node.config()
    assert config["pods"]["cgroup_driver"] == "systemd"
    assert config["pods"]["default_ulimits"] == ["nofile=1024:4096"]
    assert config["pods"]["shm_size_bytes"] == 128 << 20
    assert config["images"]["max_parallel_layers"] == 6
    assert config["runtimes"]["fast"]["driver"] == "crun"
    assert node.endpoints("docker.io") == ["https://mirror.example/v2", "https://registry-1.docker.io/v2"]
    assert node.endpoints("lab.example:5000") == ["https://lab.example:5000/v2", "http://lab.example:5000/v2"]
    lines = json.dumps(DOCKER, indent=2).splitlines()
    for word in ("insecure-registries", "log-opts", "runtimes", "unheard-of"):
        line = next(number for number, text in enumerate(lines, 1) if text.startswith(f'  "{word}"'))
        assert f"/etc/docker/daemon.json:{line}: {word}" in node.lost() or word == "runtimes", word
    assert "10.0.0.0/8" in node.lost()
    assert "--debug" in node.lost()


@pytest.mark.parametrize(
    ("files", "arguments", "words"),
    [
        ({}, [], "there is no file of a known runtime"),
        ({"/etc/containerd/config.toml": "version = 2\n", "/etc/docker/daemon.json": "{}"}, [], "say --from"),
        (containerd("[plugins.cri]\n"), [], "containerd config migrate"),
        (containerd("version = 2\nroot = {{ .Root }}\n"), [], "a template is not read"),
        (containerd("version = 2\nroot ="), [], "/etc/containerd/config.toml: this is no TOML"),
        ({"/etc/docker/daemon.json": "[]"}, ["--from", "docker"], "this is no JSON object"),
    ],
    ids=["nothing", "two runtimes", "version 1", "a template", "no TOML", "no object"],
)
def test_what_can_t_be_read_is_said(node: Node, files: dict[str, str], arguments: list[str], words: str) -> None:
    node.put(files)
    assert words in node.run(*arguments, code=78).output
    assert not node.to.exists()


@pytest.mark.usefixtures("without_drivers")
def test_slips_in_the_other_runtime_s_file_are_told_with_what_was_meant(node: Node) -> None:
    """A text where a list is due was taken letter by letter."""
    given = {"registry-mirror": [], "registry-mirrors": "https://m.example", "insecure-registries": "r.example:5000"}
    node.put({"/etc/docker/daemon.json": json.dumps(given | {"exec-opts": "native.cgroupdriver=systemd"})})
    assert "registries" not in node.config("--from", "docker")
    assert (
        'registry-mirror: crinoid does not know this key of docker: nothing came of it; did you mean "reg'
        in node.lost()
    )
    for words in (
        "'https://m.example' is no list",
        "'r.example:5000' is no list",
        "'native.cgroupdriver=systemd' is no l",
    ):
        assert words in node.lost()


def test_directories_below_certs_d_that_say_nothing_are_told(node: Node) -> None:
    config = 'version = 2\n[plugins."io.containerd.grpc.v1.cri".registry]\nconfig_path = "/etc/containerd/certs.d"\n'
    certs = "/etc/containerd/certs.d"
    files = {f"{certs}/a.example/host.toml": "", f"{certs}/b.example/hosts.toml": 'capabilities = ["pul"]\n'}
    typo = {f"{certs}/c.example/hosts.toml": '[host."https://m.example"]\nskip_verfy = true\n'}
    node.put(containerd(config) | files | typo)
    node.run()
    report = (node.to / "imported.txt").read_text()
    assert f"{certs}/a.example/host.toml: a.example: containerd does not read it either: its name must be" in report
    assert "b.example: it can't be used as it is: certs.d/b.example/hosts.toml: capabilities.0: Input should" in report
    assert 'c.example/hosts.toml:1: host."https://m.example".skip_verfy: crinoid does not know this key' in report
    assert "crinoid-import-" not in report + node.run("--force").output


def test_files_that_are_there_are_kept(node: Node) -> None:
    node.put(containerd(KUBEADM))
    node.run()
    (node.to / "config.toml").write_text("mine")
    assert "--force" in node.run(code=78).output
    assert (node.to / "config.toml").read_text() == "mine"
    node.run("--force")
    assert "pause_image" in (node.to / "config.toml").read_text()


def test_what_the_check_refuses_is_taken_out_and_named(node: Node) -> None:
    text = KUBEADM.replace("pause:3.9", "PAUSE!!") + '[plugins."io.containerd.grpc.v1.cri".x509_key_pair_streaming]\n'
    node.put(containerd(text + 'tls_cert_file = "/nowhere.crt"\ntls_key_file = "/nowhere.key"\n'))
    config = node.config()
    assert "pause_image" not in config["pods"]
    assert not config.get("streaming")
    assert "config.toml:3: pods.pause_image" in node.lost()
    assert "config.toml:9: streaming.tls_cert: the streaming server's certificates can't be used" in node.lost()


def test_a_port_in_use_is_a_note_as_the_other_runtime_may_have_it(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    # A daemon at the default socket, such as this machine's own, would have its ports in use by right.
    monkeypatch.setattr("crinoid.core.daemon.preflight._is_served", lambda _: False)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        cri = '[plugins."io.containerd.grpc.v1.cri"]\n'
        node.put(containerd(KUBEADM.replace(cri, f'{cri}stream_server_port = "{port}"\n')))
        result = node.run()
    assert f"note: streaming.port: 127.0.0.1 port {port} can't be had: Address already in use" in result.output
    assert tomllib.loads((node.to / "config.toml").read_text())["streaming"]["port"] == port


@pytest.mark.parametrize("content", ['{"auths": {"r.example": {"auth": "%"}, "s.example": {"auth": "dTpw"}}}', "{"])
def test_credentials_that_can_t_be_read_hinder_no_import(node: Node, tmp_path: Path, content: str) -> None:
    """Nor do they hinder the start. Their file may lie in a directory with a registry's name."""
    (tmp_path / "docker.io").mkdir()
    auths = tmp_path / "docker.io/auth.json"
    auths.write_text(content)
    node.put({"/etc/crio/crio.conf": f'[crio.image]\nglobal_auth_file = "{auths}"\n'})
    node.put({"/etc/containers/registries.conf": REGISTRIES})
    assert "docker_configs" not in node.config()["registries"]["distribution"]["options"]
    assert f"{auths}: credentials: the file can't be used as it is: docker configuration {auths}: " in node.lost()
    assert "mirror.example" in "".join(node.endpoints("docker.io"))


def test_an_entry_of_credentials_that_can_t_be_read_goes_alone(node: Node) -> None:
    section = '[plugins."io.containerd.grpc.v1.cri".registry.configs."{}".auth]\nauth = "{}"\n'
    node.put(containerd("version = 2\n" + section.format("r.example", "%") + section.format("s.example", "dTpw")))
    assert node.config()["registries"]["distribution"]["options"]["docker_configs"]
    assert json.loads((node.to / "registry/config.json").read_text())["auths"].keys() == {"s.example"}
    assert "r.example: its credentials can't be used: auth is not the base64 form of user:password" in node.lost()


def test_a_mistake_in_the_importer_s_own_credentials_is_told(
    node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    node.put({"/.docker/config.json": "{", "/auth.json": "{}"})
    node.put({"/etc/crio/crio.conf": f'[crio.image]\nglobal_auth_file = "{tmp_path}/auth.json"\n'})
    assert f"docker configuration {tmp_path}/.docker/config.json: Invalid JSON" in node.run().output
