"""CDI: names, files with their faults, directories that change, and what ends up in the specification."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import FailedPrecondition, InvalidArgument, NotFound, Unsupported
from crinoid.core.api.values.container import ContainerConfig, ContainerMetadata
from crinoid.core.lifecycle.cdi import CdiDevices, requested_devices
from crinoid.core.lifecycle.cdi.cdi_files import VERSIONS, BrokenFile, read_document
from crinoid.core.lifecycle.cdi.located import Malformed, read_yaml
from crinoid.core.lifecycle.cdi.spec_directories import Directories

Json = dict[str, Any]


def wants(*names: str, **annotations: str) -> ContainerConfig:
    """A container that asks for devices; annotations by the part of their key after the prefix."""
    keys = {f"cdi.k8s.io/{name}": value for name, value in annotations.items()}
    return ContainerConfig(metadata=ContainerMetadata("app"), cdi_devices=names, annotations=keys | {"other": "x"})


def a_spec() -> Json:
    return {
        "process": {"env": ["PATH=/bin", "A=1"], "user": {"uid": 7, "gid": 0, "additionalGids": [8]}},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc", "options": []}],
        "linux": {"devices": [{"path": "/dev/gpu", "type": "c"}], "resources": {"devices": []}},
    }


def a_file(*devices: Json, version: str = "1.0.0", kind: str = "acme.com/gpu", **parts: Any) -> Json:
    return {"cdiVersion": version, "kind": kind, "devices": list(devices)} | parts


def device(name: str = "one", **edits: Any) -> Json:
    return {"name": name, "containerEdits": edits or {"env": ["X=1"]}}


def write(path: Path, content: Json | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=1))
    return path


def injected(tmp_path: Path, content: Json, *names: str) -> Json:
    write(tmp_path / "acme.json", content)
    spec = a_spec()
    CdiDevices([tmp_path]).add(spec, wants(*(names or ("acme.com/gpu=one",))))
    return spec


def test_names_come_from_the_field_and_from_annotations_once_each() -> None:
    asked = wants("a.b/c=d", "a.b/c=9:0", z="a.b/c=d,a.b/c=e", b="a.b/c=f")
    assert requested_devices(asked) == ("a.b/c=d", "a.b/c=9:0", "a.b/c=f", "a.b/c=e")


@pytest.mark.parametrize("name", ["", "gpu", "acme.com/gpu", "acme.com/gpu=", "/gpu=x", "1a/b=c", "a/b=c d", "a/b=c-"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match=f"'app': CDI_devices: {re.escape(repr(name))}"):
        requested_devices(wants(name))
    with pytest.raises(InvalidArgument, match=r"annotation cdi\.k8s\.io/plug: "):
        requested_devices(wants(plug=f"a.b/c=d,{name}"))


def test_edits_of_the_file_come_once_and_before_those_of_each_device(tmp_path: Path) -> None:
    content = a_file(
        device("one", env=["B=one", "C=one"]),
        device("two", env=["C=two"]),
        device("three", env=["D=three"]),
        containerEdits={"env": ["A=file", "B=file"], "additionalGids": [0, 8, 44]},
    )
    spec = injected(tmp_path, content, "acme.com/gpu=one", "acme.com/gpu=two")
    assert spec["process"]["env"] == ["PATH=/bin", "A=file", "B=one", "C=two"]
    assert spec["process"]["user"]["additionalGids"] == [8, 44]


def test_a_node_that_the_host_completes(tmp_path: Path) -> None:
    nodes = [{"path": "/dev/gpu", "hostPath": "/dev/null", "permissions": "rw", "gid": 0}, {"path": "/dev/zero"}]
    linux = injected(tmp_path, a_file(device(deviceNodes=nodes)))["linux"]
    mode = os.stat("/dev/null").st_mode & 0o7777
    gpu = {"path": "/dev/gpu", "type": "c", "major": 1, "minor": 3, "fileMode": mode, "uid": 7, "gid": 0}
    assert linux["devices"][0] == gpu
    assert (linux["devices"][1]["path"], linux["devices"][1]["minor"], len(linux["devices"])) == ("/dev/zero", 5, 2)
    assert linux["resources"]["devices"] == [
        {"allow": True, "type": "c", "major": 1, "minor": 3, "access": "rw"},
        {"allow": True, "type": "c", "major": 1, "minor": 5, "access": "rwm"},
    ]


def test_a_node_that_the_file_describes_whole(tmp_path: Path) -> None:
    nodes = [
        {"path": "/dev/x", "type": "b", "major": 240, "minor": 1, "fileMode": 0o600, "uid": 3, "permissions": "none"},
        {"path": "/dev/pipe", "type": "p"},
    ]
    linux = injected(tmp_path, a_file(device(deviceNodes=nodes)))["linux"]
    assert linux["devices"][1:] == [
        {"path": "/dev/x", "type": "b", "major": 240, "minor": 1, "fileMode": 0o600, "uid": 3},
        {"path": "/dev/pipe", "type": "p", "uid": 7},
    ]
    assert linux["resources"]["devices"] == []


def test_mounts_hooks_and_rdt(tmp_path: Path) -> None:
    here = str(tmp_path)
    spec = injected(
        tmp_path,
        a_file(
            device(
                mounts=[
                    {"hostPath": here, "containerPath": "/a/b", "options": ["ro", "bind"]},
                    {"hostPath": here, "containerPath": "/proc"},
                    {"hostPath": "tmpfs", "containerPath": "/t", "type": "tmpfs", "options": ["size=1m"]},
                ],
                hooks=[{"hookName": "createContainer", "path": "/bin/true", "args": ["true", "x"], "timeout": 3}],
                intelRdt={"closID": "gold", "l3CacheSchema": "L3:0=f", "enableCMT": True},
            )
        ),
    )
    assert spec["mounts"] == [
        {"destination": "/proc", "type": "bind", "source": here, "options": ["rbind"]},
        {"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m"]},
        {"destination": "/a/b", "type": "bind", "source": here, "options": ["ro", "bind"]},
    ]
    assert spec["hooks"] == {"createContainer": [{"path": "/bin/true", "args": ["true", "x"], "timeout": 3}]}
    assert spec["linux"]["intelRdt"] == {"closID": "gold", "l3CacheSchema": "L3:0=f", "enableCMT": True}


@pytest.mark.parametrize(
    ("edits", "error", "words", "line"),
    [
        ({"deviceNodes": [{"path": "/dev/none-such"}]}, NotFound, "device /dev/none-such can't be looked at", 9),
        ({"deviceNodes": [{"path": "/etc/passwd"}]}, FailedPrecondition, "is no device node", 9),
        ({"deviceNodes": [{"path": "/dev/null", "type": "b"}]}, FailedPrecondition, "of type 'c', and", 9),
        ({"mounts": [{"hostPath": "/none", "containerPath": "/x"}]}, NotFound, "/none, to be mounted on /x", 9),
        ({"hooks": [{"hookName": "poststop", "path": "/none"}]}, NotFound, "poststop hook /none", 9),
        ({"netDevices": [{"hostInterfaceName": "a", "name": "b"}]}, Unsupported, "interfaces", 8),
    ],
)
def test_what_is_not_on_the_host_is_named_with_its_line(
    tmp_path: Path, edits: Json, error: type[Exception], words: str, line: int
) -> None:
    with pytest.raises(error, match=f"acme.json:{line}: .*{words}"):
        injected(tmp_path, a_file(device(**edits), version="1.1.0"))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{\n"cdiVersion": "1.0.0",\n"kind": }', r":3: Expecting value"),
        ('{"kind": "a/b",\n"kind": "a/c"}', r":2: key 'kind' comes twice"),
        ("[]", r":1: the file: Input should be a valid dictionary"),
        ('{"cdiVersion": "1.0.0", "kind": "a/b",\n\t"devices": []}', r":2: devices: List should have at least 1"),
        (a_file(device(), kind="acme"), r":3: kind: "),
        (a_file(device(), version="2.0.0"), r":2: cdiVersion '2.0.0' is none of 0.3.0"),
        (a_file(device("-x")), r":6: devices.0.name: "),
        (a_file(device(), device()), r":14: device 'one' comes twice"),
        (a_file({"name": "one", "containerEdits": {}}), r":5: device 'one' edits nothing"),
        (a_file(device(colour=["red"])), r":8: devices.0.containerEdits.colour: Extra inputs"),
        (a_file(device(env=["X=1", "=2"])), r":10: devices.0.containerEdits.env.1: must be NAME=VALUE"),
        (a_file(device(deviceNodes=[{"path": "dev/x"}])), r":10: .*path: must be an absolute path"),
        (a_file(device(deviceNodes=[{"path": "/"}])), r":10: .*path: must be a path below /"),
        (a_file(device(deviceNodes=[{"path": "/x", "permissions": "rx"}])), r":11: .*permissions: "),
        (a_file(device(deviceNodes=[{"path": "/x", "major": "1"}])), r":11: .*major: .*valid integer"),
        (a_file(device(hooks=[{"hookName": "later", "path": "/x"}])), r":10: .*hookName: "),
        (a_file(device(intelRdt={"closID": ".."})), r":9: .*closID: must be the name"),
        (a_file(device(), containerEdits={"additionalGids": [-1]}), r":16: containerEdits.additionalGids.0: "),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path: Path, text: Json | str, words: str) -> None:
    path = write(tmp_path / "bad.json", text)
    with pytest.raises(BrokenFile, match="^" + re.escape(str(path)) + words):
        read_document(path)


@pytest.mark.parametrize(
    ("old", "new", "content"),
    [
        ("0.3.0", "0.4.0", a_file(device(mounts=[{"hostPath": "/", "containerPath": "/x", "type": "none"}]))),
        ("0.4.0", "0.5.0", a_file(device(deviceNodes=[{"path": "/x", "hostPath": "/y"}]))),
        ("0.4.0", "0.5.0", a_file(device("0"))),
        ("0.5.0", "0.6.0", a_file(device(), kind="a.b/c.d")),
        ("0.5.0", "0.6.0", a_file(device(), annotations={"a": "b"})),
        ("0.5.0", "0.6.0", a_file(device() | {"annotations": {"a": "b"}})),
        ("0.6.0", "0.7.0", a_file(device(additionalGids=[1]))),
        ("0.6.0", "0.7.0", a_file(device(intelRdt={"closID": "x"}))),
        ("1.0.0", "1.1.0", a_file(device(intelRdt={"schemata": ["L3:0=f"]}))),
    ],
)
def test_what_a_version_does_not_know_is_refused(tmp_path: Path, old: str, new: str, content: Json) -> None:
    path = write(tmp_path / "x.json", content | {"cdiVersion": old})
    with pytest.raises(BrokenFile, match=rf"x.json:\d+: .* needs cdiVersion {new}, and the file says {old}"):
        read_document(path)
    write(path, content | {"cdiVersion": f"v{new}"})
    assert read_document(path).spec.devices


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_is_read(tmp_path: Path, version: str) -> None:
    edits: dict[str, Any] = {
        "env": ["A=1"],
        "deviceNodes": [{"path": "/dev/null", "type": "c", "permissions": "r", "uid": 0}],
    }
    hooks = [{"hookName": "poststop", "path": "/bin/true", "args": ["x"], "env": ["B=1"], "timeout": 1}]
    mounts = [{"hostPath": "/", "containerPath": "/x", "options": ["rbind", "ro"]}]
    for prefix in ("", "v"):
        content = a_file(device(**edits, hooks=hooks, mounts=mounts), version=prefix + version, containerEdits=edits)
        assert read_document(write(tmp_path / "x.json", content)).spec.devices[0].containerEdits.mounts


def test_keys_count_in_any_case_and_keep_their_lines(tmp_path: Path) -> None:
    """The specification's own example has ``additionalGIDs``."""
    spec = injected(tmp_path, a_file(device(additionalGIDs=[44], ENV=["X=1"])))
    assert (spec["process"]["user"]["additionalGids"], spec["process"]["env"][-1]) == ([8, 44], "X=1")
    path = write(tmp_path / "bad.json", a_file(device(additionalGIDs=[44], mounts=[{"HostPath": 1}])))
    with pytest.raises(BrokenFile, match=r"bad\.json:13: devices\.0\.containerEdits\.mounts\.0\.hostPath: "):
        read_document(path)
    write(path, a_file(device(env=["X=1"], Env=["X=2"])))
    with pytest.raises(BrokenFile, match=r"bad\.json:7: .*: key 'Env' comes twice, in another case"):
        read_document(path)


YAML = """\
# a vendor's file
cdiVersion: 0.5.0
kind: acme.com/gpu
containerEdits: null
devices:
  - name: one
    containerEdits:
      deviceNodes:
        - {path: /dev/null, fileMode: 0666}
"""


def test_yaml_is_read_as_well(tmp_path: Path) -> None:
    path = write(tmp_path / "a.yaml", YAML)
    spec = a_spec()
    CdiDevices([tmp_path]).add(spec, wants("acme.com/gpu=one"))
    assert spec["linux"]["devices"][-1]["fileMode"] == 0o666
    write(path, YAML.replace("0666", "[")[:-1])
    with pytest.raises(BrokenFile, match=r"a.yaml:\d+: "):
        read_document(path)
    write(path, YAML.replace("/dev/null", "null"))
    with pytest.raises(BrokenFile, match=r"a.yaml:9: devices.0.containerEdits.deviceNodes.0.path: Field required"):
        read_document(path)


@pytest.mark.parametrize("text", ["a: &x [*x]", "a: 2001-99-99", "? [a]\n: b", "a: b: c", "\0", "a: 1\n---\nb: 2"])
def test_strange_yaml_is_refused_or_read_but_never_worse(text: str) -> None:
    try:
        read_yaml(text)
    except Malformed as error:
        assert error.line >= 1


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(b'{\n"kind": "\xff"}')
    with pytest.raises(BrokenFile, match=r"x\.json:2: it is not UTF-8"):
        read_document(path)


def test_later_directories_win_and_one_directory_may_not_contradict_itself(tmp_path: Path) -> None:
    low, high = tmp_path / "low", tmp_path / "high"
    devices = CdiDevices([low, high])
    write(low / "a.json", a_file(device(env=["X=low"])))
    write(low / "b.json", a_file(device(env=["X=other"]), device("two")))
    with pytest.raises(FailedPrecondition, match=r"one is described twice, at .*low/a\.json:5 and .*low/b\.json:5"):
        devices.add(a_spec(), wants("acme.com/gpu=one"))
    devices.add(a_spec(), wants("acme.com/gpu=two"))
    write(high / "a.json", a_file(device(env=["X=high"])))
    spec = a_spec()
    devices.add(spec, wants("acme.com/gpu=one"))
    assert "X=high" in spec["process"]["env"]


def test_a_missing_device_is_told_with_the_files_that_can_not_be_used(tmp_path: Path) -> None:
    write(tmp_path / "a.json", a_file(device()))
    write(tmp_path / "b.json", "{")
    write(tmp_path / "c.txt", "{")
    with pytest.raises(NotFound) as caught:
        CdiDevices([tmp_path, tmp_path / "absent"]).add(a_spec(), wants("acme.com/gpu=9"))
    assert f"acme.com/gpu=9 is in no file of {tmp_path}, {tmp_path}/absent" in caught.value.message
    assert f"can't be used: {tmp_path}/b.json:1: " in caught.value.message
    assert "c.txt" not in caught.value.message


def test_a_broken_file_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.json", a_file(device()))
    write(tmp_path / "b.json", "{")
    devices = CdiDevices([tmp_path])
    for _ in range(3):
        devices.add(a_spec(), wants("acme.com/gpu=one"))
    assert [record.message for record in caplog.records if "b.json:1: " in record.message] == [caplog.messages[0]]


def test_a_survey_tells_devices_and_what_is_wrong(tmp_path: Path) -> None:
    low, high = tmp_path / "low", tmp_path / "high"
    write(low / "a.json", a_file(device(), device("two")))
    write(low / "b.json", a_file(device(), device("two"), device("three")))
    write(high / "a.json", a_file(device()))
    write(high / "bad.yaml", "kind: [")
    names, problems = Directories([low, high]).survey()
    assert names == {f"acme.com/gpu={name}" for name in ("one", "two", "three")}
    assert [problem.split(":")[0] for problem in problems] == [str(high / "bad.yaml"), problems[1].split(":")[0]]
    assert "two is described twice" in problems[1]


def test_directories_are_followed(tmp_path: Path) -> None:
    directory = tmp_path / "cdi"
    devices, spec = CdiDevices([directory]), a_spec()
    with pytest.raises(NotFound):
        devices.add(spec, wants("acme.com/gpu=one"))
    path = write(directory / "a.json", a_file(device(env=["X=1"])))
    for value in ("1", "2", "3"):  # as long as each other and written at once: size and time alone don't tell
        write(path, a_file(device(env=[f"X={value}"])))
        devices.add(spec, wants("acme.com/gpu=one"))
        assert spec["process"]["env"][-1] == f"X={value}"
    path.unlink()
    with pytest.raises(NotFound):
        devices.add(spec, wants("acme.com/gpu=one"))


def test_an_unchanged_file_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.json", a_file(device()))
    devices = CdiDevices([tmp_path])
    monkeypatch.setattr("crinoid.core.lifecycle.cdi.spec_directories._YOUNG_NS", -(1 << 62))
    devices.add(a_spec(), wants("acme.com/gpu=one"))
    monkeypatch.setattr(
        "crinoid.core.lifecycle.cdi.spec_directories.read_document", lambda _path: pytest.fail("read again")
    )
    devices.add(a_spec(), wants("acme.com/gpu=one"))
    path.unlink()
    with pytest.raises(NotFound):
        devices.add(a_spec(), wants("acme.com/gpu=one"))


def test_nothing_is_looked_at_for_a_container_without_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "iterdir", lambda _path: pytest.fail("looked"))
    spec = a_spec()
    CdiDevices([Path("/etc/cdi")]).add(spec, wants())
    assert spec == a_spec()
