"""A node build's package under systemd: what its maintainer scripts do to the unit, the daemon and the pods.

Two versions of the package are made by ``tools/try_site.sh --builds DIRECTORY``, which CRINOID_SITE names to `make
test-systemd`; without it these tests are skipped. All of it happens in a virtual machine whose changes are thrown away.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from integration.conftest import BUSYBOX
from integration.pods import until
from support.images import build_busybox
from support.patience import patient
from with_systemd.unit import UNITS, show, start_time, systemctl

UNIT, PACKAGE, PREFIX = "crinoid.service", "crinoid-edge", Path("/opt/crinoid")
CONFIG = Path("/etc/crinoid/config.toml")
DROP_IN = CONFIG.parent / "conf.d/50-trial.toml"

pytestmark = pytest.mark.skipif("CRINOID_SITE" not in os.environ, reason="CRINOID_SITE names no packages")


def dpkg(*arguments: str) -> str:
    """Run dpkg as an unattended upgrade does; return all it says. It must not fail."""
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    command = ["dpkg", "--force-confold", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def install(version: str) -> str:
    site = Path(os.environ["CRINOID_SITE"])
    return dpkg("--install", str(site / f"site-a-{version}/dist/{PACKAGE}_{version}_amd64.deb"))


def crinoid(*arguments: str) -> str:
    """Run the installed command; return what it prints."""
    done = subprocess.run(["/usr/bin/crinoid", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def main_pid() -> int:
    return int(show(UNIT, "MainPID")["MainPID"])


@dataclass
class Running:
    """A container and the process that it is."""

    pid: int
    started: str

    def check(self) -> None:
        """It is the process that it was, and the daemon serves it."""
        assert start_time(self.pid) == self.started
        assert crinoid("ctl", "exec", "hello", "cat", "/proc/1/comm") == "sleep\n"


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The first version, with a node's own settings beside the package's."""
    layouts = tmp_path_factory.mktemp("layouts")
    build_busybox(layouts / "busybox", BUSYBOX)
    assert not (UNITS / UNIT).exists()
    if not Path("/var/lib/dpkg/status").exists():  # the guest's /var/lib is empty: what is installed is the host's
        shutil.copytree("/host/var/lib/dpkg", "/var/lib/dpkg", dirs_exist_ok=True)
    DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    DROP_IN.write_text(
        '[pods]\ncgroup_root = "/crinoid"\ncgroup_driver = "systemd"\n'
        f'[registries.layout]\ndriver = "layout"\noptions = {{ directory = "{layouts}" }}\n'
    )
    yield install("0.1.0")
    subprocess.run(["dpkg", "--purge", PACKAGE], capture_output=True, check=False)
    DROP_IN.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def running(installed: str) -> Running:
    """The daemon, started by hand as the package starts nothing, and a pod."""
    systemctl("start", UNIT)
    crinoid("ctl", "pull", BUSYBOX)
    crinoid("ctl", "run", "--network", "host", "--name", "hello", BUSYBOX, "sleep", "100000")
    pid = json.loads(crinoid("ctl", "inspect", "hello"))["info"]["pid"]
    return Running(pid, start_time(pid))


def test_the_installation_enables_the_unit_and_starts_nothing(installed: str) -> None:
    assert "the configuration is valid" in installed
    assert show(UNIT, "UnitFileState", "ActiveState") == {"UnitFileState": "enabled", "ActiveState": "inactive"}
    assert show(UNIT, "FragmentPath")["FragmentPath"].endswith(f"/lib/systemd/system/{UNIT}")
    assert "HTTPS_PROXY=http://proxy.example:3128" in show(UNIT, "Environment")["Environment"]
    assert subprocess.run(["getent", "group", "crinoid"], check=False, capture_output=True).returncode == 0
    assert crinoid("build", "verify").startswith(f"this is {PACKAGE} 0.1.0")


def test_the_unit_runs_what_was_installed(running: Running) -> None:
    running.check()
    assert Path(f"/proc/{main_pid()}/cmdline").read_bytes().startswith(bytes(PREFIX))
    assert show(UNIT, "ActiveState", "WatchdogUSec") == {"ActiveState": "active", "WatchdogUSec": "1min"}


@pytest.mark.parametrize("version", ["0.1.1", "0.1.0"])
def test_another_version_takes_over_under_a_running_pod(running: Running, version: str) -> None:
    """Upwards and downwards: by the unit's reload, which the package asks for."""
    before = main_pid()
    said = install(version)
    assert "serves on" not in said
    assert main_pid() not in (0, before)
    assert show(UNIT, "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}
    assert version in crinoid("ctl", "version")
    running.check()
    assert crinoid("build", "verify").startswith(f"this is {PACKAGE} {version}")


def test_an_upgrade_over_a_mistake_is_told_and_the_daemon_of_before_serves_on(running: Running) -> None:
    before, text = main_pid(), CONFIG.read_text()
    CONFIG.write_text(f"{text}\n[log]\nlevl = 'debug'\n")
    try:
        said = install("0.1.1")
        assert "log.levl: unknown key" in said
        assert "the daemon of before serves on" in said
        assert main_pid() == before
        running.check()
    finally:
        CONFIG.write_text(text)
    systemctl("reload", UNIT)
    assert main_pid() not in (0, before)
    running.check()


def test_a_removal_ends_the_daemon_and_not_the_pods(running: Running) -> None:
    dpkg("--remove", PACKAGE)
    assert show(UNIT, "LoadState")["LoadState"] == "not-found"
    assert start_time(running.pid) == running.started
    assert CONFIG.exists(), "configuration stays until a purge"
    assert not PREFIX.exists()
    install("0.1.1")
    assert show(UNIT, "UnitFileState", "ActiveState") == {"UnitFileState": "enabled", "ActiveState": "inactive"}
    systemctl("start", UNIT)
    running.check()


def test_a_purge_leaves_records_and_what_the_node_added(running: Running) -> None:
    crinoid("ctl", "rmp", "--all", "--force")
    since = time.monotonic()
    dpkg("--purge", PACKAGE)
    assert time.monotonic() - since < patient(90)
    until(lambda: not Path(f"/proc/{running.pid}").exists())
    assert not CONFIG.exists()
    assert not PREFIX.exists()
    assert not Path("/usr/bin/crinoid").is_symlink()
    assert DROP_IN.exists()
    assert Path("/var/lib/crinoid/state.db").exists()
    assert not Path("/etc/systemd/system/multi-user.target.wants", UNIT).is_symlink()
