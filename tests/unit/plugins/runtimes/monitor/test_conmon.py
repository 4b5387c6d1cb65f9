"""conmon's command lines, and what it reports."""

import itertools
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import InvalidArgument, Unsupported
from crinoid.core.api.values.runtime import ContainerHandle, ContainerRequest
from crinoid.plugins.runtimes.binaries.binary import Binary
from crinoid.plugins.runtimes.binaries.options import MonitorOptions
from crinoid.plugins.runtimes.binaries.scratch import Scratch
from crinoid.plugins.runtimes.monitor import conmon
from crinoid.plugins.runtimes.monitor.conmon_files import ConmonFiles


@pytest.fixture
def binary(tmp_path: Path) -> Binary:
    program = tmp_path / "runc"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    return Binary(str(program), "runc", tmp_path / "root", Scratch(tmp_path / "scratch"))


@pytest.fixture
def monitor(binary: Binary) -> MonitorOptions:
    return MonitorOptions(binary=binary.name)  # any program will do


@pytest.fixture
def request_(tmp_path: Path) -> ContainerRequest:
    handle = ContainerHandle("c1", "p1", tmp_path / "bundle", "/pods/c1")
    return ContainerRequest(handle=handle, spec={}, log_path=tmp_path / "log")


def command(monitor: MonitorOptions, binary: Binary, request: ContainerRequest) -> tuple[str, ...]:
    return tuple(conmon.create_command(monitor, binary, ConmonFiles(request.handle.bundle), request))


def test_create(monitor: MonitorOptions, binary: Binary, request_: ContainerRequest) -> None:
    made = command(monitor, binary, request_)
    assert ("--cid", "c1") in itertools.pairwise(made)
    assert ("--log-path", f"k8s-file:{request_.log_path}") in itertools.pairwise(made)
    assert f"--runtime-arg=--root={binary.root}" in made
    assert {"--terminal", "--stdin", "--leave-stdin-open", "--systemd-cgroup"}.isdisjoint(made)
    assert "--log-size-max" not in made, "it loses data"


@pytest.mark.parametrize(
    ("changes", "options"),
    [
        ({"terminal": True}, {"--terminal"}),
        ({"stdin": True}, {"--stdin", "--leave-stdin-open"}),
        ({"stdin": True, "stdin_once": True}, {"--stdin"}),
        ({"stdin_once": True}, set()),
        ({"log_path": None}, {"none"}),
    ],
)
def test_options_of_a_request(
    monitor: MonitorOptions, binary: Binary, request_: ContainerRequest, changes: dict[str, Any], options: set[str]
) -> None:
    made = command(monitor, binary, replace(request_, **changes))
    assert options == {"--terminal", "--stdin", "--leave-stdin-open", "none"} & {*made}


def test_systemd(monitor: MonitorOptions, binary: Binary, request_: ContainerRequest) -> None:
    """The runtime has it at ``create``, and keeps it in its state for all later commands.

    conmon's own option would put it first, which is before the script of the shell that gives crun its streams.
    """
    scope = replace(request_, handle=replace(request_.handle, cgroup="pods.slice:crinoid:c1"))
    for giving in (False, True):
        made = command(monitor, replace(binary, gives_streams_away=giving), scope)
        assert "--runtime-arg=--systemd-cgroup" in made, "whatever made the name, nothing else has to agree"
        assert "--systemd-cgroup" not in made


def test_a_log_path_that_conmon_would_cut(monitor: MonitorOptions, binary: Binary, request_: ContainerRequest) -> None:
    with pytest.raises(InvalidArgument, match="colon"):
        command(monitor, binary, replace(request_, log_path=Path("/logs/a:b")))


def test_a_monitor_that_is_not_there(binary: Binary, request_: ContainerRequest) -> None:
    with pytest.raises(Unsupported, match="apt-get install conmon"):
        command(MonitorOptions(binary="conmon-of-nowhere"), binary, request_)


def test_crun_wants_its_log_named_otherwise(binary: Binary, monitor: MonitorOptions, tmp_path: Path) -> None:
    crun = replace(binary, log_option="--log=file:{}")
    made = conmon.exec_command(monitor, crun, "c1", tmp_path, ["--cgroup=x"], None)
    assert f"--runtime-arg=--log=file:{tmp_path}/log" in made
    assert "--runtime-opt=--cgroup=x" in made


@pytest.mark.parametrize(
    ("written", "reports"),
    [
        (b'{"pid": 7}\n', [conmon.Report(7)]),
        (b'{"data": 7}\n{"data": 0}\n', [conmon.Report(7), conmon.Report(0)]),
        (b'{"pid": -1, "message": "no\\n"}\n', [conmon.Report(-1, "no\n")]),
        (b"", []),
        (b'{"pid": 7', []),
        (b"rubbish\n", []),
        (b"[7]\n", []),
        (b'{"pid": null}\n', []),
    ],
)
async def test_reports(written: bytes, reports: list[conmon.Report]) -> None:
    reader, writer = os.pipe()
    try:
        os.write(writer, written)
        os.close(writer)
        pipe = conmon.SyncPipe(reader)
        for report in reports:
            assert await pipe.read() == report
        assert await pipe.read() is None
    finally:
        os.close(reader)


async def test_a_conmon_that_ends_at_once(tmp_path: Path) -> None:
    with conmon.started(["true"], {}, tmp_path) as monitor:
        assert await monitor.process.wait() == 0
        assert await monitor.sync.read() is None


async def test_a_monitor_is_told_little_and_glib_to_take_no_memory_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/notify")
    reader, writer = os.pipe()
    with os.fdopen(reader) as output:
        with os.fdopen(writer, "w"), conmon.started(["/usr/bin/env"], {1: writer}, tmp_path) as made:
            exit_code = await made.process.wait()
        told = dict(line.split("=", 1) for line in output.read().splitlines())
    assert exit_code == 0
    assert told["G_SLICE"] == "always-malloc"
    assert {"_OCI_SYNCPIPE", "_OCI_STARTPIPE", "PATH"} <= told.keys()
    assert "NOTIFY_SOCKET" not in told


def test_a_restore(monitor: MonitorOptions, binary: Binary, request_: ContainerRequest, tmp_path: Path) -> None:
    files = ConmonFiles(request_.handle.bundle)
    made = conmon.create_command(monitor, binary, files, request_, tmp_path / "images")
    assert made == [
        *command(monitor, binary, request_),
        "--restore",
        str(tmp_path / "images"),
        "--runtime-opt=--file-locks",
    ]
