"""AppArmor profiles and SELinux labels, on kernels that have them and kernels that don't."""

from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import CrinoidError, FailedPrecondition, Unsupported
from crinoid.core.api.linux import lsm
from crinoid.core.api.values.container import ContainerConfig, ContainerMetadata, ContainerSecurity, VolumeMount
from crinoid.core.api.values.pod import (
    PodConfig,
    PodMetadata,
    PodSecurity,
    ProfileType,
    SecurityProfile,
    SelinuxOptions,
)
from crinoid.core.api.values.snapshot import Mount
from crinoid.core.lifecycle.spec.labels import (
    Labels,
    apparmor_profile,
    categories_of,
    label_mounts,
    relabel_volumes,
    selinux_labels,
)


def container(**security: Any) -> ContainerConfig:
    return ContainerConfig(metadata=ContainerMetadata("app"), security=ContainerSecurity(**security))


def pod(selinux: SelinuxOptions | None = None) -> PodConfig:
    return PodConfig(metadata=PodMetadata("web", "shop", "u1"), security=PodSecurity(selinux=selinux))


@pytest.fixture
def securityfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel with AppArmor."""
    directory = tmp_path / "apparmor"
    directory.mkdir()
    (directory / "profiles").write_text("crinoid-default (enforce)\nmy profile (x) (complain)\n")
    (tmp_path / "enabled").write_text("Y\n")
    monkeypatch.setattr(lsm, "_APPARMOR", directory)
    monkeypatch.setattr(lsm, "_APPARMOR_SWITCH", tmp_path / "enabled")
    return tmp_path


@pytest.fixture
def selinuxfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel with SELinux."""
    (tmp_path / "enforce").write_text("1")
    monkeypatch.setattr(lsm, "_SELINUX", tmp_path)


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel with neither."""
    for name in ("_APPARMOR", "_APPARMOR_SWITCH", "_SELINUX"):
        monkeypatch.setattr(lsm, name, tmp_path / "absent")


DEFAULT, UNCONFINED = SecurityProfile(ProfileType.RUNTIME_DEFAULT), SecurityProfile(ProfileType.UNCONFINED)


@pytest.mark.parametrize(
    ("security", "site", "profile"),
    [
        ({}, "", ""),
        ({}, "crinoid-default", "crinoid-default"),
        ({"apparmor": DEFAULT}, "crinoid-default", "crinoid-default"),
        ({"apparmor": UNCONFINED}, "crinoid-default", ""),
        ({"privileged": True}, "crinoid-default", ""),
        ({"apparmor": SecurityProfile(ProfileType.LOCALHOST, "localhost/my profile (x)")}, "", "my profile (x)"),
        (
            {"apparmor": SecurityProfile(ProfileType.LOCALHOST, "crinoid-default"), "privileged": True},
            "",
            "crinoid-default",
        ),
    ],
)
def test_apparmor_profiles(securityfs: Path, security: dict[str, Any], site: str, profile: str) -> None:
    assert apparmor_profile(container(**security), site) == profile


@pytest.mark.parametrize(
    ("wanted", "site", "words"),
    [
        (
            SecurityProfile(ProfileType.LOCALHOST, "absent"),
            "",
            "container 'app': AppArmor profile 'absent' is not loaded",
        ),
        (None, "absent", r"pods\.apparmor_profile\) 'absent' is not loaded"),
    ],
)
def test_profiles_that_are_not_loaded(securityfs: Path, wanted: SecurityProfile | None, site: str, words: str) -> None:
    with pytest.raises(FailedPrecondition, match=words):
        apparmor_profile(container(apparmor=wanted), site)


@pytest.mark.parametrize("switched_off", [True, False])
def test_a_kernel_without_apparmor(securityfs: Path, monkeypatch: pytest.MonkeyPatch, switched_off: bool) -> None:
    if switched_off:
        (securityfs / "enabled").write_text("N\n")
    else:
        monkeypatch.setattr(lsm, "_APPARMOR", securityfs / "absent")
    for harmless in (None, DEFAULT, UNCONFINED):
        assert apparmor_profile(container(apparmor=harmless), "crinoid-default") == ""
    named = SecurityProfile(ProfileType.LOCALHOST, "crinoid-default")
    with pytest.raises(Unsupported, match="this kernel has no AppArmor"):
        apparmor_profile(container(apparmor=named), "")


def test_selinux_options_mean_nothing_without_selinux(bare: None) -> None:
    assert selinux_labels("p1", pod(SelinuxOptions(level="s0:c1,c2")), container()) is None
    mounts = (Mount("overlay", "overlay"),)
    assert label_mounts(mounts, None) == mounts


def test_a_pod_has_categories_of_its_own(selinuxfs: None) -> None:
    labels = selinux_labels("p1", pod(), container())
    level = f"s0:{categories_of('p1')}"
    assert labels == Labels(f"system_u:system_r:container_t:{level}", f"system_u:object_r:container_file_t:{level}")
    pairs = {categories_of(f"pod{number}") for number in range(500)}
    assert len(pairs) > 490
    assert all(len(set(pair.split(","))) == 2 for pair in pairs)


def test_options_of_the_container_go_before_those_of_the_pod(selinuxfs: None) -> None:
    of_pod = pod(SelinuxOptions(user="pod_u", level="s0:c1,c2"))
    own = container(selinux=SelinuxOptions(type="own_t", level="s0:c3,c4"))
    assert selinux_labels("p1", of_pod, own) == Labels(
        "pod_u:system_r:own_t:s0:c3,c4", "pod_u:object_r:container_file_t:s0:c3,c4"
    )
    assert selinux_labels("p1", of_pod, None) == Labels(
        "pod_u:system_r:container_t:s0:c1,c2", "pod_u:object_r:container_file_t:s0:c1,c2"
    )


def test_a_privileged_container_is_not_confined(selinuxfs: None) -> None:
    labels = selinux_labels("p1", pod(SelinuxOptions(level="s0")), container(privileged=True))
    assert labels == Labels("", "system_u:object_r:container_file_t:s0")


def test_file_systems_of_the_container_get_its_context(selinuxfs: None) -> None:
    labels = Labels("p", "u:object_r:f:s0:c1,c2")
    overlay, bind, tmpfs = Mount("overlay", "overlay", ("ro",)), Mount("bind", "/x"), Mount("tmpfs", "shm")
    assert label_mounts((overlay, bind, tmpfs), labels) == (
        Mount("overlay", "overlay", ("ro", "context=u:object_r:f:s0:c1,c2")),
        bind,
        Mount("tmpfs", "shm", ("context=u:object_r:f:s0:c1,c2",)),
    )


def test_volumes_are_relabelled_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[Path, str]] = []
    monkeypatch.setattr(lsm, "relabel", lambda path, label: told.append((path, label)))
    (tmp_path / "link").symlink_to(tmp_path)
    mounts = (
        VolumeMount(container_path="/a", host_path=str(tmp_path / "link"), selinux_relabel=True),
        VolumeMount(container_path="/b", host_path="/srv"),
    )
    config = ContainerConfig(metadata=ContainerMetadata("app"), mounts=mounts)
    relabel_volumes(config, None)
    assert told == []
    relabel_volumes(config, Labels("p", "f"))
    assert told == [(tmp_path, "f")]

    def fail(_path: Path, _label: str) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(lsm, "relabel", fail)
    with pytest.raises(CrinoidError, match=r"mount /a: .*can't get the label f: no"):
        relabel_volumes(config, Labels("p", "f"))
