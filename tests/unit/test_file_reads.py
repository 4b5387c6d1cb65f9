"""Files that somebody else may have replaced are read by ``files.read_regular`` and its kin; the rest is listed here.

A FIFO in the place of a file holds its reader for ever, and some devices act when they are opened. So whatever reads a
file directly, in what serves requests, has a reason: the file is the kernel's own, or the daemon's.
"""

import ast
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from crinoid.core.api.errors import ConfigurationError, CorruptContent, FailedPrecondition
from crinoid.core.api.layouts import layout_index
from crinoid.core.api.values.image import ImageReference
from crinoid.core.lifecycle.cdi.cdi_files import BrokenFile, read_document
from crinoid.core.lifecycle.sandbox import pod_files
from crinoid.plugins.networks.cni.configuration import InvalidConfiguration, load_file
from crinoid.plugins.registries.distribution import transport
from crinoid.plugins.registries.distribution.credentials import NodeCredentials
from crinoid.plugins.registries.distribution.hosts import Tls, find_endpoints

CODE = Path(__file__).parents[2]
SEARCHED = ("core/api/layouts", "core/lifecycle", "core/slots", "core/state", "plugins")
READERS = frozenset({"read_text", "read_bytes", "copyfile", "copy2"})
KERNEL = "a file of procfs, sysfs or cgroupfs"
OWN = "in a directory of the daemon's own, which nobody else may write"
BOTH = f"{KERNEL}, or {OWN}"
CONFINED = "of a directory that this module made and filled, opened without following links"
ALLOWED = {
    "core/lifecycle/containers/builder.py": OWN,
    "core/lifecycle/checkpoints/archive.py": CONFINED,
    "core/lifecycle/checkpoints/capture.py": OWN,
    "core/lifecycle/checkpoints/root_diff.py": CONFINED,
    "core/lifecycle/checkpoints/source.py": OWN,
    "core/lifecycle/containers/containers.py": OWN,
    "core/lifecycle/images/layers.py": OWN,
    "core/lifecycle/spec/device_binds.py": KERNEL,
    "core/lifecycle/events/views.py": OWN,
    "core/lifecycle/strays/stand_ins.py": OWN,
    "core/lifecycle/strays/strays.py": KERNEL,
    "core/slots/isolation/plugin_process.py": f"{KERNEL}, or a pipe, in a thread of its own",
    "core/state/content.py": OWN,
    "plugins/runtimes/joining/joined_execs.py": BOTH,
    "plugins/runtimes/joining/joining_process.py": OWN,
    "core/state/salvage.py": OWN,
    "core/state/transfer.py": OWN,
    "plugins/networks/bridge/sysctls.py": BOTH,
    "plugins/runtimes/oci/adoption.py": KERNEL,
    "plugins/runtimes/monitor/attach_sessions.py": KERNEL,
    "plugins/runtimes/binaries/bundle.py": OWN,
    "plugins/runtimes/processes/cgroup_places.py": KERNEL,
    "plugins/runtimes/binaries/runtime_errors.py": OWN,
    "plugins/runtimes/oci/criu.py": OWN,
    "plugins/snapshotters/erofs/driver.py": OWN,
    "plugins/snapshotters/erofs/settling.py": OWN,
    "plugins/runtimes/oci/traits.py": OWN,
    "plugins/runtimes/processes/exec_cgroups.py": KERNEL,
    "plugins/runtimes/monitor/conmon_files.py": OWN,
    "plugins/runtimes/monitor/conmon_monitor.py": BOTH,
    "plugins/runtimes/processes/pidfds.py": KERNEL,
    "plugins/runtimes/binaries/versions.py": KERNEL,
    "plugins/snapshotters/copying.py": OWN,
    "plugins/snapshotters/records.py": OWN,
    "plugins/snapshotters/storage.py": KERNEL,
}
"""Whoever adds a line says who may write the file."""


def _is_read(call: ast.Call) -> bool:
    """``path.read_text()`` and its kin, ``path.open("rb")``, ``open(path)``; not ``os.open``, which has flags."""
    if isinstance(call.func, ast.Name):
        return call.func.id == "open"
    if not isinstance(call.func, ast.Attribute):
        return False
    if call.func.attr in READERS:
        return True
    mode = call.args[0] if call.func.attr == "open" and len(call.args) == 1 else None
    return isinstance(mode, ast.Constant) and isinstance(mode.value, str)


def _direct_reads(source: str) -> list[int]:
    return [node.lineno for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call) and _is_read(node)]


def _modules() -> Iterator[Path]:
    for directory in SEARCHED:
        yield from sorted((CODE / directory).rglob("*.py"))


def test_files_of_others_are_read_by_what_waits_for_nobody() -> None:
    found = {}
    for path in _modules():
        if lines := _direct_reads(path.read_text()):
            found[str(path.relative_to(CODE))] = lines
    new = {name: lines for name, lines in found.items() if name not in ALLOWED}
    assert new == {}, "read these by crinoid.core.api.linux.files.read_regular, in a thread, or say why not in ALLOWED"
    assert ALLOWED.keys() <= found.keys(), "a reason is there no more"


def test_the_search_finds_what_it_is_for() -> None:
    reads = ("p.read_text()", "p.open('rb')", "open(p)", "shutil.copyfile(p, q)")
    others = ("os.open(p, 0)", "read_regular(p, 1)", "q.open()")
    assert _direct_reads("\n".join((*reads, *others))) == [1, 2, 3, 4]


READINGS: dict[str, tuple[Callable[[Path], object], type[Exception]]] = {
    "cni": (lambda directory: load_file(directory / "fifo"), InvalidConfiguration),
    "cdi": (lambda directory: read_document(directory / "fifo"), BrokenFile),
    "hosts.toml": (lambda directory: find_endpoints("example.com", (directory,), ()), ConfigurationError),
    "certificate": (lambda directory: transport._make_context(Tls(ca=(directory / "fifo",))), OSError),
    "layout": (lambda directory: layout_index.open_regular(directory / "fifo"), CorruptContent),
    "resolv.conf": (lambda directory: pod_files._copy(directory / "fifo", directory / "copy"), FailedPrecondition),
}


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", READINGS)
def test_a_fifo_in_the_place_of_a_file_is_refused_and_not_waited_for(tmp_path: Path, name: str) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "example.com").mkdir()
    os.mkfifo(tmp_path / "example.com/hosts.toml")
    read, error = READINGS[name]
    with pytest.raises(error, match="not a regular file"):
        read(tmp_path)


@pytest.mark.timeout(20)
async def test_credentials_that_are_a_fifo(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "config.json")
    credentials = NodeCredentials((tmp_path / "config.json",), 1)
    with pytest.raises(ConfigurationError, match=r"config.json: not a regular file"):
        await credentials.find("example.com", ImageReference.parse("example.com/a/b:1"))
