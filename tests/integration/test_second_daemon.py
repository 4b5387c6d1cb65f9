"""A daemon that would share something with one that runs is refused, and the first goes on as if nothing had been."""

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from integration.conftest import Node
from integration.own_nodes import own_node
from integration.pods import Pod, until
from support.cri import Cri
from support.daemon import Daemon
from support.nri_plugin import NriPlugin
from support.patience import patient


@pytest.fixture(scope="module")
def nri_socket() -> Iterator[Path]:
    yield Path(f"/run/crt{secrets.token_hex(3)}/nri.sock")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, nri_socket: Path) -> Iterator[Node]:
    """A node with a socket for NRI plugins."""
    directory = tmp_path_factory.mktemp("first")
    options = f"socket = '{nri_socket}', plugin_dir = '{directory}/none'"
    nri = f"[extensions.nri]\ndriver = 'nri'\non_failure = 'fail'\noptions = {{ {options} }}\n"
    with own_node(directory, nri) as node:
        yield node
    nri_socket.parent.rmdir()


@pytest.fixture
def second(first: Node, tmp_path: Path) -> Iterator[Daemon]:
    """Another daemon with the same configuration over directories of its own."""
    daemon = Daemon(tmp_path / "second", first.daemon.config, first.daemon.prefix)
    yield daemon
    daemon.end()


def refused(first: Node, second: Daemon, nri_socket: Path) -> str:
    """Start the second; return what it says at its end. The first serves all that it did."""
    sockets = (first.daemon.socket, nri_socket)
    before = [path.stat().st_ino for path in sockets]
    second.launch()
    assert second.process is not None
    assert second.process.wait(patient(30)) != 0
    assert [path.stat().st_ino for path in sockets] == before
    plugin = NriPlugin("test", "10", {}, 0)
    plugin.connect(nri_socket)
    plugin.close()
    assert Pod(first, first.run_pod(secrets.token_hex(3))).sh("echo works") == "works\n"
    first.remove_pods()
    return second.tail()


def test_the_same_run_directory(first: Node, second: Daemon, nri_socket: Path) -> None:
    own, second.name = second.name, first.daemon.name
    said = refused(first, second, nri_socket)
    second.name = own  # what is removed at the end is by name
    assert f"another crinoid runs over {first.daemon.run}: stop it, or set another run" in said
    assert not second.root.exists()


def test_the_same_root_by_another_name(first: Node, second: Daemon, nri_socket: Path) -> None:
    second.directory.mkdir()
    second.root.symlink_to(first.daemon.root)
    assert f"another crinoid runs over {second.root}: stop it, or set another root" in refused(
        first, second, nri_socket
    )
    assert not second.run.exists()


def test_the_same_socket(first: Node, second: Daemon, nri_socket: Path) -> None:
    second.config = f"{first.daemon.config}[server]\nsocket = '{first.daemon.socket}'\n"
    assert f"another daemon serves {first.daemon.socket}" in refused(first, second, nri_socket)


def test_the_same_socket_for_plugins(first: Node, second: Daemon, nri_socket: Path) -> None:
    assert f"another daemon serves {nri_socket}" in refused(first, second, nri_socket)


def test_of_two_at_once_one_serves(first: Node, tmp_path: Path) -> None:
    """Over directories of their own, at one socket: whoever is refused says so, and the other is reached."""
    place = Path(f"/run/crt{secrets.token_hex(3)}")
    config = f"[network]\ndriver = 'host'\n[server]\nsocket = '{place}/one.sock'\n"
    daemons = [Daemon(tmp_path / name, config, first.daemon.prefix) for name in ("one", "two")]
    try:
        for daemon in daemons:
            daemon.launch()
        processes = [daemon.process for daemon in daemons if daemon.process is not None]
        until(lambda: any(process.poll() is not None for process in processes))
        (winner,), (loser,) = (
            [daemon for daemon, process in zip(daemons, processes, strict=True) if (process.poll() is None) is runs]
            for runs in (True, False)
        )
        assert f"another daemon serves {place}/one.sock" in loser.tail()
        client = Cri(place / "one.sock")
        until(lambda: client.call("Version"))
        client.close()
        assert winner.stop() == 0
        assert list(place.iterdir()) == []
    finally:
        for daemon in daemons:
            daemon.end()
        place.rmdir()
