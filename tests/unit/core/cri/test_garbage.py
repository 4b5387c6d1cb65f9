"""Requests with flipped, missing and doubled bytes: read, or refused as the client's mistake, never a surprise."""

import random

import pytest
from google.protobuf.message import DecodeError

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.cri.decode.checks import check_message
from crinoid.core.cri.decode.containers import decode_container_config
from crinoid.core.cri.decode.pods import decode_pod_config
from crinoid.core.cri.wire import api_pb2

REQUEST = api_pb2.CreateContainerRequest(
    pod_sandbox_id="pod1",
    config=api_pb2.ContainerConfig(
        metadata=api_pb2.ContainerMetadata(name="nginx", attempt=1),
        image=api_pb2.ImageSpec(image="nginx"),
        command=["a", "b"],
        working_dir="/w",
        envs=[api_pb2.KeyValue(key="A", value=b"b")],
        mounts=[api_pb2.Mount(container_path="/c", host_path="/h", propagation=api_pb2.PROPAGATION_BIDIRECTIONAL)],
        devices=[api_pb2.Device(host_path="/dev/a", permissions="rw")],
        labels={"l": "m"},
        log_path="x.log",
        linux=api_pb2.LinuxContainerConfig(
            resources=api_pb2.LinuxContainerResources(
                cpu_shares=2, hugepage_limits=[api_pb2.HugepageLimit(page_size="2MB", limit=1)], unified={"a": "b"}
            ),
            security_context=api_pb2.LinuxContainerSecurityContext(
                run_as_user=api_pb2.Int64Value(value=1),
                seccomp=api_pb2.SecurityProfile(profile_type=api_pb2.SecurityProfile.Unconfined),
                namespace_options=api_pb2.NamespaceOption(pid=api_pb2.CONTAINER),
            ),
        ),
        stop_signal=api_pb2.SIGNAL_SIGINT,
    ),
    sandbox_config=api_pb2.PodSandboxConfig(
        metadata=api_pb2.PodSandboxMetadata(name="web", namespace="shop", uid="u"),
        hostname="h",
        dns_config=api_pb2.DNSConfig(servers=["10.0.0.2"]),
        port_mappings=[api_pb2.PortMapping(container_port=80, host_port=80, host_ip="::1")],
        linux=api_pb2.LinuxPodSandboxConfig(cgroup_parent="/k", sysctls={"a.b": "1"}),
    ),
)


def spoil(data: bytes, chance: random.Random) -> bytes:
    """Mostly change one byte: more than that seldom parses, and the parser is not ours to test."""
    spoiled = bytearray(data)
    at = chance.randrange(len(spoiled))
    match chance.randrange(20):
        case 0:
            del spoiled[at]
        case 1:
            spoiled[at:at] = spoiled[at : at + chance.randint(1, 9)]
        case _:
            spoiled[at] = chance.choice((0, 1, 7, 0x2E, 0x2F, 0x7F, spoiled[at] ^ 1, chance.randrange(256)))
    return bytes(spoiled)


@pytest.mark.parametrize("seed", range(4))
def test_garbage_is_never_a_surprise(seed: int) -> None:
    chance = random.Random(seed)
    outcomes = {"read": 0, "refused": 0, "malformed": 0}
    for _ in range(1500):
        try:
            request = api_pb2.CreateContainerRequest.FromString(spoil(REQUEST.SerializeToString(), chance))
            check_message(request)
            decode_container_config(request.config)
            decode_pod_config(request.sandbox_config)
            outcomes["read"] += 1
        except DecodeError:
            outcomes["malformed"] += 1
        except InvalidArgument as error:
            assert str(error)
            outcomes["refused"] += 1
    assert all(count > 100 for count in outcomes.values()), outcomes
