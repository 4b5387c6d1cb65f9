"""A daemon as systemd runs it: by the unit of the repository, but for the paths of a test."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from integration.pods import until
from support.daemon import Daemon
from support.patience import patient

REPOSITORY = Path(__file__).parents[2]
UNITS = Path("/run/systemd/system")
WATCHDOG = "WatchdogSec=60"
_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def systemctl(*arguments: str, fails: bool = False) -> str:
    """Run systemctl; return what it says. It must fail, or must not."""
    done = subprocess.run(["systemctl", "--no-pager", *arguments], capture_output=True, text=True, check=False)
    said = f"{done.stdout}{done.stderr}"
    assert bool(done.returncode) == fails, f"{arguments}: exit {done.returncode}\n{said}{_journal()}"
    return done.stdout


def _journal() -> str:
    """The last that anybody has said: systemctl itself says nothing of why."""
    command = ["journalctl", "--no-pager", "--output=short-precise", "--lines=40"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def show(unit: str, *properties: str) -> dict[str, str]:
    """Return properties of a unit."""
    said = systemctl("show", unit, f"--property={','.join(properties)}")
    return dict(line.split("=", 1) for line in said.splitlines())


def seconds_of(span: str) -> float:
    """Read a time span as systemctl prints it (systemd.time(7)): ``1min 30s``."""
    return sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(r"([\d.]+)([a-z]+)", span))


def units(pattern: str) -> list[str]:
    """Name the units of a pattern that systemd knows, failed ones too."""
    said = systemctl("list-units", "--all", "--plain", "--no-legend", "--full", pattern)
    return [line.split()[0] for line in said.splitlines()]


def start_slice(name: str, *properties: str) -> None:
    """Make a slice as the kubelet does, with properties in busctl's form."""
    call = "org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager StartTransientUnit"
    count = str(1 + sum(word in ("b", "t", "as", "s") for word in properties))
    form = ["ssa(sv)a(sa(sv))", name, "replace", count, "DefaultDependencies", "b", "false", *properties, "0"]
    subprocess.run(["busctl", "call", *call.split(), *form], check=True, capture_output=True)
    until(lambda: show(name, "ActiveState")["ActiveState"] == "active")


@dataclass
class UnitDaemon(Daemon):
    """``start``, ``stop``, ``kill`` and the rest by way of systemd, with the unit's own options."""

    @property
    def unit(self) -> str:
        """The unit's name."""
        return f"{self.name}.service"

    @property
    def main_pid(self) -> int:
        """The main process, as systemd knows it."""
        return int(show(self.unit, "MainPID")["MainPID"])

    def install(self) -> None:
        """Write configuration and unit."""
        options = " ".join(self.write_config())
        text = (REPOSITORY / "packaging/crinoid.service").read_text()
        for verb in ("serve", "upgrade"):
            text = text.replace(f"/usr/local/bin/crinoid {verb}", f"{sys.executable} -m crinoid {verb} {options}")
        assert text.count(options) == 2, "the unit has both commands"
        assert text.count(WATCHDOG) == 1
        text = text.replace(WATCHDOG, f"WatchdogSec={patient(60):g}")  # in a slow machine the daemon is slow as well
        (UNITS / self.unit).write_text(text)
        systemctl("daemon-reload")

    def start(self, *, is_forked: bool = False) -> "UnitDaemon":
        """Start; systemctl returns once it serves, and it is never forked from here."""
        assert not is_forked
        systemctl("start", self.unit)
        return self

    def stop(self) -> int:
        """Stop; pods run on."""
        self.forget_client()
        systemctl("stop", self.unit)
        return 0

    def restart(self) -> None:
        """Restart by one command, as an update of a package does."""
        self.forget_client()
        systemctl("restart", self.unit)

    def kill(self) -> int:
        """Kill the main process; systemd starts another."""
        self.forget_client()
        before = self.main_pid
        os.kill(before, signal.SIGKILL)
        until(lambda: self.main_pid not in (0, before) and self.state == "active", 180)
        return -signal.SIGKILL

    @property
    def state(self) -> str:
        """The unit's: ``active``, ``failed`` and others."""
        return show(self.unit, "ActiveState")["ActiveState"]

    def journal(self, *options: str) -> list[str]:
        """Return the unit's own lines in the journal, and systemd's about it."""
        subprocess.run(["journalctl", "--sync"], check=True)
        command = ["journalctl", "--no-pager", "--output=cat", f"--unit={self.unit}", *options]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()

    def tail(self) -> str:
        """Return the last of what it wrote."""
        return "\n".join(self.journal("--lines=40"))

    def end(self) -> None:
        """End it and all that it has left."""
        with contextlib.suppress(AssertionError):
            self.stop()
        for scope in units("crinoid-*.scope"):
            with contextlib.suppress(AssertionError):
                systemctl("stop", scope)
        (UNITS / self.unit).unlink(missing_ok=True)
        for failed in (self.unit, "crinoid-*.scope"):
            subprocess.run(["systemctl", "reset-failed", failed], check=False, capture_output=True)
        systemctl("daemon-reload")
        super().end()


def start_time(pid: int) -> str:
    """Return when a process was started, in the kernel's ticks: with its id it names a process for good."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
