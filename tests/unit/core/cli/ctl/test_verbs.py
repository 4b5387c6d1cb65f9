"""The verbs as a family: what is there, what needs no endpoint, and how options reach a verb."""

import asyncio
import importlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from crinoid.core.cli.ctl import ALIASES, FAMILIES, ctl
from crinoid.core.cli.ctl.flags import gather
from crinoid.core.cli.main import main

GUIDE = Path(__file__).parents[5].joinpath("docs/ctl.md").read_text()
CRICTL = """attach checkpoint completion create events exec imagefsinfo images info inspect inspecti inspectp logs
metricdescs metricsp pods port-forward ps pull rm rmi rmp run runp runtime-config start stats statsp stop stopp update
update-runtime-config version"""


def run(*arguments: str | Path, stdin: str = "") -> Result:
    return CliRunner().invoke(main, ["ctl", "-r", "/nowhere/x.sock", *map(str, arguments)], input=stdin)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_table_names_what_the_modules_have(family: str) -> None:
    verbs = importlib.import_module(f"crinoid.core.cli.ctl.{family}").VERBS
    assert tuple(verb.name for verb in verbs) == FAMILIES[family]


def test_crictls_verbs_are_there() -> None:
    assert isinstance(ctl, click.Group)
    verbs = set(ctl.list_commands(click.Context(ctl)))
    assert verbs >= set(CRICTL.split())
    assert set(ALIASES.values()) <= verbs


def test_the_guide_names_every_verb() -> None:
    assert [verb for verbs in FAMILIES.values() for verb in verbs if f"`{verb}`" not in GUIDE] == []


@pytest.mark.parametrize("verb", [verb for verbs in FAMILIES.values() for verb in verbs] + list(ALIASES))
def test_every_verb_has_help(verb: str) -> None:
    result = run(verb, "--help")
    assert result.exit_code == 0, result.output
    assert len(result.output.splitlines()) > 4


def test_an_endpoint_that_is_not_there_is_one_line() -> None:
    result = run("ps")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("crinoid: there is no socket at unix:///nowhere/x.sock")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", [["ps", "--help"], ["completion"], ["--version"]])
def test_an_output_that_can_not_be_written_is_one_line(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "crinoid", "ctl", *arguments]
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "crinoid: the output can't be written: No space left on device\n")


def test_no_color_is_heeded_at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def coloured() -> None:
        click.secho("word", fg="red")

    monkeypatch.setattr(main, "get_command", lambda ctx, name: coloured)
    shown = {}
    for value in ("", "1"):
        monkeypatch.setenv("NO_COLOR", value)
        shown[value] = CliRunner().invoke(main, ["coloured"], color=True).output
    assert shown == {"": "\x1b[31mword\x1b[0m\n", "1": "word\n"}


def test_an_endpoint_that_comes_late_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []

    async def pause(seconds: float) -> None:
        pauses.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", pause)
    result = run("--max-retries", "3", "ps")
    assert result.exit_code == 1
    assert "no socket at" in result.stderr
    assert [pause for pause in pauses if pause] == [0.1, 0.2, 0.4]


def test_a_shell_that_completes_a_name_is_told_nothing_when_nobody_serves() -> None:
    environment = {
        "_CRINOID_COMPLETE": "bash_complete",
        "COMP_WORDS": "crinoid ctl -r /nowhere/x.sock exec ",
        "COMP_CWORD": "5",
    }
    result = CliRunner().invoke(main, [], env=environment, prog_name="crinoid")
    assert (result.exit_code, result.output) == (0, "\n")


def test_the_endpoint_comes_from_the_environment_or_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config.toml"
    config.write_text('[server]\nsocket = "/configured/x.sock"\n')
    for name, value, endpoint in (
        ("CRINOID_CONFIG", str(config), "/configured/x.sock"),
        ("CONTAINER_RUNTIME_ENDPOINT", "unix:///theirs/x.sock", "/theirs/x.sock"),
        ("CRINOID_ENDPOINT", "unix:///ours/x.sock", "/ours/x.sock"),
    ):
        monkeypatch.setenv(name, value)
        assert f"unix://{endpoint};" in CliRunner().invoke(main, ["ctl", "version"]).stderr


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("ps", "there is no command 'ps'; did you mean `crinoid ctl ps`?"),
        ("version", "did you mean `crinoid --version`, or `crinoid ctl version`?"),
        ("chekc", "there is no command 'chekc'; did you mean \"check\"?"),
    ],
)
def test_a_verb_without_ctl_is_told_as_such(command: str, words: str) -> None:
    assert words in CliRunner().invoke(main, [command]).stderr


@pytest.mark.parametrize("command", [["ctl", "version"], ["log-level", "debug"], ["trace", "stop"], ["explain", "x"]])
def test_a_mistake_in_the_configuration_keeps_nobody_from_the_daemon_that_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    config = tmp_path / "config.toml"
    top = f'root = "{tmp_path}/root"\nrun = "{tmp_path}/run"\nserver.socket = "{tmp_path}/x.sock"\n'
    config.write_text(f"{top}log.levl = 'debug'\npods.nosuch = 1\n")
    monkeypatch.setenv("CRINOID_CONFIG", str(config))
    told = CliRunner().invoke(main, command).stderr
    assert f'warning: {config}:4: log.levl: unknown key; did you mean "level"? and 1 more: crinoid will not' in told
    assert f"{tmp_path}/x.sock" in told or f"{tmp_path}/run" in told, told  # it was looked for there


@pytest.mark.parametrize("line", ["server.sockt = '/x'", "rootdir = 1\nroot = 5", "run = 'relative'", "root = ["])
def test_a_mistake_in_where_the_daemon_is_ends_the_command(tmp_path: Path, line: str) -> None:
    (tmp_path / "config.toml").write_text(f"{line}\n")
    result = CliRunner().invoke(main, ["ctl", "-c", str(tmp_path / "config.toml"), "version"])
    assert (result.exit_code, "config.toml:" in str(result.exception) + result.output) == (78, True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["get", "pods"], "there is no command 'get': `ctl pods`, `ctl ps` and `ctl images` list"),
        (["image", "ls"], "there is no command 'image ls': here it is `ctl images`"),
        (["image", "prune", "-a", "-f"], "here it is `ctl rmi --prune`, or `ctl prune`"),
        (["system", "prune", "-f"], "there is no command 'prune': it is `ctl prune`"),
        (["stpo"], "there is no command 'stpo'; did you mean \"stop\"?"),
        (["kill", "-s", "HUP", "x"], "the CRI can't send HUP"),
        (["stop"], "at least one container"),
        (["rmp"], "at least one pod"),
        (["rmi"], "at least one image"),
        (["run"], "name an image"),
        (["run", "--port", "1:2"], "need an image"),
        (["run", "a.json", "b", "c"], "name an image"),
        (["run", "-d", "--rm", "a"], "--detach can't be had"),
        (["run", "-t", "-f", "a"], "leave out --follow"),
        (["ps", "--label", "novalue"], "KEY=VALUE"),
        (["-t", "soon", "ps"], "no duration"),
        (["logs", "x", "--since", "soon"], "no time"),
        (["port-forward", "pod", "http"], "must be numbers"),
        (["port-forward", "pod", "1:65536"], "must be numbers up to 65535"),
        (["port-forward", "pod", "80", "8080:"], "name the pod's port"),
        (["port-forward", "pod", "0"], "name the pod's port"),
        (["port-forward", "pod"], "Missing argument"),
        (["exec", "-i", "-s", "c", "sh"], "can't be had with --sync"),
        (["exec", "-t", "-x", "c", "sh"], "can't be had with --sync or --parallel"),
        (["exec", "-r", "http", "c", "sh"], "not one of"),
        (["attach", "--tls-ca", "/nowhere", "c"], "does not exist"),
        (["ps", "-o", "toml"], "not one of"),
        (["ps", "-o", "go-template"], "use `-o json`"),
        (["inspect", "--template", "{{.status.id}}", "c"], "use `-o json`"),
        (["-c", "/etc/crictl.yaml", "ps"], "of crictl.yaml nothing is read"),
        (["config", "--list"], "the client has no file of its own"),
        (["cp", "a", "b"], "one of the two must be CONTAINER:PATH"),
        (["cp", "c:/a", "d:/b"], "one of the two must be CONTAINER:PATH"),
    ],
)
def test_a_wrong_use_is_told_without_asking_anybody(arguments: list[str], words: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert words in result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run", "--image", "x", "-v", "/only"], "must be HOST:CONTAINER"),
        (["run", "--image", "x", "--port", "80"], "the flags: ports[0]: must be"),
        (["run", "--image", "x", "--no-pull", "--with-pull"], "exclude each other"),
        (["run", "--image", "x", "--user", "a:b"], "the group must be a number"),
        (["run", "-"], "<stdin>: containers: this key is missing"),
        (["pull", "x", "--creds", "a", "--auth", "b"], "exclude each other"),
    ],
)
def test_a_mistake_in_a_value_is_told_without_asking_anybody(arguments: list[str], words: str) -> None:
    result = run(*arguments, stdin="name: x\n")
    assert result.exit_code == 1
    assert words in result.stderr


def test_many_options_reach_a_verb_as_one_value() -> None:
    @dataclass(frozen=True)
    class Colours:
        red: int = 0
        blue: str = ""

    @click.command()
    @gather("colours", Colours, click.option("--red", default=0), click.option("--blue", default=""))
    @click.option("--other", default="")
    def paint(colours: Colours, other: str) -> None:
        click.echo(f"{colours.red} {colours.blue} {other}")

    assert CliRunner().invoke(paint, ["--red", "3", "--other", "o"]).output == "3  o\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_script_for_the_shell_is_printed(shell: str) -> None:
    result = run("completion", shell)
    assert result.exit_code == 0
    assert "_CRINOID_COMPLETE" in result.output
