"""Pods with a user namespace: other ids inside than outside, and files owned right on both sides."""

import os
import secrets
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import BUSYBOX, SNAPSHOTTERS, Node
from integration.own_nodes import own_node
from integration.pods import Json, Pod, confined, refused
from integration.test_streaming import executing
from support.strangers import look

HOST_ID, LENGTH = 200_000, 65_536
MAPS = [{"host_id": HOST_ID, "container_id": 0, "length": LENGTH}]
HANDLERS = [
    f"{runtime}-{network}-{snapshotter}"
    for runtime in ("runc", "crun")
    for network in ("cni",)
    for snapshotter in SNAPSHOTTERS
]
NULL_DEVICE = (0, 0, 0o666)
QUICK = ("runc-cni-overlay", "crun-cni-native")


def user_namespace(uids: Any = None, gids: Any = None, mode: str = "POD") -> Json:
    return {"mode": mode, "uids": MAPS if uids is None else uids, "gids": MAPS if gids is None else gids}


def in_user_namespace(pid: str = "CONTAINER", user: Json | None = None, **options: Any) -> Json:
    """The ``linux`` part of a pod."""
    return {
        "security_context": {"namespace_options": {"pid": pid, "userns_options": user or user_namespace()} | options}
    }


def mapped(host: Path, inside: str, **more: Any) -> Json:
    """A volume whose files keep their owners, as the kubelet asks for it."""
    return {"host_path": str(host), "container_path": inside, "uidMappings": MAPS, "gidMappings": MAPS} | more


def run_pod(node: Node, handler: str, **options: Any) -> Pod:
    return Pod(node, node.run_pod("mapped", handler, linux=in_user_namespace(**options)))


@pytest.fixture(params=HANDLERS)
def pod(request: pytest.FixtureRequest, node: Node) -> Pod:
    """A pod with a user namespace of its own, for each runtime and snapshotter."""
    return run_pod(node, request.param)


@pytest.fixture(params=QUICK)
def handler(request: pytest.FixtureRequest) -> str:
    """One handler for each runtime, and for each snapshotter."""
    return str(request.param)


def owner(path: Path) -> tuple[int, int]:
    found = path.lstat()
    return found.st_uid, found.st_gid


def test_ids_differ_inside_and_outside(pod: Pod) -> None:
    container = pod.start("sleep", "1000")
    code, out, _ = pod.node.execute(container, "sh", "-c", "cat /proc/self/uid_map /proc/self/gid_map; id -u; id -g")
    assert code == 0
    assert out.split() == ["0", str(HOST_ID), str(LENGTH)] * 2 + ["0", "0"]
    assert owner(Path(f"/proc/{pod.pid(container)}/stat")) == (HOST_ID, HOST_ID)
    assert os.readlink(f"/proc/{pod.pid(container)}/ns/user") != os.readlink("/proc/self/ns/user")


def test_files_of_the_image_belong_to_the_root_inside(pod: Pod) -> None:
    container = pod.start("sleep", "1000")
    script = (
        "stat -c '%u %g %n' / /bin/busybox /etc/hosts /etc/hostname /etc/resolv.conf /dev/shm /dev; cat /etc/hostname"
    )
    code, out, err = pod.node.execute(container, "sh", "-c", script)
    assert code == 0, err
    assert [line.split()[:2] for line in out.splitlines()[:-1]] == [["0", "0"]] * 7
    assert out.splitlines()[-1] == "mapped"


def test_what_is_written_belongs_to_the_mapped_ids_outside(pod: Pod) -> None:
    container = pod.start("sleep", "1000")
    script = "echo a >/new && mkdir /dir && echo b >>/etc/passwd && chown 1000:2000 /dir && rm /bin/nc && mknod /fifo p"
    code, _, err = pod.node.execute(container, "sh", "-c", script)
    assert code == 0, err
    root = Path(f"/proc/{pod.pid(container)}/root")
    assert owner(root / "new") == owner(root / "etc/passwd") == (HOST_ID, HOST_ID)
    assert owner(root / "dir") == (HOST_ID + 1000, HOST_ID + 2000)
    assert not (root / "bin/nc").exists()


def test_a_volume_has_its_owners_on_both_sides(pod: Pod, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "root").write_text("root's")
    (volume / "users").write_text("user's")
    os.chown(volume / "users", 1000, 2000)
    script = "stat -c '%u:%g' /data /data/root /data/users; echo new >/data/new; chown 7:8 /data/users; cat /data/root"
    assert pod.sh(script, mounts=[mapped(volume, "/data")]).split() == ["0:0", "0:0", "1000:2000", "root's"]
    assert owner(volume / "new") == (0, 0)
    assert owner(volume / "users") == (7, 8)


def test_a_volume_out_of_sight_can_be_used(handler: str, node: Node, tmp_path: Path) -> None:
    """The kubelet's directories are for root alone, and the pod's root is none of the host's."""
    hidden = tmp_path / "hidden"
    hidden.mkdir(mode=0o700)
    (hidden / "open").mkdir()
    (hidden / "open").chmod(0o777)
    (hidden / "file").write_text("content\n")
    pod = run_pod(node, handler)
    mounts = [
        {"host_path": str(hidden / "open"), "container_path": "/plain"},
        mapped(hidden / "file", "/file", readonly=True),
    ]
    assert (
        pod.sh("cat /file; echo x 2>/dev/null >/file || echo refused; touch /plain/made", mounts=mounts)
        == "content\nrefused\n"
    )
    assert owner(hidden / "open/made") == (HOST_ID, HOST_ID)


def test_a_volume_keeps_the_flags_of_its_mount(handler: str, node: Node, tmp_path: Path) -> None:
    """In a user namespace the kernel lets nobody take them away, and a remount that forgets one fails."""
    volume = tmp_path / "guarded"
    volume.mkdir()
    assert node.daemon.process is not None
    inside = ["nsenter", f"--mount=/proc/{node.daemon.process.pid}/ns/mnt"]
    subprocess.run([*inside, "mount", "-t", "tmpfs", "-o", "nosuid,nodev,noexec", "tmpfs", volume], check=True)
    try:
        pod = run_pod(node, handler)
        plain = {"host_path": str(volume), "container_path": "/data", "readonly": True}
        options = pod.sh("grep ' /data ' /proc/mounts", mounts=[plain]).split()[3].split(",")
        assert {"ro", "nosuid", "nodev", "noexec"} <= set(options)
    finally:
        node.remove_pods()
        subprocess.run([*inside, "umount", volume], check=True)


def test_a_user_and_groups_of_the_container(handler: str, node: Node, tmp_path: Path) -> None:
    pod = run_pod(node, handler)
    (tmp_path / "shared").mkdir()
    os.chown(tmp_path / "shared", 0, 3000)
    (tmp_path / "shared").chmod(0o2770)
    linux = confined(run_as_user={"value": 1000}, run_as_group={"value": 2000}, supplemental_groups=[3000])
    script = "id -u; id -g; id -G; touch /data/made; stat -c %u:%g /data/made"
    out = pod.sh(script, linux=linux, mounts=[mapped(tmp_path / "shared", "/data")]).split("\n")
    assert out[:2] == ["1000", "2000"]
    assert {"2000", "3000"} <= set(out[2].split())
    assert out[3] == "1000:3000"
    assert owner(tmp_path / "shared/made") == (1000, 3000)


def test_streams_can_be_opened_again(handler: str, node: Node) -> None:
    """Programs write to /dev/stdout and /dev/stderr by name."""
    pod = run_pod(node, handler)
    for user in (0, 1000):
        linux = confined(run_as_user={"value": user})
        assert pod.sh("echo out >/dev/stdout; echo err >/dev/stderr; cat", linux=linux).split() == ["out", "err"]
        container = pod.start("sleep", "1000", linux=linux)
        assert node.execute(container, "sh", "-c", "echo out >/dev/stdout; echo err >/dev/stderr; cat") == (
            0,
            "out\n",
            "err\n",
        )


def test_processes_can_be_shared(handler: str, node: Node) -> None:
    pod = run_pod(node, handler, pid="POD")
    linux = {"security_context": {"namespace_options": {"pid": "POD"}}}
    first = pod.start("sleep", "1111", linux=linux)
    code, out, _ = node.execute(pod.start("sleep", "1000", linux=linux), "ps")
    assert code == 0
    assert "sleep 1111" in out
    node.call("StopContainer", container_id=first, timeout=0)
    assert node.status(first)["exit_code"] == 137


def test_the_whole_interface_works(handler: str, node: Node) -> None:
    pod = run_pod(node, handler)
    container = pod.start("sh", "-c", "trap 'exit 3' TERM; while :; do sleep 0.1; done")
    stats = node.call("ContainerStats", container_id=container)["stats"]
    assert int(stats["memory"]["working_set_bytes"]["value"]) > 0
    node.call("UpdateContainerResources", container_id=container, linux={"cpu_shares": 512})
    node.daemon.restart()
    assert node.execute(container, "true")[0] == 0
    node.call("StopContainer", container_id=container, timeout=20)
    assert node.status(container)["exit_code"] == 3


def test_a_privileged_container_has_power_over_its_pod_alone(handler: str, node: Node) -> None:
    pod = run_pod(node, handler)
    script = (
        "mkdir /m; mount -t tmpfs tmpfs /m && hostname x && ip link set lo mtu 1000; echo 1 >/proc/sys/kernel/panic"
    )
    container = pod.start("sleep", "1000", linux=confined(privileged=True))
    code, _, err = node.execute(container, "sh", "-c", script)
    assert code != 0
    assert "panic" in err
    assert len(err.splitlines()) == 1


def test_a_sysctl_of_the_pod(handler: str, node: Node) -> None:
    linux = in_user_namespace() | {
        "sysctls": {
            "net.ipv4.ip_unprivileged_port_start": "500",
            "kernel.shm_rmid_forced": "1",
            "net.ipv4.conf.lo.arp_filter": "1",
        }
    }
    pod = Pod(node, node.run_pod("mapped", handler, linux=linux))
    out = pod.sh(
        "cd /proc/sys; cat net/ipv4/ip_unprivileged_port_start kernel/shm_rmid_forced net/ipv4/ping_group_range "
        "net/ipv4/conf/lo/arp_filter"
    )
    assert out.split() == ["500", "1", "0", str(LENGTH - 1), "1"]


def test_an_image_as_a_volume(handler: str, node: Node) -> None:
    pod = run_pod(node, handler)
    for image in ("docker.io/test/two:1", BUSYBOX):
        node.pull(image)
        volume = {
            "container_path": "/image",
            "image": {"image": image},
            "readonly": True,
            "uidMappings": MAPS,
            "gidMappings": MAPS,
        }
        assert pod.sh("stat -c %u:%g /image /image/bin/busybox", mounts=[volume]).split() == ["0:0", "0:0"]


def test_a_device_of_the_host(handler: str, node: Node) -> None:
    pod = run_pod(node, handler)
    device = {"host_path": "/dev/zero", "container_path": "/dev/nothing", "permissions": "rw"}
    assert pod.sh("head -c 3 /dev/nothing | wc -c", devices=[device]).strip() == "3"


def test_the_hosts_network(handler: str, node: Node) -> None:
    handler = handler.replace("cni", "host")
    pod = Pod(node, node.run_pod("mapped", handler, linux=in_user_namespace(network="NODE")))
    out = pod.sh("readlink /proc/self/ns/net; id -u; ls /sys/class/net; touch /sys/x 2>/dev/null || echo kept").split()
    assert out[0] == os.readlink("/proc/self/ns/net")
    assert "lo" in out
    assert out[-1] == "kept"


def test_a_mapped_volume_without_a_user_namespace(handler: str, node: Node, tmp_path: Path) -> None:
    pod = Pod(node, node.run_pod("plain", handler))
    (tmp_path / "volume").mkdir()
    out = pod.sh("stat -c %u:%g /data", mounts=[mapped(tmp_path / "volume", "/data")])
    assert out.strip() == f"{HOST_ID}:{HOST_ID}"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"user": user_namespace(uids=MAPS + MAPS)}, "uids: 2 mappings"),
        (
            {"user": user_namespace(gids=[{"host_id": 1, "container_id": 1, "length": 5}])},
            "gids: .*id 0 must be mapped",
        ),
        ({"user": user_namespace(mode="CONTAINER")}, "mode is CONTAINER"),
        ({"user": user_namespace(mode="TARGET")}, "mode is TARGET"),
        ({"user": user_namespace(mode="NODE")}, "mode NODE has no mappings"),
        ({"user": user_namespace(uids=[])}, "uids"),
        ({"user": user_namespace(uids=[{"host_id": 5, "container_id": 0, "length": 0}])}, "length"),
        ({"user": user_namespace(uids=[{"host_id": 2**32 - 5, "container_id": 0, "length": 9}])}, "beyond the last id"),
        ({"ipc": "NODE"}, "host's ipc namespace"),
        ({"pid": "NODE"}, "host's pid namespace"),
    ],
)
def test_a_pod_that_cannot_be_leaves_nothing(node: Node, options: Json, words: str) -> None:
    with refused("INVALID_ARGUMENT", words):
        node.run_pod("mapped", linux=in_user_namespace(**options))
    assert node.daemon.query("SELECT owner, kind, key FROM ledger") == []
    assert node.call("ListPodSandbox")["items"] == []


def test_containers_that_do_not_fit_leave_nothing(handler: str, node: Node, tmp_path: Path) -> None:
    pod = run_pod(node, handler)
    before = node.daemon.query("SELECT owner, kind, key FROM ledger")
    other = user_namespace(uids=[{"host_id": 1, "container_id": 0, "length": 5}])
    node_mode = {"namespace_options": {"pid": "CONTAINER", "userns_options": {"mode": "NODE"}}}
    half = {"host_path": str(tmp_path), "container_path": "/data", "uidMappings": MAPS}
    cases: list[tuple[Json, str]] = [
        (
            {"linux": {"security_context": {"namespace_options": {"pid": "CONTAINER", "userns_options": other}}}},
            "differ",
        ),
        ({"linux": {"security_context": node_mode}}, "differ"),
        ({"linux": {"security_context": {"namespace_options": {"pid": "NODE"}}}}, "host's pid namespace"),
        ({"linux": confined(run_as_user={"value": LENGTH})}, f"user {LENGTH} is not mapped"),
        ({"linux": confined(supplemental_groups=[LENGTH + 5])}, f"group {LENGTH + 5} is not mapped"),
        ({"mounts": [half]}, "go together"),
        ({"mounts": [mapped(tmp_path, "/data", propagation="PROPAGATION_BIDIRECTIONAL")]}, "BIDIRECTIONAL"),
    ]
    for config, words in cases:
        with refused("INVALID_ARGUMENT", words):
            pod.create("true", **config)
    assert node.daemon.query("SELECT owner, kind, key FROM ledger") == before


def test_a_file_system_without_owners_to_map_is_named(handler: str, node: Node) -> None:
    pod = run_pod(node, handler)
    with refused("FAILED_PRECONDITION", "/proc/sys.*no id-mapped mounts"):
        pod.create("true", mounts=[mapped(Path("/proc/sys"), "/data")])


def test_status_tells_the_truth(node: Node) -> None:
    status = node.call("Status")
    handlers = {one["name"]: one["features"] for one in status["runtime_handlers"]}
    assert all(handlers[name].get("user_namespaces") for name in HANDLERS)
    assert status["features"]["user_namespaces_host_network"]


@pytest.fixture
def no_maps(tmp_path: Path) -> Iterator[Path]:
    """A directory on a file system whose owners nobody can map."""
    directory = tmp_path / "ramfs"
    directory.mkdir()
    subprocess.run(["mount", "-t", "ramfs", "ramfs", directory], check=True)
    yield directory
    subprocess.run(["umount", directory], check=True)


def test_a_handler_whose_layers_can_not_be_mapped_says_so_and_refuses(no_maps: Path, tmp_path: Path) -> None:
    config = f"""
[snapshotters.odd]
driver = "native"
options = {{ root = "{no_maps}" }}
[runtimes.odd]
driver = "runc"
snapshotter = "odd"
"""
    with own_node(tmp_path / "node", config) as node:
        handlers = {one["name"]: one["features"]["user_namespaces"] for one in node.call("Status")["runtime_handlers"]}
        assert handlers == {"": True, "runc": True, "crun": True, "odd": False}
        with refused("FAILED_PRECONDITION", f"userns_options: handler 'odd' has no user namespaces: .*{no_maps}"):
            node.run_pod("mapped", "odd", linux=in_user_namespace(network="NODE"))
        assert node.daemon.query("SELECT owner, kind, key FROM ledger") == []
        assert Pod(node, node.run_pod("plain", "odd")).sh("id -u") == "0\n"


@pytest.fixture
def null_device() -> Iterator[Callable[[], tuple[int, int, int]]]:
    """Whose the host's is, and its mode; set right again at the end, as all of the host uses it."""

    def look_at() -> tuple[int, int, int]:
        found = Path("/dev/null").stat()
        return found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)

    yield look_at
    if look_at() != NULL_DEVICE:
        os.chown("/dev/null", 0, 0)
        Path("/dev/null").chmod(0o666)


@pytest.mark.parametrize("stdin", [False, True])
@pytest.mark.parametrize("tty", [False, True])
async def test_the_hosts_null_device_stays_the_hosts(
    handler: str, node: Node, null_device: Callable[[], tuple[int, int, int]], tty: bool, stdin: bool
) -> None:
    """crun before 1.24 gives the standard streams to the container's user, whatever they are."""
    for pod in (run_pod(node, handler), Pod(node, node.run_pod("plain", handler))):
        for user in (0, 1000):
            linux = confined(run_as_user={"value": user})
            container = pod.start("sleep", "1000", linux=linux, tty=tty, stdin=stdin)
            assert null_device() == NULL_DEVICE, "start"
            node.execute(container, "true")
            assert null_device() == NULL_DEVICE, "exec_sync"
            async with executing(node, container, "true", tty=tty, stdin=stdin) as command:
                assert (await command.outcome())[2] == 0
            assert null_device() == NULL_DEVICE, "exec"
            with refused("INVALID_ARGUMENT", "nowhere"):
                pod.start("nowhere", linux=linux, tty=tty, stdin=stdin)
            assert null_device() == NULL_DEVICE, "a start that fails"


@pytest.fixture
def private() -> Iterator[Path]:
    """A directory that nobody but root may enter."""
    directory = Path(f"/run/crt{secrets.token_hex(3)}")
    directory.mkdir(mode=0o700)
    yield directory
    directory.rmdir()


def test_directories_out_of_reach_work_all_the_same(private: Path, tmp_path: Path) -> None:
    """The root of a pod can't pass through a 0700 directory of root's: so its files lie elsewhere, as guarded."""
    with own_node(tmp_path / "node", run_below=private) as node:
        assert node.daemon.run.parent == private
        for handler in ("runc", "crun"):
            linux = in_user_namespace(network="NODE", pid="POD")
            pod = Pod(node, node.run_pod(f"mapped-{handler}", handler, linux=linux))
            shared = {"security_context": {"namespace_options": {"pid": "POD"}}}
            image = {"container_path": "/image", "image": {"image": BUSYBOX}, "readonly": True}
            assert pod.sh("cat /etc/hosts /image/bin/busybox >/dev/null; id -u", linux=shared, mounts=[image]) == "0\n"
        node.daemon.restart()
        assert pod.sh("id -u", linux=shared) == "0\n"
        passage = Path((node.daemon.run / "passage").read_text())
        assert sorted(path.name for path in passage.iterdir()) == ["containers", "pods"]
        seen = look(passage, prefix=node.daemon.prefix)
        assert len(seen.paths) > 100
        assert {path: able for path, able in seen.found.items() if able} == {}
        node.remove_pods()
        node.daemon.stop()
        assert not passage.exists()
        node.daemon.start()
