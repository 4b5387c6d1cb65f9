"""Records become messages."""

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from crinoid.core.api.values.container import ContainerConfig, ContainerMetadata, MountPropagation, VolumeMount
from crinoid.core.api.values.network import Attachment
from crinoid.core.api.values.pod import (
    IdMapping,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodMetadata,
    PodSecurity,
    UserNamespace,
)
from crinoid.core.api.values.snapshot import DiskUsage
from crinoid.core.api.values.stats import CgroupUsage, InterfaceUsage, NetworkUsage, Pressure, PressureStats
from crinoid.core.cri.decode.containers import decode_container_config
from crinoid.core.cri.encode.containers import encode_container, encode_container_status, name_image
from crinoid.core.cri.encode.images import encode_image
from crinoid.core.cri.encode.node import encode_runtime_config, encode_status
from crinoid.core.cri.encode.pods import encode_namespaces, encode_pod, encode_pod_status
from crinoid.core.cri.encode.stats import (
    encode_container_stats,
    encode_container_stats_list,
    encode_pod_stats,
    encode_pod_stats_list,
)
from crinoid.core.cri.wire import api_pb2
from crinoid.core.lifecycle.queries import Condition, ContainerUsage, NodeStatus, PodUsage
from crinoid.core.state.records import ContainerRecord, ContainerState, ImageRecord, PodRecord, PodState


def make_pod(**changes: object) -> PodRecord:
    given = {
        "id": "pod1",
        "config": PodConfig(metadata=PodMetadata("web", "shop", "u1", 2), labels={"a": "b"}, annotations={"c": "d\0"}),
        "runtime_handler": "fast",
        "runtime": "fast",
        "network": "default",
        "snapshotter": "overlay",
        "state": PodState.NOT_READY,
        "created_at_ns": 7,
    }
    return PodRecord(**(given | changes))  # type: ignore[arg-type]


def make_container(**changes: object) -> ContainerRecord:
    given = {
        "id": "c1",
        "pod_id": "pod1",
        "config": ContainerConfig(metadata=ContainerMetadata("nginx", 1), image="sha256:abc"),
        "handle": None,
        "image_id": "sha256:abc",
        "image_ref": "docker.io/library/nginx@sha256:def",
        "state": ContainerState.EXITED,
        "created_at_ns": 7,
    }
    return ContainerRecord(**(given | changes))  # type: ignore[arg-type]


IMAGE = ImageRecord(
    id="sha256:abc",
    tags=("docker.io/library/other:1", "docker.io/library/nginx:latest"),
    digests=("docker.io/library/nginx@sha256:" + "d" * 64,),
)


class TestPods:
    def test_item(self) -> None:
        item = encode_pod(make_pod())
        assert (item.id, item.state, item.created_at, item.runtime_handler) == ("pod1", 1, 7, "fast")
        assert (dict(item.labels), dict(item.annotations)) == ({"a": "b"}, {"c": "d\0"})
        assert (item.metadata.name, item.metadata.namespace, item.metadata.uid, item.metadata.attempt) == (
            "web",
            "shop",
            "u1",
            2,
        )

    def test_a_pod_without_addresses_has_a_network_all_the_same(self) -> None:
        for attachment in (None, Attachment(())):
            status = encode_pod_status(make_pod(attachment=attachment))
            assert status.HasField("network")
            assert (status.network.ip, len(status.network.additional_ips)) == ("", 0)

    def test_namespaces(self) -> None:
        user = UserNamespace(NamespaceMode.POD, (IdMapping(1, 2, 3),), (IdMapping(4, 5, 6),))
        options = NamespaceOptions(NamespaceMode.NODE, NamespaceMode.CONTAINER, NamespaceMode.NODE, user=user)
        config = PodConfig(metadata=PodMetadata("a", "b", "c"), security=PodSecurity(namespaces=options))
        encoded = encode_pod_status(make_pod(config=config)).linux.namespaces.options
        assert MessageToDict(encoded) == {
            "network": "NODE",
            "pid": "CONTAINER",
            "ipc": "NODE",
            "usernsOptions": {
                "uids": [{"hostId": 1, "containerId": 2, "length": 3}],
                "gids": [{"hostId": 4, "containerId": 5, "length": 6}],
            },
        }
        assert not encode_namespaces(NamespaceOptions()).HasField("userns_options")


class TestContainers:
    def test_item(self) -> None:
        item = encode_container(make_container())
        assert (item.id, item.pod_sandbox_id, item.state) == ("c1", "pod1", api_pb2.CONTAINER_EXITED)
        assert (item.image.image, item.image_ref, item.image_id) == (
            "sha256:abc",
            "docker.io/library/nginx@sha256:def",
            "sha256:abc",
        )

    def test_the_end_of_a_container(self) -> None:
        record = make_container(
            started_at_ns=8, finished_at_ns=9, exit_code=137, reason="OOMKilled", message="said \udcff"
        )
        status = encode_container_status(record, None)
        assert (status.created_at, status.started_at, status.finished_at) == (7, 8, 9)
        assert (status.exit_code, status.reason, status.message) == (137, "OOMKilled", "said ?")
        assert status.stop_signal == api_pb2.SIGNAL_SIGTERM

    def test_mounts_come_back_as_they_were_sent(self) -> None:
        sent = api_pb2.ContainerConfig(
            metadata=api_pb2.ContainerMetadata(name="a"),
            image=api_pb2.ImageSpec(image="b"),
            mounts=[
                api_pb2.Mount(
                    container_path="/in",
                    host_path="/out",
                    readonly=True,
                    selinux_relabel=True,
                    recursive_read_only=True,
                    uidMappings=[api_pb2.IDMapping(host_id=1, container_id=2, length=3)],
                    mount_options=["noexec"],
                ),
                api_pb2.Mount(
                    container_path="/image",
                    readonly=True,
                    image=api_pb2.ImageSpec(image="sha256:e"),
                    image_sub_path="x",
                ),
            ],
        )
        status = encode_container_status(make_container(config=decode_container_config(sent)), None)
        assert list(status.mounts) == list(sent.mounts)

    @pytest.mark.parametrize("propagation", list(MountPropagation))
    def test_propagation(self, propagation: MountPropagation) -> None:
        config = ContainerConfig(
            metadata=ContainerMetadata("a"),
            image="b",
            mounts=(VolumeMount(container_path="/in", host_path="/out", propagation=propagation),),
        )
        (mount,) = encode_container_status(make_container(config=config), None).mounts
        assert mount.propagation == list(MountPropagation).index(propagation)

    @pytest.mark.parametrize(
        ("asked", "in_manifest", "shown"),
        [
            ("sha256:abc", "nginx", "docker.io/library/nginx:latest"),
            ("sha256:abc", "", "docker.io/library/other:1"),
            ("nginx", "", "docker.io/library/nginx:latest"),
            ("sha256:abc", "nginx@sha256:" + "d" * 64, "docker.io/library/nginx@sha256:" + "d" * 64),
            ("sha256:abc", "a tag that was moved", "docker.io/library/other:1"),
        ],
    )
    def test_the_name_shown_for_an_image(self, asked: str, in_manifest: str, shown: str) -> None:
        config = ContainerConfig(metadata=ContainerMetadata("a"), image=asked, user_specified_image=in_manifest)
        assert name_image(make_container(config=config), IMAGE) == shown

    def test_the_name_of_an_image_without_names_or_gone(self) -> None:
        assert name_image(make_container(), ImageRecord(id="sha256:abc")) == "sha256:abc"
        assert name_image(make_container(), None) == "sha256:abc"


class TestImages:
    @pytest.mark.parametrize(
        ("user", "has_uid", "username"), [((0, ""), True, ""), ((None, "www"), False, "www"), ((None, ""), False, "")]
    )
    def test_user(self, user: tuple[int | None, str], has_uid: bool, username: str) -> None:
        image = encode_image(IMAGE, user)
        assert (image.HasField("uid"), image.username) == (has_uid, username)

    def test_size_is_never_0(self) -> None:
        image = encode_image(ImageRecord(id="sha256:abc", pinned=True), (None, ""))
        assert (image.size, image.spec.image, image.pinned) == (1, "sha256:abc", True)


class TestNode:
    @pytest.mark.parametrize(("driver", "number"), [("systemd", 0), ("cgroupfs", 1)])
    def test_cgroup_driver(self, driver: str, number: int) -> None:
        assert encode_runtime_config(driver).linux.cgroup_driver == number

    def test_info_only_when_asked(self) -> None:
        status = NodeStatus((Condition("RuntimeReady", False, "NoRunc", "install it \udc80"),), (), {"a": "{}"})
        assert dict(encode_status(status, verbose=False).info) == {}
        encoded = encode_status(status, verbose=True)
        assert dict(encoded.info) == {"a": "{}"}
        assert encoded.status.conditions[0].message == "install it ?"


def as_dict(message: Message) -> dict[str, Any]:
    return MessageToDict(message, preserving_proto_field_name=True)


class TestStats:
    def usage(self, **parts: object) -> CgroupUsage:
        return CgroupUsage(timestamp_ns=9, memory_working_set_bytes=60, memory_usage_bytes=70, **parts)  # type: ignore[arg-type]

    def container(self, usage: CgroupUsage | None, nano_cores: int | None = None) -> api_pb2.ContainerStats:
        value = ContainerUsage(make_container(), usage, nano_cores, DiskUsage(44, 3), 10, "/upper")
        return encode_container_stats(value)

    def test_a_container_that_does_not_run(self) -> None:
        stats = self.container(None)
        assert [field.name for field, _ in stats.ListFields()] == ["attributes", "writable_layer"]
        assert (stats.writable_layer.timestamp, stats.writable_layer.inodes_used.value) == (10, 3)

    def test_unknown_is_absent_and_0_is_not(self) -> None:
        stats = self.container(self.usage(), nano_cores=None)
        assert not stats.cpu.HasField("usage_nano_cores")
        assert not stats.memory.HasField("available_bytes")
        assert not (stats.HasField("swap") or stats.HasField("io") or stats.cpu.HasField("psi"))
        assert stats.memory.HasField("page_faults")
        assert self.container(self.usage(), nano_cores=0).cpu.HasField("usage_nano_cores")

    def test_what_is_left_of_limits(self) -> None:
        stats = self.container(self.usage(memory_limit_bytes=100, swap_usage_bytes=5, swap_limit_bytes=20))
        assert stats.memory.available_bytes.value == 40
        assert (stats.swap.swap_usage_bytes.value, stats.swap.swap_available_bytes.value) == (5, 15)
        over = self.container(self.usage(memory_limit_bytes=50))
        assert over.memory.HasField("available_bytes")
        assert over.memory.available_bytes.value == 0

    def test_pressure_is_in_nanoseconds(self) -> None:
        pressure = PressureStats(full=Pressure(3, 0.1, 0.2, 0.3), some=Pressure(4, 1.0, 2.0, 3.0))
        stats = self.container(self.usage(cpu_pressure=pressure, io_pressure=pressure))
        assert (stats.cpu.psi.Full.Total, stats.cpu.psi.Some.Total) == (3000, 4000)
        assert (stats.io.psi.Some.Avg10, stats.io.psi.Some.Avg60, stats.io.psi.Some.Avg300) == (1.0, 2.0, 3.0)

    def test_all_there_is(self) -> None:
        """Each reading is in its own field, for the container and for the pod."""
        pressure = PressureStats(full=Pressure(0, 0, 0, 0), some=Pressure(0, 0, 0, 0.5))
        usage = CgroupUsage(
            timestamp_ns=9,
            cpu_ns=10,
            memory_usage_bytes=11,
            memory_working_set_bytes=12,
            memory_rss_bytes=13,
            memory_limit_bytes=30,
            page_faults=14,
            major_page_faults=0,
            swap_usage_bytes=15,
            swap_limit_bytes=20,
            pids=16,
            memory_pressure=pressure,
        )
        container = ContainerUsage(make_container(), usage, 17, DiskUsage(44, 3), 10, "/upper")
        network = NetworkUsage(5, (InterfaceUsage("eth0", 1, 3, 5, 7), InterfaceUsage("net1", 0, 0, 0, 0)))
        pod = PodUsage(make_pod(), usage, 18, network, (container,))
        cpu = {"timestamp": "9", "usage_core_nano_seconds": {"value": "10"}}
        memory = {
            "timestamp": "9",
            "working_set_bytes": {"value": "12"},
            "available_bytes": {"value": "18"},
            "usage_bytes": {"value": "11"},
            "rss_bytes": {"value": "13"},
            "page_faults": {"value": "14"},
            "major_page_faults": {},
            "psi": {"Full": {}, "Some": {"Avg300": 0.5}},
        }
        of_container = {
            "attributes": {"id": "c1", "metadata": {"name": "nginx", "attempt": 1}},
            "cpu": cpu | {"usage_nano_cores": {"value": "17"}},
            "memory": memory,
            "writable_layer": {
                "timestamp": "10",
                "fs_id": {"mountpoint": "/upper"},
                "used_bytes": {"value": "44"},
                "inodes_used": {"value": "3"},
            },
            "swap": {"timestamp": "9", "swap_available_bytes": {"value": "5"}, "swap_usage_bytes": {"value": "15"}},
        }
        eth0 = {
            "name": "eth0",
            "rx_bytes": {"value": "1"},
            "rx_errors": {"value": "3"},
            "tx_bytes": {"value": "5"},
            "tx_errors": {"value": "7"},
        }
        net1 = {"name": "net1", "rx_bytes": {}, "rx_errors": {}, "tx_bytes": {}, "tx_errors": {}}
        of_pod = {
            "attributes": {
                "id": "pod1",
                "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "attempt": 2},
                "labels": {"a": "b"},
                "annotations": {"c": "d\0"},
            },
            "linux": {
                "cpu": cpu | {"usage_nano_cores": {"value": "18"}},
                "memory": memory,
                "network": {"timestamp": "5", "default_interface": eth0, "interfaces": [net1]},
                "process": {"timestamp": "9", "process_count": {"value": "16"}},
                "containers": [of_container],
            },
        }
        assert as_dict(encode_pod_stats(pod)) == of_pod
        assert as_dict(encode_container_stats(container)) == of_container
        assert as_dict(encode_pod_stats_list([pod, pod])) == {"stats": [of_pod, of_pod]}
        assert as_dict(encode_container_stats_list([container])) == {"stats": [of_container]}

    def test_a_stopped_pod(self) -> None:
        stats = encode_pod_stats(PodUsage(make_pod(), None, None, None, ()))
        assert stats.HasField("linux")
        assert stats.linux.ListFields() == []

    def test_a_pod_without_interfaces(self) -> None:
        for others in ((), (InterfaceUsage("tunl0", 0, 0, 0, 0), InterfaceUsage("net1", 1, 0, 2, 0))):
            stats = encode_pod_stats(PodUsage(make_pod(), self.usage(), 1, NetworkUsage(5, others), ()))
            assert stats.linux.HasField("cpu")
            assert not stats.linux.HasField("network"), "a kubelet reads its default interface unasked"

    def test_the_default_interface_goes_by_its_name(self) -> None:
        """What comes first may be a tunnel that the kernel makes in every namespace."""
        interfaces = tuple(InterfaceUsage(name, 1, 0, 2, 0) for name in ("tunl0", "eth0", "net1"))
        network = encode_pod_stats(PodUsage(make_pod(), None, None, NetworkUsage(5, interfaces), ())).linux.network
        assert network.default_interface.name == "eth0"
        assert [one.name for one in network.interfaces] == ["tunl0", "net1"]
