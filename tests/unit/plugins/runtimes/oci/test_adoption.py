"""What criu makes of cgroups that are gone is found again, and only that."""

from pathlib import Path

import pytest

from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.cgroups import Hierarchies
from crinoid.plugins.runtimes.oci import adoption
from crinoid.plugins.runtimes.oci.adoption import Before
from crinoid.plugins.runtimes.processes import cgroup_places


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A unified hierarchy with one pod in it; a file stands for a process."""
    hierarchies = Hierarchies(2, unified=str(tmp_path))
    monkeypatch.setattr(cgroups, "_host", lambda: hierarchies)
    monkeypatch.setattr(cgroup_places, "_hierarchies", lambda: hierarchies)
    (tmp_path / "pods/here").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("former", "gone"),
    [
        ("/pods/old/c1", "/pods/old"),
        ("/pods/here/c1", "/pods/here/c1"),
        ("/pods/here", ""),
        ("kubepods-pod1.slice:crinoid:c1", "/kubepods.slice"),
        ("/pods/../../etc", ""),
        ("", ""),
        ("/", ""),
    ],
)
@pytest.mark.usefixtures("root")
def test_what_criu_will_have_to_make(former: str, gone: str) -> None:
    assert Before.look(former).gone == gone


@pytest.mark.parametrize("path", ["/pods/old", "/pods/old/c1/exec-1"])
@pytest.mark.usefixtures("root")
def test_what_is_below_counts_too(path: str) -> None:
    before = Before.look("/pods/old/c1")
    assert before.covers(path)
    assert not before.covers("/pods/older")
    assert not Before.look("").covers(path)
    assert Before.look("/pods/here").covers("/pods/here"), "it was there, however young it looks"


def test_it_is_removed_as_far_as_it_is_empty(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption, "_family", lambda _pid: [])
    before = Before.look("/pods/old/c1")
    (root / "pods/old/c1/exec-1").mkdir(parents=True)
    (root / "pods/old/c2").mkdir()
    (root / "pods/old/c2/process").touch()
    adoption.adopt(1, "/pods/here/c9", before)
    assert sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_dir()) == [
        "pods",
        "pods/here",
        "pods/old",
        "pods/old/c2",
    ]
