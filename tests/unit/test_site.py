"""The documents as a site: every page has its place, no link is dead, and of every command it is known how it is tried.

A page or a command that is not listed here is an error, so that whoever adds it decides.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import yaml

from crinoid.core.cli.main import main

REPOSITORY = Path(__file__).parents[2]
PAGES = sorted(path.name for path in (REPOSITORY / "docs").glob("*.md"))
DOCUMENTS = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
DOCUMENTS += [REPOSITORY / "docs" / name for name in PAGES]

TESTS = {
    "serve": "support/daemon.py",
    "ctl": "integration/test_ctl.py",
    "check": "unit/core/cli/test_check.py",
    "config": "unit/core/cli/test_main.py",
    "plugins": "unit/core/cli/test_main.py",
    "plugin": "contract/test_new_plugins.py",
    "doctor": "integration/test_lost_state.py",
    "state": "unit/core/cli/test_state.py",
    "report": "unit/core/cli/report/test_report.py",
    "explain": "unit/core/cli/explain/test_command.py",
    "build": "unit/core/cli/node_build/test_build.py",
    "upgrade": "integration/test_takeover.py",
    "reload": "integration/test_reload.py",
    "log-level": "integration/test_reload.py",
    "demo": "integration/test_demo.py",
    "image": "integration/test_images.py",
    "trace": "integration/test_trace.py",
}
"""Which test executes each command of crinoid."""
NOT_EXECUTED = {
    "systemctl": "no systemd runs where the tests do",
    "journalctl": "no systemd runs where the tests do",
    "kubectl": "it needs a cluster",
    "make": "the targets are what runs the tests",
    "pytest": "it is what runs the tests",
    "apt-get": "it changes the machine; tried by hand in a bare debootstrap root (CHANGELOG)",
    "python3": "as apt-get; an environment with the wheel is made by integration/test_packaging.py",
    "pip": "as apt-get; the wheel is installed by integration/test_packaging.py",
    "/opt/crinoid/bin/pip": "as pip",
    "ln": "as apt-get",
    "cp": "as apt-get",
    "mv": "as apt-get",
    "crictl": "it is not on the machine",
    "docker": "it is not on the machine",
    "tar": "its part of the line is ctl exec's, which integration/test_ctl_streams.py executes",
}
"""Why the tests do not execute other programs that documents name."""


def commands() -> Iterator[tuple[str, str]]:
    """Yield each command in an indented or fenced block, with its document."""
    known = ("crinoid", *NOT_EXECUTED)
    for document in DOCUMENTS:
        fence: str | None = None
        for line in document.read_text().splitlines():
            if line.startswith("```"):
                fence = None if fence is not None else line[3:].strip()
                continue
            is_code = fence in ("", "sh", "console") if fence is not None else line.startswith("    ")
            text = line.strip()
            if is_code and (fence in ("sh", "console") or text.removeprefix("$ ").split(" ")[0] in known):
                if fence == "console" and not text.startswith("$ "):
                    continue  # output
                yield document.name, text.removeprefix("$ ")


def words_of(text: str) -> list[str]:
    """Split a command, without a comment and what a shell does with its output."""
    return shlex.split(re.sub(r"\s+#.*| (\||>|&&) .*|\s*…", "", text))


COMMANDS = list(commands())
OF_CRINOID = sorted({text for _, text in COMMANDS if text.startswith("crinoid ")})


def test_every_page_has_its_place() -> None:
    """A new page needs a line in the nav of mkdocs.yml."""
    nav = yaml.safe_load((REPOSITORY / "mkdocs.yml").read_text())["nav"]
    listed = [page for section in nav for pages in section.values() for entry in pages for page in entry.values()]
    assert sorted(listed) == PAGES


def test_the_site_builds_and_no_link_is_dead(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert {path.stem for path in tmp_path.glob("*.html")} >= {Path(page).stem for page in PAGES}


def test_it_is_known_of_every_command_how_it_is_tried() -> None:
    assert len(COMMANDS) > 80
    assert {text.split(" ")[0] for _, text in COMMANDS} <= {"crinoid", *NOT_EXECUTED}
    assert {words_of(text)[1] for text in OF_CRINOID} - {"-h", "--help", "--version"} <= set(TESTS)
    assert [name for name, test in TESTS.items() if name not in (REPOSITORY / "tests" / test).read_text()] == []


@pytest.mark.parametrize("text", OF_CRINOID)
def test_every_command_of_crinoid_is_one(text: str) -> None:
    """Its verb, flags and number of arguments are those there are; nothing is run."""
    words = words_of(text)[1:]
    command: click.Command = main
    context = command.make_context("crinoid", list(words), resilient_parsing=False)
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None
        command, context = found, found.make_context(name, rest, parent=context)


def test_the_figures_of_the_readme_are_those_that_were_measured() -> None:
    """Of the columns that it shows; the document has more."""

    def cells(line: str) -> list[str]:
        return [cell.split(" (")[0].strip() for cell in line.strip().strip("|").split("|")]

    def plain(name: str) -> str:
        return re.sub(r"[ ,]", "", name.lower())

    measured = (REPOSITORY / "docs/performance.md").read_text().partition("## Medians")[2].splitlines()
    columns = [plain(name) for name in cells(next(line for line in measured if line.startswith("| figure |")))]
    table = re.search(r"^(\| median \|.*)\n\|.*\n((?:\|.*\n)+)", (REPOSITORY / "README.md").read_text(), re.MULTILINE)
    assert table is not None
    shown = [columns.index(plain(name)) for name in cells(table[1])[1:]]
    for line in table[2].splitlines():
        name, *figures = [cell.strip() for cell in line.strip("|").split("|")]
        row = cells(next(row for row in measured if row.startswith(f"| {name} |")))
        assert [row[place] for place in shown] == figures
