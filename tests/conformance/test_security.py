"""LinuxContainerSecurityContext: users, capabilities, privilege, seccomp, what is masked."""

import json
from pathlib import Path
from typing import Any

import pytest

from conformance.node import LENIENT, OLD, UNKNOWN, Node, Pod, case, differs

BITS = {"CHOWN": 0, "KILL": 5, "NET_BIND_SERVICE": 10, "NET_ADMIN": 12, "NET_RAW": 13, "SYS_ADMIN": 21, "SYS_TIME": 25}


def _line(name: str) -> str:
    return f"grep -E '^{name}:' /proc/self/status | cut -f2"


def _capabilities(node: Node, pod: Pod, security: Any, which: str = "CapEff") -> set[str]:
    mask = int(node.script(pod, _line(which), security=security), 16)
    return {name for name, bit in BITS.items() if mask >> bit & 1}


DEFAULT = {"CHOWN", "KILL", "NET_BIND_SERVICE", "NET_RAW"}


@pytest.mark.parametrize(
    ("image", "security", "user"),
    [
        case("busybox:1", {}, "0 0", name="root"),
        case("busybox:1", {"run_as_user": {"value": 1000}}, "1000 1000", name="passwd"),
        case("busybox:1", {"run_as_user": {"value": 4321}}, "4321 0", name="not-in-passwd"),
        case("busybox:1", {"run_as_user": {"value": 1000}, "run_as_group": {"value": 51}}, "1000 51", name="group"),
        case("busybox:1", {"run_as_user": {"value": 0}, "run_as_group": {"value": 0}}, "0 0", name="zeros"),
        case("busybox:1", {"run_as_username": "alice"}, "1000 1000", name="username"),
        case("busybox:1", {"run_as_username": "alice", "run_as_group": {"value": 7}}, "1000 7", name="name-and-group"),
        case("user-name:1", {}, "1000 1000", name="image-name"),
        case("user-id:1", {}, "1000 1000", name="image-id"),
        case("user-pair:1", {}, "1000 51", name="image-pair"),
        case("user-name:1", {"run_as_user": {"value": 0}}, "0 0", name="over-the-images"),
    ],
)
def test_user(node: Node, pod: Pod, image: str, security: Any, user: str) -> None:
    assert node.script(pod, "echo $(id -u) $(id -g)", image=image, security=security) == user


@differs(containerd=OLD)
def test_the_user_is_told(node: Node, pod: Pod) -> None:
    container = node.create(pod, "true", image="user-name:1", security={"supplemental_groups": [77]})
    user = node.status(container)["user"]["linux"]
    assert (user["uid"], user["gid"]) == ("1000", "1000")
    assert {"50", "51", "77"} <= set(user["supplemental_groups"])


@pytest.mark.parametrize(
    ("security", "groups"),
    [
        case({"supplemental_groups": [1234, 5678]}, {1234, 5678, 0}, name="root"),
        case({"run_as_user": {"value": 1000}, "supplemental_groups": [1234]}, {50, 51, 1000, 1234}, name="merged"),
        case({"run_as_username": "alice"}, {50, 51, 1000}, name="of-the-image"),
        case(
            {"run_as_user": {"value": 1000}, "supplemental_groups": [9], "supplemental_groups_policy": "Strict"},
            {9, 1000},
            name="strict",
            containerd=OLD,
        ),
        case({"run_as_username": "alice", "supplemental_groups_policy": "Strict"}, {1000}, name="none", containerd=OLD),
    ],
)
def test_groups(node: Node, pod: Pod, security: Any, groups: set[int]) -> None:
    assert {int(one) for one in node.script(pod, "id -G", security=security).split()} == groups


@pytest.mark.parametrize(
    "security",
    [
        case({"run_as_username": "nobody-knows"}, name="unknown", containerd=UNKNOWN),
        case({"run_as_group": {"value": 5}}, name="group-alone", containerd=UNKNOWN),
        case({"run_as_user": {"value": -1}}, name="negative", containerd=UNKNOWN),
        case({"run_as_user": {"value": 1 << 40}}, name="huge", containerd=UNKNOWN),
        case({"supplemental_groups": [-5]}, name="groups", containerd="containerd casts the id to 32 bits"),
        case(
            {"run_as_user": {"value": 5}, "run_as_username": "alice"},
            name="both",
            containerd="containerd takes the number of a user that is given by name, too",
        ),
    ],
)
def test_users_that_can_not_be(node: Node, pod: Pod, security: Any) -> None:
    node.refuse_container(pod, "INVALID_ARGUMENT", security=security)


@pytest.mark.parametrize(
    ("add", "drop", "expected"),
    [
        case([], [], DEFAULT, name="default"),
        case(["NET_ADMIN"], [], DEFAULT | {"NET_ADMIN"}, name="add"),
        case(["NET_ADMIN", "SYS_TIME"], [], DEFAULT | {"NET_ADMIN", "SYS_TIME"}, name="add-two"),
        case([], ["CHOWN"], DEFAULT - {"CHOWN"}, name="drop"),
        case([], ["ALL"], set(), name="drop-all"),
        case(["KILL"], ["ALL"], {"KILL"}, name="all-but"),
        case(["ALL"], [], set(BITS), name="add-all"),
        case(["ALL"], ["KILL"], set(BITS) - {"KILL"}, name="add-all-but"),
        case(["net_admin"], [], DEFAULT | {"NET_ADMIN"}, name="small-letters"),
        case(["CAP_NET_ADMIN"], [], DEFAULT | {"NET_ADMIN"}, name="prefix", containerd="containerd adds CAP_ always"),
    ],
)
def test_capabilities(node: Node, pod: Pod, add: list[str], drop: list[str], expected: set[str]) -> None:
    security = {"capabilities": {"add_capabilities": add, "drop_capabilities": drop}}
    assert _capabilities(node, pod, security) == expected


@differs(containerd="containerd 1.6 leaves the field out of account")
def test_ambient_capabilities_reach_a_user(node: Node, pod: Pod) -> None:
    security = {"capabilities": {"add_ambient_capabilities": ["NET_ADMIN"]}, "run_as_user": {"value": 1000}}
    assert _capabilities(node, pod, security) == {"NET_ADMIN"}


def test_a_user_has_no_capabilities(node: Node, pod: Pod) -> None:
    assert _capabilities(node, pod, {"run_as_user": {"value": 1000}}) == set()


@differs(containerd=LENIENT)
def test_an_unknown_capability_is_refused(node: Node, pod: Pod) -> None:
    node.refuse_container(pod, "INVALID_ARGUMENT", security={"capabilities": {"add_capabilities": ["NO_SUCH"]}})


@pytest.fixture(scope="module")
def privileged(node_of_session: Node) -> Any:
    """A privileged container in a privileged pod."""
    pod = node_of_session.run_pod(security={"privileged": True})
    return node_of_session.idle(pod, security={"privileged": True})


@pytest.mark.parametrize(
    "script",
    [
        case("mkdir -p /m && mount -t tmpfs none /m && umount /m", name="mount"),
        case("test -w /proc/sys/kernel/randomize_va_space", name="proc"),
        case("test $(ls /dev | wc -l) -gt 20", name="devices"),
        case("mount | grep -q ' /sys .*(rw,'", name="sys", containerd="containerd 1.6 leaves /sys read-only"),
    ],
)
def test_privileged(node: Node, privileged: str, script: str) -> None:
    assert node.execute(privileged, "sh", "-c", script) == (0, "", "")


@pytest.mark.parametrize(
    "script",
    ["mount -t tmpfs none /tmp", "touch /sys/x", "hostname other", "mknod /x b 7 0 && cat /x"],
    ids=["mount", "sys", "hostname", "device"],
)
def test_not_privileged(node: Node, idle: str, script: str) -> None:
    assert node.execute(idle, "sh", "-c", script)[0] != 0


@pytest.mark.parametrize("readonly", [True, False])
def test_readonly_rootfs(node: Node, pod: Pod, readonly: bool) -> None:
    written = node.script(
        pod, "touch /x 2>&1 || true; touch /dev/shm/x && echo shm", security={"readonly_rootfs": readonly}
    )
    assert ("Read-only" in written) is readonly
    assert written.endswith("shm")


@pytest.mark.parametrize("wanted", [True, False])
def test_no_new_privs(node: Node, pod: Pod, wanted: bool) -> None:
    assert node.script(pod, _line("NoNewPrivs"), security={"no_new_privs": wanted}) == str(int(wanted))


@pytest.mark.parametrize("path", ["/proc/version", "/proc/sys", "/etc/passwd", "/none/such"])
def test_masked_paths(node: Node, pod: Pod, path: str) -> None:
    script = f"if test -d {path}; then ls {path} | wc -l; else cat {path} 2>/dev/null | wc -c; fi"
    assert node.script(pod, script, security={"masked_paths": [path]}) == "0"


@pytest.mark.parametrize("path", ["/proc/sys", "/etc", "/home/alice", "/none/such"])
def test_readonly_paths(node: Node, pod: Pod, path: str) -> None:
    script = f"touch {path}/x 2>/dev/null && echo written || echo refused"
    assert node.script(pod, script, security={"readonly_paths": [path]}) == "refused"


@differs(containerd="containerd 1.6 leaves /sys read-only")
def test_sys_of_a_privileged_container_beside_others(node: Node) -> None:
    """A network namespace has one sysfs: it must not become read-only by who mounts it first, nor writable for all."""
    pod = node.run_pod(security={"privileged": True})
    change = "echo changed > /sys/class/net/eth0/ifalias && cat /sys/class/net/eth0/ifalias"
    able = {"capabilities": {"add_capabilities": ["NET_ADMIN"]}}
    first = node.idle(pod, security=able)
    assert node.execute(first, "sh", "-c", change)[0] != 0
    privileged = node.idle(pod, security={"privileged": True})
    assert node.execute(privileged, "sh", "-c", change) == (0, "changed\n", "")
    for container in (first, node.idle(pod, security=able)):
        code, _out, errors = node.execute(container, "sh", "-c", change)
        assert code != 0
        assert "Read-only" in errors


def test_without_masked_paths_nothing_is_masked(node: Node, pod: Pod) -> None:
    assert node.script(pod, "head -c 5 /proc/version; mount | grep -c /proc/", security={}).startswith("Linux")


@pytest.mark.parametrize(
    ("security", "mode"),
    [
        case({"seccomp": {"profile_type": "RuntimeDefault"}}, "2", name="default"),
        case({"seccomp": {"profile_type": "Unconfined"}}, "0", name="unconfined"),
        case({}, "0", name="unset"),
        case({"seccomp_profile_path": "runtime/default"}, "2", name="old-default"),
        case({"seccomp_profile_path": "docker/default"}, "2", name="old-docker"),
        case({"seccomp_profile_path": "unconfined"}, "0", name="old-unconfined"),
        case({"privileged": True, "seccomp": {"profile_type": "RuntimeDefault"}}, "0", name="privileged"),
    ],
)
def test_seccomp(node: Node, pod: Pod, security: Any, mode: str) -> None:
    pod = node.run_pod(security={"privileged": True}) if "privileged" in security else pod
    assert node.script(pod, _line("Seccomp"), security=security) == mode


@pytest.mark.parametrize("form", ["field", "old"])
def test_seccomp_profile_of_the_node(node: Node, pod: Pod, form: str) -> None:
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95}
    path = node.make_directory() / "profile.json"
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    new = {"seccomp": {"profile_type": "Localhost", "localhost_ref": str(path)}}
    security = new if form == "field" else {"seccomp_profile_path": f"localhost/{path}"}
    assert "Operation not supported" in node.script(pod, "mkdir /x 2>&1", security=security)


@pytest.mark.parametrize(
    "profile", [{"profile_type": "Localhost", "localhost_ref": "/none/such.json"}, {"profile_type": "Localhost"}]
)
def test_a_seccomp_profile_that_is_not_there_is_refused(node: Node, pod: Pod, profile: Any) -> None:
    codes = ("INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION")
    node.refuse_container(
        pod, *codes, *(() if node.runtime == "crinoid" else ("UNKNOWN",)), security={"seccomp": profile}
    )


@pytest.mark.parametrize(
    "security",
    [
        {"apparmor": {"profile_type": "RuntimeDefault"}},
        {"apparmor": {"profile_type": "Unconfined"}},
        {"apparmor_profile": "runtime/default"},
        {"apparmor_profile": "unconfined"},
    ],
    ids=["default", "unconfined", "old-default", "old-unconfined"],
)
def test_apparmor_where_any_kernel_can_do_it(node: Node, pod: Pod, security: Any) -> None:
    if (
        node.runtime == "containerd"
        and "efault" in str(security)
        and not Path("/sys/kernel/security/apparmor").exists()
    ):
        pytest.xfail("containerd refuses the default profile where the kernel has no AppArmor")
    assert node.script(pod, "echo runs", security=security) == "runs"


@pytest.mark.parametrize(
    "security",
    [
        {"apparmor": {"profile_type": "Localhost", "localhost_ref": "none-such"}},
        {"apparmor_profile": "localhost/none-such"},
    ],
    ids=["field", "old"],
)
def test_an_apparmor_profile_that_is_not_loaded_is_refused(node: Node, pod: Pod, security: Any) -> None:
    codes = ("FAILED_PRECONDITION", "INVALID_ARGUMENT", "NOT_FOUND")
    node.refuse_container(pod, *codes, *(() if node.runtime == "crinoid" else ("UNKNOWN",)), security=security)
