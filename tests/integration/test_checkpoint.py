"""Checkpoints of containers and pods, and containers that go on from them, with what the host's criu can.

Where criu works here, a counter in memory goes on; where it does not, the refusal in criu's own words is what is
tested: each test knows which of the two it is for.
"""

import json
import os
import shutil
import subprocess
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import BUSYBOX, RUNTIMES, SNAPSHOTTERS, Node
from integration.pods import refused, until
from support.daemon import container_config, pod_config
from support.images import add_json, build_image, name_manifest
from support.patience import patient

COUNTER = """
echo kept > /kept; rm /etc/group; mkdir /new; ln /kept /new/linked; mv /home /moved
n=0; while true; do n=$((n + 1)); echo $n; echo $n > /tmp/n; sleep 0.1; done
"""


def criu_says() -> str:
    """Return what stands against criu on this host; nothing where it works."""
    if shutil.which("criu", path=f"{os.environ.get('PATH')}:/usr/sbin") is None:
        return "criu is not installed"
    done = subprocess.run(["criu", "check"], capture_output=True, text=True, timeout=60, check=False)
    return done.stderr.strip() if done.returncode else ""


CRIU = criu_says()
works = pytest.mark.skipif(bool(CRIU), reason=f"criu can't work here: {CRIU[-300:]}")
works_not = pytest.mark.skipif(not CRIU, reason="criu works here, so nothing is refused")
HANDLER = "runc-host-overlay"


def crun_version() -> str:
    """Return what crun says of itself, with what it was built of."""
    return subprocess.run(["crun", "--version"], capture_output=True, text=True, check=True).stdout


def counting(node: Node, pod: str, name: str = "app", **config: Any) -> str:
    """Start a container that counts in memory, and wait until it does."""
    container = node.run_container(pod, "sh", "-c", COUNTER, name=name, **config)
    until(lambda: count(node, container) > 3, 60)
    return container


def count(node: Node, container: str) -> int:
    """Return the last number that a container has written whole."""
    lines = node.log(container).split("\n")[:-1]
    return int(lines[-1]) if lines else 0


def checkpoint(node: Node, container: str, directory: Path, **more: Any) -> Path:
    """Write the archive of a container."""
    location = directory / "checkpoint.tar"
    node.call("CheckpointContainer", container_id=container, location=str(location), **more)
    return location


def left(directory: Path) -> list[str]:
    """Name all in a directory."""
    return sorted(os.listdir(directory))


def is_frozen(container: str) -> bool:
    """Return whether any cgroup of a container is frozen."""
    found = subprocess.run(
        ["find", "/sys/fs/cgroup", "-maxdepth", "6", "-type", "d", "-name", f"*{container}*"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    states = []
    for directory in found.stdout.split():
        for name, word in (("freezer.state", "FROZEN"), ("cgroup.freeze", "1")):
            file = Path(directory, name)
            states.append(file.exists() and file.read_text().strip() == word)
    assert states
    return any(states)


@works_not
def test_a_host_without_criu_says_why(node: Node, tmp_path: Path) -> None:
    pod = node.run_pod(handler=HANDLER)
    container = counting(node, pod)
    output = tmp_path / "pod"
    output.mkdir()
    words = CRIU.splitlines()[0][:40].replace("(", "").split(":")[-1].strip()
    with refused("FAILED_PRECONDITION", f"criu (can't work|is not there)[^$]*{words[:20]}"):
        checkpoint(node, container, tmp_path)
    with refused("FAILED_PRECONDITION", "criu"):
        node.call("CheckpointPod", pod_sandbox_id=pod, output_path=str(output), container_ids=[container])
    assert left(tmp_path) == ["pod"]
    assert left(output) == []
    assert not is_frozen(container)
    archive = tmp_path / "some.tar"
    with tarfile.open(archive, "w"):
        pass
    with refused("FAILED_PRECONDITION", "criu"):
        node.create(pod, name="restored", image=str(archive))


def test_requests_that_make_no_sense(node: Node, tmp_path: Path) -> None:
    pod, other = node.run_pod(handler=HANDLER), node.run_pod("other", handler=HANDLER)
    running, created = node.run_container(pod, "sleep", "1000"), node.create(pod, "true", name="created")
    foreign = node.run_container(other, "sleep", "1000")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("full/file")
    location = str(tmp_path / "x.tar")
    for code, words, container, place in (
        ("NOT_FOUND", "no id", "0" * 64, location),
        ("FAILED_PRECONDITION", "created", created, location),
        ("INVALID_ARGUMENT", "location", running, "relative.tar"),
        ("INVALID_ARGUMENT", "location", running, ""),
        ("INVALID_ARGUMENT", "no directory", running, str(tmp_path / "absent/x.tar")),
        ("INVALID_ARGUMENT", "no plain file", running, str(tmp_path / "empty")),
        ("INVALID_ARGUMENT", "no plain file", running, str(tmp_path / "link")),
    ):
        with refused(code, words):
            node.call("CheckpointContainer", container_id=container, location=place)
    with refused("INVALID_ARGUMENT", "timeout"):
        node.call("CheckpointContainer", container_id=running, location=location, timeout=-1)
    empty = str(tmp_path / "empty")
    for code, words, containers, place, options in (
        ("INVALID_ARGUMENT", "container_ids is empty", [], empty, {}),
        ("INVALID_ARGUMENT", "twice", [running, running], empty, {}),
        ("INVALID_ARGUMENT", "not one of pod", [foreign], empty, {}),
        ("FAILED_PRECONDITION", "created", [running, created], empty, {}),
        ("INVALID_ARGUMENT", "not empty", [running], str(tmp_path / "full"), {}),
        ("INVALID_ARGUMENT", "no directory", [running], str(tmp_path / "absent"), {}),
        ("INVALID_ARGUMENT", "absolute", [running], "empty", {}),
        ("FAILED_PRECONDITION", "options: lazy", [running], empty, {"lazy": "yes"}),
    ):
        with refused(code, words):
            node.call("CheckpointPod", pod_sandbox_id=pod, output_path=place, container_ids=containers, options=options)
    assert left(tmp_path) == ["empty", "full", "link"]
    assert left(tmp_path / "empty") == []


def test_what_is_no_checkpoint_of_a_pod_is_refused(node: Node, tmp_path: Path) -> None:
    config = pod_config("restored")
    app = container_config("app", BUSYBOX, "sleep", "1")
    empty, damaged = tmp_path / "empty", tmp_path / "damaged"
    empty.mkdir()
    damaged.mkdir()
    (damaged / "pod.options").write_text('{"version": 1, "containers": {"app": "../../etc/app"}}')
    (damaged / "pod.dump").write_text('{"runtimeDriver": "runc"}')
    for code, words, path, containers, more in (
        ("INVALID_ARGUMENT", "pod.options", empty, [app], {}),
        ("INVALID_ARGUMENT", "absolute path", tmp_path / "absent", [app], {}),
        ("DATA_LOSS", "etc/app", damaged, [app], {}),
        ("INVALID_ARGUMENT", "not in the configuration", damaged, [app], {"runtime_handler": "nobody"}),
        ("FAILED_PRECONDITION", "options: tcp", damaged, [app], {"options": {"tcp": "1"}}),
    ):
        with refused(code, words):
            node.call("RestorePod", checkpoint_path=str(path), config=config, container_configs=containers, **more)
    assert node.call("ListPodSandbox")["items"] == []


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    """A runtime that can write checkpoints."""
    if request.param == "crun" and "+CRIU" not in crun_version():
        pytest.skip("this crun has no criu in it; that it is refused is tested")
    return str(request.param)


@works
@pytest.mark.parametrize("snapshotter", SNAPSHOTTERS)
def test_a_counter_goes_on(node: Node, tmp_path: Path, runtime: str, snapshotter: str) -> None:
    handler = f"{runtime}-host-{snapshotter}"
    pod = node.run_pod(handler=handler)
    container = counting(node, pod)
    location = checkpoint(node, container, tmp_path)
    assert left(tmp_path) == ["checkpoint.tar"]
    assert location.stat().st_mode & 0o777 == 0o600
    then = count(node, container)
    until(lambda: count(node, container) > then + 3, 30)
    assert not is_frozen(container)
    check_archive(location, container, runtime)
    node.call("RemovePodSandbox", pod_sandbox_id=pod)

    pod = node.run_pod("second", handler=handler)
    restored = node.create(pod, name="restored", image=str(location))
    assert node.status(restored)["state"] == "CONTAINER_CREATED"
    node.call("StartContainer", container_id=restored)
    until(lambda: count(node, restored) > then + 3, 60)
    assert len(node.daemon.cgroup_processes(pod)) >= 2, "shell and sleep are in the new pod's cgroup"
    first = int(node.log(restored).split("\n")[0])
    assert 3 < first <= then + 5
    assert node.execute(restored, "cat", "/kept", "/new/linked")[:2] == (0, "kept\nkept\n")
    assert node.execute(restored, "test", "-e", "/etc/group")[0] == 1
    assert node.execute(restored, "test", "-d", "/moved/alice")[0] == 0
    assert node.execute(restored, "test", "-e", "/home")[0] == 1
    node.call("StopContainer", container_id=restored, timeout=0)
    assert node.wait_exit(restored)["exit_code"] == 137


@works
def test_a_container_with_a_terminal_goes_on(node: Node, tmp_path: Path, runtime: str) -> None:
    pod = node.run_pod(handler=f"{runtime}-host-overlay")
    script = f"stty rows 11 cols 22; test -t 1 && {COUNTER.strip()}"
    container = node.run_container(pod, "sh", "-c", script, tty=True, stdin=True)
    until(lambda: count(node, container) > 3, 60)
    location = checkpoint(node, container, tmp_path)
    then = count(node, container)
    until(lambda: count(node, container) > then + 3, 30)
    node.call("RemoveContainer", container_id=container)
    restored = node.create(pod, name="restored", image=str(location), tty=True, stdin=True)
    node.call("StartContainer", container_id=restored)
    until(lambda: count(node, restored) > then + 3, 60)
    assert node.execute(restored, "sh", "-c", "stty size < /proc/1/fd/1")[:2] == (0, "11 22\n")


@works
def test_containers_that_share_processes_go_on(node: Node, tmp_path: Path, runtime: str) -> None:
    shared = {"security_context": {"namespace_options": {"pid": "POD"}}}
    handler = f"{runtime}-host-overlay"
    pod = node.run_pod(handler=handler, linux=shared)
    container = counting(node, pod, linux=shared)
    location = checkpoint(node, container, tmp_path)
    then = count(node, container)
    until(lambda: count(node, container) > then + 3, 30)
    node.call("RemovePodSandbox", pod_sandbox_id=pod)
    pod = node.run_pod("second", handler=handler, linux=shared)
    restored = node.create(pod, name="restored", image=str(location), linux=shared)
    node.call("StartContainer", container_id=restored)
    until(lambda: count(node, restored) > then + 3, 60)
    assert node.execute(restored, "cat", "/proc/1/comm")[1] != "sh\n", "the pod's init is the first process"


def test_a_crun_without_criu_says_so(node: Node, tmp_path: Path) -> None:
    """As Debian's is."""
    if "+CRIU" in crun_version():
        pytest.skip("this crun has criu in it")
    container = counting(node, node.run_pod(handler="crun-host-overlay"))
    with refused("FAILED_PRECONDITION", r"crun was built without criu \(crun --version names no \+CRIU\): use runc"):
        checkpoint(node, container, tmp_path)
    assert left(tmp_path) == []
    assert not is_frozen(container)


def check_archive(location: Path, container: str, runtime: str) -> None:
    """The form that checkpointctl reads."""
    with tarfile.open(location) as archive:
        names = archive.getnames()
        assert {"config.dump", "spec.dump", "rootfs-diff.tar", "deleted.files", "bind.mounts"} <= set(names)
        assert {"stats-dump", "dump.log", "checkpoint", "checkpoint/inventory.img", "checkpoint/pstree.img"} <= set(
            names
        )

        def read(name: str) -> Any:
            content = archive.extractfile(name)
            assert content is not None
            return json.load(content)

        config, spec = read("config.dump"), read("spec.dump")
        assert (config["id"], config["name"], config["runtime"]) == (container, "app", runtime)
        assert config["rootfsImageName"].startswith(BUSYBOX)
        assert spec["process"]["args"][0] == "sh"
        assert "/etc/group" in read("deleted.files")
        assert "/etc/hosts" in {mount["destination"] for mount in read("bind.mounts")}
        diff = archive.extractfile("rootfs-diff.tar")
        with tarfile.open(fileobj=diff) as changes:
            assert {"kept", "new", "new/linked", "moved", "tmp/n"} <= set(changes.getnames())


@works
def test_a_checkpoint_as_an_image(node: Node, tmp_path: Path) -> None:
    pod = node.run_pod(handler=HANDLER)
    container = counting(node, pod)
    location = checkpoint(node, container, tmp_path)
    then = count(node, container)
    name = "docker.io/test/checkpoint:1"
    build_checkpoint_image(node.layouts / "checkpoint", name, location)
    node.pull(name)
    restored = node.create(pod, name="restored", image=name)
    node.call("StartContainer", container_id=restored)
    until(lambda: count(node, restored) > then + 2, 60)
    node.call("RemoveContainer", container_id=restored)
    unborn = node.create(pod, name="unborn", image=name)
    node.daemon.restart()
    assert node.status(unborn)["state"] == "CONTAINER_CREATED"
    node.call("StopContainer", container_id=unborn, timeout=0)
    assert node.status(unborn)["state"] == "CONTAINER_EXITED"
    node.call("RemoveImage", image={"image": name})


def build_checkpoint_image(layout: Path, name: str, location: Path) -> None:
    """Build what ``buildah`` makes of ``FROM scratch``, ``ADD checkpoint.tar /`` and an annotation."""
    built = build_image(layout, name, [location.read_bytes()])
    path = layout / "blobs" / built.manifest.digest.replace(":", "/")
    document = json.loads(path.read_text()) | {"annotations": {"org.criu.checkpoint.container.name": "app"}}
    name_manifest(layout, name, add_json(layout, built.manifest.media_type, document))


@works
def test_a_pod_goes_on(node: Node, tmp_path: Path) -> None:
    pod = node.run_pod(handler=HANDLER)
    containers = [counting(node, pod, name) for name in ("one", "two")]
    output = tmp_path / "pod"
    output.mkdir()
    node.call("CheckpointPod", pod_sandbox_id=pod, output_path=str(output), container_ids=containers)
    then = [count(node, container) for container in containers]
    assert left(output) == ["one-0.tar", "pod.dump", "pod.options", "two-1.tar"]
    for container, number in zip(containers, then, strict=True):
        until(lambda container=container, number=number: count(node, container) > number, 30)  # type: ignore[misc]
    node.call("RemovePodSandbox", pod_sandbox_id=pod)

    config = pod_config("again", log_directory=str(tmp_path / "logs"))
    wanted = [container_config(name, BUSYBOX, "sh", "-c", COUNTER) for name in ("one", "two")]
    with refused("INVALID_ARGUMENT", "one, two"):
        node.call(
            "RestorePod", checkpoint_path=str(output), config=config, runtime_handler=HANDLER,
            container_configs=wanted[:1],
        )  # fmt: skip
    other = [wanted[0], container_config("two", BUSYBOX, "sleep", "1000")]
    with refused("INVALID_ARGUMENT", "args"):
        node.call(
            "RestorePod", checkpoint_path=str(output), config=config, runtime_handler=HANDLER, container_configs=other
        )
    assert node.call("ListPodSandbox")["items"] == []
    assert node.daemon.query("SELECT owner, kind, key FROM ledger") == []
    answer = node.call(
        "RestorePod", checkpoint_path=str(output), config=config, runtime_handler=HANDLER, container_configs=wanted
    )
    made = {one["name"]: one["container_id"] for one in answer["restored_containers"]}
    assert set(made) == {"one", "two"}
    for name, number in zip(("one", "two"), then, strict=True):
        assert node.status(made[name])["state"] == "CONTAINER_CREATED"
        node.call("StartContainer", container_id=made[name])
        until(lambda name=name, number=number: count(node, made[name]) > number + 2, 60)  # type: ignore[misc]


@works
def test_a_checkpoint_that_takes_too_long_leaves_nothing(node: Node, tmp_path: Path) -> None:
    pod = node.run_pod(handler=HANDLER)
    count_up = "n=0; while true; do n=$((n+1)); echo $n; sleep 0.1; done"
    fill = f"dd if=/dev/urandom of=/tmp/big bs=1M count=400 2>/dev/null; {count_up}"
    container = node.run_container(pod, "sh", "-c", fill)
    until(lambda: count(node, container) > 3, 120)
    started = time.monotonic()
    with refused("DEADLINE_EXCEEDED", "given up after 1 s"):
        checkpoint(node, container, tmp_path, timeout=1)
    assert time.monotonic() - started < patient(20)
    assert left(tmp_path) == []
    then = count(node, container)
    until(lambda: count(node, container) > then + 2, 30)
    assert [row for row in node.daemon.query("SELECT owner FROM ledger") if row[0].startswith("checkpoint")] == []
