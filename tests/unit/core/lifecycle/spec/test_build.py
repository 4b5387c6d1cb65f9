"""The OCI specification: what of the CRI configuration ends up where, and what is refused."""

import dataclasses
import resource
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import FailedPrecondition, InvalidArgument, NotFound, Unsupported
from crinoid.core.api.linux import capabilities, cgroups
from crinoid.core.api.values.container import (
    Capabilities,
    ContainerConfig,
    ContainerMetadata,
    ContainerSecurity,
    DeviceMapping,
    MountPropagation,
    VolumeMount,
)
from crinoid.core.api.values.pod import (
    LinuxResources,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodMetadata,
    ProfileType,
    SecurityProfile,
)
from crinoid.core.config.models import PodsConfig
from crinoid.core.lifecycle.images.image_config import ContainerDefaults
from crinoid.core.lifecycle.spec import SpecInput, build_spec
from crinoid.core.lifecycle.spec.build import build_process, seccomp_choice
from crinoid.core.lifecycle.spec.mounts import PodFiles
from crinoid.core.lifecycle.spec.users import Identity
from crinoid.core.state.records import ProcessUser

IMAGE = ContainerDefaults(env=("A=image", "B=image"), entrypoint=("/entry",), cmd=("one", "two"), working_dir="/work")
POD = PodConfig(metadata=PodMetadata("pod", "ns", "uid"))
PINS = {kind: Path(f"/run/pod/ns/{kind}") for kind in ("network", "ipc", "uts")}


def given(image: ContainerDefaults = IMAGE, **config: Any) -> SpecInput:
    """A container of its own PID namespace, with what the test changes."""
    own = ContainerSecurity(namespaces=NamespaceOptions(pid=NamespaceMode.CONTAINER))
    config.setdefault("security", own)
    return SpecInput(
        container_id="c1",
        config=ContainerConfig(metadata=ContainerMetadata("app"), image="img", **config),
        pod_id="p1",
        pod=POD,
        image=image,
        rootfs=Path("/run/c1/rootfs"),
        identity=Identity(ProcessUser(7, 8, (8, 9)), "/home/x"),
        hostname="host",
        namespaces=PINS,
        target_pid=0,
        pod_files=PodFiles(Path("/p/hostname"), Path("/p/hosts"), Path("/p/resolv.conf"), Path("/p/shm")),
        cgroup="/pods/c1",
        site=PodsConfig(),
        recursive_read_only=False,
    )


def secure(**fields: Any) -> ContainerSecurity:
    fields.setdefault("namespaces", NamespaceOptions(pid=NamespaceMode.CONTAINER))
    return ContainerSecurity(**fields)


def mount_at(spec: dict[str, Any], destination: str) -> dict[str, Any]:
    (found,) = [entry for entry in spec["mounts"] if entry["destination"] == destination]
    return dict(found)


@pytest.mark.parametrize(
    ("command", "args", "expected"),
    [
        ((), (), ["/entry", "one", "two"]),
        ((), ("x",), ["/entry", "x"]),
        (("/cmd",), (), ["/cmd"]),
        (("/cmd",), ("x",), ["/cmd", "x"]),
    ],
)
def test_arguments_follow_kubernetes_rules(
    command: tuple[str, ...], args: tuple[str, ...], expected: list[str]
) -> None:
    assert build_spec(given(command=command, args=args))["process"]["args"] == expected


def test_an_entry_point_of_one_empty_text_is_none() -> None:
    """containerd#7229: builders write ``ENTRYPOINT [""]`` to take away that of the base image."""
    image = ContainerDefaults(entrypoint=("",), cmd=("/bin/app", "-v"))
    assert build_process(given(image))["args"] == ["/bin/app", "-v"]
    assert build_process(given(image, args=("/bin/other",)))["args"] == ["/bin/other"]
    assert build_process(given(image, command=("sh",)))["args"] == ["sh"]
    with pytest.raises(InvalidArgument, match=r"config\.Entrypoint and config\.Cmd begins with an empty text"):
        build_process(given(ContainerDefaults(cmd=("",))))


def test_environment_of_an_image_that_is_odd() -> None:
    """As with containerd: a mere name takes a variable away, an empty text means nothing."""
    image = ContainerDefaults(cmd=("app",), env=("", "FOO", "A=1", "HOSTNAME", "B==2", "C="))
    env = build_process(given(image))["env"]
    assert {"A=1", "B==2", "C="} <= set(env)
    assert not any(pair.startswith(("=", "FOO", "HOSTNAME")) for pair in env)
    with pytest.raises(InvalidArgument, match=r"image .*: config\.Env has a value without a name: '=x'"):
        build_process(given(ContainerDefaults(cmd=("app",), env=("A=1", "=x"))))


def test_the_containers_working_directory_is_before_the_images() -> None:
    assert build_process(given(ContainerDefaults(cmd=("app",), working_dir="/srv")))["cwd"] == "/srv"
    assert build_process(given(ContainerDefaults(cmd=("app",), working_dir="srv"), working_dir="/own"))["cwd"] == "/own"
    assert build_process(given(working_dir="own"))["cwd"] == "own"  # as with peers: the OCI runtime refuses it


def test_no_command_anywhere_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="names a command"):
        build_spec(given(ContainerDefaults()))


def test_process() -> None:
    process = build_spec(given(envs=(("B", "own"), ("C", "")), tty=True))["process"]
    assert process["env"][0].startswith("PATH=/usr/local/sbin")
    assert {"A=image", "B=own", "C=", "HOSTNAME=host", "HOME=/home/x", "TERM=xterm"} <= set(process["env"])
    assert process["user"] == {"uid": 7, "gid": 8, "additionalGids": [8, 9]}
    assert (process["cwd"], process["terminal"], process["noNewPrivileges"]) == ("/work", True, False)


def test_bytes_that_json_can_not_carry_are_replaced() -> None:
    assert "R=a\ufffd\ufffdé" in build_spec(given(envs=(("R", "a\udcff\udc80é"),)))["process"]["env"]


def test_site_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "effective", lambda: frozenset(capabilities.known()))
    site = PodsConfig(
        default_env={"A": "site", "S": "site"}, default_ulimits=("nofile=1024:4096", "core=-1"), pids_limit=5
    )
    spec = build_spec(dataclasses.replace(given(), site=site))
    assert {"A=image", "S=site"} <= set(spec["process"]["env"])
    assert spec["process"]["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096},
        {"type": "RLIMIT_CORE", "soft": (1 << 64) - 1, "hard": (1 << 64) - 1},
    ]
    assert spec["linux"]["resources"]["pids"] == {"limit": 5}


def test_limits_of_a_daemon_that_can_not_raise_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "effective", lambda: frozenset({"CAP_SYS_ADMIN"}))
    monkeypatch.setattr(resource, "getrlimit", lambda kind: {resource.RLIMIT_NOFILE: (512, 2000)}.get(kind, (-1, -1)))
    site = PodsConfig(default_ulimits=("nofile=1024:524288", "locks=5", "core=-1"))
    assert build_spec(dataclasses.replace(given(), site=site))["process"]["rlimits"] == [
        {"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 2000},
        {"type": "RLIMIT_LOCKS", "soft": 5, "hard": 5},
        {"type": "RLIMIT_CORE", "soft": (1 << 64) - 1, "hard": (1 << 64) - 1},
    ]


@pytest.mark.parametrize(
    ("wanted", "has", "lacks"),
    [
        (Capabilities(), {"CAP_CHOWN"}, {"CAP_SYS_ADMIN", "CAP_NET_ADMIN"}),
        (Capabilities(add=("NET_ADMIN", "cap_sys_time")), {"CAP_NET_ADMIN", "CAP_SYS_TIME"}, {"CAP_SYS_ADMIN"}),
        (Capabilities(drop=("ALL",)), set(), {"CAP_CHOWN"}),
        (Capabilities(drop=("ALL",), add=("CHOWN",)), {"CAP_CHOWN"}, {"CAP_KILL"}),
        (Capabilities(add=("ALL",), drop=("CHOWN",)), {"CAP_SYS_ADMIN"}, {"CAP_CHOWN"}),
    ],
)
def test_capabilities(monkeypatch: pytest.MonkeyPatch, wanted: Capabilities, has: set[str], lacks: set[str]) -> None:
    monkeypatch.setattr(capabilities, "effective", lambda: frozenset(capabilities.known()))
    held = set(build_spec(given(security=secure(capabilities=wanted)))["process"]["capabilities"]["effective"])
    assert has <= held
    assert not lacks & held


def test_ambient_capabilities(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "effective", lambda: frozenset(capabilities.known()))
    sets = build_spec(given(security=secure(capabilities=Capabilities(add_ambient=("NET_ADMIN",)))))
    sets = sets["process"]["capabilities"]
    assert sets["ambient"] == sets["inheritable"] == ["CAP_NET_ADMIN"]
    assert "CAP_NET_ADMIN" in sets["permitted"]


def test_unknown_capability_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="CAP_FLY"):
        build_spec(given(security=secure(capabilities=Capabilities(add=("FLY",)))))


def test_namespaces_are_the_pods() -> None:
    kinds = {entry["type"]: entry.get("path") for entry in build_spec(given())["linux"]["namespaces"]}
    assert kinds.items() >= {"network": "/run/pod/ns/network", "pid": None, "mount": None}.items()
    for mode, pid, expected in (
        (NamespaceMode.NODE, 0, {}),
        (NamespaceMode.TARGET, 33, {"pid": "/proc/33/ns/pid"}),
        (NamespaceMode.POD, 0, {"pid": "/run/pod/ns/pid"}),
    ):
        security = secure(namespaces=NamespaceOptions(pid=mode))
        one = dataclasses.replace(
            given(security=security), target_pid=pid, namespaces={**PINS, "pid": Path("/run/pod/ns/pid")}
        )
        kinds = {entry["type"]: entry.get("path") for entry in build_spec(one)["linux"]["namespaces"]}
        assert {kind: path for kind, path in kinds.items() if kind == "pid"} == expected


def test_mounts_are_ordered_by_depth_and_replace_the_defaults(tmp_path: Path) -> None:
    volumes = (
        VolumeMount(container_path="/data/a/b", host_path=str(tmp_path), readonly=True),
        VolumeMount(container_path="/data", host_path=str(tmp_path)),
        VolumeMount(container_path="/etc/hosts", host_path=str(tmp_path / "new/directory")),
    )
    spec = build_spec(given(mounts=volumes))
    order = [entry["destination"] for entry in spec["mounts"]]
    assert order.index("/data") < order.index("/data/a/b")
    assert order.count("/etc/hosts") == 1
    assert mount_at(spec, "/data/a/b")["options"] == ["rbind", "rprivate", "ro"]
    assert (tmp_path / "new/directory").is_dir()
    assert mount_at(spec, "/dev/shm")["source"] == "/p/shm"
    assert "/sys" in spec["linux"]["readonlyPaths"]


def test_links_of_host_paths_are_resolved(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    spec = build_spec(given(mounts=(VolumeMount(container_path="/x", host_path=str(tmp_path / "link")),)))
    assert mount_at(spec, "/x")["source"] == str(tmp_path / "real")


@pytest.mark.parametrize(
    ("volume", "error", "words"),
    [
        (VolumeMount(container_path="", host_path="/x"), InvalidArgument, "is not a path"),
        (VolumeMount(container_path="/x", host_path="rel"), InvalidArgument, "not absolute"),
        (VolumeMount(container_path="/x", host_path="/etc/passwd/y"), FailedPrecondition, "can't be made"),
        (
            VolumeMount(container_path="/x", host_path="/etc", recursive_read_only=True),
            InvalidArgument,
            "needs readonly",
        ),
        (
            VolumeMount(container_path="/x", host_path="/etc", readonly=True, recursive_read_only=True),
            Unsupported,
            "no recursive read-only",
        ),
        (
            VolumeMount(container_path="/x", host_path="/etc", readonly=True, mount_options=("nodev", "rw")),
            InvalidArgument,
            "'rw' is none of",
        ),
        (
            VolumeMount(container_path="/x", host_path="/etc", propagation=MountPropagation.BIDIRECTIONAL),
            FailedPrecondition,
            "private mount",
        ),
    ],
)
def test_mounts_that_are_refused(
    monkeypatch: pytest.MonkeyPatch, volume: VolumeMount, error: type[Exception], words: str
) -> None:
    monkeypatch.setattr("crinoid.core.api.linux.mount.propagation", lambda _path: (False, False))
    with pytest.raises(error, match=words):
        build_spec(given(mounts=(volume,)))


def test_propagation_bends_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crinoid.core.api.linux.mount.propagation", lambda _path: (True, False))
    for propagation, expected in (
        (MountPropagation.BIDIRECTIONAL, "rshared"),
        (MountPropagation.HOST_TO_CONTAINER, "rslave"),
    ):
        volume = VolumeMount(container_path="/x", host_path="/etc", propagation=propagation)
        spec = build_spec(given(mounts=(volume,)))
        assert spec["linux"]["rootfsPropagation"] == expected
        assert propagation.value in mount_at(spec, "/x")["options"]
    assert "rootfsPropagation" not in build_spec(given())["linux"]


def test_devices() -> None:
    linux = build_spec(given(devices=(DeviceMapping("/dev/mine", "/dev/null", "rw"),)))["linux"]
    (node,) = linux["devices"]
    assert (node["path"], node["type"], node["major"], node["minor"]) == ("/dev/mine", "c", 1, 3)
    assert linux["resources"]["devices"] == [
        {"allow": False, "access": "rwm"},
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
    ]


@pytest.mark.parametrize(
    ("device", "error", "words"),
    [
        (DeviceMapping("/dev/x", "/dev/none-such"), NotFound, "none-such"),
        (DeviceMapping("/dev/x", "/etc/passwd"), InvalidArgument, "neither a device"),
        (DeviceMapping("/dev/x", "/dev/null", "q"), InvalidArgument, "permissions 'q'"),
        (DeviceMapping("x", "/dev/null"), InvalidArgument, "not absolute"),
    ],
)
def test_devices_that_are_refused(device: DeviceMapping, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        build_spec(given(devices=(device,)))


def test_privileged() -> None:
    linux = build_spec(given(security=secure(privileged=True, masked_paths=("/proc/kcore",))))["linux"]
    assert "maskedPaths" not in linux
    assert linux["resources"]["devices"] == [{"allow": True, "access": "rwm"}]
    assert {node["path"] for node in linux["devices"]} & {"/dev/kmsg", "/dev/fuse", "/dev/loop-control", "/dev/net/tun"}
    assert mount_at(build_spec(given(security=secure(privileged=True))), "/sys")["options"][-1] == "rw"


def test_paths_are_passed_on_as_they_are() -> None:
    linux = build_spec(given(security=secure(masked_paths=("/a",), readonly_paths=("/b",))))["linux"]
    assert (linux["maskedPaths"], linux["readonlyPaths"]) == (["/a"], ["/b", "/sys"])


def test_a_pods_sysfs_is_writable_for_a_privileged_container_alone() -> None:
    """Also where somebody else of the pod mounts it first: so it is never mounted read-only."""

    def sysfs(spec: dict[str, Any]) -> list[str]:
        return [mount_at(spec, "/sys")["options"][-1], *spec["linux"].get("readonlyPaths", ())]

    assert sysfs(build_spec(given())) == ["rw", "/sys"]
    assert sysfs(build_spec(given(security=secure(privileged=True)))) == ["rw"]


def test_resources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "accounts_swap", lambda: True)
    limits = LinuxResources(
        cpu_shares=512, cpu_quota=5000, cpu_period=10000, memory_limit_bytes=1 << 20, memory_swap_limit_bytes=1 << 21
    )
    resources = build_spec(given(resources=limits))["linux"]["resources"]
    assert resources["cpu"] == {"shares": 512, "quota": 5000, "period": 10000}
    assert resources["memory"] == {"limit": 1 << 20, "swap": 1 << 21}
    alone = build_spec(given(resources=LinuxResources(memory_limit_bytes=1 << 20)))["linux"]["resources"]
    assert alone["memory"] == {"limit": 1 << 20, "swap": 1 << 20}
    monkeypatch.setattr(cgroups, "accounts_swap", lambda: False)
    assert build_spec(given(resources=limits))["linux"]["resources"]["memory"] == {"limit": 1 << 20}


def test_unified_settings_are_checked_where_the_cgroup_will_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "pods").mkdir()
    (tmp_path / "pods" / "cgroup.controllers").write_text("memory\n")
    (tmp_path / "pods" / "memory.high").touch()
    monkeypatch.setattr(cgroups, "_host", lambda: cgroups.Hierarchies(2, unified=str(tmp_path)))
    good = LinuxResources(unified={"memory.high": "1"})
    assert build_spec(given(resources=good))["linux"]["resources"]["unified"] == {"memory.high": "1"}
    with pytest.raises(InvalidArgument, match=r"memory\.none-such does not exist"):
        build_spec(given(resources=LinuxResources(unified={"memory.none-such": "1"})))


def test_seccomp_choice() -> None:
    def chosen(site: PodsConfig | None = None, **fields: Any) -> SecurityProfile | None:
        return seccomp_choice(given(security=secure(**fields)).config, site or PodsConfig())

    default = SecurityProfile(ProfileType.RUNTIME_DEFAULT)
    assert chosen() is None
    assert chosen(PodsConfig(unset_seccomp="runtime-default")) == default
    assert chosen(seccomp=default) == default
    assert chosen(privileged=True) is None
    assert chosen(seccomp=SecurityProfile(ProfileType.UNCONFINED)) is None
    local = SecurityProfile(ProfileType.LOCALHOST, "/p.json")
    assert chosen(seccomp=local) == local


def test_apparmor_is_refused_for_now(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unsupported, match="AppArmor"):
        build_spec(given(security=secure(apparmor=SecurityProfile(ProfileType.LOCALHOST, "p"))))


@pytest.mark.parametrize("field", ["masked_paths", "readonly_paths"])
def test_too_many_paths_to_hide_are_refused_by_name(field: str) -> None:
    paths = tuple(f"/m{number}" for number in range(4097))
    with pytest.raises(InvalidArgument, match=f"{field}: 4097 are too many"):
        build_spec(given(security=secure(**{field: paths})))
    assert build_spec(given(security=secure(**{field: paths[1:]})))


def test_too_many_mounts_are_refused_before_anything_is_made_for_them(tmp_path: Path) -> None:
    mounts = tuple(
        VolumeMount(container_path=f"/m{number}", host_path=str(tmp_path / str(number))) for number in range(4097)
    )
    with pytest.raises(InvalidArgument, match="mounts: 4097 are too many"):
        build_spec(given(mounts=mounts))
    assert list(tmp_path.iterdir()) == []
