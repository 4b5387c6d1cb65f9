"""Values that images, pod specifications and other users of the node's directories may hold: nobody waits, nobody is
root.

With a real daemon and both runtimes.
"""

import base64
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import RUNTIMES, Node
from integration.pods import QUICK, Pod, confined, refused
from support.images import PASSWD, Entry, ImageConfig, build_busybox

ROOT_BY_NUMBER = f"{PASSWD}1234:x:0:0::/root:/bin/sh\n"
AT_ONCE_S = 20
"""What is refused is refused at once; beyond this somebody waited."""


@pytest.fixture(params=RUNTIMES)
def pod(node: Node, request: pytest.FixtureRequest) -> Pod:
    """A pod of each runtime."""
    return Pod(node, node.run_pod(handler=QUICK[request.param]))


@pytest.fixture
def build(node: Node) -> Iterator[Any]:
    """Build and pull an image; return its name."""

    def make(user: str = "", *extra: Entry) -> str:
        name = f"docker.io/test/odd{secrets.token_hex(4)}:1"
        build_busybox(node.layouts / name.split("/")[-1][:-2], name, ImageConfig(user=user), extra)
        node.pull(name)
        made.append(name)
        return name

    made: list[str] = []
    yield make
    node.remove_pods()
    for name in made:
        node.call("RemoveImage", image={"image": name})


def ids(pod: Pod, image: str, **security: Any) -> str:
    return pod.sh("echo $(id -u 2> /dev/null):$(id -g 2> /dev/null)", image=image, linux=confined(**security)).strip()


def test_a_number_is_an_id(pod: Pod, build: Any) -> None:
    """As the kubelet was told, so it runs: a uid in ImageStatus is what satisfies ``runAsNonRoot``."""
    image = build("1234:5678", Entry(path="etc/passwd", content=ROOT_BY_NUMBER.encode()))
    status = pod.node.call("ImageStatus", image={"image": image})["image"]
    assert (status["uid"]["value"], status["username"]) == ("1234", "")
    assert ids(pod, image) == "1234:5678"
    assert ids(pod, image, run_as_user={"value": 1234}) == "1234:0"
    assert ids(pod, image, run_as_username="01234") == "1234:0"
    for number in ("4294967296", "-1"):
        with refused("INVALID_ARGUMENT", f"run_as_username '{number}' is no valid id"):
            pod.create("true", image=image, linux=confined(run_as_username=number))


@pytest.mark.parametrize("entry", [Entry(path="etc/passwd", kind="fifo"), Entry(path="etc/passwd", kind="directory")])
def test_a_passwd_file_that_is_none(pod: Pod, build: Any, entry: Entry) -> None:
    image = build("alice", Entry(path="etc/.wh.passwd"), entry)
    with refused("FAILED_PRECONDITION", "the image's /etc/passwd can't be used: not a regular file"):
        pod.create("true", image=image)


def test_a_large_passwd_file_with_odd_lines(pod: Pod, build: Any) -> None:
    lines = "".join(f"user{number}:x:{100_000 + number}:5::/:/bin/sh\n" for number in range(60_000))
    odd = f"two:x:\u00b2:0:\x85:/:\nmany:x:{'9' * 5000}:0:::\n".encode() + b"\xff\0:\r\n"
    image = build(
        "last", Entry(path="etc/passwd", content=odd + lines.encode() + b"last:x:77:78:\xc2\x85:/:/bin/sh\r\n")
    )
    assert ids(pod, image) == "77:78"


def test_a_log_that_is_no_file(pod: Pod) -> None:
    directory = Path(pod.node.status(pod.create("true"))["log_path"]).parent
    os.mkfifo(directory / "fifo.log")
    (directory / "link.log").symlink_to(directory / "target")
    (directory / "full.log").symlink_to("/dev/full")
    (directory / "out").symlink_to("/tmp")  # nothing is to be made there
    for path in ("fifo.log", "link.log", "full.log", "out/x.log"):
        with refused("FAILED_PRECONDITION", f"log .*{path.split('/')[0]}"):
            pod.create("true", log_path=path)
    assert not (directory / "target").exists()


def test_a_log_that_is_rotated_into_a_trap(pod: Pod) -> None:
    container = pod.start("sleep", "1000")
    log = Path(pod.node.status(container)["log_path"])
    log.rename(f"{log}.1")
    os.mkfifo(f"{log}.tmp")
    with refused("FAILED_PRECONDITION", r"\.tmp is no regular file"):
        pod.node.daemon.cri.call("ReopenContainerLog", timeout_s=AT_ONCE_S, container_id=container)
    os.unlink(f"{log}.tmp")
    pod.node.call("ReopenContainerLog", container_id=container)
    assert log.is_file()


def test_a_seccomp_profile_that_is_a_fifo(pod: Pod, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "profile.json")
    profile = {"profile_type": "Localhost", "localhost_ref": str(tmp_path / "profile.json")}
    with refused("INVALID_ARGUMENT", "profile.json can't be read: not a regular file"):
        pod.create("true", linux=confined(seccomp=profile))
    pod.node.daemon.cri.call("Version", timeout_s=AT_ONCE_S)


def test_what_the_kernel_can_not_execute_is_refused_and_not_started(pod: Pod) -> None:
    """A start that succeeds with a process that is dead tells nobody why."""
    long = "x" * (1 << 17)
    with refused("INVALID_ARGUMENT", r"args\[1\] 'x+'… has 131072 bytes.*argument list too long"):
        pod.create("true", args=[long])
    with refused("INVALID_ARGUMENT", r"envs\[\d+\] 'LONG=.*argument list too long"):
        pod.create("true", envs=[{"key": "LONG", "value": base64.b64encode(long.encode()).decode()}])
    with refused("INVALID_ARGUMENT", "args and envs take [0-9]+ bytes together.*argument list too long"):
        pod.create("true", args=[long[:-1]] * 60)
    container = pod.start("sleep", "1000")
    with refused("INVALID_ARGUMENT", r"exec in container .*args\[1\].*argument list too long"):
        pod.node.execute(container, "true", long)
    assert pod.node.execute(container, "true", long[:-1])[0] == 0
    assert (
        pod.sh("echo ${#LONG}", envs=[{"key": "LONG", "value": base64.b64encode(long[:-6].encode()).decode()}])
        == "131066\n"
    )


def test_many_of_everything_is_linear_or_refused_by_name(pod: Pod, tmp_path: Path) -> None:
    for field, many, item in (
        ("envs", 32_769, {"key": "K"}),
        ("mounts", 4_097, {"container_path": "/m", "host_path": str(tmp_path)}),
        ("devices", 4_097, {"container_path": "/dev/x", "host_path": "/dev/null"}),
    ):
        with refused("INVALID_ARGUMENT", f"config.{field} has {many} items"):
            pod.create("true", **{field: [item] * many})
    with refused("INVALID_ARGUMENT", "supplemental_groups: 6[0-9]+ are too many"):
        pod.create("true", linux=confined(supplemental_groups=list(range(1, 65_538))))
    labels = {f"k{number}": "v" for number in range(20_000)}
    container = pod.start("true", args=["x"] * 100_000, labels=labels, annotations=labels)
    assert pod.node.wait_exit(container)["exit_code"] == 0


def test_the_hosts_root_is_no_directory_of_devices(pod: Pod) -> None:
    with refused("INVALID_ARGUMENT", "device /: it has more than [0-9]+ files"):
        pod.create("true", devices=[{"container_path": "/x", "host_path": "/", "permissions": "rw"}])
    found = pod.sh("ls /dev/in", devices=[{"container_path": "/dev/in", "host_path": "/dev", "permissions": "rw"}])
    assert {"null", "zero"} <= set(found.split())
