"""What a binary said becomes one sentence and the right error."""

import json
from pathlib import Path

import pytest

from crinoid.core.api.errors import CommandFailed, InvalidArgument, ResourceExhausted
from crinoid.plugins.runtimes.binaries.runtime_errors import as_error, last_error, runtime_message


def entry(level: str, message: str) -> str:
    return json.dumps({"level": level, "msg": message, "time": "2026-01-01T00:00:00Z"})


def test_the_last_error_counts(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("\n".join([entry("error", "first"), entry("error", "second"), entry("warning", "third")]))
    assert last_error(log) == "second"
    assert runtime_message(log, b"else") == "second"


@pytest.mark.parametrize("content", ["", "rubbish\n[1]\n7", '{"level": "error", "ms', entry("info", "all is well")])
def test_stderr_counts_where_the_log_has_no_error(tmp_path: Path, content: str) -> None:
    log = tmp_path / "log"
    log.write_text(content)
    assert runtime_message(log, b"  two\n words \x00\xff") == "two words ?\ufffd"
    assert runtime_message(tmp_path / "nowhere") == ""


def test_a_long_complaint_is_cut_to_its_end(tmp_path: Path) -> None:
    said = runtime_message(tmp_path / "nowhere", b"x" * 100_000 + b" the reason")
    assert len(said) == 2000
    assert said.endswith(" the reason")


@pytest.mark.parametrize(
    "said",
    [
        'unable to start container process: exec: "nope": executable file not found in $PATH',
        "executable file `nope` not found in $PATH: No such file or directory",
        'error mounting "/x" to rootfs at "/y": stat /x: no such file or directory',
        "exec: /bin/x: permission denied",
        "open executable: Operation not permitted",
        "OOM: the memory limit could be too low: read from sync socket: Connection reset by peer",
        "string SCMP_ARCH_NONSENSE is not a valid arch for seccomp",
        "unable to start container process: error adding seccomp filter rule for syscall mkdir: two checks",
        "seccomp flags are not yet supported by runc",
        "SCMP_ACT_NOTIFY cannot be used as default action",
        "unknown seccomp option NONSENSE",
        "runc create failed: Cwd must be an absolute path",
        "get_seccomp_operator",
        'error mounting "proc" to rootfs at "/proc": filesystem "proc" must be mounted on ordinary directory',
        'error mounting "/run/p/resolv.conf" to rootfs at "/etc/resolv.conf": too many levels of symbolic links',
    ],
)
def test_what_is_not_there_is_the_requests_fault(said: str) -> None:
    error = as_error(("/usr/bin/runc", "create"), 1, said)
    assert isinstance(error, InvalidArgument)
    assert error.message == f"/usr/bin/runc: {said}"


@pytest.mark.parametrize(
    "said",
    [
        "unable to apply cgroup configuration: mkdir /sys/fs/cgroup/a/b: resource temporarily unavailable",
        "creating cgroup directory `/sys/fs/cgroup/a/b`: Resource temporarily unavailable",
    ],
)
def test_a_limit_that_is_reached(said: str) -> None:
    error = as_error(("/usr/bin/runc", "create"), 1, said)
    assert isinstance(error, ResourceExhausted)
    assert said in error.message


@pytest.mark.parametrize("said", ["", "cgroups: cannot allocate memory"])
def test_anything_else_is_the_runtimes(said: str) -> None:
    error = as_error(("/usr/bin/runc", "create"), 1, said)
    assert isinstance(error, CommandFailed)
    assert error.command == ("/usr/bin/runc", "create")
