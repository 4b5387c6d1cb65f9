"""The examination of a host: what is judged fit, and what is said of the rest."""

import json
import shlex
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
from click.testing import CliRunner

from crinoid.core.api.values.image import SourceStatus
from crinoid.core.api.values.network import NetworkStatus
from crinoid.core.cli.check import cgroups, examination
from crinoid.core.cli.check.cgroups import examine_cgroups, judge_controllers, judge_driver, judge_version
from crinoid.core.cli.check.devices import examine_devices
from crinoid.core.cli.check.disk import Room, examine_disk, existing, judge_room
from crinoid.core.cli.check.findings import Finding, Verdict
from crinoid.core.cli.check.isolation import judge_propagation
from crinoid.core.cli.check.kernel_features import judge_file_systems, judge_release
from crinoid.core.cli.check.network import examine_network
from crinoid.core.cli.check.privileges import judge_capabilities
from crinoid.core.cli.check.programs import examine_programs, judge_cni_plugins
from crinoid.core.cli.check.slots import examine_slots, judge_network, judge_source
from crinoid.core.cli.main import main
from crinoid.core.config.loader import ConfigPaths, load
from crinoid.core.config.models import Config, PodsConfig, ServerConfig, SlotConfig
from support.distributions import QUIET_CONFIG, Site

GIB = 1 << 30


def verdicts(findings: Iterable[Finding]) -> dict[str, str]:
    found = list(findings)
    assert all(bool(finding.advice) == (finding.verdict is not Verdict.OK) for finding in found)
    return {finding.name: finding.verdict.value for finding in found}


@pytest.mark.parametrize(
    ("release", "expected"),
    [
        ("4.19.0-27-amd64", {"release": "failure"}),
        ("5.10.0", {"release": "ok", "read-only trees": "warning", "idmapped mounts": "warning"}),
        ("6.1.0-18-amd64", {"release": "ok", "idmapped mounts": "ok"}),
        ("strange", {"release": "failure"}),
    ],
)
def test_a_kernel_is_judged_by_its_release(release: str, expected: dict[str, str]) -> None:
    assert verdicts(judge_release(release)) == expected


@pytest.mark.parametrize(
    ("way", "verdict"),
    [
        ("exec chroot . {look}", "failure"),
        ("pivot_root . mnt; exec chroot . {look}", "ok"),
        ("mount --move . /; exec chroot . {look}", "ok"),  # as from an initramfs
        ("exec {look}", "ok"),
    ],
)
def test_a_root_that_is_not_the_mount_namespace_s_is_told(way: str, verdict: str, tmp_path: Path) -> None:
    """Also where it is a bind mount of the same directory."""
    look = "from crinoid.core.cli.check.isolation import _look_at_root; print(_look_at_root().verdict.value)"
    enter = 'mount --make-rprivate /; mount --rbind / "$1"; cd "$1"; '
    script = enter + way.format(look=shlex.join([sys.executable, "-c", look]))
    command = ["unshare", "--mount", "sh", "-ec", script, "sh", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == f"{verdict}\n"


def test_a_kernel_without_overlay_can_still_copy() -> None:
    assert verdicts(judge_file_systems("nodev\tproc\nnodev\ttmpfs\nnodev\tsysfs\nnodev\tmqueue\n\text4\n")) == {
        "overlay module": "warning"
    }


def test_devices_are_counted_and_broken_files_named(tmp_path: Path) -> None:
    config = Config(pods=PodsConfig(cdi_spec_dirs=(tmp_path,)))
    assert list(examine_devices(config)) == []
    device = '{"name": "one", "containerEdits": {"env": ["A=1"]}}'
    (tmp_path / "good.json").write_text(f'{{"cdiVersion": "1.0.0", "kind": "a.b/c", "devices": [{device}]}}')
    (tmp_path / "bad.json").write_text("{")
    good, bad = examine_devices(config)
    assert (good.verdict, good.detail) == (Verdict.OK, "1 devices, such as a.b/c=one")
    assert (bad.verdict, bad.detail.startswith(f"{tmp_path}/bad.json:1: ")) == (Verdict.WARNING, True)


def test_cgroups_of_version_2_are_fit() -> None:
    assert verdicts(judge_version(2, False, True)) == {"version": "ok"}
    assert verdicts(judge_controllers(2, frozenset({"cpu", "memory", "pids", "io", "cpuset", "hugetlb"}))) == {
        "controllers": "ok"
    }


def test_a_hybrid_of_cgroups_matters_to_crun() -> None:
    assert verdicts(judge_version(1, True, True)) == {"version": "warning", "hybrid": "warning"}
    assert verdicts(judge_version(1, True, False)) == {"version": "warning", "hybrid": "ok"}


@pytest.mark.parametrize("kind", ["absent", "empty"])
def test_a_host_without_mounted_cgroups_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """As in a chroot without /sys, and in one with a /sys that has no cgroup file systems."""
    mounts = tmp_path / "cgroup"
    if kind == "empty":
        mounts.mkdir()
    monkeypatch.setattr(cgroups, "_MOUNTS", mounts)
    (found,) = examine_cgroups(Config())
    assert (found.verdict, found.name) == (Verdict.FAILURE, "mounts")
    assert str(mounts) in found.detail
    assert "mount" in found.advice
    assert list(tmp_path.rglob("*")) == ([mounts] if kind == "empty" else [])


def test_a_missing_controller_is_named() -> None:
    findings = list(judge_controllers(2, frozenset({"cpu", "pids", "io", "cpuset", "hugetlb"})))
    assert [(finding.verdict, finding.detail) for finding in findings] == [(Verdict.FAILURE, "without memory")]


@pytest.mark.parametrize(
    ("wanted", "version", "systemd", "verdict", "detail"),
    [
        ("auto", 2, True, Verdict.OK, "systemd"),
        ("auto", 1, True, Verdict.OK, "cgroupfs"),
        ("auto", 2, False, Verdict.OK, "cgroupfs"),
        ("systemd", 2, False, Verdict.FAILURE, "systemd is configured"),
        ("cgroupfs", 2, True, Verdict.WARNING, "cgroupfs beside systemd"),
    ],
)
def test_the_cgroup_driver_fits_the_host(
    wanted: str, version: int, systemd: bool, verdict: Verdict, detail: str
) -> None:
    finding = judge_driver(wanted, version, systemd)
    assert finding.verdict is verdict
    assert finding.detail.startswith(detail)


def test_missing_capabilities_are_told_by_what_they_cost() -> None:
    everything = frozenset({f"CAP_{name}" for name in ("SYS_ADMIN", "NET_ADMIN", "CHOWN", "DAC_OVERRIDE", "FOWNER")})
    everything |= {f"CAP_{name}" for name in ("KILL", "MKNOD", "SETGID", "SETUID", "SETPCAP", "SYS_CHROOT")}
    assert verdicts(judge_capabilities(everything, everything, ("CAP_KILL",))) == {
        "capabilities": "ok",
        "CAP_SYS_RESOURCE": "warning",
    }
    assert verdicts(judge_capabilities(frozenset({"CAP_SYS_RESOURCE"}), frozenset(), ("CAP_KILL",))) == {
        "capabilities": "failure",
        "default capabilities": "warning",
    }


@pytest.mark.parametrize(
    ("room", "expected"),
    [
        (Room(50 * GIB, 100 * GIB, 90, 100), {"space": "ok", "inodes": "ok"}),
        (Room(5 * GIB, 100 * GIB, 1, 100), {"space": "warning", "inodes": "warning"}),
        (Room(GIB // 2, 1 * GIB, 0, 0), {"space": "failure"}),
    ],
)
def test_room_is_judged_as_the_kubelet_does(room: Room, expected: dict[str, str]) -> None:
    assert verdicts(judge_room(Path("/x"), room)) == expected


def test_a_socket_path_that_is_too_long_or_taken_is_a_failure(tmp_path: Path) -> None:
    long = Config(root=tmp_path, server=ServerConfig(socket=Path("/run") / ("x" * 108)))
    assert verdicts(examine_disk(long))["socket"] == "failure"
    (tmp_path / "file").touch()
    taken = Config(root=tmp_path, server=ServerConfig(socket=tmp_path / "file"))
    assert verdicts(examine_disk(taken))["socket"] == "failure"


def test_the_nearest_directory_that_exists_is_examined(tmp_path: Path) -> None:
    assert existing(tmp_path / "a/b") == tmp_path


def test_a_private_root_mount_is_told() -> None:
    assert judge_propagation(True, False).verdict is Verdict.OK
    assert judge_propagation(False, False).verdict is Verdict.WARNING
    assert judge_propagation(False, True).detail == "/ is a slave"


def test_network_settings_are_told_unless_every_pod_is_on_the_host(tmp_path: Path) -> None:
    for file, value in {"ipv4/ip_forward": "1", "ipv6/conf/all/forwarding": "0"}.items():
        (tmp_path / file).parent.mkdir(parents=True)
        (tmp_path / file).write_text(f"{value}\n")
    assert verdicts(examine_network(Config(), tmp_path, tmp_path)) == {
        "net.ipv4.ip_forward": "ok",
        "net.ipv6.conf.all.forwarding": "warning",
        "bridge-nf-call-iptables": "warning",
    }
    assert verdicts(examine_network(Config(network=SlotConfig(driver="host")), tmp_path)) == {"settings": "ok"}


def _program(directory: Path, name: str, script: str) -> None:
    (directory / name).write_text(f"#!/bin/sh\n{script}\n")
    (directory / name).chmod(0o755)


async def test_programs_are_asked_for_their_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    _program(tmp_path, "crun", "echo crun 9; echo more")
    _program(tmp_path, "xinit", "echo broken >&2; exit 3")
    config = Config.model_validate({"pods": {"init_binary": "xinit"}, "runtimes": {"a": {"driver": "runc"}}})
    found = {finding.name: finding async for finding in examine_programs(config)}
    assert (found["crun"].verdict, found["crun"].detail) == (Verdict.OK, f"{tmp_path}/crun: crun 9")
    assert found["xinit"].verdict is Verdict.FAILURE
    assert found["xinit"].detail == f"{tmp_path}/xinit: broken"
    monkeypatch.setattr("crinoid.core.cli.check.programs.shutil.which", lambda name, path: None)
    found = {finding.name: finding async for finding in examine_programs(config)}
    assert found["runc"].verdict is Verdict.FAILURE, "a slot needs it"
    assert found["crun"].verdict is Verdict.WARNING, "no slot needs it"
    assert found["conmon"].advice == "apt-get install conmon"
    assert not found.keys() & {"nft", "iptables"}, "crinoid's own bridge calls neither"
    config = Config.model_validate({"network": {"driver": "cni"}})
    found = {finding.name: finding async for finding in examine_programs(config)}
    assert [found[name].verdict for name in ("nft", "iptables")] == [Verdict.WARNING] * 2


def test_cni_plugins_may_lie_in_several_directories(tmp_path: Path) -> None:
    directories = (tmp_path / "a", tmp_path / "b")
    for directory, names in zip(directories, (("loopback", "bridge"), ("host-local",)), strict=True):
        directory.mkdir()
        for name in names:
            (directory / name).touch()
    assert judge_cni_plugins(directories).detail.startswith("without portmap")
    (directories[1] / "portmap").touch()
    assert judge_cni_plugins(directories).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("name", "reason", "verdict"),
    [
        ("default", "NetworkLibraryMissing", Verdict.FAILURE),
        ("default", "NoNetworkConfiguration", Verdict.WARNING),
        ("second", "NetworkPluginMissing", Verdict.WARNING),
    ],
)
def test_a_network_that_only_waits_for_its_add_on_is_no_failure(name: str, reason: str, verdict: Verdict) -> None:
    assert judge_network(name, "auto", NetworkStatus(ready=False, reason=reason)).verdict is verdict


def test_what_an_image_source_says_is_told_though_it_is_ready() -> None:
    warning = Verdict.WARNING
    for status, expected in (
        (SourceStatus(True), [(Verdict.OK, "distribution")]),
        (SourceStatus(True, "hosts.toml: no TOML"), [(warning, "hosts.toml: no TOML")]),
        (SourceStatus(False, "no disk"), [(warning, "no disk")]),
        (SourceStatus(True, notes=("a: unknown key",)), [(Verdict.OK, "distribution"), (warning, "a: unknown key")]),
    ):
        found = judge_source("one", "distribution", status)
        assert [(finding.verdict, finding.detail) for finding in found] == expected


async def test_slots_are_asked_in_directories_of_their_own(quiet: Site, tmp_path: Path) -> None:
    module = """\
from crinoid.core.api.testing.fakes import FakeNetwork
from crinoid.core.api.values.network import NetworkStatus
class Driver(FakeNetwork):
    def __init__(self, config, host):
        super().__init__(config, host)
        self.ready = NetworkStatus(False, "NoBridge", "make one")
"""
    quiet.install("down", "[crinoid.networks]\ndown = down:Driver\n", module)
    file = tmp_path / "config.toml"
    file.write_text(QUIET_CONFIG.format(directory=tmp_path) + '[network]\ndriver = "down"\n')
    found = {finding.name: finding async for finding in examine_slots(load(ConfigPaths.at(file)))}
    assert found["network default"].detail == "NoBridge: make one"
    assert found["runtime quiet"].verdict is Verdict.OK
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.toml", "site"], "nothing is left"


async def test_a_driver_that_is_not_installed_is_a_failure(quiet: Site, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(QUIET_CONFIG.format(directory=tmp_path) + '[network]\ndriver = "gone"\n')
    found = [finding async for finding in examine_slots(load(ConfigPaths.at(file)))]
    assert [(finding.verdict, finding.name) for finding in found] == [(Verdict.FAILURE, "drivers")]


async def test_a_part_that_breaks_does_not_hide_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(config: Config) -> Iterable[Finding]:
        raise OSError(5, "no disk")

    monkeypatch.setattr(examination, "_PARTS", (("first", broken), ("network", examine_network)))
    findings = await examination.examine(ConfigPaths(tmp_path / "none", tmp_path / "none.d"))
    assert next(finding for finding in findings if finding.area == "first").verdict is Verdict.FAILURE
    assert any(finding.area == "network" for finding in findings)


async def test_a_broken_configuration_is_a_failure_and_the_rest_is_examined(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[lgo]\n")
    findings = await examination.examine(ConfigPaths.at(tmp_path / "config.toml"))
    assert findings[0].area == "configuration"
    assert 'did you mean "log"?' in findings[0].detail
    assert {"kernel", "cgroups", "programs"} <= {finding.area for finding in findings}


@pytest.mark.parametrize(("verdict", "code"), [(Verdict.OK, 0), (Verdict.WARNING, 0), (Verdict.FAILURE, 1)])
def test_the_exit_code_tells_of_failures(monkeypatch: pytest.MonkeyPatch, verdict: Verdict, code: int) -> None:
    async def examine(paths: ConfigPaths) -> list[Finding]:
        return [Finding("kernel", "release", verdict, "1.0", "" if verdict is Verdict.OK else "buy a new one")]

    monkeypatch.setattr(examination, "examine", examine)
    result = CliRunner().invoke(main, ["check"])
    assert result.exit_code == code
    assert f"{verdict.value:8} release  1.0" in result.output
    assert ("-> buy a new one" in result.output) == (verdict is not Verdict.OK)
    as_json = CliRunner().invoke(main, ["check", "--json"])
    assert as_json.exit_code == code
    assert json.loads(as_json.output)[0]["verdict"] == verdict.value
