"""What leaves as bytes, taken apart without protobuf: the numbers are the ones a peer expects."""

from typing import Any

from crinoid.core.cri.wire import api_pb2

VARINT, BYTES = 0, 2


def read_varint(data: bytes, start: int) -> tuple[int, int]:
    value = shift = 0
    for position in range(start, len(data)):
        value |= (data[position] & 0x7F) << shift
        shift += 7
        if data[position] < 0x80:
            return value, position + 1
    raise AssertionError(f"varint at {start} has no end")


def take_apart(data: bytes) -> dict[int, Any]:
    """Return number -> value of a message whose fields are varints or byte strings, each at most once."""
    fields: dict[int, Any] = {}
    position = 0
    while position < len(data):
        tag, position = read_varint(data, position)
        size, position = read_varint(data, position)
        if tag & 7 == BYTES:
            fields[tag >> 3] = data[position : position + size]
            position += size
        else:
            assert tag & 7 == VARINT
            fields[tag >> 3] = size
    return fields


def test_version_request_is_these_bytes() -> None:
    assert api_pb2.VersionRequest(version="v1").SerializeToString() == b"\x0a\x02v1"


def test_pod_config_nests_its_parts() -> None:
    config = api_pb2.PodSandboxConfig(
        metadata=api_pb2.PodSandboxMetadata(name="web", uid="u1", namespace="shop", attempt=300),
        port_mappings=[api_pb2.PortMapping(protocol=api_pb2.SCTP, container_port=80, host_port=8080)],
        labels={"app": "web"},
        linux=api_pb2.LinuxPodSandboxConfig(cgroup_parent="/kubepods"),
    )
    fields = take_apart(config.SerializeToString())
    assert sorted(fields) == [1, 5, 6, 8]
    assert take_apart(fields[1]) == {1: b"web", 2: b"u1", 3: b"shop", 4: 300}
    assert take_apart(fields[5]) == {1: 2, 2: 80, 3: 8080}
    assert take_apart(fields[6]) == {1: b"app", 2: b"web"}
    assert take_apart(fields[8]) == {1: b"/kubepods"}


def test_an_answer_with_numbers_out_of_sequence() -> None:
    image = api_pb2.ImageSpec(image="a", user_specified_image="b", runtime_handler="c", image_ref="d")
    assert take_apart(image.SerializeToString()) == {1: b"a", 18: b"b", 19: b"c", 20: b"d"}


def test_bytes_come_back_as_the_same_message() -> None:
    status = api_pb2.ContainerStatus(
        id="c1",
        state=api_pb2.CONTAINER_EXITED,
        finished_at=1_700_000_000_000_000_001,
        exit_code=-1,
        stop_signal=api_pb2.SIGNAL_SIGRTMAX,
    )
    again = api_pb2.ContainerStatus.FromString(status.SerializeToString())
    assert again == status
    assert (again.state, again.stop_signal, again.exit_code) == (2, 65, -1)


def test_an_absent_number_is_not_zero() -> None:
    absent = api_pb2.LinuxSandboxSecurityContext()
    root = api_pb2.LinuxSandboxSecurityContext(run_as_user=api_pb2.Int64Value(value=0))
    assert not api_pb2.LinuxSandboxSecurityContext.FromString(absent.SerializeToString()).HasField("run_as_user")
    assert take_apart(root.SerializeToString()) == {3: b""}
