"""``crinoid config check`` refuses what the start would: each mistake is tried on both."""

import os
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.cli.main import main
from crinoid.core.config.loader import ConfigPaths, load
from crinoid.core.slots import drivers
from crinoid.core.slots.binding import bind
from support.distributions import NETWORK, QUIET_CONFIG, Site

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="drivers are made as root")
STAR = "[crinoid.networks]\nstar = star_net:Driver\n"


@pytest.fixture
def check(site: Site, tmp_path: Path) -> Callable[..., Result]:
    """Runs the command over a node of noop drivers, but for the network, and what a test adds to the file."""
    site.install_quiet()

    def run(top: str = "", tables: str = "", network: str = "quiet", drop_in: str = "") -> Result:
        if drop_in:
            (tmp_path / "conf.d").mkdir(exist_ok=True)
            (tmp_path / "conf.d/1.toml").write_text(drop_in)
        text = QUIET_CONFIG.format(directory=tmp_path)
        (tmp_path / "config.toml").write_text(f'{top}\n{text}\n[network]\ndriver = "{network}"\n{tables}\n')
        return CliRunner().invoke(main, ["config", "check", "--config", str(tmp_path / "config.toml")])

    return run


def start(tmp_path: Path) -> None:
    """Do what the daemon does with its slots."""
    loaded = load(ConfigPaths.at(tmp_path / "config.toml"))
    bind(loaded.config, loaded.origins)


def test_what_is_right_is_valid_and_leaves_nothing(check: Callable[..., Result], tmp_path: Path) -> None:
    done = check()
    assert (done.exit_code, done.stderr) == (0, ""), done.output
    assert [path.name for path in tmp_path.iterdir() if path.name in ("root", "run")] == []


SOURCES = "images.sources = ['distribution']\n"
DISTRIBUTION = SOURCES + "[registries.distribution]\ndriver = 'distribution'\noptions.config_paths = ['{}/certs.d']\n"


def test_keys_that_an_image_source_passes_over_are_notes(check: Callable[..., Result], tmp_path: Path) -> None:
    (tmp_path / "certs.d/a.test").mkdir(parents=True)
    (tmp_path / "certs.d/a.test/hosts.toml").write_text("skip-verify = true\n")
    done = check(drop_in=DISTRIBUTION.format(tmp_path))
    assert done.exit_code == 0
    assert f'note: registry "distribution": {tmp_path}/certs.d/a.test/hosts.toml: skip-verify: unknown' in done.stderr


def test_what_hinders_an_image_source_is_a_mistake_where_the_file_names_it(
    check: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".docker").mkdir()
    (tmp_path / ".docker/config.json").write_text("no JSON")
    monkeypatch.setenv("HOME", str(tmp_path))
    words = f'registry "distribution" can\'t be used as it is: docker configuration {tmp_path}/.docker/config.json: Inv'
    done = check(drop_in=DISTRIBUTION.format(tmp_path))
    assert (done.exit_code, words in done.stderr) == (78, True)
    done = check(drop_in=SOURCES)
    assert (done.exit_code, f"note: {words}" in done.stderr) == (0, True), done.stderr


INIT = "    def __init__(self, config, host):\n        {}\n"
DRIVERS = {
    "raises": (INIT.format("raise ValueError('no luck')"), "can't be made: ValueError: no luck"),
    "wants what is not installed": (INIT.format("import not_there"), "No module named 'not_there'"),
    "sets a hook": (INIT.format("self.attach = None"), "lacks attach"),
    "lacks a hook": ("    attach = None\n", "lacks attach"),
    "misspells a hook": ("    async def colect_garbage(self, valid): ...\n", 'is all but "collect_garbage"'),
    "forgets a mark": ("    async def check(self, request, data): ...\n", "has the name of a hook but no @hookimpl"),
}


@pytest.mark.parametrize("what", DRIVERS)
def test_a_driver_that_can_not_be_bound(check: Callable[..., Result], site: Site, tmp_path: Path, what: str) -> None:
    lines, words = DRIVERS[what]
    site.install("star-net", STAR, NETWORK + lines)
    done = check(network="star")
    assert done.exit_code == os.EX_CONFIG
    assert words in done.stderr
    assert "config.toml:" in done.stderr
    with pytest.raises(ConfigurationError, match=re.escape(words)):
        start(tmp_path)


def test_a_slow_import_is_named(
    check: Callable[..., Result],
    site: Site,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    for module in ("drivers", "trial", "binding"):
        monkeypatch.setattr(f"crinoid.core.slots.{module}.SLOW_S", 0.2)
    assert drivers.SLOW_S == 0.2
    site.install("star-net", STAR, f"import time\ntime.sleep(0.3)\n{NETWORK}")
    done = check(network="star")
    assert done.exit_code == 0
    assert 'note: network driver "star" of distribution star-net 1.0 takes 0.' in done.stderr
    del sys.modules["star_net"]
    start(tmp_path)
    assert "has taken 0." in caplog.text


def test_a_group_that_is_not_there(check: Callable[..., Result]) -> None:
    done = check(top='server.group = "nobody-has-this"')
    assert done.exit_code == os.EX_CONFIG
    assert "server.group: the socket's group 'nobody-has-this' does not exist" in done.stderr


def test_a_socket_whose_path_is_too_long(check: Callable[..., Result], site: Site, tmp_path: Path) -> None:
    check()
    text = (tmp_path / "config.toml").read_text().replace("crinoid.sock", f"{'x' * 100}.sock")
    (tmp_path / "config.toml").write_text(text)
    done = CliRunner().invoke(main, ["config", "check", "--config", str(tmp_path / "config.toml")])
    assert done.exit_code == os.EX_CONFIG
    assert "is too long: the kernel takes" in done.stderr


@pytest.mark.parametrize("key", ["streaming.port = {port}", 'metrics.listen = "127.0.0.1:{port}"'])
def test_a_port_that_is_in_use(check: Callable[..., Result], tmp_path: Path, key: str) -> None:
    """Unless a daemon serves the socket: then it is its own, as a rule."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        top = key.format(port=other.getsockname()[1])
        done = check(top=top)
        assert done.exit_code == os.EX_CONFIG
        assert "can't be had: Address already in use" in done.stderr
        with socket.socket(socket.AF_UNIX) as daemon:
            daemon.bind(str(tmp_path / "crinoid.sock"))
            daemon.listen()
            assert check(top=top).exit_code == 0


def test_a_port_out_of_range(check: Callable[..., Result]) -> None:
    done = check(top='metrics.listen = "127.0.0.1:65536"')
    assert done.exit_code == os.EX_CONFIG
    assert "metrics.listen: must be host:port with a port of at most 65535" in done.stderr


def test_a_certificate_that_is_not_there(check: Callable[..., Result]) -> None:
    done = check(top='streaming.tls_cert = "/nowhere/cert.pem"\nstreaming.tls_key = "/nowhere/key.pem"')
    assert done.exit_code == os.EX_CONFIG
    assert "the streaming server's certificates can't be used" in done.stderr


def test_a_missing_binary(check: Callable[..., Result]) -> None:
    done = check(tables='[runtimes.odd]\ndriver = "runc"\noptions = { binary = "/nowhere/runc" }')
    assert done.exit_code == os.EX_CONFIG
    assert "runtimes.odd.driver: " in done.stderr
    assert "/nowhere/runc" in done.stderr


def test_a_missing_authority_of_a_registry(check: Callable[..., Result], tmp_path: Path) -> None:
    hosts = tmp_path / "certs.d" / "registry.test" / "hosts.toml"
    hosts.parent.mkdir(parents=True)
    hosts.write_text('ca = "/nowhere/ca.pem"\n')
    sources = f'[registries.hub]\ndriver = "distribution"\noptions = {{ config_paths = ["{tmp_path}/certs.d"] }}\n'
    text = check(tables=sources)
    assert text.exit_code == 0, "it is no source of this node"
    file = tmp_path / "config.toml"
    file.write_text(file.read_text().replace('images.sources = ["quiet"]', 'images.sources = ["hub"]'))
    done = CliRunner().invoke(main, ["config", "check", "--config", str(file)])
    assert done.exit_code == os.EX_CONFIG
    assert f"{hosts}: /nowhere/ca.pem is not there" in done.stderr
