"""The short form of a pod, and crictl's files."""

import base64
import textwrap
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import InvalidArgument, NotFound
from crinoid.core.cli.ctl.manifests import read_container_config, read_mapping, read_pod_config
from crinoid.core.cli.ctl.podform import (
    LOG_DIRECTORY,
    ContainerForm,
    MountForm,
    PodForm,
    find_own_logs,
    parse_quantity,
    read_form,
    to_container_config,
    to_pod_config,
)

FULL = """\
name: web
namespace: shop
network: pod
ports: ["127.0.0.1:8080:80/udp", 8443:50]
labels: {tier: 1}
annotations: {a: b}
containers:
  - name: app
    image: busybox
    command: [sh, -c, "echo $A"]
    env: {A: b, N: 3, T: true, D: 2026-01-01}
    user: alice:7
    workdir: /tmp
    memory: 64Mi
    cpus: 0.5
    mounts: [{host: /x, container: /y, readonly: true}]
  - name: side
    image: other
    privileged: true
    user: 1000
"""


GUIDE = Path(__file__).parents[5].joinpath("docs/ctl.md").read_text()


def write(directory: Path, text: str, name: str = "pod.yaml") -> Path:
    path = directory / name
    path.write_text(text)
    return path


@pytest.fixture
def form(tmp_path: Path) -> PodForm:
    return read_form(write(tmp_path, FULL))


def test_a_pod_becomes_the_message_of_the_cri(form: PodForm) -> None:
    config = to_pod_config(form)
    uid = config["metadata"]["uid"]
    logs = f"/var/log/pods/shop_web_{uid}"
    assert config == {
        "metadata": {"name": "web", "namespace": "shop", "uid": uid, "attempt": 0},
        "hostname": "web",
        "log_directory": logs,
        "port_mappings": [
            {"protocol": "UDP", "host_port": 8080, "container_port": 80, "host_ip": "127.0.0.1"},
            {"protocol": "TCP", "host_port": 8443, "container_port": 50, "host_ip": ""},
        ],
        "labels": {"tier": "1"},
        "annotations": {"a": "b", LOG_DIRECTORY: logs},
        "linux": {
            "cgroup_parent": "",
            "security_context": {"namespace_options": {"network": "POD", "pid": "CONTAINER"}, "privileged": True},
        },
    }
    assert to_pod_config(form)["metadata"]["uid"] != uid, "each run is a pod of its own"


def test_a_container_becomes_the_message_of_the_cri(form: PodForm) -> None:
    config = to_container_config(form, form.containers[0])
    context = config["linux"]["security_context"]
    assert {item["key"]: base64.b64decode(item["value"]) for item in config["envs"]} == {
        "A": b"b",
        "N": b"3",
        "T": b"true",
        "D": b"2026-01-01",
    }
    assert config["mounts"] == [{"host_path": "/x", "container_path": "/y", "readonly": True}]
    assert config["linux"]["resources"] == {
        "memory_limit_in_bytes": 64 << 20,
        "cpu_period": 100_000,
        "cpu_quota": 50_000,
    }
    assert (context["run_as_username"], context["run_as_group"]) == ("alice", {"value": 7})
    assert "/proc/kcore" in context["masked_paths"]
    assert config["log_path"] == "app/0.log"


def test_a_privileged_container_is_not_confined(form: PodForm) -> None:
    context = to_container_config(form, form.containers[1])["linux"]["security_context"]
    assert context["privileged"]
    assert context["run_as_user"] == {"value": 1000}
    assert not context.keys() & {"masked_paths", "readonly_paths", "seccomp"}


def test_a_log_directory_of_the_user_is_not_marked_as_ours(tmp_path: Path) -> None:
    text = f"name: a\nlog_directory: {tmp_path}\nnetwork: host\ncontainers: [{{name: b, image: c}}]\n"
    config = to_pod_config(read_form(write(tmp_path, text)))
    assert (config["log_directory"], config["annotations"]) == (str(tmp_path), {})
    assert (config["hostname"], config["linux"]["security_context"]["namespace_options"]["network"]) == ("", "NODE")


def test_only_a_directory_that_was_chosen_here_is_removed_with_its_pod() -> None:
    metadata = {"name": "web", "namespace": "shop", "uid": "u"}
    assert find_own_logs(metadata, {LOG_DIRECTORY: "/var/log/pods/shop_web_u"}) == Path("/var/log/pods/shop_web_u")
    assert find_own_logs(metadata, {}) is None
    assert find_own_logs(metadata, {LOG_DIRECTORY: "/"}) is None
    outside = {**metadata, "uid": "/../../../../etc"}
    assert find_own_logs(outside, {LOG_DIRECTORY: "/var/log/pods/shop_web_/../../../../etc"}) is None


@pytest.mark.parametrize(
    ("old", "new", "line", "words"),
    [
        ("image: busybox", "imag: busybox", 9, 'imag: unknown key; did you mean "image"?'),
        ("network: pod", "network: bridge", 3, "'pod' or 'host'"),
        ("8443:50", "8443", 4, "must be [IP:]HOST:CONTAINER"),
        ("8443:50", "84430:50", 4, "from 1 to 65535"),
        ("64Mi", "64 MB", 14, "such as 64Mi"),
        ("cpus: 0.5", "cpus: half", 15, "should be a valid number"),
        ("name: side", "name: app", 0, "same name"),
        ("network: pod", "network: host", 0, "ports need network: pod"),
        ("readonly: true", "readonly: maybe", 16, "should be a valid boolean"),
        ("name: web", "name: ../web", 1, "should match pattern"),
        ("namespace: shop", "uid: ../x", 2, "should match pattern"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, old: str, new: str, line: int, words: str) -> None:
    path = write(tmp_path, FULL.replace(old, new, 1))
    with pytest.raises(InvalidArgument) as caught:
        read_form(path)
    told = next(text for text in str(caught.value).splitlines() if words in text)
    assert told.startswith(f"{path}:{line}: " if line else f"{path}: ")


def test_every_mistake_is_told_in_the_order_of_lines(tmp_path: Path) -> None:
    path = write(tmp_path, FULL.replace("cpus: 0.5", "cpus: x").replace("labels:", "label:"))
    with pytest.raises(InvalidArgument) as caught:
        read_form(path)
    assert [text.split(": ")[0] for text in str(caught.value).splitlines()] == [f"{path}:5", f"{path}:15"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1\nb", r"pod.yaml:2: this is no YAML"),
        ("- a", "must hold a mapping"),
        ("name: x", "this key is missing"),
        ("", "pod.yaml: is empty"),
        ("apiVersion: v1\nkind: Pod\nspec: {}", r"pod.yaml: this is a manifest of Kubernetes \(Pod\)"),
    ],
)
def test_what_is_no_form_at_all_is_told(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        read_form(write(tmp_path, text))


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is no such file"):
        read_form(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("12", 12),
        ("0x1F", 31),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        ("true", True),
        ("-7", -7),
    ],
)
def test_yaml_has_no_surprises(text: str, value: object) -> None:
    assert read_mapping(Path("x"), f"a: {text}") == {"a": value}


@pytest.mark.parametrize(("text", "size"), [("7", 7), ("2k", 2000), ("1Ki", 1024), ("3Gi", 3 << 30)])
def test_quantities(text: str, size: int) -> None:
    assert parse_quantity(text) == size


def test_crictls_files_are_messages(tmp_path: Path) -> None:
    pod = write(tmp_path, '{\n\t"metadata": {"name": "p", "namespace": "n"}\n}', "pod.json")
    container = write(
        tmp_path, "metadata: {name: c}\nimage: {image: busybox}\nenvs: [{key: A, value: ü}]\n", "container.yaml"
    )
    assert read_pod_config(pod)["metadata"]["uid"], "one is made, and JSON may have tabs"
    config: dict[str, Any] = read_container_config(container)
    assert config["image"] == {"image": "busybox", "user_specified_image": "busybox"}
    assert base64.b64decode(config["envs"][0]["value"]).decode() == "ü"


@pytest.mark.parametrize("text", ["metadata: {name: c}", "image: {image: x}", "metadata: 3", "{}"])
def test_crictls_files_must_name_what_they_make(tmp_path: Path, text: str) -> None:
    with pytest.raises(InvalidArgument, match=r"(metadata\.name|image\.image) is missing"):
        read_container_config(write(tmp_path, text))


@pytest.mark.parametrize("part", [PodForm, ContainerForm, MountForm])
def test_the_guide_tells_every_key(part: type[PodForm | ContainerForm | MountForm]) -> None:
    assert [key for key in part.model_fields if f"`{key}`" not in GUIDE] == []


def test_the_example_of_the_guide_is_a_form(tmp_path: Path) -> None:
    example = GUIDE.split("### The short form")[1].split("| key")[0]
    form = read_form(write(tmp_path, textwrap.dedent(example)))
    assert (form.name, form.ports, form.containers[0].env) == ("web", ("8080:80/tcp",), {"A": "b"})


def test_a_mistake_in_the_only_container_is_no_list_without_containers(tmp_path: Path) -> None:
    path = write(tmp_path, "name: x\ncontainers:\n  - {name: a, image: b, memory: 8m}\n")
    with pytest.raises(InvalidArgument) as caught:
        read_form(path)
    assert str(caught.value).startswith(f"{path}:3: containers[0].memory: must be a number of bytes")
    assert len(str(caught.value).splitlines()) == 1
