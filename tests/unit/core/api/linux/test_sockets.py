"""A place is taken only where nobody serves, by one at a time, and given up only by whoever has it."""

import fcntl
import os
import socket
import stat
import threading
from pathlib import Path

import pytest

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.api.linux import sockets
from crinoid.core.api.linux.sockets import SocketPlace


def serve(place: SocketPlace) -> socket.socket:
    place.claim()
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(place.passing))
    listener.listen(16)
    place.publish(0o600)
    return listener


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "made/one.sock"


def test_a_place_is_taken_once(path: Path) -> None:
    place = SocketPlace(path, 0o700)
    with serve(place):
        inode = path.stat().st_ino
        assert (stat.S_IMODE(path.stat().st_mode), stat.S_IMODE(path.parent.stat().st_mode)) == (0o600, 0o700)
        for act in (SocketPlace(path).check, SocketPlace(path).claim):
            with pytest.raises(ConfigurationError, match=f"another daemon serves {path}"):
                act()
        assert path.stat().st_ino == inode
        place.withdraw()
        place.withdraw()
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_a_server_of_another_kind_is_one(path: Path, kind: socket.SocketKind) -> None:
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        if kind is not socket.SOCK_DGRAM:
            other.listen(1)
        with pytest.raises(ConfigurationError, match="another daemon"):
            SocketPlace(path).claim()


def test_a_full_backlog_is_a_server(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "_PROBE_TIMEOUT_S", 0.05)
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)
        first.connect(str(path))
        with pytest.raises(ConfigurationError, match="another daemon"):
            SocketPlace(path).claim()


def test_a_dead_one_is_replaced_and_what_is_none_is_not(path: Path) -> None:
    path.parent.mkdir()
    for left in (path, path.with_name("one.sock~")):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(left))
    place = SocketPlace(path)
    with serve(place):
        place.withdraw()
    path.write_text("mine")
    with pytest.raises(ConfigurationError, match="no socket"):
        SocketPlace(path).claim()
    path.unlink()
    path.symlink_to("elsewhere.sock")
    with pytest.raises(ConfigurationError, match="no socket"):
        SocketPlace(path).claim()
    assert (path.is_symlink(), (path.parent / "elsewhere.sock").exists()) == (True, False)


def test_a_successors_is_left_alone(path: Path) -> None:
    place, successor = SocketPlace(path), SocketPlace(path)
    with serve(place):
        path.unlink()
        with serve(successor):
            place.withdraw()
            assert path.exists()
            successor.withdraw()


def test_of_many_at_once_one_has_it(path: Path) -> None:
    """All find a dead socket there, and no two of them may replace it."""
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    served: list[socket.socket] = []
    refused: list[str] = []
    ready = threading.Barrier(8)

    def try_it() -> None:
        ready.wait()
        try:
            served.append(serve(SocketPlace(path)))
        except ConfigurationError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (listener,) = served
    with listener, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        assert len(refused) == 7


def test_who_holds_the_turn_keeps_nobody_from_starting(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any local user who may list the directory could."""
    monkeypatch.setattr(sockets, "_TURN_S", 0.05)
    path.parent.mkdir()
    holder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    place = SocketPlace(path)
    with serve(place):
        assert path.exists()
        place.withdraw()
    os.close(holder)
