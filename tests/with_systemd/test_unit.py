"""The daemon under its unit: starts, reloads, restarts, ends and mistakes, with containers that live through all."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from integration.conftest import Node
from integration.pods import Pod, until
from support.patience import patient
from with_systemd.conftest import Living
from with_systemd.unit import UnitDaemon, seconds_of, show, systemctl


def test_a_start_has_ended_once_it_serves(unit: UnitDaemon, node: Node) -> None:
    unit.restart()
    assert unit.cri.call("Version", timeout_s=1)["runtime_name"] == "crinoid"
    told = show(unit.unit, "Type", "SubState", "StatusText", "NRestarts", "Delegate", "OOMPolicy")
    status = f"serving {unit.socket}"
    expected = {"Type": "notify", "SubState": "running", "StatusText": status, "NRestarts": "0", "Delegate": "yes"}
    assert told == expected | {"OOMPolicy": "continue"}, "the end of a monitor is not that of the daemon"


def pinged(unit: UnitDaemon) -> None:
    """Wait for a ping of the watchdog from now on."""
    name = "WatchdogTimestampMonotonic"
    before = show(unit.unit, name)[name]
    until(lambda: show(unit.unit, name)[name] != before, 90)


def test_the_watchdog_is_pinged(unit: UnitDaemon, lives: Living) -> None:
    assert seconds_of(show(unit.unit, "WatchdogUSec")["WatchdogUSec"]) == pytest.approx(patient(60))
    pinged(unit)


def test_a_reload_is_a_takeover(unit: UnitDaemon, lives: Living) -> None:
    """For systemd, too: the new main process is its own child, whose end it waits for."""
    before = unit.main_pid
    systemctl("reload", unit.unit)
    successor = unit.main_pid
    assert successor not in (0, before)
    assert unit.serving_pid() == successor
    assert f"PPid:\t{1}\n" in Path(f"/proc/{successor}/status").read_text()
    assert f"/{unit.unit}" in Path(f"/proc/{successor}/cgroup").read_text()
    assert show(unit.unit, "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}
    lives.check()
    pinged(unit)
    systemctl("reload", unit.unit)
    assert unit.main_pid not in (0, before, successor), "another one works as the first did"


def test_a_stop_after_a_reload_waits_for_the_end(unit: UnitDaemon, lives: Living) -> None:
    systemctl("reload", unit.unit)
    since = time.time()
    unit.stop()
    assert not any("SIGKILL" in line for line in unit.journal(f"--since=@{since:.0f}")), unit.tail()
    assert show(unit.unit, "Result") == {"Result": "success"}
    unit.start()


def test_a_main_process_after_a_reload_is_started_again(unit: UnitDaemon, lives: Living) -> None:
    systemctl("reload", unit.unit)
    unit.kill()
    assert unit.serving_pid() == unit.main_pid


def test_nothing_ends_by_a_daemon_reload_or_a_restart(unit: UnitDaemon, node: Node, lives: Living) -> None:
    container = Pod(node, node.run_pod()).start("sh", "-c", "while sleep 0.1; do echo x; [ ! -e /end ] || exit 7; done")
    pid = int(json.loads(node.call("ContainerStatus", container_id=container, verbose=True)["info"]["info"])["pid"])
    systemctl("daemon-reload")
    lives.check()
    before = unit.main_pid
    unit.stop()
    end = Path(f"/proc/{pid}/root/end")
    end.touch()
    until(lambda: not Path(f"/proc/{pid}").exists())
    unit.start()
    assert unit.main_pid != before
    assert node.status(container)["exit_code"] == 7, "its monitor has outlived the unit's stop"
    unit.kill()


def test_a_mistake_in_the_configuration(unit: UnitDaemon, lives: Living) -> None:
    """A reload leaves all as it is; a start fails for good, as no further one would mend it; a mended one starts."""
    before, since = unit.main_pid, time.time()
    mistake = unit.directory / "conf.d/60-mistake.toml"
    mistake.write_text("[pods]\npid_limit = 5\n")
    try:
        systemctl("reload", unit.unit, fails=True)
        assert (unit.main_pid, unit.state) == (before, "active")
        assert unit.cri.call("Version", timeout_s=1)
        unit.forget_client()
        systemctl("restart", unit.unit, fails=True)
        told = show(unit.unit, "ActiveState", "SubState", "ExecMainStatus", "NRestarts")
        assert told == {"ActiveState": "failed", "SubState": "failed", "ExecMainStatus": "78", "NRestarts": "0"}
        errors = unit.journal(f"--since=@{since:.0f}", "--priority=err")
        assert any("pid_limit" in line for line in errors), errors
    finally:
        mistake.unlink()
    unit.start()
    assert unit.state == "active"


def test_any_number_of_ends_is_followed_by_a_start(unit: UnitDaemon, lives: Living) -> None:
    told = show(unit.unit, "Restart", "RestartUSec", "StartLimitIntervalUSec", "RestartPreventExitStatus")
    assert told["Restart"] == "always"
    assert (told["RestartUSec"], told["StartLimitIntervalUSec"]) == ("2s", "0")
    assert told["RestartPreventExitStatus"] == "78"
    unit.kill()
    unit.kill()


def test_priorities_of_the_journal(unit: UnitDaemon) -> None:
    """Each line has its own, and none has the form by which it came, nor a second time."""
    lines = [json.loads(line) for line in unit.journal("--output=json")]
    own = [line for line in lines if line["SYSLOG_IDENTIFIER"] != "systemd"]
    assert {"6"} <= {line["PRIORITY"] for line in own} <= {"3", "4", "6"}
    assert not any(line["MESSAGE"].startswith(("<", "20")) for line in own if isinstance(line["MESSAGE"], str))
    warnings = unit.journal("--priority=warning")
    assert not any("serves CRI v1" in line for line in warnings)
    assert any("serves CRI v1" in line for line in unit.journal())


def test_a_hang_up_reads_the_configuration_again(unit: UnitDaemon, lives: Living) -> None:
    before = unit.main_pid
    since = time.time()
    systemctl("kill", "--kill-who=main", "--signal=HUP", unit.unit)
    until(lambda: any("nothing has changed" in line for line in unit.journal(f"--since=@{since:.0f}")))
    assert unit.main_pid == before


def test_a_daemon_that_stands_still_is_started_again(unit: UnitDaemon, lives: Living) -> None:
    """The unit's watchdog: SIGABRT after a minute; a process that is stopped dies of SIGKILL, a minute later."""
    drop_in = Path(f"/run/systemd/system/{unit.unit}.d/50-short.conf")
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text(f"[Service]\nWatchdogSec={patient(5):g}\nTimeoutStopSec=5\n")
    try:
        systemctl("daemon-reload")
        unit.restart()
        before = unit.main_pid
        os.kill(before, signal.SIGSTOP)
        until(lambda: unit.main_pid not in (0, before) and unit.state == "active", 240)
        assert show(unit.unit, "NRestarts") == {"NRestarts": "1"}
    finally:
        drop_in.unlink()
        drop_in.parent.rmdir()
        systemctl("daemon-reload")
        unit.restart()
