"""A forked crinoid is what one of an interpreter of its own is, or is none."""

import os
import re
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import network_namespace, programs
from support.patience import patient

START: dict[str, Any] = {"executed": subprocess.Popen, "forked": programs.Popen}
VERSION = [sys.executable, "-m", "crinoid", "--version"]


@pytest.fixture(scope="module", autouse=True)
def own_server() -> Iterator[None]:
    """Since this process's limits may have been changed after the other began: nothing would be forked here then."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs, "_forks", forks := programs.Forks())
        yield
        forks.close()


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[socket.socket]:
    """A socket that takes connections and never answers."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        listening.listen()
        listening.settimeout(patient(60))
        yield listening


def facts(process: "subprocess.Popen[bytes]", listening: socket.socket) -> dict[str, object]:
    """What the kernel says of a client, once it has connected."""
    with listening.accept()[0]:
        directory = Path(f"/proc/{process.pid}")
        status = dict(re.findall(r"^(\w+):[ \t]*(.*)$", (directory / "status").read_text(), re.M))
        parent, group, session = (directory / "stat").read_text().rpartition(")")[2].split()[1:4]
        return {
            "command": (directory / "cmdline").read_bytes().rstrip(b"\0").split(b"\0"),
            "parent": int(parent) == os.getpid(),
            "leads": (int(group) == process.pid, int(session) == process.pid),
            "directory": (directory / "cwd").readlink(),
            "streams": [(directory / "fd" / str(fd)).readlink() for fd in (0, 1, 2)],
            "namespaces": sorted(path.readlink() for path in (directory / "ns").iterdir()),
            "limits": (directory / "limits").read_text(),
            **{name: status[name] for name in ("Umask", "Uid", "Gid", "Groups", "CapEff", "NoNewPrivs")},
            **{name: status[name] for name in ("SigBlk", "SigIgn", "SigCgt")},
        }


@pytest.mark.parametrize("new_session", [False, True])
def test_the_kernel_sees_no_difference(silent: socket.socket, tmp_path: Path, new_session: bool) -> None:
    found = []
    for start in START.values():
        command = [sys.executable, "-m", "crinoid", "ctl", "-r", f"unix://{silent.getsockname()}", "version"]
        out = (tmp_path / "out").open("ab")
        given = {"stdin": subprocess.DEVNULL, "stdout": out, "stderr": subprocess.STDOUT}
        with out, start(command, cwd=tmp_path, start_new_session=new_session, **given) as process:
            assert getattr(process, "is_forked", False) == (start is programs.Popen)
            found.append(facts(process, silent))
            process.terminate()
            found[-1]["end"] = process.wait(patient(60))
    assert found[0] == found[1]
    assert found[0]["leads"] == (new_session, new_session)


def test_a_fork_has_no_descriptor_but_its_own(silent: socket.socket) -> None:
    command = [sys.executable, "-m", "crinoid", "ctl", "-r", f"unix://{silent.getsockname()}", "version"]
    own = {path.readlink() for path in Path("/proc/self/fd").iterdir() if path.is_symlink()}
    with programs.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.is_forked
        with silent.accept()[0]:
            links = {int(path.name): path.readlink() for path in Path(f"/proc/{process.pid}/fd").iterdir()}
        process.kill()
    further = {link for fd, link in links.items() if fd > 2}
    assert further.isdisjoint(own - {Path("anon_inode:[eventpoll]"), Path("anon_inode:[eventfd]"), Path("/dev/null")})
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["--help"], ["sreve"], ["ctl", "-r", "unix:///nowhere", "ps"], ["config", "check", "-c", "/no"]],
)
def test_what_it_says_is_the_same(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "crinoid", *arguments]
    given: dict[str, Any] = {"capture_output": True, "text": True, "env": {**os.environ, "COLUMNS": "90"}}
    assert is_forked(command=VERSION, env=given["env"])
    executed, forked = subprocess.run(command, **given, check=False), programs.run(command, **given)
    assert (forked.returncode, forked.stdout, forked.stderr) == (executed.returncode, executed.stdout, executed.stderr)


def test_what_is_written_comes_out_of_pipes_and_goes_in(tmp_path: Path) -> None:
    assert is_forked()
    (tmp_path / "c.toml").write_text(f"root = '{tmp_path / 'root'}'\nrun = '{tmp_path / 'run'}'\n")
    command = [sys.executable, "-m", "crinoid", "state", "import", "-c", str(tmp_path / "c.toml")]
    given: dict[str, Any] = {"capture_output": True, "text": True, "input": "nonsense\n"}
    executed, forked = subprocess.run(command, **given, check=False), programs.run(command, **given)
    assert executed.returncode != 0
    assert (forked.returncode, forked.stderr) == (executed.returncode, executed.stderr)
    with pytest.raises(subprocess.CalledProcessError):
        programs.run(command, check=True, **given)


def is_forked(**given: Any) -> bool:
    with programs.Popen(given.pop("command", VERSION), stdout=subprocess.PIPE, **given) as process:
        return process.is_forked


@pytest.mark.skipif(os.geteuid() != 0, reason="network namespaces need root")
def test_the_first_to_ask_may_be_in_a_network_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is forked for it would be in its network, and nothing could be forked for whoever is not."""
    monkeypatch.setattr(programs, "_forks", forks := programs.Forks())
    try:
        with network_namespace.held() as network:
            assert not network.call(is_forked)
        assert is_forked()
    finally:
        forks.close()


def test_what_can_not_be_had_by_a_fork_is_executed(tmp_path: Path) -> None:
    assert is_forked()
    assert not is_forked(command=["env", *VERSION])
    assert not is_forked(command=[sys.executable, "-I", *VERSION[1:]])
    assert not is_forked(command=["nsenter", "--user=/proc/self/ns/user", "true"])
    assert not is_forked(env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert not is_forked(preexec_fn=os.getpid)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits[0] - 1, limits[1]))
    try:
        assert not is_forked()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert is_forked()


def test_the_first_that_is_asked_for_says_nothing_of_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server has this process's environment, and not the first request's."""
    monkeypatch.setattr(programs, "_forks", forks := programs.Forks())
    other = {**os.environ, "PYTHONPATH": str(tmp_path)}
    try:
        assert not is_forked(env=other)
        assert is_forked()
        assert not is_forked(env=other)
    finally:
        forks.close()
