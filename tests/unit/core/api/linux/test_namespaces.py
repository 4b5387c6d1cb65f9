"""Namespaces are held without a process, entered by a thread of their own, and let go."""

import fcntl
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from crinoid.core.api.linux import mount, namespaces
from crinoid.core.api.values.pod import IdMapping

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for point in mount.mountpoints(tmp_path):
        mount.unmount(point)


def test_pin_enter_and_unpin(directory: Path) -> None:
    kinds = {"network": directory / "net", "ipc": directory / "ipc", "uts": directory / "uts"}
    ours = os.stat("/proc/self/ns/net").st_ino
    threads = threading.active_count()
    namespaces.pin(kinds)
    assert all(namespaces.is_pinned(path) for path in kinds.values())
    assert len({path.stat().st_ino for path in kinds.values()} | {ours}) == 4
    names = namespaces.call_in(kinds["network"], lambda: [name for _, name in socket.if_nameindex()])
    assert names == ["lo"] or "lo" in names
    inside = namespaces.call_in(kinds["network"], lambda: os.stat("/proc/thread-self/ns/net").st_ino)
    assert inside == kinds["network"].stat().st_ino != ours
    assert os.stat("/proc/self/ns/net").st_ino == ours
    assert threading.active_count() == threads
    for path in kinds.values():
        namespaces.unpin(path)
        namespaces.unpin(path)
        assert not path.exists()


def test_the_hostname_is_of_the_new_namespace(directory: Path) -> None:
    before = socket.gethostname()
    namespaces.pin({"uts": directory / "uts"}, hostname="inside")
    assert socket.gethostname() == before
    assert uts_name(directory / "uts") == "inside"


def test_a_user_namespace_owns_the_others(directory: Path) -> None:
    maps = (IdMapping(host_id=100_000, container_id=0, length=65_536),)
    kinds = {"user": directory / "user", "network": directory / "net", "uts": directory / "uts"}
    namespaces.pin(kinds, uids=maps, gids=maps, hostname="mapped")
    with open(kinds["network"]) as file:
        owner = ioctl_user_namespace(file.fileno())
    assert owner == kinds["user"].stat().st_ino
    assert uts_name(kinds["uts"]) == "mapped"


def test_a_failure_leaves_nothing(directory: Path) -> None:
    (directory / "ipc").touch()
    with pytest.raises(FileExistsError):
        namespaces.pin({"network": directory / "net", "ipc": directory / "ipc"})
    assert not (directory / "net").exists()
    assert mount.mountpoints(directory) == ()


def test_what_needs_a_process_is_refused(directory: Path) -> None:
    with pytest.raises(ValueError, match="mount, pid"):
        namespaces.pin({"pid": directory / "pid", "mount": directory / "mount"})


def test_errors_come_out_of_the_thread(directory: Path) -> None:
    namespaces.pin({"network": directory / "net"})
    with pytest.raises(ZeroDivisionError):
        namespaces.call_in(directory / "net", lambda: 1 // 0)
    with pytest.raises(FileNotFoundError, match="none"):
        namespaces.call_in(directory / "none", lambda: 1)
    assert not namespaces.is_pinned(directory / "none")


def test_one_thread_enters_many(directory: Path) -> None:
    pins = [directory / name for name in ("a", "b", "c")]
    for pin in (pins[0], pins[2]):
        namespaces.pin({"network": pin})
    pins[1].touch()  # no namespace
    ours, threads = os.stat("/proc/self/ns/net").st_ino, threading.active_count()
    found = namespaces.call_in_each("network", pins, lambda: os.stat("/proc/thread-self/ns/net").st_ino)
    assert [found[0], found[2]] == [pins[0].stat().st_ino, pins[2].stat().st_ino]
    assert isinstance(found[1], OSError), "it has not read the one before once more"
    assert os.stat("/proc/self/ns/net").st_ino == ours
    assert threading.active_count() == threads
    assert namespaces.call_in_each("network", [], os.getpid) == []


def test_one_thread_enters_namespaces_of_one_kind_only(directory: Path) -> None:
    namespaces.pin({"ipc": directory / "ipc", "network": directory / "net"})
    wrong, right = namespaces.call_in_each("network", [directory / "ipc", directory / "net"], lambda: 7)
    assert isinstance(wrong, OSError)
    assert right == 7


def ioctl_user_namespace(fd: int) -> int:
    owner = fcntl.ioctl(fd, 0xB701)  # NS_GET_USERNS
    try:
        return os.fstat(owner).st_ino
    finally:
        os.close(owner)


def uts_name(path: Path) -> str:
    command = ["nsenter", f"--uts={path}", "hostname"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
