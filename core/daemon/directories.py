"""The node's two directories, ``root`` and ``run``: this daemon's alone, and closed to everybody else.

Called by ``serve`` before anything else is touched. First both are locked, so that a daemon which is refused has
changed nothing of the other's; then they get the modes that are stated here, also where an earlier version of crinoid
made them wider. ``core.api.linux.rights`` has the reasons for each mode.
"""

import fcntl
import glob
import logging
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import ConfigurationError, StateUnavailable
from crinoid.core.api.linux import rights
from crinoid.core.config.models import Config
from crinoid.core.slots.roles import ROLES
from crinoid.core.slots.selection import select

LOG = logging.getLogger(__name__)
_LOCK = "lock"
_MARKS = {"root": "state.db", "run": "pods"}
"""What lies beside the lock where crinoid has run."""
_FALLBACK = Path("/run")
_PASSAGE_FILE = "passage"
TAKEOVER_SOCKET = "takeover.sock"


@dataclass(frozen=True, slots=True)
class Rule:
    """What is at a place below ``root`` or ``run``, as a glob pattern, and its mode.

    ``gated``: 0710 is right, too, with a group that ``rights.let_in`` admitted; ``passable``: so is 0711 where a
    driver's process has a user, who has to reach his own. ``linked``: a file with a further hard
    link is left alone, as it is shown in a container by that name.
    """

    top: str
    pattern: str
    mode: int
    gated: bool = False
    linked: bool = False
    passable: bool = False

    @property
    def is_directory(self) -> bool:
        """Return whether directories are meant, and not files."""
        return bool(self.mode & 0o100)


RULES: Sequence[Rule] = (
    Rule("root", ".", rights.DIRECTORY, passable=True),
    Rule("root", _LOCK, rights.FILE),
    Rule("root", "state.db*", rights.FILE),  # the log and the index too, and what was put aside as broken
    Rule("root", "content", rights.DIRECTORY),
    Rule("root", "content/*.json", rights.FILE),
    Rule("root", "content/oci-layout", rights.FILE),
    Rule("root", "content/ingest", rights.DIRECTORY),
    Rule("root", "content/ingest/*", rights.FILE),
    Rule("root", "content/blobs", rights.DIRECTORY),
    Rule("root", "content/blobs/*", rights.DIRECTORY),
    Rule("root", "content/blobs/*/*", rights.FILE, linked=True),
    Rule("root", "containers", rights.DIRECTORY),
    Rule("root", "containers/*", rights.DIRECTORY),
    Rule("root", "containers/*/volumes", rights.DIRECTORY),
    Rule("root", "checkpoints", rights.DIRECTORY),
    Rule("root", "checkpoints/*", rights.DIRECTORY),
    Rule("root", "timeline", rights.DIRECTORY),
    Rule("root", "timeline/*.jsonl", rights.FILE),
    Rule("root", "trace", rights.DIRECTORY),
    Rule("root", "trace/*.jsonl.gz", rights.FILE),
    Rule("root", "plugins", rights.DIRECTORY, passable=True),
    Rule("root", "plugins/*", rights.DIRECTORY, passable=True),
    Rule("root", "plugins/*/*", rights.DIRECTORY),  # a slot's own; what lies below is its driver's
    Rule("run", ".", rights.PASSAGE),
    Rule("run", _LOCK, rights.FILE),
    Rule("run", _PASSAGE_FILE, rights.FILE),
    Rule("run", TAKEOVER_SOCKET, rights.FILE),
    Rule("run", "pods", rights.PASSAGE),
    Rule("run", "pods/*", rights.DIRECTORY, gated=True),
    Rule("run", "containers", rights.PASSAGE),
    Rule("run", "containers/*", rights.DIRECTORY, gated=True),
    Rule("run", "containers/*/process.json", rights.FILE),
    Rule("run", "checkpoints", rights.DIRECTORY),
    Rule("run", "checkpoints/*", rights.DIRECTORY),
    *(Rule("run", role.directory, rights.DIRECTORY, passable=True) for role in ROLES.values()),
    *(Rule("run", f"{role.directory}/*", rights.DIRECTORY) for role in ROLES.values()),
)
"""Every directory that others could walk, and every file beside them. A driver's own begin below its slot's."""


@dataclass(frozen=True, slots=True)
class Taken:
    """``passage``: where pods and containers lie, ``run`` or instead of it.

    ``unlock`` gives both up early, whatever still goes on in them; ``release`` does when nothing does any more.
    """

    passage: Path
    unlock: Callable[[], None]
    release: Callable[[], None]


@contextmanager
def taken(config: Config) -> Iterator[Taken]:
    """Hold both directories alone, made and repaired.

    Raises ConfigurationError when another daemon has one of them, whatever it is called there, when one lies within
    the other, or within those of another crinoid, and when one holds directories that are not crinoid's.
    """
    tops = {"root": config.root, "run": config.run}
    _check_apart(config)
    for name, path in tops.items():
        _check_ours(name, path)
    with ExitStack() as locks:
        # What is there is locked before anything is made: who is refused leaves nothing behind.
        tops_by_age = sorted(tops.items(), key=lambda item: not item[1].exists())
        held = [locks.enter_context(_locked(name, path)) for name, path in tops_by_age]
        with _named(config.run):
            changed = _repair(tops, _lets_pass(config))
            for path in (config.run / "pods", config.run / "containers"):
                rights.make_directories(path, rights.PASSAGE)
            passage = _passage(config.run)
        if changed:
            LOG.info(
                "%d files and directories of %s and %s were open to others: closed", changed, config.root, config.run
            )

        def release() -> None:
            if held:
                _give_up(config.run, passage)
                _unlock(held)
                held.clear()

        try:
            yield Taken(passage, lambda: _unlock(held), release)
        finally:
            release()


def check(config: Config) -> Iterator[tuple[str, str]]:
    """Yield which of the two directories could not be taken, and why; nothing is made. Whose they are tells root alone:
    to anybody else they are closed, as they should be."""
    looks: list[tuple[str, Callable[[], None]]] = [("run", lambda: _check_apart(config))]
    if os.geteuid() == 0:
        looks += [
            ("root", lambda: _check_ours("root", config.root)),
            ("run", lambda: _check_ours("run", config.run)),
        ]
    for name, look in looks:
        try:
            look()
        except (ConfigurationError, StateUnavailable) as error:
            yield name, error.message
            return


def find_passage(run: Path) -> Path:
    """Return below what pods and containers lie, whether a daemon runs or not."""
    try:
        return Path((run / _PASSAGE_FILE).read_text())
    except OSError:
        return run


def is_taken(path: Path) -> bool:
    """Return whether a daemon holds a directory."""
    try:
        descriptor = os.open(path / _LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _check_apart(config: Config) -> None:
    """Neither may lie in the other: root is closed, and what is below run ends with a reboot."""
    both = (("root", config.root), ("run", config.run))
    for (name, path), (other, above) in (both, both[::-1]):
        if any(_is_same(one, above) for one in _upwards(path)):
            where = "the same directory as" if _is_same(path, above) else "inside"
            raise ConfigurationError(f"{name} {path} is {where} {other} {above}: give each a directory of its own")


def _check_ours(name: str, path: Path) -> None:
    """Refuse a directory whose modes are not ours to change, as those of /var/lib are not, and one in a crinoid's."""
    try:
        for above in _upwards(path)[1:]:
            for mark in _MARKS.values():
                if (above / _LOCK).is_file() and (above / mark).exists():
                    raise ConfigurationError(
                        f"{name} {path} lies inside {above}, which is another crinoid's: set another"
                    )
        if (owner := path.stat().st_uid) != os.geteuid():
            raise ConfigurationError(
                f"{name} {path} belongs to user {owner}, who could change what crinoid keeps there: give it to root, "
                f"or set another {name}"
            )
        if (path / _LOCK).exists() or (path / _MARKS[name]).exists():
            return
        foreign = [one.name for one in path.iterdir() if one.is_dir() and not _is_allowed(one.name)]
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigurationError(f"{name} {path} can't be used: {error.strerror}") from error
    if foreign:
        raise ConfigurationError(
            f"{name} {path} holds directories that are not crinoid's, such as {sorted(foreign)[0]!r}: give it a "
            f"directory of its own, which it closes to others"
        )


def _is_allowed(name: str) -> bool:
    """What file systems make by themselves, tools under names of their own (``crinoid check``), and what somebody puts
    there before the first start: images for the driver ``layout`` (docs/registries.md)."""
    return name in ("lost+found", "layouts") or name.startswith(".")


def _upwards(path: Path) -> list[Path]:
    """The directory and all above it, links resolved."""
    real = Path(os.path.realpath(path))
    return [real, *real.parents]


def _is_same(one: Path, other: Path) -> bool:
    """Whatever they are called: a link, or a bind mount, is the same directory."""
    try:
        return one.samefile(other)
    except OSError:
        return Path(os.path.realpath(one)) == Path(os.path.realpath(other))


@contextmanager
def _locked(name: str, path: Path) -> Iterator[int]:
    """Hold a directory alone, made if need be: two daemons over one would undo what the other makes."""
    with _named(path):
        rights.make_directories(path.parent, rights.SHOWN_DIRECTORY)
        rights.make_directories(path)
        descriptor = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, rights.FILE)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigurationError(
                f"another crinoid runs over {path}: stop it, or set another {name}; "
                "docs/troubleshooting.md#another-crinoid"
            ) from error
        yield descriptor
    finally:
        _unlock([descriptor])
        os.close(descriptor)


def _unlock(descriptors: Iterable[int]) -> None:
    """Not only close: a thread that hangs in the kernel keeps all descriptors open beyond the process's end."""
    for descriptor in descriptors:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _lets_pass(config: Config) -> bool:
    """Whether a driver's process has a user of its own."""
    return any(one.config.isolation is not None and one.config.isolation.user for one in select(config))


def _repair(tops: dict[str, Path], lets_pass: bool) -> int:
    """Give everything the mode that the rules state; return how many had another. Never enters a driver's directory.

    The tops come first: from then on nobody else is below, so no path can be changed on the way.
    """
    return sum(_apply(rule, Path(os.path.realpath(tops[rule.top])), lets_pass) for rule in RULES)


def _apply(rule: Rule, top: Path, lets_pass: bool) -> int:
    changed = 0
    right = {
        rule.mode,
        rights.GATE if rule.gated else rule.mode,
        rights.PASSAGE if rule.passable and lets_pass else rule.mode,
    }
    for name in glob.iglob(rule.pattern, root_dir=top, include_hidden=True):  # noqa: PTH207
        path = os.path.join(top, name)  # noqa: PTH118  # strings: a node has thousands of blobs
        found = os.lstat(path)
        mode = stat.S_IMODE(found.st_mode)
        if stat.S_ISDIR(found.st_mode) != rule.is_directory or (rule.linked and found.st_nlink > 1):
            continue
        if stat.S_ISLNK(found.st_mode) or mode in right:
            continue
        os.chmod(path, rule.mode)  # noqa: PTH101
        changed += bool(mode & ~rule.mode)
    return changed


def _passage(run: Path) -> Path:
    """Return the directory below which pods and containers lie, for as long as the node runs.

    The mapped root of a pod with a user namespace opens its root file system by path, so others must be able to walk
    there. Where no such way leads to ``run`` (it lies in somebody's 0700 directory), it is a new one below /run, with a
    name that nobody knows. What was chosen first stays, as records name what lies below.
    """
    noted = run / _PASSAGE_FILE
    if noted.exists():
        passage = Path(noted.read_text())
    elif _can_stranger_walk(run / "pods") or any((run / "pods").iterdir()):
        return run
    else:
        passage = _FALLBACK / f"crinoid-{secrets.token_hex(8)}"
        rights.write_file(noted, str(passage))
    for path in (passage, passage / "pods", passage / "containers"):
        rights.make_directories(path, rights.PASSAGE)
    if not _can_stranger_walk(passage / "pods"):
        raise ConfigurationError(
            f"pods with user namespaces can reach neither run {run} nor {passage}: let others pass (chmod o+x) on the "
            f"way to one of them"
        )
    return passage


def _give_up(run: Path, passage: Path) -> None:
    """Leave nothing of a passage of its own that nobody uses."""
    if passage != run:
        try:
            for path in (passage / "pods", passage / "containers", passage):
                path.rmdir()
        except OSError:
            return  # pods run on
        (run / _PASSAGE_FILE).unlink()


def _can_stranger_walk(path: Path) -> bool:
    """Return whether others may pass on the way, as it is spelled and as it leads by links. Access lists change nothing
    for those whom they don't name. No program is asked: that would hold up every start."""
    return all(one.stat().st_mode & stat.S_IXOTH for one in {path, *path.parents, *_upwards(path)})


@contextmanager
def _named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        kind = StateUnavailable if error.errno in StateUnavailable.PASSING else ConfigurationError
        raise kind(f"{error.filename or path} can't be made: {error.strerror}") from error
