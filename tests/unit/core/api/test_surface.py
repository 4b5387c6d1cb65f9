"""The plugin API is what docs/api-surface.txt says, and changes with its version only."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from crinoid.core import api
from crinoid.core.api import API_VERSION

ROOT = Path(__file__).parents[4]


@pytest.fixture
def surface(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    specification = importlib.util.spec_from_file_location("api_surface", ROOT / "tools/api_surface.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "DOCUMENT", tmp_path / "api-surface.txt")
    return module


def test_the_committed_surface_is_the_codes(surface: ModuleType) -> None:
    committed = (ROOT / "docs/api-surface.txt").read_text()
    title = committed.partition("\n")[0].removeprefix("crinoid.core.api ")
    assert title.removesuffix(surface.UNRELEASED) == API_VERSION, "run make docs"
    assert committed == surface.render(title), (
        f"the surface of {API_VERSION} was published: raise API_VERSION, then run make docs"
        if surface.is_released(committed)
        else "run make docs"
    )


def test_a_released_surface_is_never_rewritten(surface: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    surface.DOCUMENT.write_text(f"crinoid.core.api {API_VERSION}\n\nclass errors.Gone(CrinoidError)\n")
    assert surface.main() == 1
    assert "raise API_VERSION for this change" in capsys.readouterr().err
    assert "errors.Gone" in surface.DOCUMENT.read_text()


def test_a_new_version_has_a_surface_of_its_own(surface: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    surface.DOCUMENT.write_text(f"crinoid.core.api {API_VERSION}\n")
    monkeypatch.setattr(api, "API_VERSION", "1.9")
    assert surface.main() == 0
    assert surface.DOCUMENT.read_text().startswith("crinoid.core.api 1.9 (unreleased)\n")


def test_fields_and_signatures_are_in_it(surface: ModuleType) -> None:
    lines = surface.render("x").splitlines()
    assert "class values.pod.PodMetadata()" in lines
    assert "    namespace: str" in lines
    assert any(line.startswith("    async create(self, request: ") for line in lines)
    assert not any(line.startswith("class buffers.") for line in lines)  # may change in any release


def test_options_and_what_a_subclass_names_are_in_it(surface: ModuleType) -> None:
    lines = surface.render("x").splitlines()
    runtime = lines[lines.index("class plugins.runtimes.oci.oci_runtime.OciRuntime(CheckpointHooks)") :]
    assert "    Monitor: ClassVar[type[crinoid.plugins.runtimes.monitor.monitor.Monitor]] = …" in runtime
    options = lines[lines.index("class plugins.snapshotters.common_hooks.DirectoryConfig(DriverConfig)") :]
    assert options[1].startswith("    root: ")
    assert [line for line in lines if re.match(r"    _\w+ \(property\)", line)] == []
    assert any(line.startswith("async linux.process.run(") for line in lines)


def test_no_promised_signature_names_what_is_not_promised(surface: ModuleType) -> None:
    """Whoever implements ``Monitor.exec_sync`` is given an ``ExecCgroup`` and must be able to rely on it."""
    text = surface.render("x").partition("\n")[2]
    promised = set(re.findall(r"^class (\S+)\(", text, re.MULTILINE))
    named = {name.removeprefix("core.api.") for name in re.findall(r"crinoid\.([\w.]+)", text)}
    handed_on = {"plugins.runtimes.binaries.sealing.SealedPrograms"}  # ``Binary.program`` is what one uses
    assert {name for name in named - promised - handed_on if not name.startswith(api.UNPROMISED)} == set()
