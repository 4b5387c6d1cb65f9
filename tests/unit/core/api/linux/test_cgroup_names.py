"""From a cgroup's name in either form to its path below the mount point."""

import pytest

from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.cgroup_names import below_mount, is_scope, is_slice


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/kubepods/pod1/abc", "/kubepods/pod1/abc"),
        ("kubepods/pod1/abc/", "/kubepods/pod1/abc"),
        ("/a:b:c", "/a:b:c"),
        ("kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice"),
        ("/kubepods.slice/kubepods-pod1.slice", "/kubepods.slice/kubepods-pod1.slice"),
        ("a-b-c-d.slice", "/a.slice/a-b.slice/a-b-c.slice/a-b-c-d.slice"),
        ("-.slice", "/"),
        ("-.slice:cri:abc", "/cri-abc.scope"),
        (":cri:abc", "/system.slice/cri-abc.scope"),
        ("a-b.slice:p-q:n", "/a.slice/a-b.slice/p-q-n.scope"),
        ("a.slice::n.scope", "/a.slice/n.scope"),
        (
            "kubepods-burstable-pod1_2.slice:crinoid:abc",
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/crinoid-abc.scope",
        ),
    ],
)
def test_where_a_cgroup_lies(name: str, path: str) -> None:
    assert below_mount(name) == path


def test_a_scope_is_its_containers_own_by_its_name() -> None:
    container = "0123456789abcdef" * 4
    for parent in ("kubepods-besteffort-pod1.slice", "-.slice", "crinoid.slice"):
        assert cgroups.belongs_to(below_mount(f"{parent}:crinoid:{container}"), container)
    assert not cgroups.belongs_to(below_mount(f"a.slice:crinoid:{container[::-1]}"), container)


def test_the_forms() -> None:
    assert [name for name in ("a.slice:p:n", "/a:p:n", "a:b", "/kubepods/abc") if is_scope(name)] == ["a.slice:p:n"]


@pytest.mark.parametrize("name", ["-.slice", "a.slice", "kubepods-burstable-pod1_2.slice", r"a\x2db.slice"])
def test_a_slice(name: str) -> None:
    assert is_slice(name)


@pytest.mark.parametrize(
    "name", ["", ".slice", "a", "a.scope", "-a.slice", "a-.slice", "a--b.slice", "a/b.slice", "a b.slice", "a\n.slice"]
)
def test_what_systemd_refuses_as_a_slice(name: str) -> None:
    assert not is_slice(name)
    assert not is_slice("a" * 250 + ".slice"), "longer than a unit's name may be"
