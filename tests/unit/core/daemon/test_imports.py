"""What is imported before the first answer: every module costs the start of the daemon, and of each command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

START = """
import crinoid.core.daemon.serve
from crinoid.core.config.loader import load
from crinoid.core.slots.binding import bind
bind(load(ConfigPaths.at(Path(sys.argv[1]))).config)
"""
COMMAND = """
import crinoid.core.cli.main as cli
cli.main(sys.argv[1:], standalone_mode=False)
"""
LOOK = """
import json, sys
from pathlib import Path
from crinoid.core.config.paths import ConfigPaths
{program}
print(json.dumps(sorted(sys.modules)))
"""


def imported(program: str, *arguments: str) -> set[str]:
    command = [sys.executable, "-c", LOOK.format(program=program), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_the_daemon_imports_nothing_before_its_first_answer_that_can_come_later(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(f'root = "{tmp_path}/root"\nrun = "{tmp_path}/run"\nmetrics.listen = "127.0.0.1:0"\n')
    late = {
        "aiohttp",
        "click",
        "crinoid.core.slots.isolation.channel",
        "http.server",
        "isal",
        "opentelemetry",
        "prometheus_client",
        "rich",
        "yaml",
        "zstandard",
    }
    assert imported(START, str(config)) & late == set()


@pytest.mark.parametrize(
    ("arguments", "late"),
    [
        (("--help",), {"asyncio", "grpc", "pydantic", "rich", "yaml", "sqlite3"}),
        (("ctl", "--help"), {"grpc", "sqlite3", "aiohttp"}),  # it imports all verbs, to tell what they do
        (("ctl", "ps", "--help"), {"grpc", "pydantic", "yaml", "sqlite3"}),
        (("config", "check", "--help"), {"grpc", "rich", "yaml", "sqlite3", "aiohttp"}),
        (("plugins", "--help"), {"grpc", "rich", "yaml", "sqlite3", "aiohttp"}),
        (("check", "--help"), {"grpc", "pydantic", "rich", "yaml", "sqlite3"}),
        (("serve", "--help"), {"grpc", "pydantic", "rich", "yaml", "sqlite3"}),
    ],
)
def test_a_command_imports_what_it_needs(arguments: tuple[str, ...], late: set[str]) -> None:
    assert imported(COMMAND, *arguments) & late == set()
