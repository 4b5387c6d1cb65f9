"""The rules for pods with a user namespace, and which handlers have them."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from crinoid.core.api.errors import InvalidArgument, Unsupported
from crinoid.core.api.linux.idmaps import IdMaps, to_host
from crinoid.core.api.values.container import (
    ContainerConfig,
    ContainerMetadata,
    ContainerSecurity,
    MountPropagation,
    VolumeMount,
)
from crinoid.core.api.values.pod import (
    IdMapping,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodMetadata,
    PodSecurity,
    UserNamespace,
)
from crinoid.core.lifecycle.resources import user_namespaces
from crinoid.core.slots.binding import Slots
from crinoid.core.state.records import ProcessUser

MAPS = (IdMapping(host_id=100_000, container_id=0, length=1000),)
OWN = UserNamespace(NamespaceMode.POD, MAPS, MAPS)


def pod(user: UserNamespace | None = OWN, **options: Any) -> PodConfig:
    options.setdefault("pid", NamespaceMode.CONTAINER)
    security = PodSecurity(namespaces=NamespaceOptions(user=user, **options))
    return PodConfig(metadata=PodMetadata("pod", "ns", "uid"), security=security)


def container(*mounts: VolumeMount, **options: Any) -> ContainerConfig:
    options.setdefault("pid", NamespaceMode.CONTAINER)
    security = ContainerSecurity(namespaces=NamespaceOptions(**options))
    return ContainerConfig(metadata=ContainerMetadata("app"), mounts=mounts, security=security)


@pytest.mark.parametrize("user", [None, UserNamespace(), UserNamespace(NamespaceMode.NODE)])
def test_a_pod_may_run_in_the_hosts(user: UserNamespace | None) -> None:
    user_namespaces.check_pod(pod(user))
    assert user_namespaces.wanted_by(pod(user)) is None
    assert user_namespaces.oci_mappings(pod(user)) == {}
    user_namespaces.check_user(pod(user), ProcessUser(uid=1 << 20))


def test_a_pod_may_have_its_own() -> None:
    user_namespaces.check_pod(pod())
    one = {"containerID": 0, "hostID": 100_000, "size": 1000}
    assert user_namespaces.oci_mappings(pod()) == {"uidMappings": [one], "gidMappings": [one]}


def test_users_and_groups_may_differ() -> None:
    user_namespaces.check_pod(pod(UserNamespace(NamespaceMode.POD, MAPS, (IdMapping(5000, 0, 77),))))


@pytest.mark.parametrize(
    ("user", "words"),
    [
        (UserNamespace(NamespaceMode.NODE, MAPS), "NODE has no mappings, and 1 are given"),
        (UserNamespace(NamespaceMode.CONTAINER, MAPS, MAPS), "mode is CONTAINER"),
        (UserNamespace(NamespaceMode.TARGET, MAPS, MAPS), "mode is TARGET"),
        (UserNamespace(NamespaceMode.POD, (), MAPS), "uids: 0 mappings"),
        (UserNamespace(NamespaceMode.POD, MAPS, MAPS + MAPS), "gids: 2 mappings"),
        (UserNamespace(NamespaceMode.POD, (IdMapping(1, 1, 5),), MAPS), "uids: .*begins with 1; id 0 must be mapped"),
        (UserNamespace(NamespaceMode.POD, MAPS, (IdMapping(1, 0, 0),)), "gids: a mapping of 0 ids"),
        (UserNamespace(NamespaceMode.POD, MAPS, (IdMapping(2**32 - 5, 0, 5),)), "gids: .*beyond the last id"),
    ],
)
def test_a_namespace_that_can_not_be(user: UserNamespace, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        user_namespaces.check_pod(pod(user))


def test_the_last_id_can_be_mapped() -> None:
    user_namespaces.check_pod(pod(UserNamespace(NamespaceMode.POD, (IdMapping(2**32 - 5, 0, 4),), MAPS)))


@pytest.mark.parametrize("kind", ["pid", "ipc"])
def test_the_hosts_other_namespaces_do_not_fit(kind: str) -> None:
    with pytest.raises(InvalidArgument, match=f"host's {kind} namespace"):
        user_namespaces.check_pod(pod(OWN, **{kind: NamespaceMode.NODE}))
    with pytest.raises(InvalidArgument, match=f"host's {kind} namespace"):
        user_namespaces.check_container(pod(), container(**{kind: NamespaceMode.NODE}))
    user_namespaces.check_container(pod(None), container(**{kind: NamespaceMode.NODE}))
    user_namespaces.check_pod(pod(network=NamespaceMode.NODE))


def test_a_container_has_its_pods() -> None:
    user_namespaces.check_container(pod(), container())
    user_namespaces.check_container(pod(), container(user=OWN))
    user_namespaces.check_container(pod(None), container(user=UserNamespace()))
    for asked, of_pod in ((UserNamespace(), OWN), (OWN, None), (dataclasses.replace(OWN, uids=()), OWN)):
        with pytest.raises(InvalidArgument, match="differ from those of its pod"):
            user_namespaces.check_container(pod(of_pod), container(user=asked))


def test_maps_of_volumes() -> None:
    both = VolumeMount(container_path="/data", uid_mappings=MAPS, gid_mappings=MAPS)
    user_namespaces.check_container(pod(), container(both))
    with pytest.raises(InvalidArgument, match="mount /data: uidMappings and gidMappings go together"):
        user_namespaces.check_container(pod(None), container(dataclasses.replace(both, gid_mappings=())))
    with pytest.raises(InvalidArgument, match=r"mount /data: gidMappings: .*beyond"):
        user_namespaces.check_container(
            pod(), container(dataclasses.replace(both, gid_mappings=(IdMapping(2**32 - 1, 0, 1),)))
        )


def test_what_is_mounted_inside_can_not_show_outside() -> None:
    both_ways = VolumeMount(container_path="/data", propagation=MountPropagation.BIDIRECTIONAL)
    user_namespaces.check_container(pod(None), container(both_ways))
    with pytest.raises(InvalidArgument, match="/data: PROPAGATION_BIDIRECTIONAL"):
        user_namespaces.check_container(pod(), container(both_ways))


def test_a_volume_with_the_pods_maps_goes_by_its_namespace() -> None:
    of_pod = IdMaps(MAPS, MAPS, Path("/run/pod/ns/user"))
    volume = VolumeMount(container_path="/data", uid_mappings=MAPS, gid_mappings=MAPS)
    assert user_namespaces.maps_of_volume(volume, of_pod) is of_pod
    assert user_namespaces.maps_of_volume(volume, None) == IdMaps(MAPS, MAPS)
    assert user_namespaces.maps_of_volume(VolumeMount(container_path="/data"), of_pod) is None
    other = dataclasses.replace(volume, gid_mappings=(IdMapping(7, 0, 1),))
    assert user_namespaces.maps_of_volume(other, of_pod) == IdMaps(MAPS, (IdMapping(7, 0, 1),))


def test_users_and_groups_must_be_mapped() -> None:
    user_namespaces.check_user(pod(), ProcessUser(999, 999, (0, 998)))
    for user, words in (
        (ProcessUser(uid=1000), "user 1000 .*ids 0 to 999"),
        (ProcessUser(gid=1000), "group 1000"),
        (ProcessUser(supplemental_groups=(5, 2000)), "group 2000"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            user_namespaces.check_user(pod(), user)


def test_ids_are_translated() -> None:
    two = (IdMapping(100, 0, 10), IdMapping(500, 20, 5))
    assert [to_host(number, two) for number in (0, 9, 10, 20, 24, 25)] == [100, 109, None, 500, 504, None]


def test_sysctls_with_groups_are_the_pods() -> None:
    path = "net/ipv4/ping_group_range"
    assert user_namespaces.host_sysctls(OWN, {path: "0 999", "x": "1"}) == {path: "100000 100999", "x": "1"}
    assert user_namespaces.host_sysctls(None, {path: "0 999"}) == {path: "0 999"}
    for value in ("0 1000", "0 -1"):
        with pytest.raises(InvalidArgument, match="ping_group_range: group"):
            user_namespaces.host_sysctls(OWN, {path: value})


class Handlers:
    """One handler: a runtime that has user namespaces or not, over a directory of layers."""

    def __init__(self, directory: Path, has_them: bool) -> None:
        self.probes = 0
        self.has_them = has_them
        self._runtime = SimpleNamespace(name="fast", driver="crun", probe=self._probe)
        features = SimpleNamespace(root=directory)
        self._snapshotter = SimpleNamespace(name="default", features=lambda: features)

    async def _probe(self) -> Any:
        self.probes += 1
        return SimpleNamespace(user_namespaces=self.has_them)

    def runtime(self, _handler: str) -> Any:
        return self._runtime

    def snapshotter_of(self, _handler: str) -> Any:
        return self._snapshotter


async def test_a_handler_needs_its_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_namespaces, "try_in", lambda _directory: None)
    handlers = Handlers(tmp_path, has_them=False)
    namespaces = user_namespaces.UserNamespaces(cast("Slots", handlers))
    with pytest.raises(Unsupported, match=r"handler 'fast' .*runtime or the kernel lacks them .*crun"):
        await namespaces.require("")
    handlers.has_them = True
    await namespaces.require("")
    await namespaces.require("")
    assert handlers.probes == 2


async def test_a_handler_needs_its_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def refuse(directory: Path) -> None:
        tried.append(directory)
        raise Unsupported("no id-mapped mounts here")

    monkeypatch.setattr(user_namespaces, "try_in", refuse)
    handlers = Handlers(tmp_path, has_them=True)
    namespaces = user_namespaces.UserNamespaces(cast("Slots", handlers))
    with pytest.raises(Unsupported, match="no id-mapped mounts here"):
        await namespaces.require("fast")
    assert not await namespaces.supported(handlers.runtime(""), True)
    assert tried == [tmp_path]
