"""Limits, versions, scratch directories and options."""

import errno
import os
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError

from crinoid.core.api.errors import ResourceExhausted, Unsupported
from crinoid.core.api.linux import rights
from crinoid.core.api.values.pod import LinuxResources
from crinoid.plugins.runtimes import runc
from crinoid.plugins.runtimes.binaries.binary import Binary
from crinoid.plugins.runtimes.binaries.bundle import Processes
from crinoid.plugins.runtimes.binaries.scratch import Scratch
from crinoid.plugins.runtimes.binaries.versions import numbers, read_features, read_version
from crinoid.plugins.runtimes.crun import CrunOptions, CrunTraits
from crinoid.plugins.runtimes.oci.limits import beyond_update, oci_resources, split_lifted
from crinoid.plugins.runtimes.runc import RuncOptions, RuncTraits


def test_only_limits_that_are_given_are_changed() -> None:
    assert oci_resources(LinuxResources()) == {}
    assert oci_resources(LinuxResources(oom_score_adj=5)) == {}
    limits = LinuxResources(memory_limit_bytes=7, cpu_quota=-1, cpuset_cpus="0-1")
    assert oci_resources(limits) == {"memory": {"limit": 7}, "cpu": {"quota": -1, "cpus": "0-1"}}


def test_what_update_can_not_do_is_kept_apart() -> None:
    assert beyond_update(LinuxResources(cpu_shares=2)) is None
    limits = LinuxResources(cpu_shares=2, unified={"memory.high": "1"}, hugepage_limits={"2MB": 1})
    assert beyond_update(limits) == LinuxResources(unified={"memory.high": "1"}, hugepage_limits={"2MB": 1})


def test_lifted_limits_are_parted_from_the_others() -> None:
    limits = LinuxResources(cpu_shares=2, cpu_quota=-1, memory_limit_bytes=-1)
    expected = LinuxResources(cpu_shares=2), LinuxResources(cpu_quota=-1, memory_limit_bytes=-1)
    assert split_lifted(limits) == expected
    assert split_lifted(LinuxResources(cpu_quota=5)) == (LinuxResources(cpu_quota=5), LinuxResources())


@pytest.mark.parametrize(
    ("said", "version", "first"),
    [
        ("runc version 1.1.5+ds1\ncommit: x", "1.1.5+ds1", (1, 1)),
        ("runc version 1.0.0-rc93\n", "1.0.0-rc93", (1, 0)),
        ("runc version 2\n", "2", (2, 0)),
    ],
)
def test_versions(said: str, version: str, first: tuple[int, int]) -> None:
    assert read_version("runc", said) == version
    assert numbers(version) == first


@pytest.mark.parametrize("said", ["", "rubbish", "crun version 1.8", "runc version "])
def test_what_is_no_version(said: str) -> None:
    with pytest.raises(Unsupported, match="this is no runc"):
        read_version("runc", said)


def test_features() -> None:
    assert read_features('{"mountOptions": ["rro"]}') == {"mountOptions": ["rro"]}
    assert read_features("[]") == read_features("unknown command features") == {}


def test_scratch_directories_are_swept_after_those_who_are_gone(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path / "scratch")
    scratch.sweep()
    with scratch.temporary_directory() as directory:
        left = scratch.directory / "999999999-left"
        left.mkdir()
        scratch.sweep()
        assert directory.is_dir()
        assert directory.name.startswith(str(os.getpid()))
        assert not left.exists()
    assert list(scratch.directory.iterdir()) == []


@pytest.mark.parametrize("options", [RuncOptions, CrunOptions])
def test_options(options: type[RuncOptions]) -> None:
    assert options().binary == ""
    for bad in ({"bianry": "x"}, {"deadlines": {"create_s": 0}}, {"monitor": {"sync_log": "maybe"}}):
        with pytest.raises(ValidationError):
            options.model_validate(bad)


def test_every_option_is_documented() -> None:
    fields = RuncOptions.model_json_schema()["properties"]
    assert fields.keys() == RuncOptions.model_fields.keys()
    assert all("description" in field for field in fields.values())


def test_crun_makes_no_cgroup_below_a_scope(tmp_path: Path) -> None:
    """By default it would, on cgroup v2: limits, statistics and execs would miss where the container lies."""
    traits = CrunTraits(Binary("crun", "crun", tmp_path, Scratch(tmp_path)), CrunOptions())
    assert traits.added_annotations(None) == {"run.oci.systemd.subgroup": ""}


async def test_a_filter_that_cant_be_kept_whole_is_not_kept_and_fails_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Execs go by runc, then."""
    traits = RuncTraits(cast(Any, None), RuncOptions())
    seccomp, processes, whole = {"defaultAction": "SCMP_ACT_ERRNO"}, Processes(1, 1, 1, 1, plain=True), bytes(80)
    write_file, failures = rights.write_file, [ResourceExhausted("no thread can be started"), None, None]

    async def read_filter(_pid: int, _started: int) -> bytes:
        if (failure := failures.pop(0)) is not None:
            raise failure
        return whole

    def write_some(path: Path, content: bytes) -> None:
        write_file(path, content[:40])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runc, "read_filter", read_filter)
    await traits.learn(tmp_path, processes, seccomp)
    with monkeypatch.context() as full:
        full.setattr(rights, "write_file", write_some)
        await traits.learn(tmp_path, processes, seccomp)
    assert [*tmp_path.iterdir()] == []
    assert traits.seccomp_program(tmp_path, seccomp) is None
    await traits.learn(tmp_path, processes, seccomp)
    assert traits.seccomp_program(tmp_path, seccomp) == whole
