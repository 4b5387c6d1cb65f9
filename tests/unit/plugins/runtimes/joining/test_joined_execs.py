"""Which containers are plain, so that an exec needs no binary."""

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from crinoid.core.api.values.runtime import ContainerHandle
from crinoid.plugins.runtimes.binaries.bundle import Bundle, Processes
from crinoid.plugins.runtimes.binaries.options import OciOptions
from crinoid.plugins.runtimes.crun import CrunTraits
from crinoid.plugins.runtimes.joining.joined_execs import JoinedExecs

_ALLOW = {"names": ["read"], "action": "SCMP_ACT_ALLOW"}
_ERRNO = {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [_ALLOW]}
_KILL = {"names": ["getcwd"], "action": "SCMP_ACT_KILL_PROCESS"}


def is_plain(directory: Path, spec: Mapping[str, Any], cgroup: str = "/pods/c", **changes: Any) -> bool:
    (directory / "seccomp.bpf").write_bytes(bytes(8))
    binary = SimpleNamespace(state_directory=lambda _: directory)
    execs = JoinedExecs(CrunTraits(cast(Any, binary), OciOptions()))
    Bundle(directory).write_spec(spec)
    handle = cast(ContainerHandle, SimpleNamespace(bundle=directory, container_id="c", cgroup=cgroup))
    return execs._look_at(handle, Processes(1, 1, 1, 1, **{"plain": True, **changes})) is not None


@pytest.mark.parametrize(
    ("spec", "plain"),
    [
        ({}, True),
        ({"linux": {"personality": {"domain": "LINUX32"}}}, False),
        ({"linux": {"intelRdt": {"closID": "guaranteed"}}}, False),
        ({"hooks": {"poststart": [{"path": "/bin/true"}]}}, False),
        ({"annotations": {"run.oci.handler": "wasmtime"}}, False),
        ({"annotations": {"run.oci.systemd.subgroup": "", "run.oci.seccomp_bpf_data": "AA=="}}, True),
        ({"process": {"capabilities": {"bounding": ["CAP_CHOWN", "CAP_SYS_PTRACE"]}}}, False),
        ({"process": {"capabilities": {"bounding": ["CAP_SYS_PTRACE"]}}, "linux": {"uidMappings": [{}]}}, True),
        ({"process": {"capabilities": {"bounding": ["CAP_CHOWN"]}}}, True),
        ({"linux": {"seccomp": _ERRNO}}, True),
        ({"linux": {"seccomp": {**_ERRNO, "flags": ["SECCOMP_FILTER_FLAG_LOG"]}}}, False),
        # loaded while there are capabilities, it sees the calls of a Python
        ({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_KILL", "syscalls": [_ALLOW]}}}, False),
        ({"linux": {"seccomp": {**_ERRNO, "syscalls": [_ALLOW, _KILL]}}}, False),
        ({"linux": {"seccomp": {**_ERRNO, "syscalls": [_KILL]}}, "process": {"noNewPrivileges": True}}, True),
    ],
)
def test_a_container_is_plain(tmp_path: Path, spec: Mapping[str, Any], plain: bool) -> None:
    assert is_plain(tmp_path, spec) is plain
    assert not is_plain(tmp_path, spec, plain=False)
    assert is_plain(tmp_path, spec, "pod.slice:crinoid:c", plain=False) is plain


def test_a_container_that_was_restored_goes_by_the_binary(tmp_path: Path) -> None:
    Bundle(tmp_path).restore_log.write_text("")
    assert not is_plain(tmp_path, {}, "pod.slice:crinoid:c", plain=False)


def test_a_container_whose_spec_cant_be_read_goes_by_the_binary(tmp_path: Path) -> None:
    execs = JoinedExecs(CrunTraits(cast(Any, None), OciOptions()))
    handle = cast(ContainerHandle, SimpleNamespace(bundle=tmp_path, container_id="c"))
    assert execs._look_at(handle, Processes(1, 1, 1, 1, plain=True)) is None
