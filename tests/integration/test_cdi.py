"""CDI devices in real containers of both runtimes: named in the request or in annotations, found inside."""

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from integration.conftest import RUNTIMES, Node
from integration.own_nodes import own_node
from integration.pods import Pod, refused

GPU = "acme.com/gpu"


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two directories of CDI files, ``etc`` and ``run``, of which the latter wins."""
    return tmp_path_factory.mktemp("cdi")


@pytest.fixture(scope="module")
def cdi_node(tmp_path_factory: pytest.TempPathFactory, directories: Path) -> Iterator[Node]:
    config = f"[pods]\ncdi_spec_dirs = ['{directories}/etc', '{directories}/run']\n"
    with own_node(tmp_path_factory.mktemp("node"), config) as node:
        yield node


@pytest.fixture(params=RUNTIMES)
def pod(cdi_node: Node, directories: Path, request: pytest.FixtureRequest) -> Iterator[Pod]:
    """A pod of each runtime; no CDI file is left over from another test."""
    for file in directories.rglob("*.*"):
        file.unlink()
    yield Pod(cdi_node, cdi_node.run_pod(handler=request.param))
    cdi_node.remove_pods()
    assert cdi_node.daemon.query("SELECT owner, kind, key FROM ledger") == []


def describe(path: Path, name: str, edits: dict[str, Any], **more: Any) -> None:
    """Write a CDI file with one device."""
    path.parent.mkdir(exist_ok=True)
    devices = [{"name": name, "containerEdits": edits}]
    path.write_text(json.dumps({"cdiVersion": "0.7.0", "kind": GPU, "devices": devices} | more, indent=1))


def test_a_device_with_all_its_edits(pod: Pod, directories: Path, tmp_path: Path) -> None:
    (tmp_path / "library").write_text("from the host")
    marker = tmp_path / "hooked"
    edits = {
        "env": ["GPU=one"],
        "deviceNodes": [
            {"path": "/dev/gpu0", "hostPath": "/dev/zero", "permissions": "r", "fileMode": 0o640, "gid": 5}
        ],
        "mounts": [{"hostPath": str(tmp_path), "containerPath": "/opt/gpu", "options": ["ro", "bind"]}],
        "hooks": [{"hookName": "createRuntime", "path": "/bin/touch", "args": ["touch", str(marker)]}],
        "additionalGids": [4242],
    }
    describe(directories / "etc" / "acme.json", "one", edits, containerEdits={"env": ["VENDOR=acme"]})
    script = """
        echo $VENDOR $GPU; id -G; cat /opt/gpu/library; echo
        stat -c '%F %t:%T %a %u:%g' /dev/gpu0
        head -c 2 /dev/gpu0 | od -An -tx1
        touch /opt/gpu/x 2>/dev/null || echo read-only
    """
    found = pod.sh(script, CDI_devices=[{"name": f"{GPU}=one"}]).splitlines()
    assert found[0] == "acme one"
    assert "4242" in found[1].split()
    assert found[2:5] == ["from the host", "character special file 1:5 640 0:5", " 00 00"]
    assert found[5:] == ["read-only"]
    assert marker.exists()
    (container,) = pod.node.call("ListContainers", filter={"pod_sandbox_id": pod.id})["containers"]
    verbose = pod.node.call("ContainerStatus", container_id=container["id"], verbose=True)
    rules = json.loads(verbose["info"]["info"])["runtimeSpec"]["linux"]["resources"]["devices"]
    assert {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "r"} in rules


def test_a_device_that_may_not_be_opened(pod: Pod, directories: Path) -> None:
    node = {"path": "/dev/shut", "hostPath": "/dev/kmsg", "permissions": "none"}
    describe(directories / "etc" / "acme.json", "one", {"deviceNodes": [node]})
    script = "stat -c %F /dev/shut; head -c 1 /dev/shut 2>/dev/null || echo shut"
    wanted = [{"name": f"{GPU}=one"}]
    assert pod.sh(script, CDI_devices=wanted).splitlines() == ["character special file", "shut"]


def test_annotations_name_devices_and_an_exec_sees_them(pod: Pod, directories: Path) -> None:
    (directories / "etc").mkdir(exist_ok=True)
    (directories / "etc" / "acme.yaml").write_text(
        f"cdiVersion: '1.0.0'\nkind: {GPU}\ndevices:\n"
        "- {name: one, containerEdits: {env: [ONE=1]}}\n- {name: two, containerEdits: {env: [TWO=2]}}\n"
    )
    annotations = {"cdi.k8s.io/plugin_a": f"{GPU}=one,{GPU}=two", "cdi.k8s.io/plugin_b": f"{GPU}=two"}
    container = pod.start("sleep", "100", annotations=annotations)
    code, out, _ = pod.node.execute(container, "sh", "-c", "echo $ONE$TWO")
    assert (code, out) == (0, "12\n")


def test_a_device_described_a_moment_ago_and_described_anew(pod: Pod, directories: Path) -> None:
    wanted = {"CDI_devices": [{"name": f"{GPU}=one"}]}
    with refused("NOT_FOUND", f"CDI device {GPU}=one is in no file of {directories}/etc, {directories}/run"):
        pod.create("true", **wanted)
    for value in ("first", "later"):
        describe(directories / "etc" / "acme.json", "one", {"env": [f"GPU={value}"]})
        assert pod.sh("echo $GPU", **wanted) == f"{value}\n"
    describe(directories / "run" / "acme.json", "one", {"env": ["GPU=run"]})
    assert pod.sh("echo $GPU", **wanted) == "run\n"
    describe(directories / "run" / "other.json", "one", {"env": ["GPU=other"]})
    with refused("FAILED_PRECONDITION", "described twice, at .*/run/acme.json:5 and .*/run/other.json:5"):
        pod.create("true", **wanted)


def test_refusals_name_the_file_and_the_line_and_leave_nothing(pod: Pod, directories: Path) -> None:
    wanted = {"CDI_devices": [{"name": f"{GPU}=one"}]}
    describe(directories / "etc" / "acme.json", "one", {"deviceNodes": [{"path": "/dev/none-such"}]})
    with refused("NOT_FOUND", r"/etc/acme\.json:9: device /dev/none-such can't be looked at"):
        pod.create("true", **wanted)
    (directories / "etc" / "acme.json").write_text('{\n "cdiVersion": "0.6.0",\n "kind": 7\n}')
    with refused("NOT_FOUND", r"files that can't be used: .*/etc/acme\.json:3: kind: "):
        pod.create("true", **wanted)
    with refused("INVALID_ARGUMENT", "annotation cdi.k8s.io/x: 'gpu0' is no CDI device"):
        pod.create("true", annotations={"cdi.k8s.io/x": "gpu0"})
    owners = {owner for (owner,) in pod.node.daemon.query("SELECT DISTINCT owner FROM ledger")}
    assert owners == {pod.id}


def test_a_privileged_container_takes_devices_too(pod: Pod, directories: Path) -> None:
    describe(
        directories / "etc" / "acme.json", "one", {"deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/null"}]}
    )
    security = {"privileged": True, "namespace_options": {"pid": "CONTAINER"}}
    numbers = pod.sh(
        "stat -c '%t:%T' /dev/gpu0",
        CDI_devices=[{"name": f"{GPU}=one"}],
        linux={"security_context": security},
    )
    null = os.stat("/dev/null")
    assert stat.S_ISCHR(null.st_mode)
    assert numbers == f"{os.major(null.st_rdev):x}:{os.minor(null.st_rdev):x}\n"


def test_a_device_in_a_user_namespace(cdi_node: Node, directories: Path, tmp_path: Path, pod: Pod) -> None:
    """Nobody may make nodes there, so what the host has is bound; ``pod`` only chooses the runtime."""
    (tmp_path / "library").write_text("from the host")
    for path in (tmp_path, *tmp_path.parents):
        if path.stat().st_mode & 0o1 == 0:
            path.chmod(path.stat().st_mode | 0o1)  # the root inside is nobody outside
    edits = {
        "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/zero"}],
        "mounts": [{"hostPath": str(tmp_path), "containerPath": "/opt/gpu", "options": ["ro", "bind"]}],
        "env": ["GPU=one"],
    }
    describe(directories / "etc" / "acme.json", "one", edits)
    ids = [{"host_id": 300_000, "container_id": 0, "length": 65_536}]
    options = {"pid": "CONTAINER", "network": "NODE", "userns_options": {"mode": "POD", "uids": ids, "gids": ids}}
    handler = cdi_node.call("PodSandboxStatus", pod_sandbox_id=pod.id)["status"]["runtime_handler"]
    linux = {"security_context": {"namespace_options": options}}
    mapped = Pod(cdi_node, cdi_node.run_pod("mapped", handler, linux=linux))
    script = "echo $GPU; cat /opt/gpu/library; echo; head -c 2 /dev/gpu0 | od -An -tx1; cut -c1-30 /proc/self/uid_map"
    found = mapped.sh(script, CDI_devices=[{"name": f"{GPU}=one"}], linux=linux).splitlines()
    assert found[:3] == ["one", "from the host", " 00 00"]
    assert "300000" in found[3]
    describe(directories / "etc" / "acme.json", "one", {"env": ["GPU=one"], "additionalGids": [44, 65_536]})
    with refused("INVALID_ARGUMENT", r"/etc/acme\.json:13: group 65536 is not mapped in the pod's user namespace"):
        mapped.create("true", CDI_devices=[{"name": f"{GPU}=one"}], linux=linux)
