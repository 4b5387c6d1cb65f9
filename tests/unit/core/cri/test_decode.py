"""Requests become values; what the API forbids is refused with the field's name."""

import base64
from typing import Any

import pytest
from google.protobuf import json_format

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.values.container import (
    Capabilities,
    ContainerSecurity,
    DeviceMapping,
    MountPropagation,
    VolumeMount,
)
from crinoid.core.api.values.image import Credentials
from crinoid.core.api.values.pod import (
    DnsConfig,
    IdMapping,
    LinuxResources,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodMetadata,
    PodSecurity,
    PortMapping,
    ProfileType,
    Protocol,
    SecurityProfile,
    SelinuxOptions,
    UserNamespace,
)
from crinoid.core.cri.decode.checks import check_message
from crinoid.core.cri.decode.containers import decode_container_config, decode_exec_timeout, decode_grace
from crinoid.core.cri.decode.images import decode_credentials
from crinoid.core.cri.decode.pods import decode_pod_config
from crinoid.core.cri.wire import api_pb2

METADATA = {"name": "web", "namespace": "shop", "uid": "u1", "attempt": 3}
RESOURCES = {
    "cpu_period": 100000,
    "cpu_quota": -1,
    "cpu_shares": 2,
    "memory_limit_in_bytes": 1 << 40,
    "memory_swap_limit_in_bytes": -1,
    "oom_score_adj": -998,
    "cpuset_cpus": "0-1",
    "cpuset_mems": "0",
    "hugepage_limits": [{"page_size": "2MB", "limit": 5}],
    "unified": {"memory.high": "max"},
}
DECODED_RESOURCES = LinuxResources(
    cpu_period=100000,
    cpu_quota=-1,
    cpu_shares=2,
    memory_limit_bytes=1 << 40,
    memory_swap_limit_bytes=-1,
    oom_score_adj=-998,
    cpuset_cpus="0-1",
    cpuset_mems="0",
    hugepage_limits={"2MB": 5},
    unified={"memory.high": "max"},
)


def pod_config(**parts: Any) -> PodConfig:
    message = json_format.ParseDict({"metadata": METADATA} | parts, api_pb2.PodSandboxConfig())
    check_message(message)
    return decode_pod_config(message)


def pod_security(**parts: Any) -> PodSecurity:
    return pod_config(linux={"security_context": parts}).security


def container_config(**parts: Any) -> Any:
    given = {"metadata": {"name": "nginx", "attempt": 4}, "image": {"image": "nginx"}} | parts
    message = json_format.ParseDict(given, api_pb2.ContainerConfig())
    check_message(message)
    return decode_container_config(message)


def container_security(**parts: Any) -> ContainerSecurity:
    security = container_config(linux={"security_context": parts}).security
    assert isinstance(security, ContainerSecurity)
    return security


def mount(**parts: Any) -> VolumeMount:
    taken = container_config(mounts=[{"container_path": "/in", "host_path": "/out"} | parts]).mounts[0]
    assert isinstance(taken, VolumeMount)
    return taken


class TestPodConfig:
    def test_every_field(self) -> None:
        config = pod_config(
            hostname="web-0",
            log_directory="/var/log/pods/x",
            dns_config={"servers": ["10.0.0.2"], "searches": ["shop.svc"], "options": ["ndots:5"]},
            port_mappings=[
                {"protocol": "UDP", "container_port": 53, "host_port": 5353, "host_ip": "127.0.0.1"},
                {"container_port": 80},
            ],
            labels={"app": "web"},
            annotations={"note": "any\0thing\n"},
            linux={
                "cgroup_parent": "/kubepods/pod1",
                "sysctls": {"net.ipv4.ip_forward": "1", "kernel/shm_rmid_forced": "1"},
                "overhead": RESOURCES,
                "resources": {"cpu_shares": 7},
            },
        )
        assert config == PodConfig(
            metadata=PodMetadata("web", "shop", "u1", 3),
            hostname="web-0",
            log_directory="/var/log/pods/x",
            dns=DnsConfig(("10.0.0.2",), ("shop.svc",), ("ndots:5",)),
            port_mappings=(PortMapping(53, 5353, Protocol.UDP, "127.0.0.1"), PortMapping(80)),
            labels={"app": "web"},
            annotations={"note": "any\0thing\n"},
            cgroup_parent="/kubepods/pod1",
            sysctls={"net.ipv4.ip_forward": "1", "kernel/shm_rmid_forced": "1"},
            overhead=DECODED_RESOURCES,
            resources=LinuxResources(cpu_shares=7),
        )

    def test_the_least(self) -> None:
        assert pod_config() == PodConfig(metadata=PodMetadata("web", "shop", "u1", 3))

    def test_security(self) -> None:
        assert pod_security(
            namespace_options={
                "network": "NODE",
                "pid": "CONTAINER",
                "userns_options": {
                    "mode": "POD",
                    "uids": [{"host_id": 65536, "length": 65536}],
                    "gids": [{"host_id": 65536, "container_id": 1, "length": 2}],
                },
            },
            selinux_options={"user": "u", "role": "r", "type": "t", "level": "l"},
            run_as_user={"value": 0},
            run_as_group={"value": 5},
            readonly_rootfs=True,
            supplemental_groups=[1, 2],
            supplemental_groups_policy="Strict",
            privileged=True,
            seccomp={"profile_type": "Localhost", "localhost_ref": "/p.json"},
            apparmor={"profile_type": "Unconfined"},
        ) == PodSecurity(
            namespaces=NamespaceOptions(
                network=NamespaceMode.NODE,
                pid=NamespaceMode.CONTAINER,
                user=UserNamespace(NamespaceMode.POD, (IdMapping(65536, 0, 65536),), (IdMapping(65536, 1, 2),)),
            ),
            selinux=SelinuxOptions("u", "r", "t", "l"),
            run_as_user=0,
            run_as_group=5,
            readonly_rootfs=True,
            supplemental_groups=(1, 2),
            strict_groups=True,
            privileged=True,
            seccomp=SecurityProfile(ProfileType.LOCALHOST, "/p.json"),
            apparmor=SecurityProfile(ProfileType.UNCONFINED),
        )

    @pytest.mark.parametrize(
        ("parts", "words"),
        [
            ({"metadata": {"namespace": "shop"}}, r"config\.metadata\.name is missing"),
            ({"metadata": METADATA | {"name": "x" * 254}}, r"config\.metadata\.name is 254 bytes long"),
            ({"metadata": METADATA | {"namespace": "a\tb"}}, r"config\.metadata\.namespace 'a\\tb' has a control"),
            ({"metadata": METADATA | {"uid": "a\nb"}}, r"config\.metadata\.uid"),
            ({"hostname": "a\nb"}, r"config\.hostname 'a\\nb' has a control character"),
            ({"hostname": "h" * 65}, r"config\.hostname is 65 bytes long, more than 64"),
            ({"hostname": "ü" * 33}, r"config\.hostname is 66 bytes long, more than 64"),
            ({"log_directory": "logs"}, r"config\.log_directory 'logs' is not an absolute path"),
            ({"log_directory": "/var/../etc"}, r"config\.log_directory"),
            ({"dns_config": {"servers": ["10.0.0.2\nsearch evil"]}}, r"config\.dns_config\.servers\[0\]"),
            (
                {"port_mappings": [{"container_port": 80, "host_port": 65536}]},
                r"port_mappings\[0\]\.host_port is 65536",
            ),
            ({"port_mappings": [{"container_port": -1}]}, r"port_mappings\[0\]\.container_port is -1"),
            ({"port_mappings": [{"host_port": 80}]}, r"port_mappings\[0\]\.container_port is 0"),
            ({"port_mappings": [{"container_port": 1, "host_ip": "here"}]}, r"host_ip 'here' is not an IP address"),
            ({"labels": {"a\0": "b"}}, r"labels key holds a NUL"),
            ({"labels": {"a": "b\0"}}, r"labels\['a'\] holds a NUL"),
            ({"annotations": {"a\0": "b"}}, r"annotations key holds a NUL"),
            ({"linux": {"cgroup_parent": "/kubepods/../x"}}, r"config\.linux\.cgroup_parent"),
            ({"linux": {"sysctls": {"net/../../x": "1"}}}, r"config\.linux\.sysctls"),
            ({"linux": {"resources": {"cpu_quota": -2}}}, r"config\.linux\.resources\.cpu_quota is -2"),
            ({"linux": {"resources": {"cpu_shares": -1}}}, r"cpu_shares is -1"),
            ({"linux": {"resources": {"oom_score_adj": 1001}}}, r"oom_score_adj is 1001"),
            (
                {"linux": {"resources": {"hugepage_limits": [{"page_size": "../x"}]}}},
                r"hugepage_limits\[0\]\.page_size",
            ),
            ({"linux": {"resources": {"unified": {"../memory.max": "1"}}}}, r"unified"),
            (
                {"linux": {"resources": {"unified": {"memory.high": "1" * 5000}}}},
                r"unified of memory.high is 5000 bytes",
            ),
            ({"linux": {"resources": {"unified": {"m" * 300: "1"}}}}, r"linux\.resources\.unified has 'mmm"),
            ({"linux": {"resources": {"cpuset_cpus": "0," * 50_000}}}, r"resources\.cpuset_cpus is 100000 characters"),
            ({"linux": {"resources": {"cpuset_mems": "0;rm"}}}, r"resources\.cpuset_mems is '0;rm', not a list"),
            ({"linux": {"resources": {"cpuset_mems": " ,"}}}, r"resources\.cpuset_mems is ' ,', not a list"),
            ({"linux": {"cgroup_parent": "/" + "c" * 300}}, r"linux\.cgroup_parent has a part of more than 255 bytes"),
            ({"linux": {"cgroup_parent": "/c" * 3000}}, r"linux\.cgroup_parent is longer than 4095 bytes"),
            ({"linux": {"sysctls": {"a." * 3000 + "b": "1"}}}, r"sysctls: 'a\.a\."),
            ({"linux": {"sysctls": {"kernel.x": "1" * 70_000}}}, r"sysctls\['kernel\.x'\] is 70000 bytes"),
            ({"log_directory": "/" + "l" * 300}, r"log_directory has a part of more than 255 bytes"),
            ({"annotations": {"a": "x" * (5 << 20)}}, r"config\.annotations have 5242881 characters"),
            ({"labels": {"a": "x" * (5 << 20)}}, r"config\.labels have 5242881 characters"),
            ({"dns_config": {"searches": ["s" * 2000]}}, r"searches\[0\] is 2000 bytes long"),
        ],
    )
    def test_refused(self, parts: dict[str, Any], words: str) -> None:
        with pytest.raises(InvalidArgument, match=words):
            pod_config(**parts)

    @pytest.mark.parametrize(
        ("parts", "words"),
        [
            ({"run_as_group": {"value": 1}}, "run_as_group is set without run_as_user"),
            ({"run_as_user": {"value": -1}}, "run_as_user is -1"),
            ({"run_as_user": {"value": (1 << 32) - 1}}, "run_as_user is 4294967295"),
            ({"run_as_user": {"value": 1 << 31}}, "run_as_user is 2147483648"),
            ({"supplemental_groups": [1, -7]}, r"supplemental_groups\[1\] is -7"),
            ({"namespace_options": {"network": "TARGET"}}, r"namespace_options\.network is TARGET"),
            ({"namespace_options": {"pid": "TARGET", "target_id": "c"}}, "that is for containers"),
            ({"namespace_options": {"userns_options": {"mode": "CONTAINER"}}}, r"userns_options\.mode is CONTAINER"),
            ({"namespace_options": {"userns_options": {"mode": "POD"}}}, "without uids and gids"),
            (
                {"namespace_options": {"userns_options": {"mode": "NODE", "uids": [{"host_id": 1}]}}},
                r"uids\[0\]\.length is 0",
            ),
            ({"seccomp": {"profile_type": "Localhost"}}, r"seccomp\.localhost_ref is missing"),
            ({"seccomp": {"profile_type": "Localhost", "localhost_ref": "p.json"}}, "not an absolute path"),
            ({"seccomp_profile_path": "sometimes"}, "seccomp_profile_path 'sometimes'"),
            (
                {"seccomp": {"profile_type": "Localhost", "localhost_ref": "/" + "p" * 300}},
                r"seccomp\.localhost_ref has a part of more than 255 bytes",
            ),
            (
                {"apparmor": {"profile_type": "Localhost", "localhost_ref": "p" * 5000}},
                r"apparmor\.localhost_ref is 5000 bytes long",
            ),
            ({"selinux_options": {"level": "s" * 5000}}, r"selinux_options\.level is 5000 bytes long"),
            ({"selinux_options": {"type": "a\nb"}}, r"selinux_options\.type 'a\\nb' has a control character"),
        ],
    )
    def test_refused_security(self, parts: dict[str, Any], words: str) -> None:
        with pytest.raises(InvalidArgument, match=words):
            pod_security(**parts)


class TestContainerConfig:
    def test_every_field(self) -> None:
        config = container_config(
            image={"image": "sha256:abc", "user_specified_image": "nginx", "annotations": {"a": "b"}},
            command=["sh", "-c"],
            args=["echo", ""],
            working_dir="/srv",
            envs=[{"key": "A", "value": base64.b64encode(b"x=y\xff").decode()}, {"key": "EMPTY"}],
            devices=[{"host_path": "/dev/a"}, {"host_path": "/dev/b", "container_path": "/dev/c", "permissions": "r"}],
            CDI_devices=[{"name": "vendor.com/gpu=0"}],
            labels={"l": "1"},
            annotations={"n": "2"},
            log_path="nginx/4.log",
            stdin=True,
            stdin_once=True,
            tty=True,
            linux={"resources": RESOURCES},
            stop_signal="SIGNAL_SIGRTMINPLUS3",
        )
        assert (config.metadata.name, config.metadata.attempt) == ("nginx", 4)
        assert (config.image, config.user_specified_image, config.image_annotations) == (
            "sha256:abc",
            "nginx",
            {"a": "b"},
        )
        assert (config.command, config.args, config.working_dir) == (("sh", "-c"), ("echo", ""), "/srv")
        assert config.envs == (("A", "x=y\udcff"), ("EMPTY", ""))
        assert config.devices == (DeviceMapping("/dev/a", "/dev/a"), DeviceMapping("/dev/c", "/dev/b", "r"))
        assert config.cdi_devices == ("vendor.com/gpu=0",)
        assert (config.labels, config.annotations, config.log_path) == ({"l": "1"}, {"n": "2"}, "nginx/4.log")
        assert config.stdin and config.stdin_once and config.tty
        assert config.resources == DECODED_RESOURCES
        assert config.stop_signal == "SIGRTMIN+3"

    def test_mounts(self) -> None:
        assert mount(
            readonly=True,
            selinux_relabel=True,
            recursive_read_only=True,
            uidMappings=[{"host_id": 1, "container_id": 2, "length": 3}],
            gidMappings=[{"host_id": 4, "container_id": 5, "length": 6}],
            mount_options=["noexec"],
        ) == VolumeMount(
            container_path="/in",
            host_path="/out",
            readonly=True,
            recursive_read_only=True,
            selinux_relabel=True,
            uid_mappings=(IdMapping(1, 2, 3),),
            gid_mappings=(IdMapping(4, 5, 6),),
            mount_options=("noexec",),
        )
        assert mount(propagation="PROPAGATION_BIDIRECTIONAL").propagation is MountPropagation.BIDIRECTIONAL

    def test_an_image_mount(self) -> None:
        taken = mount(host_path="", image={"image": "sha256:def"}, image_sub_path="a/b", readonly=True)
        assert (taken.image, taken.image_sub_path, taken.readonly) == ("sha256:def", "a/b", True)

    def test_security(self) -> None:
        assert container_security(
            capabilities={
                "add_capabilities": ["NET_ADMIN"],
                "drop_capabilities": ["ALL"],
                "add_ambient_capabilities": ["CHOWN"],
            },
            privileged=True,
            namespace_options={"pid": "TARGET", "target_id": "c1"},
            run_as_username="www",
            run_as_group={"value": 33},
            readonly_rootfs=True,
            supplemental_groups=[7],
            supplemental_groups_policy="Strict",
            no_new_privs=True,
            masked_paths=["/proc/kcore"],
            readonly_paths=["/proc/sys"],
            seccomp={},
            apparmor={"profile_type": "Localhost", "localhost_ref": "mine"},
        ) == ContainerSecurity(
            capabilities=Capabilities(("NET_ADMIN",), ("ALL",), ("CHOWN",)),
            privileged=True,
            namespaces=NamespaceOptions(pid=NamespaceMode.TARGET, target_id="c1"),
            run_as_username="www",
            run_as_group=33,
            readonly_rootfs=True,
            supplemental_groups=(7,),
            strict_groups=True,
            no_new_privs=True,
            masked_paths=("/proc/kcore",),
            readonly_paths=("/proc/sys",),
            seccomp=SecurityProfile(ProfileType.RUNTIME_DEFAULT),
            apparmor=SecurityProfile(ProfileType.LOCALHOST, "mine"),
        )

    @pytest.mark.parametrize(
        ("text", "profile"),
        [
            ("", None),
            ("runtime/default", SecurityProfile(ProfileType.RUNTIME_DEFAULT)),
            ("unconfined", SecurityProfile(ProfileType.UNCONFINED)),
            ("localhost//p.json", SecurityProfile(ProfileType.LOCALHOST, "/p.json")),
        ],
    )
    def test_deprecated_profiles(self, text: str, profile: SecurityProfile | None) -> None:
        assert container_security(seccomp_profile_path=text).seccomp == profile
        assert container_security(apparmor_profile=text).apparmor == profile

    def test_a_new_profile_goes_before_a_deprecated_one(self) -> None:
        taken = container_security(
            seccomp_profile_path="unconfined", seccomp={}, apparmor_profile="unconfined", apparmor={}
        )
        assert taken.seccomp == taken.apparmor == SecurityProfile(ProfileType.RUNTIME_DEFAULT)

    @pytest.mark.parametrize(
        ("parts", "words"),
        [
            ({"image": {"image": "x" * 1024}}, r"image\.image is 1024 bytes long, more than 1023"),
            ({"mounts": [{"container_path": "/x", "readonly": True, "image": {"image": "x" * 1024}}]}, "image is 1024"),
            ({"metadata": {}}, r"config\.metadata\.name is missing"),
            ({"metadata": {"name": "a\nb"}}, r"config\.metadata\.name"),
            ({"image": {}}, r"config\.image\.image is missing"),
            ({"working_dir": "s" * 300}, r"config\.working_dir has a part of more than 255 bytes"),
            ({"command": ["a\0b"]}, r"command\[0\] holds a NUL"),
            ({"envs": [{"key": ""}]}, r"config\.envs\[0\]\.key"),
            ({"envs": [{"key": "A=B"}]}, r"config\.envs\[0\]\.key 'A=B'"),
            ({"envs": [{"key": "A", "value": "AAAA"}]}, r"config\.envs\[0\]\.value, that of A, holds a NUL"),
            ({"log_path": "/../x"}, r"config\.log_path '../x' leads outside"),
            ({"log_path": "a/../../x"}, r"config\.log_path"),
            ({"devices": [{"container_path": "/dev/a"}]}, r"devices\[0\]\.host_path is missing"),
            ({"devices": [{"host_path": "/dev/a", "permissions": "rx"}]}, r"devices\[0\]\.permissions 'rx'"),
            ({"CDI_devices": [{"name": ""}]}, r"CDI_devices\[0\]"),
            ({"linux": {"resources": {"cpu_period": -1}}}, r"config\.linux\.resources\.cpu_period is -1"),
        ],
    )
    def test_refused(self, parts: dict[str, Any], words: str) -> None:
        with pytest.raises(InvalidArgument, match=words):
            container_config(**parts)

    @pytest.mark.parametrize(
        ("parts", "words"),
        [
            ({"container_path": ""}, r"mounts\[0\]\.container_path is missing"),
            ({"container_path": "i" * 300}, r"mounts\[0\]\.container_path has a part of more than 255 bytes"),
            ({"host_path": ""}, "both missing"),
            ({"host_path": "x" * 10}, "not an absolute path"),
            ({"host_path": "/" + "x" * 5000}, "longer than 4095"),
            ({"image": {"image": "i"}}, "both set"),
            ({"host_path": "", "image": {"image": "i"}}, "can only be read"),
            ({"image_sub_path": "x"}, r"image_sub_path is set without image\.image"),
            (
                {"host_path": "", "image": {"image": "i"}, "readonly": True, "image_sub_path": "../x"},
                r"image_sub_path '../x' leads outside",
            ),
            ({"recursive_read_only": True}, "without readonly"),
            (
                {"recursive_read_only": True, "readonly": True, "propagation": "PROPAGATION_HOST_TO_CONTAINER"},
                "not private",
            ),
            ({"mount_options": ["a b"]}, r"mount_options\[0\]"),
        ],
    )
    def test_refused_mounts(self, parts: dict[str, Any], words: str) -> None:
        with pytest.raises(InvalidArgument, match=words):
            mount(**parts)

    @pytest.mark.parametrize(
        ("parts", "words"),
        [
            ({"run_as_user": {"value": 1}, "run_as_username": "www"}, "are both set"),
            ({"run_as_group": {"value": 1}}, "without run_as_user or run_as_username"),
            ({"namespace_options": {"pid": "TARGET"}}, r"namespace_options\.target_id is missing"),
            ({"masked_paths": ["proc"]}, r"masked_paths\[0\]"),
            ({"readonly_paths": [""]}, r"readonly_paths\[0\] is missing"),
            ({"capabilities": {"add_capabilities": [""]}}, r"add_capabilities\[0\]"),
            ({"apparmor_profile": "localhost/"}, "apparmor_profile"),
        ],
    )
    def test_refused_security(self, parts: dict[str, Any], words: str) -> None:
        with pytest.raises(InvalidArgument, match=words):
            container_security(**parts)


class TestCredentials:
    def decode(self, **auth: str) -> Credentials | None:
        return decode_credentials(api_pb2.PullImageRequest(auth=api_pb2.AuthConfig(**auth)))

    def test_none(self) -> None:
        assert decode_credentials(api_pb2.PullImageRequest()) is None
        assert self.decode(server_address="example.org") is None

    def test_plain(self) -> None:
        assert self.decode(username="u", password="p", server_address="example.org", identity_token="i") == Credentials(
            "u", "p", "example.org", "i"
        )
        assert self.decode(registry_token="t") == Credentials(registry_token="t")

    @pytest.mark.parametrize("plain", [b"u:p:q", b"u:p:q\0\0"])
    def test_auth(self, plain: bytes) -> None:
        assert self.decode(auth=base64.b64encode(plain).decode()) == Credentials("u", "p:q")

    def test_fields_go_before_auth(self) -> None:
        assert self.decode(username="u", password="p", auth="????") == Credentials("u", "p")

    @pytest.mark.parametrize("auth", ["c2VjcmV0", "secret!", "c2VjcmV0Og", "/v8=", "é"])
    def test_bad_auth_is_refused_and_not_repeated(self, auth: str) -> None:
        with pytest.raises(InvalidArgument) as raised:
            self.decode(auth=auth)
        assert str(raised.value) == "auth.auth is not user:password in base64"
        assert raised.value.__cause__ is None
        assert raised.value.__context__ is None


@pytest.mark.parametrize(
    ("field", "item", "most"),
    [
        ("envs", api_pb2.KeyValue(key="A"), 32768),
        ("mounts", api_pb2.Mount(container_path="/a"), 4096),
        ("devices", api_pb2.Device(host_path="/a"), 4096),
        ("CDI_devices", api_pb2.CDIDevice(name="a.b/c=d"), 4096),
        ("args", "", 262144),
        ("command", "", 262144),
    ],
)
def test_a_list_that_is_too_long_is_refused_by_name_before_it_is_read(field: str, item: Any, most: int) -> None:
    config = api_pb2.ContainerConfig()
    getattr(config, field).extend([item] * most)
    check_message(config)
    getattr(config, field).append(item)
    request = api_pb2.CreateContainerRequest(config=config)
    with pytest.raises(InvalidArgument, match=f"^config.{field} has {most + 1} items, more than the {most}"):
        check_message(request)


def test_maps_and_lists_that_nobody_needs_long_are_refused_by_name() -> None:
    """Some hundred thousand of them held the event loop for seconds, at each step of a container's life."""
    many = [f"k{number}" for number in range(32769)]
    limits = api_pb2.LinuxContainerResources(unified=dict.fromkeys(many[:4097], "1"))
    capabilities = api_pb2.Capability(add_capabilities=many[:4097])
    security = api_pb2.LinuxContainerSecurityContext(masked_paths=many[:4097])
    ports = [api_pb2.PortMapping(host_port=1)] * 4097
    sysctls = api_pb2.LinuxPodSandboxConfig(sysctls=dict.fromkeys(many[:4097], "1"))
    for message, said in (
        (api_pb2.ContainerConfig(labels=dict.fromkeys(many, "")), "labels has 32769"),
        (api_pb2.PodSandboxConfig(annotations=dict.fromkeys(many, "")), "annotations has 32769"),
        (limits, "unified has 4097"),
        (capabilities, "add_capabilities has 4097"),
        (security, "masked_paths has 4097"),
        (sysctls, "sysctls has 4097"),
        (api_pb2.PodSandboxConfig(port_mappings=ports), "port_mappings has 4097"),
    ):
        with pytest.raises(InvalidArgument, match=f"^{said} items"):
            check_message(message)


def test_times_below_zero_are_none_as_with_peers() -> None:
    assert decode_grace(api_pb2.StopContainerRequest(timeout=-1)) == 0
    assert decode_exec_timeout(api_pb2.ExecSyncRequest(timeout=-1)) is None


def test_what_the_kernel_takes_is_taken() -> None:
    """A host name of setHostnameAsFQDN without a cluster domain, options of DNS as Kubernetes lets them through, …"""
    config = pod_config(
        metadata={"name": "a b/c;d", "namespace": "", "uid": ".."},
        hostname="web.shop.",
        dns_config={"searches": [""], "options": ["ndots:1 2"]},
    )
    assert (config.metadata.name, config.metadata.namespace, config.metadata.uid) == ("a b/c;d", "", "..")
    assert config.hostname == "web.shop."
    assert config.dns == DnsConfig((), ("",), ("ndots:1 2",))


def test_paths_of_a_container_begin_at_its_root() -> None:
    config = container_config(
        log_path="/web/0.log", working_dir="srv", mounts=[{"container_path": "x", "host_path": "/y"}]
    )
    assert (config.log_path, config.working_dir) == ("web/0.log", "srv")
    assert config.mounts[0].container_path == "/x"
