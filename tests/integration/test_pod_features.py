"""What a pod asks for: names, resolver, sysctls, ports on the host, shared memory, logs, and what is told of it."""

import json
import os
import secrets
import socket
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.namespaces import call_in
from integration.conftest import RUNTIMES, Node, write_conflist
from integration.own_nodes import own_node
from integration.pods import QUICK, Pod, refused, until
from support.subnets import third_octet


def resolver(node: Node, **config: Any) -> str:
    return Pod(node, node.run_pod(f"dns-{secrets.token_hex(2)}", **config)).sh("cat /etc/resolv.conf")


def test_resolver(node: Node) -> None:
    """As the pod says; the host's where it says nothing; an empty one where it says that."""
    dns = {
        "servers": ["10.0.0.10", "fd00::10"],
        "searches": ["ns.svc.local", "svc.local"],
        "options": ["ndots:5", "rotate"],
    }
    assert resolver(node, dns_config=dns) == (
        "search ns.svc.local svc.local\nnameserver 10.0.0.10\nnameserver fd00::10\noptions ndots:5 rotate\n"
    )
    assert resolver(node) == Path("/etc/resolv.conf").read_text()
    assert resolver(node, dns_config={}) == ""
    with refused("INVALID_ARGUMENT", r"dns_config.servers\[0\] '1.1.1.1\\nsearch evil' has a control character"):
        resolver(node, dns_config={"servers": ["1.1.1.1\nsearch evil"]})


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_names(node: Node, runtime: str) -> None:
    """Host name and hosts file belong to the pod; on the host's network they are the host's."""
    pod = Pod(node, node.run_pod("own", hostname="my-pod", handler=runtime))
    address = node.call("PodSandboxStatus", pod_sandbox_id=pod.id)["status"]["network"]["ip"]
    script = (
        "hostname; cat /etc/hostname /proc/sys/kernel/hostname; grep -w my-pod /etc/hosts; grep -c localhost /etc/hosts"
    )
    assert pod.sh(script).split() == ["my-pod", "my-pod", "my-pod", address, "my-pod", "2"]
    assert pod.sh("echo $HOSTNAME") == "my-pod\n"
    on_node = {"security_context": {"namespace_options": {"network": "NODE", "pid": "CONTAINER"}}}
    other = Pod(node, node.run_pod("hosts", hostname="ignored", handler=runtime, linux=on_node))
    assert other.sh("hostname; cat /etc/hosts") == f"{os.uname().nodename}\n{Path('/etc/hosts').read_text()}"


def test_the_hosts_file_is_one_for_all_containers(node: Node) -> None:
    pod = Pod(node, node.run_pod(handler=QUICK["crun"]))
    pod.sh("echo 9.9.9.9 nine >> /etc/hosts")
    assert "9.9.9.9 nine" in pod.sh("cat /etc/hosts")
    assert "nine" not in Path("/etc/hosts").read_text()


@pytest.mark.parametrize("hostname", ["a" * 65, "a\nb", "a\0b"])
def test_host_names_that_are_refused(node: Node, hostname: str) -> None:
    with refused("INVALID_ARGUMENT", "hostname"):
        node.run_pod(hostname=hostname)


def test_sysctls(node: Node) -> None:
    """Those of the pod's namespaces are set, with the site's for ports and ping; the host keeps its own."""
    wanted = {"kernel.shm_rmid_forced": "1", "net/ipv4/tcp_syncookies": "0", "fs.mqueue.msg_max": "7"}
    names = [
        *(name.replace(".", "/") for name in wanted),
        "net/ipv4/ip_unprivileged_port_start",
        "net/ipv4/ping_group_range",
    ]
    host = [Path("/proc/sys", name).read_text() for name in names]
    pod = Pod(node, node.run_pod(linux={"sysctls": wanted}))
    found = pod.sh(f"cd /proc/sys; cat {' '.join(names)}").split("\n")
    assert found == ["1", "0", "7", "0", "0\t2147483647", ""]
    assert [Path("/proc/sys", name).read_text() for name in names] == host
    own = Pod(node, node.run_pod("own", linux={"sysctls": {"net.ipv4.ip_unprivileged_port_start": "512"}}))
    assert own.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start") == "512\n"


@pytest.mark.parametrize(
    ("sysctls", "modes", "words"),
    [
        ({"vm.overcommit_memory": "1"}, {}, "vm.overcommit_memory belongs to no namespace"),
        ({"kernel.hostname": "x"}, {}, "kernel.hostname belongs to no namespace"),
        ({"net.ipv4.ip_forward": "1"}, {"network": "NODE"}, "uses the host's network namespace"),
        ({"kernel.shmmax": "1"}, {"ipc": "NODE"}, "uses the host's ipc namespace"),
        ({"net.ipv4.no_such": "1"}, {}, "net/ipv4/no_such can't be set"),
        ({"net.ipv4.tcp_syncookies": "many"}, {}, "tcp_syncookies can't be set to 'many'"),
        ({"net.../../kernel/x": "1"}, {}, "not a sysctl's name"),
    ],
)
def test_sysctls_that_are_refused(node: Node, sysctls: dict[str, str], modes: dict[str, str], words: str) -> None:
    context = {"namespace_options": {"pid": "CONTAINER"} | modes}
    with refused("INVALID_ARGUMENT", words):
        node.run_pod(linux={"sysctls": sysctls, "security_context": context})
    assert node.call("ListPodSandbox")["items"] == []
    assert node.daemon.query("SELECT kind FROM ledger") == []


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def ask_tcp(address: str, port: int) -> bytes:
    """Connect and read; nothing when nobody is there."""
    try:
        with socket.create_connection((address, port), timeout=2) as connection:
            return connection.recv(100)
    except OSError:
        return b""


def bound_in(netns: Path, port: int) -> socket.socket:
    """Make a UDP socket in another network namespace."""

    def make() -> socket.socket:
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        made.bind(("0.0.0.0", port))
        made.settimeout(5)
        return made

    return call_in(netns, make)


def test_ports_on_the_host(node: Node) -> None:
    """TCP and UDP, on all addresses or on one; none is left once the pod is stopped."""
    tcp, local, udp = free_port(socket.SOCK_STREAM), free_port(socket.SOCK_STREAM), free_port(socket.SOCK_DGRAM)
    ports = [
        {"container_port": 80, "host_port": tcp, "protocol": "TCP"},
        {"container_port": 80, "host_port": local, "protocol": "TCP", "host_ip": "127.0.0.1"},
        {"container_port": 53, "host_port": udp, "protocol": "UDP"},
        {"container_port": 99},
    ]
    pod = Pod(node, node.run_pod(port_mappings=ports))
    container = pod.start("sh", "-c", "while true; do echo answer | nc -l -p 80; done")
    gateway = pod.sh("ip route").split("default via ")[1].split()[0]
    until(lambda: ask_tcp("127.0.0.1", tcp) == b"answer\n")
    until(lambda: ask_tcp("127.0.0.1", local) == b"answer\n")
    until(lambda: ask_tcp(gateway, tcp) == b"answer\n")
    assert ask_tcp(gateway, local) == b""
    with (
        bound_in(Path(f"/proc/{pod.pid(container)}/ns/net"), 53) as server,
        socket.socket(type=socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(5)
        client.connect((gateway, udp))
        client.send(b"asked")
        question, peer = server.recvfrom(100)
        server.sendto(b"answered " + question, peer)
        assert client.recv(100) == b"answered asked"
    node.call("StopPodSandbox", pod_sandbox_id=pod.id)
    assert ask_tcp("127.0.0.1", tcp) == ask_tcp(gateway, tcp) == b""


def test_ports_that_are_refused(node: Node) -> None:
    for mapping, words in (
        ({"container_port": 80, "host_port": 70000}, "host_port is 70000"),
        ({"container_port": 0, "host_port": 80}, "container_port is 0"),
        ({"container_port": 80, "host_port": 80, "host_ip": "nowhere"}, "host_ip 'nowhere' is not an IP address"),
    ):
        with refused("INVALID_ARGUMENT", words):
            node.run_pod(port_mappings=[mapping])


def test_labels_and_annotations(node: Node) -> None:
    """They come back untouched, in lists and statuses, of pods and containers."""
    words: dict[str, Any] = {"labels": {"a": "b", "empty": ""}, "annotations": {"x/y": "line\nline", "ü": "ü"}}
    pod = Pod(node, node.run_pod(handler=QUICK["runc"], **words))
    container = pod.create("true", **words)
    for told in (
        node.call("PodSandboxStatus", pod_sandbox_id=pod.id)["status"],
        node.call("ListPodSandbox")["items"][0],
        node.status(container),
        node.call("ListContainers")["containers"][0],
    ):
        assert {name: told[name] for name in words} == words


def test_shared_memory_has_the_configured_size(node: Node) -> None:
    pod = Pod(node, node.run_pod(handler=QUICK["runc"]))
    assert pod.sh("df -k /dev/shm | tail -n 1; stat -c %a /dev/shm").split()[1::5] == ["65536", "1777"]
    with_host = {"security_context": {"namespace_options": {"ipc": "NODE", "pid": "CONTAINER"}}}
    name = f"crinoid-{secrets.token_hex(4)}"
    Path("/dev/shm", name).write_text("the host's")
    try:
        assert Pod(node, node.run_pod("host", linux=with_host)).sh(f"cat /dev/shm/{name}") == "the host's"
        assert pod.sh("ls /dev/shm") == ""
    finally:
        Path("/dev/shm", name).unlink()


def test_without_a_log_directory_nothing_is_logged(node: Node, tmp_path: Path) -> None:
    pod = Pod(node, node.run_pod(log_directory=""))
    container = pod.start("echo", "x", log_path="x.log")
    assert node.wait_exit(container)["log_path"] == ""
    other = Pod(node, node.run_pod("other", log_directory=str(tmp_path / "made/for/it")))
    container = other.start("echo", "x", log_path="deep/x.log")
    node.wait_exit(container)
    assert node.log(container) == "x\n"
    assert node.status(container)["log_path"] == str(tmp_path / "made/for/it/deep/x.log")
    with refused("INVALID_ARGUMENT", "log_path '../x.log' leads outside"):
        other.create("true", log_path="../x.log")
    with refused("INVALID_ARGUMENT", "log_directory 'relative' is not an absolute path"):
        node.run_pod("third", log_directory="relative")


def test_a_parent_cgroup_of_the_kubelets(node: Node) -> None:
    """A cgroup that is there already is used, and left when the pod goes; each runtime's containers lie in it."""
    name, mounted = f"/{node.daemon.name}-kubelet/pod1", Path("/sys/fs/cgroup")
    parts = ("memory", "cpu", "pids", "freezer") if cgroups.version() == 1 else (".",)
    for part in parts:
        Path(f"{mounted / part}{name}").mkdir(parents=True)
    directory = Path(f"{mounted / parts[0]}{name}")
    try:
        for runtime in RUNTIMES:
            pod = Pod(node, node.run_pod(runtime, handler=QUICK[runtime], linux={"cgroup_parent": name}))
            container = pod.start("sleep", "99")
            assert (directory / container / "cgroup.procs").read_text().split()
            node.call("RemovePodSandbox", pod_sandbox_id=pod.id)
            assert [path for path in directory.iterdir() if path.is_dir()] == []
    finally:
        found = {path.resolve() for pattern in (name[1:], f"*{name}") for path in mounted.glob(pattern)}
        for path in found:
            path.rmdir()
            path.parent.rmdir()
    with refused("INVALID_ARGUMENT", "is a slice"):
        node.run_pod(linux={"cgroup_parent": "kubepods-pod1.slice"})


def test_verbose_status(node: Node) -> None:
    """Verbose status names slots, namespaces and the network's result; plain status nothing of it."""
    pod = node.run_pod("verbose", handler="crun")
    assert node.call("PodSandboxStatus", pod_sandbox_id=pod)["info"] == {}
    answer = node.call("PodSandboxStatus", pod_sandbox_id=pod[:10], verbose=True)
    info = json.loads(answer["info"]["info"])
    assert (info["runtimeSlot"], info["networkSlot"], info["snapshotterSlot"]) == ("crun", "default", "default")
    assert {"network", "ipc", "uts"} == set(info["namespaces"])
    assert all(Path(path).exists() for path in info["namespaces"].values())
    assert answer["status"]["network"]["ip"] in json.dumps(info["attachment"])
    spaces = {one["type"]: one["path"] for one in info["runtimeSpec"]["linux"]["namespaces"]}
    assert spaces == info["namespaces"]
    assert info["config"]["metadata"]["name"] == answer["status"]["metadata"]["name"]
    container = Pod(node, pod).start("sleep", "1000")
    again = node.call("PodSandboxStatus", pod_sandbox_id=pod, verbose=True)["info"]["info"]
    assert (info["pid"], json.loads(again)["pid"]) == (0, Pod(node, pod).pid(container))
    assert answer["status"]["runtime_handler"] == "crun"
    with refused("NOT_FOUND", "f" * 64):
        node.call("PodSandboxStatus", pod_sandbox_id="f" * 64)


def test_handlers(node: Node) -> None:
    with refused("INVALID_ARGUMENT", "'?none'?.*runc"):
        node.run_pod(handler="none")
    pod = Pod(node, node.run_pod())
    assert node.call("PodSandboxStatus", pod_sandbox_id=pod.id)["status"]["runtime_handler"] == ""


def test_statuses_of_a_pod_with_its_containers(node: Node) -> None:
    pod = Pod(node, node.run_pod(handler=QUICK["runc"]))
    running, created = pod.start("sleep", "99"), pod.create("true")
    answer = node.call("PodSandboxStatus", pod_sandbox_id=pod.id)
    states = {one["id"]: one["state"] for one in answer["containers_statuses"]}
    assert states == {running: "CONTAINER_RUNNING", created: "CONTAINER_CREATED"}
    assert int(answer["timestamp"]) > int(answer["status"]["created_at"]) > 1_600_000_000_000_000_000


# The node itself


def test_version_and_status(node: Node) -> None:
    version = node.call("Version")
    assert (version["version"], version["runtime_name"], version["runtime_api_version"]) == ("0.1.0", "crinoid", "v1")
    assert version["runtime_version"]
    status = node.call("Status")
    assert {one["type"]: one["status"] for one in status["status"]["conditions"]} == {
        "RuntimeReady": True,
        "NetworkReady": True,
    }
    assert {"", "runc", "crun", QUICK["runc"], QUICK["crun"]} <= {one["name"] for one in status["runtime_handlers"]}
    assert status["features"]["supplemental_groups_policy"]
    assert status["info"] == {}
    info = node.call("Status", verbose=True)["info"]
    slots = {(one["role"], one["slot"]): one for one in json.loads(info["slots"])}
    assert slots["runtime", "crun"]["driver"] == "crun"
    assert node.call("RuntimeConfig")["linux"]["cgroup_driver"] == "CGROUPFS"


def test_network_ready_follows_the_configuration(tmp_path: Path) -> None:
    """Without any CNI configuration the node says why it is not ready, and is again once there is one."""
    write_conflist(tmp_path / "net.d", f"crt{secrets.token_hex(3)}", f"10.89.{third_octet()}.0/24", tmp_path / "ipam")
    network = f"driver = 'cni'\noptions = {{ conf_dir = '{tmp_path / 'net.d'}' }}"
    with own_node(tmp_path, network=network) as node:
        _follow_configuration(node, tmp_path / "net.d/10-test.conflist")


def _follow_configuration(node: Node, conflist: Path) -> None:
    text = conflist.read_text()

    def network() -> dict[str, Any]:
        conditions = node.call("Status")["status"]["conditions"]
        (found,) = [one for one in conditions if one["type"] == "NetworkReady"]
        return dict(found)

    conflist.unlink()
    try:
        until(lambda: not network()["status"])
        broken = network()
        assert broken["reason"]
        assert str(conflist.parent) in broken["message"]
        with refused("UNAVAILABLE", str(conflist.parent)):
            node.run_pod()
    finally:
        conflist.write_text(text)
    until(lambda: network()["status"])
    node.run_pod()


def test_the_pod_cidr_is_kept(node: Node) -> None:
    node.call("UpdateRuntimeConfig", runtime_config={"network_config": {"pod_cidr": "10.200.0.0/24,fd00:1::/64"}})
    assert node.daemon.query("SELECT body FROM settings WHERE id = 'pod_cidrs'") == [("10.200.0.0/24,fd00:1::/64",)]
    node.call("UpdateRuntimeConfig", runtime_config={"network_config": {"pod_cidr": ""}})
    assert node.daemon.query("SELECT body FROM settings WHERE id = 'pod_cidrs'") == [("10.200.0.0/24,fd00:1::/64",)]
    with refused("INVALID_ARGUMENT", "pod_cidr"):
        node.call("UpdateRuntimeConfig", runtime_config={"network_config": {"pod_cidr": "10.200.0.0/99"}})
