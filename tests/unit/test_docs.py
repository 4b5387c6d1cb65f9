"""The documents hold what they say: links lead somewhere, examples parse, and the reference is that of the models."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tools import generate_hooks

from crinoid.core.api.hooks.conformance import find_defects, hooks_of
from crinoid.core.api.hooks.extension import ExtensionHooks
from crinoid.core.cli.main import COMMANDS
from crinoid.core.config.loader import ConfigPaths, load
from crinoid.core.slots.roles import ROLES
from crinoid.plugins.networks.cni.configuration import load_file

REPOSITORY = Path(__file__).parents[2]
DOCUMENTS = [
    REPOSITORY / "README.md",
    REPOSITORY / "CHANGELOG.md",
    REPOSITORY / "CONTRIBUTING.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
_LINK = re.compile(r"\]\((?!https?://|#)([^)#]+)")
_FILE = re.compile(r"[`*]((?:[\w.]+/)*\w+\.(?:py|proto))\b")
TOPS = ("core", "plugins", "src", "tests", "tools")
_TOML = re.compile(r"^```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)

EXAMPLES = [
    pytest.param(text, id=f"{document.name}-{number}")
    for document in DOCUMENTS
    for number, text in enumerate(_TOML.findall(document.read_text()))
    if "[project" not in text and "maintainer = " not in text  # a distribution's file, and that of a node build
]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    dead = [link for link in _LINK.findall(document.read_text()) if not (document.parent / link).exists()]
    assert dead == []


@pytest.mark.parametrize("document", ["CONTRIBUTING.md", "docs/architecture.md"])
def test_every_file_that_the_map_names_is_there(document: str) -> None:
    named = set(_FILE.findall((REPOSITORY / document).read_text()))
    assert len(named) > 5
    there = [str(path) for top in TOPS for path in (REPOSITORY / top).rglob("*") if "__pycache__" not in path.parts]
    assert [name for name in sorted(named) if not any(path.endswith(f"/{name}") for path in there)] == []


def test_every_room_of_the_lifecycle_is_on_the_map() -> None:
    text = (REPOSITORY / "docs/architecture.md").read_text()
    rooms = [path.parent.name for path in (REPOSITORY / "core/lifecycle").glob("*/__init__.py")]
    assert len(rooms) > 10
    assert [room for room in rooms if f"| `{room}` |" not in text] == []


@pytest.mark.parametrize("text", EXAMPLES)
def test_examples_of_the_configuration_are_valid(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    load(ConfigPaths.at(file))


def test_the_reference_is_that_of_the_models() -> None:
    """After a change of a model run ``make docs``."""
    command = [sys.executable, str(REPOSITORY / "tools/generate_configuration.py"), "--check"]
    done = subprocess.run(command, check=False, timeout=60)
    assert done.returncode == 0, "docs/configuration.md is out of date: run `make docs`"


def test_the_network_for_a_single_node_is_valid() -> None:
    network = load_file(REPOSITORY / "packaging/10-crinoid.conflist")
    assert network.plugin_types == ("bridge", "portmap")
    assert "portMappings" in network.capabilities


def test_every_role_is_told_to_authors() -> None:
    text = (REPOSITORY / "docs/plugins.md").read_text()
    for role in ROLES.values():
        assert f"`{role.group}`" in text
        assert f"`{role.specification.__module__}`" in text
    assert ExtensionHooks.__module__ in text


def test_the_readme_names_commands_that_exist() -> None:
    text = (REPOSITORY / "README.md").read_text()
    named = set(re.findall(r"^    crinoid ([a-z]+)", text, re.MULTILINE))
    assert {"check", "config", "ctl", "plugins", "serve"} <= named <= set(COMMANDS)


def test_the_tables_of_the_contracts_are_those_of_the_tests() -> None:
    """After a change of a contract or of a seeded bug run ``make docs``."""
    command = [sys.executable, str(REPOSITORY / "tools/generate_contract.py"), "--check"]
    done = subprocess.run(command, check=False, timeout=60)
    assert done.returncode == 0, "docs/contract.md is out of date: run `make docs`"


def test_the_reference_of_hooks_is_that_of_the_code() -> None:
    """After a change of a hook, a value or a contract run ``make docs``."""
    assert generate_hooks.DOCUMENT.read_text() == generate_hooks.render(), "docs/hooks.md: run `make docs`"


def test_every_hook_and_value_is_documented() -> None:
    assert generate_hooks.undocumented(generate_hooks.values()) == []


@pytest.mark.parametrize("role", ROLES)
def test_every_hook_is_tested_by_the_contract_kit(role: str) -> None:
    """Those that can't be are named, with the reason."""
    untested = {hook for hook, tests in generate_hooks.contract_calls(role).items() if not tests}
    assert untested == set(generate_hooks.UNTESTED.get(role, ()))


@pytest.mark.parametrize("document", ["plugins.md", "plugin-rules.md"])
def test_the_python_of_the_documents_for_authors_runs(document: str) -> None:
    blocks = re.findall(
        r"^```python\n(.*?)^```", (REPOSITORY / "docs" / document).read_text(), re.MULTILINE | re.DOTALL
    )
    assert blocks
    names: dict[str, object] = {"__name__": "an_authors_module"}
    for block in blocks:  # each goes on where the one before it ended
        exec(compile(block, document, "exec"), names)  # our own documents
    drivers = [one for one in names.values() if isinstance(one, type) and "api_version" in vars(one)]
    assert drivers
    for driver in drivers:
        assert find_defects(driver, ROLES["network"].specification) == ()


def test_the_tutorial_begins_with_commands_that_work(tmp_path: Path) -> None:
    """The first is executed as it stands; what pip and ``plugin check`` make of it, contract/test_new_plugins tells."""
    text = (REPOSITORY / "docs" / "plugins.md").read_text().partition("## Begin\n")[2]
    new, install, check = [line.partition("#")[0].split() for line in text.strip().splitlines()[:3]]
    assert (new[:3], install[:2], check[:3]) == (
        ["crinoid", "plugin", "new"],
        ["pip", "install"],
        ["crinoid", "plugin", "check"],
    )
    subprocess.run([sys.executable, "-m", *new], cwd=tmp_path, check=True, timeout=60, capture_output=True)
    place, _, extra = install[-1].strip("'").rstrip("]").partition("[")
    project = tomllib.loads((tmp_path / place / "pyproject.toml").read_text())["project"]
    assert extra in project["optional-dependencies"]
    assert check[3] == project["name"]
    for role in ROLES:  # "or runtime, snapshotter, …", as the comment says
        assert role in text.splitlines()[1]


def test_a_hook_that_may_be_left_out_says_so() -> None:
    """The contracts go by the hooks' own texts."""
    for role in ROLES.values():
        said = {
            name for name, hook in hooks_of(role.specification).items() if (hook.__doc__ or "").startswith("Optional")
        }
        assert role.name == "extension" or said == role.optional
