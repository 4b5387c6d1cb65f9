"""``crinoid state``, ``crinoid doctor`` and the exit code of a state that can't be had, over noop drivers."""

import json
import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from crinoid.core.api.errors import StateUnavailable
from crinoid.core.cli.main import main
from crinoid.core.config.models import Config
from crinoid.core.daemon.directories import find_passage, is_taken, taken
from crinoid.core.state import opening
from crinoid.core.state.store import Store
from support.distributions import QUIET_CONFIG, Site
from unit.core.state.test_store import a_pod

ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="directories have to belong to the daemon's user")


def run(*arguments: str | Path, text: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments], input=text)


@pytest.fixture
def config(quiet: Site, tmp_path: Path) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(QUIET_CONFIG.format(directory=tmp_path) + '[network]\ndriver = "quiet"\n')
    (tmp_path / "root").mkdir(exist_ok=True)
    store = Store(tmp_path / "root" / "state.db")
    store.pods.put(a_pod())
    store.close()
    return file


def test_records_go_to_a_file_and_come_back(config: Path, tmp_path: Path) -> None:
    file = tmp_path / "state.jsonl"
    assert run("state", "export", "-c", config, file).exit_code == 0
    assert file.stat().st_mode & 0o777 == 0o600
    assert run("state", "export", "-c", config).output == file.read_text()
    refused = run("state", "import", "-c", config, file)
    assert (refused.exit_code, "already: records are read into an empty state only" in refused.stderr) == (1, True)
    (tmp_path / "root" / "state.db").rename(tmp_path / "old.db")
    done = run("state", "import", "-c", config, text=file.read_text())
    assert (done.exit_code, done.output) == (0, "")
    assert list(Store(tmp_path / "root" / "state.db").pods) == [a_pod()]


def test_a_state_that_can_not_be_had_has_an_exit_code_of_its_own(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a service manager can tell it from a mistake in the configuration, which no further start mends."""

    def fail(_path: Path) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "root" / "state.db").unlink()
    monkeypatch.setattr(opening, "_make", fail)
    refused = run("state", "import", "-c", config, text='{"crinoid": "1"}\n')
    assert refused.exit_code == os.EX_TEMPFAIL == 75
    assert refused.stderr.startswith(f"crinoid: {tmp_path}/root/state.db can't be used: No space left on device. Noth")
    assert StateUnavailable.grpc_status == "UNAVAILABLE"


def test_the_doctor_lists_what_is_on_no_record(config: Path, tmp_path: Path) -> None:
    assert run("doctor", "-c", config).output == "nothing is on this host that is on no record\n"
    stray = tmp_path / "run" / "pods" / ("e" * 64)
    stray.mkdir(parents=True)
    found = run("doctor", "-c", config)
    assert found.exit_code == 1
    assert f"  1 directories: {stray}\n" in found.output
    listed = json.loads(run("doctor", "-c", config, "--json").output)
    assert listed == {"daemon": False, "strays": [{"id": "e" * 64, "directories": [str(stray)]}], "repaired": []}
    check = json.loads(run("check", "-c", config, "--json").output)
    assert [one["verdict"] for one in check if one["area"] == "state"] == ["warning"]


@ROOT_ONLY
def test_the_doctor_repairs_only_what_no_daemon_holds(config: Path, tmp_path: Path) -> None:
    stray = tmp_path / "run" / "pods" / ("e" * 64)
    stray.mkdir(parents=True)
    with taken(Config(root=tmp_path / "root", run=tmp_path / "run")) as held:
        assert is_taken(tmp_path / "root")
        assert find_passage(tmp_path / "run") == held.passage
        refused = run("doctor", "-c", config, "--repair")
        assert (refused.exit_code, "stop it first" in refused.stderr) == (1, True)
    assert not is_taken(tmp_path / "root")
    done = run("doctor", "-c", config, "--repair")
    assert (done.exit_code, done.output) == (0, f"{'e' * 64}\n{'e' * 64}: removed\n")
    assert not stray.exists()
