"""What config check finds of the host: what would stop the start, or fail each pod."""

import socket
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from crinoid.core.cli.main import main
from crinoid.core.slots.trial import Trial


@pytest.fixture
def check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Check a configuration with directories of its own; return what is said. No driver is made."""
    monkeypatch.setattr("crinoid.core.daemon.preflight.try_driver", lambda *_: Trial())

    def run(text: str, code: int = 78, top: str = "") -> str:
        own = top or f"root = '{tmp_path}/root'\nrun = '{tmp_path}/run'\n"
        file = tmp_path / "config.toml"
        file.write_text(f"{own}{text}")
        result = CliRunner().invoke(main, ["config", "check", "-c", str(file)])
        assert result.exit_code == code, result.output
        return result.output.replace(str(tmp_path), "DIR")

    return run


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[pods.default_sysctls]\n'kernel.pid_max' = '1000'\n", "belongs to no namespace of a pod"),
        ("[pods.default_sysctls]\n'net.ipv4.nosuch' = '1'\n", "this kernel has no /proc/sys/net/ipv4/nosuch"),
        ("[pods]\ndefault_ulimits = ['nofile=99999999999']\n", "(fs.nr_open)"),
        ("[pods]\ninit_binary = '/nowhere/init'\n", "/nowhere/init is not there or can't be executed"),
        ("[pods]\napparmor_profile = 'nosuch'\n", "apparmor_profile: the profile 'nosuch'"),
        ("[streaming]\ntls_cert = '/nowhere/a'\ntls_key = '/nowhere/b'\n", "/nowhere/a: No such file or directory"),
        (
            "[snapshotter]\noptions.root = '/tmp/x'\n"
            "[snapshotters.two]\ndriver = 'native'\noptions.root = '/tmp/./x'\n",
            "snapshotters.two.options.root: /tmp/x is another slot's, too",
        ),
    ],
)
def test_what_would_fail_each_pod_or_the_start(check: Callable[..., str], text: str, words: str) -> None:
    assert words in check(text)


def test_sysctls_of_interfaces_to_come_are_no_mistake(check: Callable[..., str]) -> None:
    check("[pods.default_sysctls]\n'net.ipv4.conf.eth0.rp_filter' = '0'\n'kernel.shmmax' = '1000000'\n", code=0)


@pytest.mark.parametrize(
    ("root", "run", "words"),
    [
        ("DIR/x", "DIR/x", "is the same directory as"),
        ("DIR/x", "DIR/x/run", "is inside root"),
        ("DIR/x/root", "DIR/x", "is inside run"),
        ("DIR/file", "DIR/x", "can't be used: Not a directory"),
        ("/usr", "DIR/x", "holds directories that are not crinoid's"),
        (f"DIR/{'a' * 300}", "DIR/x", "can't be used: File name too long"),
    ],
)
def test_directories_that_could_not_be_taken(
    check: Callable[..., str], tmp_path: Path, root: str, run: str, words: str
) -> None:
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    top = f"root = '{root}'\nrun = '{run}'\n".replace("DIR", str(tmp_path))
    assert words in check("", top=top)
    assert [path for path in sorted(tmp_path.rglob("*")) if path.name != "config.toml"] == before


def test_two_servers_at_one_port(check: Callable[..., str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    # A daemon at the default socket, such as this machine's own, would have its ports in use by right.
    text = (
        f"[server]\nsocket = '{tmp_path}/s.sock'\n[metrics]\nlisten = '127.0.0.1:{port}'\n[streaming]\nport = {port}\n"
    )
    assert f"metrics.listen: 127.0.0.1 port {port} can't be had: Address already in use" in check(text)


def test_what_is_only_worth_a_line(check: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    for name in ("10-a.conf", "20-b.TOML", "30-c.toml~"):
        (tmp_path / "conf.d" / name).write_text("not read")
    (tmp_path / "conf.d/.#40.toml").symlink_to("user@host.1")
    (tmp_path / "config.toml").touch()
    (tmp_path / "config.toml").chmod(0o666)
    said = check("[streaming]\naddress = '0.0.0.0'\n[images]\nsources = []\n", code=0)
    for name in ("10-a.conf", "20-b.TOML", "30-c.toml~"):
        assert f"note: DIR/conf.d/{name} is not read" in said
    assert ".#40" not in said
    assert "note: DIR/config.toml can be changed by others than root" in said
    assert "note: streaming.address 0.0.0.0 is open to the network" in said
    assert "note: images.sources is empty" in said
