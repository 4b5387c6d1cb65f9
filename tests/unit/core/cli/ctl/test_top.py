"""The processes of a container, found by the cgroup of its first."""

import os
from pathlib import Path

import pytest

from crinoid.core.api.errors import FailedPrecondition
from crinoid.core.cli.ctl.top import list_processes


def add(proc: Path, pid: int, cgroup: str, name: str = "app", command: bytes = b"") -> None:
    entry = proc / str(pid)
    entry.mkdir()
    (entry / "cgroup").write_text(f"1:net_cls:/\n0::{cgroup}\n")
    (entry / "status").write_text(f"Name:\t{name}\nUid:\t7\t7\t7\t7\nNSpid:\t{pid}\t1\nThreads:\t2\nVmRSS:\t  4 kB\n")
    (entry / "stat").write_text(f"{pid} (a) b) S " + " ".join(["0"] * 10 + ["100", "50"] + ["0"] * 6 + ["0"]))
    (entry / "cmdline").write_bytes(command)


def test_those_in_the_cgroup_and_below_are_listed(tmp_path: Path) -> None:
    (tmp_path / "uptime").write_text("100.5 1.0\n")
    add(tmp_path, 10, "/pod/one", command=b"app\0\x1b[31mred\0")
    add(tmp_path, 11, "/pod/one/below", name="worker")
    add(tmp_path, 12, "/pod/one-more")
    add(tmp_path, 13, "/pod")
    (tmp_path / "14").mkdir()  # it has just ended
    first, second = list_processes(10, tmp_path)
    assert (first.pid, first.container_pid, first.user, first.threads, first.memory_bytes) == (10, 1, 7, 2, 4096)
    assert first.cpu_s == 150 / os.sysconf("SC_CLK_TCK")
    assert first.age_s == 100.5
    assert first.command == "app ?[31mred", "a container's words never reach the terminal as they are"
    assert second.command == "[worker]"


def test_a_process_that_is_not_here_is_told(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="where the container runs"):
        list_processes(10, tmp_path)
