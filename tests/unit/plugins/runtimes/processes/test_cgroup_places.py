"""From a container's cgroup in either form to its path below the mount point."""

import pytest

from crinoid.core.api.errors import InvalidArgument
from crinoid.plugins.runtimes.processes.cgroup_places import below_mount


@pytest.mark.parametrize(
    ("cgroup", "path"),
    [
        ("kubepods-burstable-pod1_2.slice:cri:abc", "/kubepods.slice/kubepods-burstable.slice/"),
        ("system.slice:cri:abc", "/system.slice/"),
        (":cri:abc", "/system.slice/"),
        ("-.slice:cri:abc", "/"),
    ],
)
def test_systemds_form(cgroup: str, path: str) -> None:
    found = below_mount(cgroup, systemd=True)
    assert found.startswith(path)
    assert found.endswith("/cri-abc.scope")


def test_a_slice_is_a_directory_in_each_of_its_parents() -> None:
    assert below_mount("a-b-c.slice:p:n", systemd=True) == "/a.slice/a-b.slice/a-b-c.slice/p-n.scope"
    assert below_mount("a.slice::n.scope", systemd=True) == "/a.slice/n.scope"


@pytest.mark.parametrize("cgroup", ["/kubepods/pod1/abc", "kubepods/pod1/abc/"])
def test_a_path(cgroup: str) -> None:
    assert below_mount(cgroup, systemd=False) == "/kubepods/pod1/abc"


@pytest.mark.parametrize(("cgroup", "systemd"), [("/kubepods/abc", True), ("a.slice:p:n", False), ("a:b", True)])
def test_the_wrong_form(cgroup: str, systemd: bool) -> None:
    with pytest.raises(InvalidArgument, match="systemd_cgroup"):
        below_mount(cgroup, systemd)
