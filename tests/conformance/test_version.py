"""Version, Status, RuntimeConfig, UpdateRuntimeConfig: what the node says of itself."""

import json

import pytest

from conformance.node import LENIENT, OLD, Node, case, differs


@pytest.mark.parametrize("version", ["v1", "", "0.1.0", "whatever"])
def test_version_does_not_depend_on_the_client(node: Node, version: str) -> None:
    answer = node.call("Version", version=version)
    assert (answer["version"], answer["runtime_api_version"]) == ("0.1.0", "v1")
    assert answer["runtime_name"]
    assert answer["runtime_version"]


@pytest.mark.parametrize("kind", ["RuntimeReady", "NetworkReady"])
def test_status_has_the_condition(node: Node, kind: str) -> None:
    conditions = {one["type"]: one for one in node.call("Status")["status"]["conditions"]}
    assert conditions[kind]["status"] is True


def test_status_is_verbose_only_when_asked(node: Node) -> None:
    assert node.call("Status")["info"] == {}
    info = node.call("Status", verbose=True)["info"]
    assert info
    assert any(isinstance(json.loads(text), dict) for text in info.values() if text.startswith("{"))


@differs(containerd=OLD)
def test_status_lists_the_runtime_handlers(node: Node) -> None:
    names = [handler["name"] for handler in node.call("Status")["runtime_handlers"]]
    assert "" in names
    assert len(names) == len(set(names))


@differs(containerd=OLD)
def test_status_tells_features(node: Node) -> None:
    answer = node.call("Status")
    assert answer["features"]["supplemental_groups_policy"] is True
    assert all("recursive_read_only_mounts" in handler["features"] for handler in answer["runtime_handlers"])


@differs(containerd=OLD)
def test_runtime_config_tells_the_cgroup_driver(node: Node) -> None:
    assert node.call("RuntimeConfig")["linux"]["cgroup_driver"] in ("SYSTEMD", "CGROUPFS")


@pytest.mark.parametrize(
    "config", [{}, {"network_config": {}}, {"network_config": {"pod_cidr": "10.9.0.0/24,fd00:9::/64"}}]
)
def test_pod_cidrs_are_taken(node: Node, config: object) -> None:
    node.call("UpdateRuntimeConfig", runtime_config=config)


@pytest.mark.parametrize(
    "cidr",
    [case("10.9.0.0/99", containerd=LENIENT), case("nonsense", containerd=LENIENT)],
)
def test_bad_pod_cidrs_are_refused(node: Node, cidr: str) -> None:
    node.refuse("UpdateRuntimeConfig", "INVALID_ARGUMENT", runtime_config={"network_config": {"pod_cidr": cidr}})
