"""What a container asks for and what it finds inside, with both runtimes."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.linux import capabilities
from integration.conftest import RUNTIMES, Node
from integration.pods import QUICK, Pod, confined, refused, until
from support.images import Entry, ImageConfig, build_busybox

IMAGE = "docker.io/test/features:1"
USER_IMAGE = "docker.io/test/user:1"


@pytest.fixture(params=RUNTIMES)
def pod(node: Node, request: pytest.FixtureRequest) -> Pod:
    """A pod of each runtime."""
    return Pod(node, node.run_pod(handler=QUICK[request.param]))


@pytest.fixture(scope="module", autouse=True)
def images(node_of_session: Node) -> None:
    """Images with defaults of their own."""
    config = ImageConfig(
        env=("PATH=/bin", "FROM=image", "BOTH=image"), cmd=("sh",), working_dir="/where/place", stop_signal="SIGUSR1"
    )
    build_busybox(node_of_session.layouts / "features", IMAGE, config)
    build_busybox(node_of_session.layouts / "empty", "docker.io/test/empty:1", ImageConfig(cmd=()))
    volumes = ImageConfig(volumes=("/data", "/made", "/taken", "/sys/fs/cgroup"))
    entries = [
        Entry(path="data", kind="directory", mode=0o1770, uid=1000, gid=51),
        Entry(path="data/file", content=b"from the image", uid=1000),
        Entry(path="data/away", kind="symlink", target="/etc"),
    ]
    build_busybox(node_of_session.layouts / "volumes", "docker.io/test/volumes:1", volumes, entries)
    for image in (IMAGE, USER_IMAGE, "docker.io/test/empty:1", "docker.io/test/volumes:1"):
        node_of_session.pull(image)


def mount(host: Path, inside: str, **more: Any) -> dict[str, Any]:
    return {"host_path": str(host), "container_path": inside} | more


# What its process starts with


def test_environment(pod: Pod) -> None:
    raw = base64.b64encode(b"two\nlines \xff").decode()
    envs = [
        {"key": "BOTH", "value": base64.b64encode(b"own").decode()},
        {"key": "EMPTY", "value": ""},
        {"key": "RAW", "value": raw},
    ]
    container = pod.start("sleep", "99", image=IMAGE, envs=envs)
    pid = pod.pid(container)
    found = dict(pair.split(b"=", 1) for pair in Path(f"/proc/{pid}/environ").read_bytes().rstrip(b"\0").split(b"\0"))
    assert {name: found[name] for name in (b"FROM", b"BOTH", b"EMPTY", b"RAW", b"PATH", b"HOME")} == {
        b"FROM": b"image",
        b"BOTH": b"own",
        b"EMPTY": b"",
        b"RAW": "two\nlines \N{REPLACEMENT CHARACTER}".encode(),
        b"PATH": b"/bin",
        b"HOME": b"/root",
    }
    assert found[b"HOSTNAME"].decode() == os.uname().nodename
    assert pod.node.execute(container, "sh", "-c", "echo $BOTH$FROM")[1] == "ownimage\n"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, "/"),
        ({"working_dir": "/home"}, "/home"),
        ({"working_dir": "/not/there/yet"}, "/not/there/yet"),
        ({"image": IMAGE}, "/where/place"),
        ({"image": IMAGE, "working_dir": "/tmp"}, "/tmp"),
    ],
)
def test_working_directory(node: Node, config: dict[str, Any], expected: str) -> None:
    pod = Pod(node, node.run_pod(handler=QUICK["crun"]))
    assert pod.sh("pwd", **config) == f"{expected}\n"


def test_command_and_args_against_the_images(node: Node) -> None:
    pod = Pod(node, node.run_pod(handler=QUICK["crun"]))
    for command, args, expected in (
        ((), (), "entry cmd\n"),
        ((), ("own",), "entry own\n"),
        (("echo", "mine"), (), "mine\n"),
        (("echo", "mine"), ("own",), "mine own\n"),
    ):
        container = pod.start(*command, args=list(args), image=USER_IMAGE)
        node.wait_exit(container)
        assert node.log(container) == expected
    with refused("INVALID_ARGUMENT", "neither the container nor image .*empty:1 names a command"):
        pod.create(image="docker.io/test/empty:1")


def test_an_entry_point_that_can_not_run(pod: Pod) -> None:
    """runc looks for it when it creates, crun too; both name it."""
    for command, words in ((("/no/such",), "/no/such"), (("/etc/passwd",), "/etc/passwd|permission denied")):
        with refused("INVALID_ARGUMENT", words):
            pod.start(*command)


@pytest.mark.parametrize(
    ("image", "security", "expected"),
    [
        ("", {}, "uid=0(root) gid=0(root) groups=0(root)"),
        ("", {"run_as_user": {"value": 4321}}, "uid=4321 gid=0(root) groups=0(root)"),
        (
            "",
            {"run_as_user": {"value": 4321}, "run_as_group": {"value": 765}, "supplemental_groups": [9, 8]},
            "uid=4321 gid=765 groups=8,9,765",
        ),
        (
            "",
            {"run_as_username": "alice", "supplemental_groups": [7]},
            "uid=1000(alice) gid=1000(alice) groups=7,50(staff),51(extra),1000(alice)",
        ),
        (
            "",
            {"run_as_username": "alice", "supplemental_groups": [7], "supplemental_groups_policy": "Strict"},
            "uid=1000(alice) gid=1000(alice) groups=7,1000(alice)",
        ),
        (
            USER_IMAGE,
            {"supplemental_groups": [7], "supplemental_groups_policy": "Merge"},
            "uid=1000(alice) gid=1000(alice) groups=7,50(staff),51(extra),1000(alice)",
        ),
        (USER_IMAGE, {"run_as_user": {"value": 0}}, "uid=0(root) gid=0(root) groups=0(root)"),
        (
            USER_IMAGE,
            {"run_as_user": {"value": 1}, "run_as_group": {"value": 50}},
            "uid=1(daemon) gid=50(staff) groups=50(staff)",
        ),
    ],
)
def test_users_and_groups(node: Node, image: str, security: dict[str, Any], expected: str) -> None:
    pod = Pod(node, node.run_pod(handler=QUICK["runc"]))
    config = {"image": image} if image else {}
    container = pod.start("sleep", "99", linux=confined(**security), **config)
    _code, text, _err = node.execute(container, "id")
    assert text == f"{expected}\n"
    user = node.status(container)["user"]["linux"]
    groups = [int(one.split("(")[0]) for one in expected.split("groups=")[1].split(",")]
    assert f"uid={user['uid']}" == expected.split("(")[0].split(" ")[0]
    assert sorted(map(int, user["supplemental_groups"])) == groups
    assert f" gid={user['gid']}" in expected


def test_users_that_are_not_there(node: Node) -> None:
    pod = Pod(node, node.run_pod(handler=QUICK["runc"]))
    with refused("INVALID_ARGUMENT", "user 'bob' is not in the image's /etc/passwd"):
        pod.create("id", linux=confined(run_as_username="bob"))
    with refused("INVALID_ARGUMENT", "run_as_group is set without"):
        pod.create("id", linux=confined(run_as_group={"value": 5}))
    with refused("INVALID_ARGUMENT", "both set"):
        pod.create("id", linux=confined(run_as_user={"value": 5}, run_as_username="alice"))


# Mounts


def test_mounts(pod: Pod, tmp_path: Path) -> None:
    """Directories, files, links, absent paths, read-only ones, one below another in the wrong order."""
    for name in ("writable", "readonly", "outer", "inner"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").write_text("a file")
    (tmp_path / "outer/seen").touch()
    (tmp_path / "inner/deep").touch()
    (tmp_path / "link").symlink_to("writable")
    mounts = [
        mount(tmp_path / "inner", "/outer/mid/inner"),
        mount(tmp_path / "outer", "/outer"),
        mount(tmp_path / "link", "/link"),
        mount(tmp_path / "readonly", "/readonly", readonly=True),
        mount(tmp_path / "file", "/etc/file"),
        mount(tmp_path / "absent/below", "/absent"),
        mount(tmp_path / "file", "/etc/hosts", readonly=True),
    ]
    script = """
        set -e
        ls /outer /outer/mid/inner; echo back > /link/new; touch /readonly/x || echo refused
        cat /etc/file; echo; echo changed > /etc/file; cat /etc/hosts; touch /absent/made
        (: > /etc/hosts) || true
    """
    container = pod.start("sh", "-c", script, mounts=mounts)
    assert pod.node.wait_exit(container)["exit_code"] == 0, pod.node.log(container)
    lines = pod.node.log(container).splitlines()
    assert lines[:6] == ["/outer:", "mid", "seen", "", "/outer/mid/inner:", "deep"]
    assert "refused" in lines
    assert "a file" in lines
    assert lines.count("changed") == 1
    assert (tmp_path / "writable/new").read_text() == "back\n"
    assert (tmp_path / "absent/below/made").exists()
    assert (tmp_path / "file").read_text() == "changed\n"
    assert list((tmp_path / "readonly").iterdir()) == []
    told = {one["container_path"]: one for one in pod.node.status(container)["mounts"]}
    assert told["/readonly"]["readonly"]
    assert told["/link"]["host_path"] == str(tmp_path / "link")


def test_mounts_that_are_refused(node: Node, tmp_path: Path) -> None:
    pod = Pod(node, node.run_pod(handler=QUICK["runc"]))
    (tmp_path / "file").touch()
    for one, code, words in (
        (mount(tmp_path / "file/below", "/x"), "FAILED_PRECONDITION", "mount /x: host_path .*file/below can't be made"),
        (mount(tmp_path, ""), "INVALID_ARGUMENT", r"mounts\[0\].container_path is missing"),
        (mount(tmp_path, "/x", recursive_read_only=True), "INVALID_ARGUMENT", "without readonly"),
        ({"container_path": "/x", "host_path": "relative"}, "INVALID_ARGUMENT", "not an absolute path"),
    ):
        with refused(code, words):
            pod.create("true", mounts=[one])


@pytest.fixture
def shared(node: Node, tmp_path: Path) -> Iterator[Path]:
    """A directory on a shared mount, with another mount in it, in the daemon's mount namespace."""
    directory = tmp_path / "shared"
    directory.mkdir()
    on_host(node, "mount", "-t", "tmpfs", "tmpfs", str(directory))
    on_host(node, "mount", "--make-shared", str(directory))
    on_host(node, "mkdir", str(directory / "below"), str(directory / "host"), str(directory / "container"))
    on_host(node, "mount", "-t", "tmpfs", "tmpfs", str(directory / "below"))
    yield directory
    on_host(node, "umount", "--recursive", str(directory))


def on_host(node: Node, *command: str) -> str:
    """Run a program in the mount namespace of the daemon."""
    return subprocess.run([*node.daemon.prefix, *command], check=True, capture_output=True, text=True).stdout


def test_propagation(pod: Pod, shared: Path) -> None:
    """A mount made on one side is seen on the other, as far as was asked for."""
    node = pod.node
    containers = {
        kind: pod.start(
            "sleep",
            "99",
            mounts=[mount(shared, "/m", propagation=f"PROPAGATION_{kind}")],
            linux=confined(privileged=True),
        )
        for kind in ("PRIVATE", "HOST_TO_CONTAINER", "BIDIRECTIONAL")
    }
    on_host(node, "mount", "-t", "tmpfs", "tmpfs", str(shared / "host"))
    on_host(node, "touch", str(shared / "host/from-host"))
    seen = {kind: node.execute(one, "ls", "/m/host")[1] for kind, one in containers.items()}
    assert seen == {"PRIVATE": "", "HOST_TO_CONTAINER": "from-host\n", "BIDIRECTIONAL": "from-host\n"}
    for kind, container in containers.items():
        place = f"/m/container/{kind}"
        script = f"mkdir -p {place} && mount -t tmpfs tmpfs {place} && touch {place}/inside"
        assert node.execute(container, "sh", "-c", script) == (0, "", "")
    for kind, expected in (("PRIVATE", ""), ("HOST_TO_CONTAINER", ""), ("BIDIRECTIONAL", "inside\n")):
        assert on_host(node, "ls", str(shared / "container" / kind)) == expected


def test_propagation_of_a_private_mount_is_refused(node: Node, shared: Path) -> None:
    pod = Pod(node, node.run_pod(handler=QUICK["runc"]))
    on_host(node, "mount", "--make-private", str(shared))
    for kind in ("HOST_TO_CONTAINER", "BIDIRECTIONAL"):
        with refused("FAILED_PRECONDITION", "mount /m: .* is on a private mount"):
            pod.create("true", mounts=[mount(shared, "/m", propagation=f"PROPAGATION_{kind}")])


def test_recursive_read_only(pod: Pod, shared: Path) -> None:
    """Without it, a mount below a read-only one can be written."""
    handlers = {one["name"]: one for one in pod.node.call("Status")["runtime_handlers"]}
    handler = pod.node.call("PodSandboxStatus", pod_sandbox_id=pod.id)["status"]["runtime_handler"]
    script = "touch /m/x || echo top; touch /m/below/x || echo below"
    plain = pod.start("sh", "-c", script, mounts=[mount(shared, "/m", readonly=True)])
    pod.node.wait_exit(plain)
    assert [line for line in pod.node.log(plain).split() if line in ("top", "below")] == ["top"]
    recursive = mount(shared, "/m", readonly=True, recursive_read_only=True)
    if not handlers[handler]["features"]["recursive_read_only_mounts"]:
        with refused("FAILED_PRECONDITION", "recursive"):
            pod.create("true", mounts=[recursive])
        return
    container = pod.start("sh", "-c", script, mounts=[recursive])
    pod.node.wait_exit(container)
    assert [line for line in pod.node.log(container).split() if line in ("top", "below")] == ["top", "below"]


def test_volumes_of_the_image(pod: Pod, tmp_path: Path) -> None:
    """A directory of the container's own, filled from the image, that goes with it; the pod's own mount wins."""
    node, image = pod.node, "docker.io/test/volumes:1"
    own = [mount(tmp_path / "own", "/taken/")]
    script = "cat /data/file; echo; stat -c '%a %u %g' /data; readlink /data/away; ls /made; mount"
    linux = confined(readonly_rootfs=True)
    container = pod.start(
        "sh", "-c", f"{script}; touch /made/x /taken/x; sleep 99", image=image, mounts=own, linux=linux
    )
    directory = node.daemon.root / "containers" / container / "volumes"
    until(lambda: (tmp_path / "own/x").exists() and (directory / "1/x").exists())
    lines = node.log(container).splitlines()
    assert lines[:3] == ["from the image", "1770 1000 51", "/etc"]
    mounted = [line.split(" on ")[1].split()[0] for line in lines if " on /" in line]
    assert {"/data", "/made", "/taken"} <= set(mounted)
    assert mounted.count("/taken") == 1
    again = pod.start("ls", "/made", image=image)
    node.wait_exit(again)
    assert node.log(again) == ""
    node.call("RemoveContainer", container_id=container)
    assert not directory.parent.exists()
    assert [one["container_path"] for one in node.status(again)["mounts"]] == []


# Isolation


def namespaces_of(pid: int | str) -> dict[str, str]:
    return {kind: os.readlink(f"/proc/{pid}/ns/{kind}") for kind in ("pid", "net", "ipc", "uts", "mnt")}


def test_namespaces(node: Node) -> None:
    """A pod shares network, IPC and UTS; each container has its own mounts and, unless asked otherwise, processes."""
    pod = Pod(node, node.run_pod())
    first, second = (namespaces_of(pod.pid(pod.start("sleep", "99"))) for _ in range(2))
    host = namespaces_of("self")
    assert {kind for kind in first if first[kind] == second[kind]} == {"net", "ipc", "uts"}
    assert set(first.values()) & set(host.values()) == set()
    on_node = Pod(
        node,
        node.run_pod(
            "on-node",
            linux={"security_context": {"namespace_options": {"pid": "CONTAINER", "network": "NODE", "ipc": "NODE"}}},
        ),
    )
    third = namespaces_of(on_node.pid(on_node.start("sleep", "99", linux=confined(namespace_options={"pid": "NODE"}))))
    assert {kind for kind in third if third[kind] == host[kind]} == {"pid", "net", "ipc", "uts"}
    assert on_node.sh("hostname") == f"{os.uname().nodename}\n"
    told = node.call("PodSandboxStatus", pod_sandbox_id=on_node.id)["status"]
    assert told["linux"]["namespaces"]["options"]["network"] == told["linux"]["namespaces"]["options"]["ipc"] == "NODE"
    assert told["network"]["ip"] == ""


def test_the_target_of_a_pid_namespace_must_run_in_the_pod(node: Node) -> None:
    pod, other = (Pod(node, node.run_pod(name, handler=QUICK["crun"])) for name in ("a", "b"))
    foreign = other.start("sleep", "99")
    ended = pod.start("true")
    node.wait_exit(ended)
    for target in (foreign, ended):
        with refused("FAILED_PRECONDITION", "is not a running container of pod"):
            pod.create("true", linux=confined(namespace_options={"pid": "TARGET", "target_id": target}))
    with refused("NOT_FOUND", "f" * 64):
        pod.create("true", linux=confined(namespace_options={"pid": "TARGET", "target_id": "f" * 64}))


def test_read_only_root(pod: Pod, tmp_path: Path) -> None:
    """The root and the pod's files can't be written; volumes and shared memory can."""
    script = """
        for f in /x /etc/hosts /etc/resolv.conf /etc/hostname /dev/shm/x /volume/x; do
            (echo x >> $f) 2> /dev/null && echo wrote $f
        done
        true
    """
    mounts = [mount(tmp_path, "/volume")]
    assert pod.sh(script, linux=confined(readonly_rootfs=True), mounts=mounts).split("\n")[:-1] == [
        "wrote /dev/shm/x",
        "wrote /volume/x",
    ]
    assert pod.sh("echo x > /x && cat /x") == "x\n"


def test_devices(pod: Pod) -> None:
    """Nodes by path and by directory; what is not permitted is refused by the kernel, whoever makes the node."""
    script = """
        stat -c '%t %T' /dev/mine
        (exec 3< /dev/mine) && echo read
        (exec 3> /dev/mine) 2> /dev/null || echo not written
        mknod /tmp/mine c 10 237 && echo made
        (exec 3< /tmp/mine) 2> /dev/null || echo not opened
        ls /dev/few
    """
    devices = [
        {"host_path": "/dev/fuse", "container_path": "/dev/mine", "permissions": "r"},
        {
            "host_path": "/dev/mapper" if Path("/dev/mapper/control").exists() else "/dev/net",
            "container_path": "/dev/few",
            "permissions": "m",
        },
    ]
    lines = pod.sh(script, devices=devices).splitlines()
    assert lines[:-1] == ["a e5", "read", "not written", "made", "not opened"]
    assert lines[-1] in ("control", "tun")
    assert pod.sh("[ -e /dev/fuse ] || echo absent") == "absent\n"
    with refused("NOT_FOUND", "/dev/none-such"):
        pod.create("true", devices=[{"host_path": "/dev/none-such", "container_path": "/dev/x", "permissions": "rwm"}])


CHOWN, NET_ADMIN, SYS_ADMIN = 1 << 0, 1 << 12, 1 << 21


@pytest.mark.parametrize(
    ("security", "held", "lacked"),
    [
        ({}, {"CapEff": CHOWN, "CapBnd": CHOWN}, {"CapEff": NET_ADMIN | SYS_ADMIN, "CapBnd": NET_ADMIN}),
        (
            {"capabilities": {"add_capabilities": ["NET_ADMIN"], "drop_capabilities": ["CHOWN"]}},
            {"CapEff": NET_ADMIN},
            {"CapEff": CHOWN | SYS_ADMIN, "CapBnd": CHOWN},
        ),
        (
            {"capabilities": {"add_capabilities": ["CAP_CHOWN"], "drop_capabilities": ["ALL"]}},
            {"CapEff": CHOWN},
            {"CapEff": (1 << 41) - 1 - CHOWN, "CapBnd": (1 << 41) - 1 - CHOWN},
        ),
        (
            {"capabilities": {"add_capabilities": ["all"], "drop_capabilities": ["NET_ADMIN"]}},
            {"CapEff": SYS_ADMIN | CHOWN},
            {"CapEff": NET_ADMIN, "CapBnd": NET_ADMIN},
        ),
        ({"run_as_user": {"value": 7}}, {"CapBnd": CHOWN}, {"CapEff": CHOWN, "CapPrm": CHOWN, "CapAmb": CHOWN}),
        (
            {"run_as_user": {"value": 7}, "capabilities": {"add_ambient_capabilities": ["NET_ADMIN"]}},
            {"CapEff": NET_ADMIN, "CapAmb": NET_ADMIN, "CapInh": NET_ADMIN},
            {"CapEff": CHOWN},
        ),
        ({"privileged": True}, {"CapEff": SYS_ADMIN | NET_ADMIN, "CapBnd": SYS_ADMIN}, {"CapAmb": SYS_ADMIN}),
    ],
)
def test_capabilities(pod: Pod, security: dict[str, Any], held: dict[str, int], lacked: dict[str, int]) -> None:
    container = pod.start("sleep", "99", linux=confined(**security))
    for text in (
        Path(f"/proc/{pod.pid(container)}/status").read_text(),
        pod.node.execute(container, "cat", "/proc/self/status")[1],
    ):
        sets = {line.split(":")[0]: int(line.split()[1], 16) for line in text.splitlines() if line.startswith("Cap")}
        assert {name: sets[name] & mask for name, mask in held.items()} == held
        assert {name: sets[name] & mask for name, mask in lacked.items()} == dict.fromkeys(lacked, 0)


def test_privileged(pod: Pod) -> None:
    """All devices, writable /sys and cgroups, no masks; with them mounting works."""
    script = """
        exec 2>&1  # the order of two streams in a log is nobody's promise
        grep -c ' /sys sysfs rw' /proc/mounts; [ -c /dev/fuse ] && echo fuse; grep '^Seccomp:' /proc/self/status
        mkdir /m && mount -t tmpfs tmpfs /m && echo mounted; grep -c ' /proc/[a-z]' /proc/mounts
    """
    paths: dict[str, Any] = {"masked_paths": ["/proc/keys"], "readonly_paths": ["/proc/sys"]}
    plain = pod.start("sh", "-c", script, linux=confined(**paths))
    pod.node.wait_exit(plain)
    assert "mounted" not in pod.node.log(plain)
    assert pod.node.log(plain).splitlines()[-1] == "2"
    container = pod.start("sh", "-c", script, linux=confined(privileged=True, **paths))
    pod.node.wait_exit(container)
    assert pod.node.log(container).split() == ["1", "fuse", "Seccomp:", "0", "mounted", "0"]


def test_no_new_privileges(pod: Pod) -> None:
    for wanted in (True, False):
        container = pod.start("sleep", "99", linux=confined(no_new_privs=wanted))
        _code, text, _err = pod.node.execute(container, "grep", "NoNewPrivs", "/proc/1/status", "/proc/self/status")
        assert [line.split()[-1] for line in text.splitlines()] == [str(int(wanted))] * 2


def test_masked_and_read_only_paths(pod: Pod) -> None:
    script = """
        cat /proc/timer_list /etc/group | wc -c; ls /sys/kernel | wc -l; ls /home
        (echo 1 > /proc/sys/vm/overcommit_memory) 2> /dev/null || echo not written
        (echo 1 > /etc/passwd) 2> /dev/null || echo not written
    """
    security: dict[str, Any] = {
        "masked_paths": ["/proc/timer_list", "/etc/group", "/sys/kernel", "/home", "/no/such"],
        "readonly_paths": ["/proc/sys", "/etc/passwd", "/no/such/either"],
    }
    assert pod.sh(script, linux=confined(**security)).split("\n") == ["0", "0", "not written", "not written", ""]
    assert pod.sh("cat /etc/group | wc -l; ls /home").split() == ["6", "alice"]


# `unshare --user` needs no capability, so that only a filter can refuse it.
NEW_USER_NAMESPACE = """
    busybox unshare -U true 2> /dev/null && echo allowed || echo blocked
    grep '^Seccomp:' /proc/self/status
"""


@pytest.mark.parametrize(
    ("security", "words", "mode"),
    [
        ({"seccomp": {"profile_type": "RuntimeDefault"}}, "blocked", 2),
        ({"seccomp": {"profile_type": "Unconfined"}}, "allowed", 0),
        ({}, "allowed", 0),
        ({"seccomp": {"profile_type": "RuntimeDefault"}, "privileged": True}, "allowed", 0),
        ({"seccomp_profile_path": "runtime/default"}, "blocked", 2),
    ],
)
def test_seccomp(pod: Pod, security: dict[str, Any], words: str, mode: int) -> None:
    assert pod.sh(NEW_USER_NAMESPACE, linux=confined(**security)).split() == [words, "Seccomp:", str(mode)]


# Numbers of x86_64: statmount and one that no kernel has; keyctl, unshare of a user namespace, clone with one; getpid.
CALLS = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for call in ((457, 0, 0, 0, 0), (1900,), (250, 0), (272, 0x10000000), (56, 0x10000011, 0, 0, 0, 0), (39,)):
    done = libc.syscall(*map(ctypes.c_long, call))
    print(ctypes.get_errno() if done < 0 else "done")
"""


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="wants this machine's numbers of system calls")
def test_newer_calls_do_not_exist_for_the_default_filter(pod: Pod) -> None:
    """ENOSYS, not EPERM, makes a C library fall back to what is older; what is refused on purpose is EPERM."""
    root = {"host_path": "/", "container_path": "/host", "readonly": True}
    command = ("busybox", "chroot", "/host", str(Path(sys.executable).resolve()), "-c", CALLS)
    security = confined(seccomp={"profile_type": "RuntimeDefault"})
    for _ in range(2):  # crun is given its own compiled program the second time
        container = pod.start(*command, mounts=[root], linux=security)
        pod.node.wait_exit(container)
        assert pod.node.log(container).split() == ["38", "38", "1", "1", "1", "done"]


def test_seccomp_by_a_local_profile(pod: Pod, tmp_path: Path) -> None:
    profile = {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}],
    }
    (tmp_path / "profile.json").write_text(json.dumps(profile))

    def linux(name: str) -> dict[str, Any]:
        return confined(seccomp={"profile_type": "Localhost", "localhost_ref": str(tmp_path / name)})

    container = pod.start("sleep", "99", linux=linux("profile.json"))
    code, _out, err = pod.node.execute(container, "mkdir", "/x")
    assert (code, "not supported" in err) == (1, True)
    assert pod.node.execute(container, "touch", "/x") == (0, "", "")
    with refused("INVALID_ARGUMENT", r"seccomp profile .*/none.json can't be read"):
        pod.create("true", linux=linux("none.json"))
    (tmp_path / "bad.json").write_text('{"defaultAction": "SCMP_ACT_FLY"}')
    with refused("INVALID_ARGUMENT", r"seccomp profile .*/bad.json is not valid: defaultAction"):
        pod.create("true", linux=linux("bad.json"))
    (tmp_path / "kill.json").write_text('{"defaultAction": "SCMP_ACT_KILL"}')
    container = pod.create("true", linux=linux("kill.json"))  # a pod that is not to be restarted fails by it
    with refused("INVALID_ARGUMENT", r"seccomp profile .*/kill.json allows no execve"):
        pod.node.call("StartContainer", container_id=container)
    status = pod.node.status(container)
    assert (status["exit_code"], status["reason"]) == (128, "StartError")


def test_oom_score(pod: Pod) -> None:
    """What this host can't give is raised to what it can, and the daemon says so."""
    powerful = "CAP_SYS_RESOURCE" in capabilities.effective()
    own = int(Path("/proc/self/oom_score_adj").read_text())
    for wanted in (-997, 0, 500):
        container = pod.start("sleep", "99", linux=confined({"oom_score_adj": wanted}))
        found = int(Path(f"/proc/{pod.pid(container)}/oom_score_adj").read_text())
        assert found == (wanted if powerful else max(wanted, own))
        assert pod.node.execute(container, "cat", "/proc/self/oom_score_adj")[1] == f"{found}\n"
    assert ("where less is asked for" in pod.node.daemon.log.read_text()) == (not powerful)


# Its end, its terminal and its input


@pytest.mark.parametrize(
    ("image", "signal", "number", "told"),
    [
        ("", "", 15, "SIGNAL_SIGTERM"),
        ("", "SIGNAL_SIGHUP", 1, "SIGNAL_SIGHUP"),
        (IMAGE, "", 10, "SIGNAL_SIGUSR1"),
        (IMAGE, "SIGNAL_SIGRTMIN", 34, "SIGNAL_SIGRTMIN"),
    ],
)
def test_stop_signals(node: Node, image: str, signal: str, number: int, told: str) -> None:
    """The container's own, else the image's, else SIGTERM."""
    pod = Pod(node, node.run_pod(handler=QUICK["crun"]))
    script = f"trap 'exit {number}' {number}; echo ready; while true; do sleep 0.02; done"
    config = ({"image": image} if image else {}) | ({"stop_signal": signal} if signal else {})
    container = pod.start("sh", "-c", script, **config)
    until(lambda: node.log(container) == "ready\n")
    node.call("StopContainer", container_id=container, timeout=20)
    status = node.status(container)
    assert (status["exit_code"], status["stop_signal"]) == (number, told)


def test_terminal(pod: Pod) -> None:
    container = pod.start("sh", "-c", "tty; echo $TERM; echo err >&2", tty=True)
    pod.node.wait_exit(container)
    lines = Path(pod.node.status(container)["log_path"]).read_bytes().split(b"\n")
    pieces = [line.split(b" ", 3)[1:] for line in lines[:-1]]  # a terminal's line end may come alone
    assert {stream for stream, _, _ in pieces} == {b"stdout"}
    whole = b"".join(text + (b"\n" if tag == b"F" else b"") for _, tag, text in pieces)
    assert whole == b"/dev/pts/0\r\nxterm\r\nerr\r\n"
    assert pod.sh("tty || true; echo $TERM") == "not a tty\n\n"


def test_stdin(pod: Pod) -> None:
    """Without stdin it is at its end at once; with it, it stays open for whoever attaches."""
    script = "echo reading; cat; echo ended"
    assert pod.sh(script) == "reading\nended\n"
    container = pod.start("sh", "-c", script, stdin=True)
    until(lambda: "reading" in pod.node.log(container))
    until(lambda: "cat" in pod.node.execute(container, "ps", "-o", "comm")[1].split())
    assert pod.node.log(container) == "reading\n"
