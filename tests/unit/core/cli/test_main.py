"""The command line, as a user meets it."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from crinoid import __version__
from crinoid.core.cli.main import COMMANDS, main
from crinoid.core.config.loader import ConfigPaths, load
from support.distributions import QUIET_CONFIG, Site


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


@pytest.fixture
def config(quiet: Site, tmp_path: Path) -> Path:
    """A configuration of noop drivers."""
    file = tmp_path / "config.toml"
    file.write_text(QUIET_CONFIG.format(directory=tmp_path) + '[network]\ndriver = "quiet"\n')
    return file


def test_the_help_lists_the_commands_and_imports_none() -> None:
    script = "import sys; from crinoid.core.cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    script += "print([m for m in ('grpc', 'pydantic', 'rich', 'stevedore') if m in sys.modules])"
    finished = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert finished.stdout.endswith("[]\n")
    shown = {name for name, lazy in COMMANDS.items() if not lazy.is_hidden}
    assert all(name in finished.stdout for name in shown)
    assert COMMANDS.keys() - shown == {"plugin-host"}
    assert "plugin-host" not in finished.stdout


def test_the_module_is_the_same_program() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "crinoid", "config", "check", "-c", "/nowhere.toml"], capture_output=True, text=True
    )
    assert finished.returncode == 78
    assert finished.stdout == ""
    assert finished.stderr == "crinoid: /nowhere.toml: there is no such file; --config must name one\n"


def test_why_a_start_failed_is_an_error_in_the_journal() -> None:
    """``journalctl -p err`` shows it: systemd's own line there says no more than that the unit has failed."""
    reading, writing = os.pipe()
    status = os.fstat(writing)
    environment = {**os.environ, "JOURNAL_STREAM": f"{status.st_dev}:{status.st_ino}"}
    command = [sys.executable, "-m", "crinoid", "serve", "-c", "/nowhere.toml"]
    with os.fdopen(reading) as pipe:
        assert subprocess.run(command, stderr=writing, env=environment, check=False).returncode == 78
        os.close(writing)
        assert pipe.read() == "<3>crinoid: /nowhere.toml: there is no such file; --config must name one\n"


def test_the_version_is_told() -> None:
    assert run("--version").output == f"crinoid, version {__version__}\n"


def test_an_unknown_command_is_a_wrong_use() -> None:
    result = run("sreve")
    assert result.exit_code == 2
    assert "there is no command 'sreve'; did you mean \"serve\"?" in result.output


def test_a_valid_configuration_passes(config: Path) -> None:
    result = run("config", "check", "-c", config)
    assert result.exit_code == 0
    assert result.output == f"the configuration is valid: {config}; 4 slots\n"
    assert not (config.parent / "root").exists()


def test_mistakes_of_a_driver_s_options_are_told_without_a_traceback(config: Path) -> None:
    config.write_text(config.read_text() + 'options.cidr = "x"\n[networks.second]\ndriver = "queit"\n')
    result = run("config", "check", "-c", config)
    assert result.exit_code == 78
    lines = [line.removeprefix(f"crinoid: {config}:") for line in result.stderr.splitlines()]
    first = config.read_text().splitlines().index('options.cidr = "x"') + 1
    assert lines[0] == f"{first}: network.options.cidr: unknown key"
    assert lines[1].startswith(f'{first + 2}: networks.second.driver: no network driver "queit" is installed')
    assert lines[1].endswith('did you mean "quiet"?')
    assert len(lines) == 2


def test_the_environment_may_name_the_file(config: Path) -> None:
    result = CliRunner().invoke(main, ["config", "check"], env={"CRINOID_CONFIG": str(config)})
    assert str(config) in result.output


def test_what_is_shown_is_the_same_configuration_again(config: Path, tmp_path: Path) -> None:
    shown = run("config", "show", "-c", config)
    again = tmp_path / "again.toml"
    again.write_text(shown.output)
    assert load(ConfigPaths.at(again)).config == load(ConfigPaths.at(config)).config


def test_each_value_is_shown_with_its_origin(config: Path) -> None:
    output = run("config", "show", "-c", config).output
    assert f'driver = "quiet"  # {config}:{len(config.read_text().splitlines())}\n' in output
    assert 'level = "info"  # default\n' in output
    document = json.loads(run("config", "show", "-c", config, "-o", "json").output)
    assert document["config"]["network"]["driver"] == "quiet"
    assert document["origins"]["root"] == f"{config}:1"
    assert document["origins"]["deadlines.runtime.create"] == "default"


def test_the_options_of_drivers_are_shown_with_their_defaults(site: Site, tmp_path: Path) -> None:
    site.install("star-net", "[crinoid.networks]\nstar = star_net:Driver\n")
    site.install_quiet()
    file = tmp_path / "config.toml"
    text = (
        QUIET_CONFIG.format(directory=tmp_path) + '[network]\ndriver = "star"\noptions = { subnet = "a\\"\\u007f" }\n'
    )
    file.write_text(text)
    shown = run("config", "show", "-c", file).output
    assert "mtu = 1500  # default" in shown
    assert f"# {file}:{len(text.splitlines())}" in shown
    assert tomllib.loads(shown)["network"]["options"]["subnet"] == 'a"\x7f'


def test_mistakes_of_all_kinds_are_told_in_one_run(quiet: Site, tmp_path: Path) -> None:
    """Those of the kernel's own tables, of names, drivers and their options; none of what follows from another."""
    file = tmp_path / "config.toml"
    file.write_text(
        '[pods]\ndefault_ulimits = ["nofile"]\n[runtimes.x]\ndriver = "rnc"\nnetwork = "absent"\n'
        '[networks.n]\noptions = {}\n[network]\ndriver = "bridge"\noptions = { subnets = 5 }\n'
        '[runtimes.y]\ndriver = "runc"\nnetwork = "n"\n[images]\nsources = ["layout", "gone"]\n'
    )
    result = run("config", "check", "-c", file)
    assert result.exit_code == 78
    found = [line.removeprefix(f"crinoid: {file}:").split(": ")[:2] for line in result.output.splitlines()]
    assert found == [
        ["2", "pods.default_ulimits[0]"],
        ["4", "runtimes.x.driver"],
        ["5", "runtimes.x.network"],
        ["6", "networks.n.driver"],
        ["10", "network.options.subnets"],
        ["15", "images.sources[1]"],
    ]


def test_the_schema_is_json() -> None:
    assert "runtimes" in json.loads(run("config", "schema").output)["properties"]


def test_the_plugins_are_listed_for_people_and_programs(
    config: Path, quiet: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")  # a line is never cut
    quiet.install("bad-net", "[crinoid.networks]\nbad = bad_net:Driver\n", "import not_there\n")
    table = run("plugins", "-c", config)
    assert table.exit_code == 0
    assert table.output.splitlines()[0].split() == ["ROLE", "NAME", "DISTRIBUTION", "API", "SLOTS", "ISOLATED", "STATE"]
    assert "No module named 'not_there'" in table.output
    rows = {(row["role"], row["name"]): row for row in json.loads(run("plugins", "-c", config, "-o", "json").output)}
    assert rows["network", "quiet"] == {
        "role": "network",
        "name": "quiet",
        "distribution": "quiet",
        "version": "1.0",
        "apiVersion": "1.0",
        "slots": ["default"],
        "isolated": [],
        "processes": [],
        "state": "selected",
        "lastError": "",
    }
    assert rows["network", "bad"]["state"] == "broken"
    assert rows["runtime", "runc"]["state"] == "available"


def test_the_plugins_are_listed_when_the_configuration_is_broken(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text("[lgo]\n")
    result = run("plugins", "-c", file, "-o", "json")
    assert result.exit_code == 0
    assert 'lgo: unknown key; did you mean "log"?' in result.stderr
    assert any(row["name"] == "runc" for row in json.loads(result.stdout))
