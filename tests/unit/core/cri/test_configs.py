"""Configurations as verbose status shows them: all that was asked for, in the CRI's own names."""

from typing import Any

from google.protobuf.json_format import ParseDict

from crinoid.core.cri.decode.containers import decode_container_config
from crinoid.core.cri.decode.pods import decode_pod_config
from crinoid.core.cri.encode.configs import describe_container_config, describe_pod_config
from crinoid.core.cri.wire import api_pb2

RESOURCES: dict[str, Any] = {
    "cpu_period": 100_000,
    "cpu_quota": 50_000,
    "cpu_shares": 512,
    "memory_limit_in_bytes": 1 << 26,
    "memory_swap_limit_in_bytes": 1 << 27,
    "oom_score_adj": 500,
    "cpuset_cpus": "0-1",
    "cpuset_mems": "0",
    "hugepage_limits": [{"page_size": "2MB", "limit": 1 << 21}],
    "unified": {"memory.high": "1000"},
}
MAPPED: dict[str, Any] = {"host_id": 65536, "length": 65536}
SECURITY: dict[str, Any] = {
    "namespace_options": {
        "network": "NODE",
        "pid": "CONTAINER",
        "ipc": "NODE",
        "userns_options": {"mode": "POD", "uids": [MAPPED], "gids": [MAPPED]},
    },
    "selinux_options": {"user": "u", "role": "r", "type": "t", "level": "l"},
    "run_as_user": {"value": 0},
    "run_as_group": {"value": 5},
    "readonly_rootfs": True,
    "supplemental_groups": [1, 2],
    "supplemental_groups_policy": "Strict",
    "seccomp": {"profile_type": "Localhost", "localhost_ref": "/p.json"},
    "apparmor": {"profile_type": "Unconfined"},
}


def test_a_pods() -> None:
    config = decode_pod_config(
        ParseDict(
            {
                "metadata": {"name": "web", "namespace": "shop", "uid": "u1", "attempt": 3},
                "hostname": "web-0",
                "log_directory": "/var/log/pods/x",
                "dns_config": {"servers": ["10.0.0.2"], "searches": ["shop.svc"], "options": ["ndots:5"]},
                "port_mappings": [{"protocol": "UDP", "container_port": 53, "host_port": 5353, "host_ip": "127.0.0.1"}],
                "labels": {"app": "web"},
                "annotations": {"note": "any"},
                "linux": {
                    "cgroup_parent": "/kubepods/pod1",
                    "sysctls": {"net.ipv4.ip_forward": "1"},
                    "overhead": RESOURCES,
                    "resources": {"cpu_shares": 7},
                    "security_context": SECURITY | {"privileged": True},
                },
            },
            api_pb2.PodSandboxConfig(),
        ),
        "config",
    )
    told = describe_pod_config(config)
    assert told["metadata"] == {"name": "web", "namespace": "shop", "uid": "u1", "attempt": 3}
    assert told["linux"]["security_context"]["namespace_options"]["network"] == 2
    assert decode_pod_config(ParseDict(told, api_pb2.PodSandboxConfig()), "config") == config


def test_a_containers() -> None:
    mounts: list[dict[str, Any]] = [
        {"container_path": "/a", "host_path": "/b", "readonly": True, "recursive_read_only": True},
        {
            "container_path": "/c",
            "host_path": "/d",
            "propagation": "PROPAGATION_BIDIRECTIONAL",
            "selinux_relabel": True,
        },
        {"container_path": "/e", "host_path": "/f", "uidMappings": [MAPPED], "gidMappings": [MAPPED]},
        {"container_path": "/g", "image": {"image": "img"}, "image_sub_path": "x", "readonly": True},
    ]
    config = decode_container_config(
        ParseDict(
            {
                "metadata": {"name": "app", "attempt": 2},
                "image": {"image": "sha256:1", "user_specified_image": "app:1", "annotations": {"a": "b"}},
                "command": ["sh", "-c"],
                "args": ["true"],
                "working_dir": "/work",
                "mounts": mounts,
                "devices": [{"container_path": "/dev/x", "host_path": "/dev/null", "permissions": "rw"}],
                "CDI_devices": [{"name": "vendor.com/net=eth0"}],
                "labels": {"a": "b"},
                "annotations": {"c": "d"},
                "log_path": "app/0.log",
                "stdin": True,
                "stdin_once": True,
                "tty": True,
                "linux": {
                    "resources": RESOURCES,
                    "security_context": SECURITY
                    | {
                        "capabilities": {"add_capabilities": ["NET_ADMIN"], "drop_capabilities": ["ALL"]},
                        "no_new_privs": True,
                        "masked_paths": ["/proc/kcore"],
                        "readonly_paths": ["/proc/sys"],
                    },
                },
            },
            api_pb2.ContainerConfig(),
        )
    )
    told = describe_container_config(config)
    assert told["image"]["user_specified_image"] == "app:1"
    assert [one["container_path"] for one in told["mounts"]] == ["/a", "/c", "/e", "/g"]
    assert decode_container_config(ParseDict(told, api_pb2.ContainerConfig())) == config
