"""Both directories are one daemon's alone, whatever they are called, and closed to others before anything is made."""

import logging
import os
import secrets
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.config.models import Config
from crinoid.core.daemon.directories import taken

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="directories of a daemon belong to root")


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory that everybody may enter."""
    directory = Path("/run") / f"crt{secrets.token_hex(3)}"
    directory.mkdir(mode=0o755)
    yield directory
    subprocess.run(["rm", "-r", "--one-file-system", directory], check=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def contents(directory: Path) -> list[tuple[str, int, int]]:
    return sorted((str(path), mode(path), path.lstat().st_mtime_ns) for path in (directory, *directory.rglob("*")))


def test_they_are_made_and_closed(place: Path) -> None:
    config = Config(root=place / "a/root", run=place / "b/run")
    with taken(config) as held:
        passage = held.passage
        assert passage == config.run
        assert {path.name: mode(path) for path in (config.root, config.run, *config.run.iterdir())} == {
            "root": 0o700,
            "run": 0o711,
            "lock": 0o600,
            "pods": 0o711,
            "containers": 0o711,
        }
        assert mode(config.root.parent) == mode(config.run.parent) == 0o755
    with taken(config):
        pass


@pytest.mark.parametrize(
    ("root", "run", "words"),
    [
        ("root", "other", "another crinoid runs over .*/root: stop it, or set another root"),
        ("other", "run", "another crinoid runs over .*/run: stop it, or set another run"),
        ("link-to-root", "other", "another crinoid runs over .*/link-to-root"),
        ("bound-root", "other", "another crinoid runs over .*/bound-root"),
        ("other", "link/run", "another crinoid runs over .*/link/run"),
        ("other", "root", "another crinoid runs over .*/root"),
        ("run", "other", "another crinoid runs over .*/run"),
        ("root/plugins/mine", "other", "lies inside .*/root, which is another crinoid's"),
        ("other", "root/run", "lies inside .*/root, which is another crinoid's"),
        ("run/mine", "other", "lies inside .*/run, which is another crinoid's"),
        ("other", "run/pods/mine", "lies inside .*/run, which is another crinoid's"),
        ("outer", "other", "outer holds directories that are not crinoid's, such as 'one'"),
        ("other", "outer", "outer holds directories that are not crinoid's, such as 'one'"),
        ("other", "other", "root .*/other is the same directory as run"),
        ("other", "other/run", "run .*/other/run is inside root .*/other"),
        ("other/root", "other", "root .*/other/root is inside run .*/other"),
        ("other", "link/other/run", "run .* is inside root"),
        ("file", "other", "file"),
        ("other", "file/run", "file"),
    ],
)
def test_a_second_daemon_is_refused_and_has_changed_nothing(place: Path, root: str, run: str, words: str) -> None:
    (place / "root").mkdir()
    (place / "bound-root").mkdir()
    (place / "outer/one").mkdir(parents=True)
    (place / "file").touch()
    (place / "link-to-root").symlink_to("root")
    (place / "link").symlink_to(place)
    subprocess.run(["mount", "--bind", place / "root", place / "bound-root"], check=True)
    try:
        with taken(Config(root=place / "root", run=place / "run")):
            (place / "root/state.db").touch()
            before = contents(place)
            with (
                pytest.raises(ConfigurationError, match=words),
                taken(Config(root=place / root, run=place / run)),
            ):
                pass
            assert contents(place) == before
        with taken(Config(root=place / "root", run=place / "run")):
            pass
    finally:
        subprocess.run(["umount", place / "bound-root"], check=True)


def test_images_may_lie_there_before_the_first_start(place: Path) -> None:
    """docs/registries.md says to put them there, and that a registry is not needed then."""
    (place / "root/layouts/app").mkdir(parents=True)
    with taken(Config(root=place / "root", run=place / "run")):
        assert mode(place / "root") == 0o700


@pytest.mark.parametrize("name", ["root", "run"])
def test_a_strangers_directory_is_refused(place: Path, name: str) -> None:
    """Who makes it first, as in /tmp, owns it."""
    (place / name).mkdir()
    (place / name / "lock").touch()
    os.chown(place / name, 65534, -1)
    with (
        pytest.raises(ConfigurationError, match=f"{name} {place}/{name} belongs to user 65534"),
        taken(Config(root=place / "root", run=place / "run")),
    ):
        pass
    assert [path.name for path in place.iterdir()] == [name]


def test_what_a_file_system_or_a_tool_makes_is_no_reason(place: Path) -> None:
    (place / "root/lost+found").mkdir(parents=True)
    (place / "root/.crinoid-check-x").mkdir()
    (place / "run").mkdir()
    (place / "run/pid").touch()
    with taken(Config(root=place / "root", run=place / "run")):
        assert mode(place / "root") == 0o700


def test_what_was_open_is_closed_with_one_line(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    config = Config(root=place / "root", run=place / "run")
    for name, permissions in {
        "root/state.db": 0o644,
        "root/state.db-wal": 0o644,
        "root/state.db.broken-17": 0o644,
        "root/content/blobs/sha256/aa": 0o644,
        "root/content/blobs/sha256/linked": 0o644,
        "run/containers/one/process.json": 0o644,
        "root/plugins/snapshotter/default/fs/file": 0o4755,
    }.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
        (place / name).chmod(permissions)
    (place / "run/pods/gated").mkdir(parents=True)
    (place / "run/pods/gated").chmod(0o710)
    (place / "run/pods/open").mkdir()
    (place / "run/pods/open").chmod(0o711)
    (place / "root/content/blobs/sha256/link").symlink_to("/etc/passwd")
    os.link(place / "root/content/blobs/sha256/linked", place / "root/plugins/snapshotter/default/fs/shown")
    with taken(config):
        expected = {
            "root/state.db": 0o600,
            "root/state.db-wal": 0o600,
            "root/state.db.broken-17": 0o600,
            "root/content": 0o700,
            "root/content/blobs/sha256": 0o700,
            "root/content/blobs/sha256/aa": 0o600,
            "root/content/blobs/sha256/linked": 0o644,
            "root/plugins/snapshotter/default": 0o700,
            "root/plugins/snapshotter/default/fs/file": 0o4755,
            "run/containers": 0o711,
            "run/containers/one": 0o700,
            "run/containers/one/process.json": 0o600,
            "run/pods/gated": 0o710,
            "run/pods/open": 0o700,
        }
        assert {name: mode(place / name) for name in expected} == expected
    assert mode(Path("/etc/passwd")) == 0o644
    (said,) = caplog.messages
    assert said.endswith("were open to others: closed")
    with taken(config):
        pass
    assert len(caplog.messages) == 1


def test_a_start_that_fails_leaves_no_way_of_its_own(place: Path) -> None:
    (place / "private").mkdir(mode=0o700)
    with pytest.raises(OSError, match="no luck"), taken(Config(root=place / "root", run=place / "private/run")) as held:
        assert held.passage.parent == Path("/run")
        raise OSError("no luck")
    assert not held.passage.exists()


def test_a_run_directory_out_of_reach_gets_a_way_of_its_own(place: Path) -> None:
    """For pods with user namespaces; the choice stays while there are pods, and leaves nothing after them."""
    (place / "private").mkdir(mode=0o700)
    config = Config(root=place / "private/root", run=place / "private/run")
    with taken(config) as held:
        passage = held.passage
        assert passage.parent == Path("/run")
        assert [mode(path) for path in (passage, passage / "pods", passage / "containers")] == [0o711] * 3
        (passage / "pods/one").mkdir()
    (place / "link").symlink_to("private")
    with taken(Config(root=place / "private/root", run=place / "link/run")) as held:
        linked = held.passage
        assert linked == passage
    (place / "private").chmod(0o755)
    with taken(config) as held:
        again = held.passage
        assert again == passage
        (passage / "pods/one").rmdir()
    assert not passage.exists()
    with taken(config) as held:
        later = held.passage
        assert later == config.run
        (later / "pods/one").mkdir()
    (place / "private").chmod(0o700)
    with taken(config) as held:
        kept = held.passage
        assert kept == config.run
