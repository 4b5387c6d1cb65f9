"""Which wheels a build is made of: resolved once by pip, then by name, version and hash.

The lock is a requirements file with hashes, which pip reads, too; its first line says what it was made for.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.cli.node_build.site_file import Site

_HEAD = "# Made by crinoid build for: "
_LINE = re.compile(r"(?P<name>[A-Za-z0-9._-]+)==(?P<version>\S+) --hash=sha256:(?P<sha256>[0-9a-f]{64})")
_PLATFORMS = {"amd64": "x86_64", "arm64": "aarch64"}
_GLIBC = (36, 34, 28, 27, 26, 24, 17, 12, 5)
"""manylinux tags that Debian 12's C library (2.36) fulfils, and that wheels are made for."""
_CONNECTION = ("CERT", "CLIENT_CERT", "PROXY", "TRUSTED_HOST", "KEYRING_PROVIDER", "RETRIES", "TIMEOUT", "CACHE_DIR")
"""Of pip's settings, those that say nothing of which wheels are taken, as nearly all others do, and ever more."""


@dataclass(frozen=True, slots=True, order=True)
class Locked:
    """One wheel."""

    name: str
    version: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name}=={self.version} --hash=sha256:{self.sha256}"


def get_wheels(site: Site, directory: Path, into: Path, relock: bool = False) -> dict[Locked, Path]:
    """Bring all wheels of a site into a directory; return them by their locks.

    ``directory`` is where the site's file lies. Without a lock pip resolves, and the lock is written. Raises
    ConfigurationError where the lock is for other requirements, a wheel is missing, or one has another hash.
    """
    file = directory / site.wheels.lock
    wanted = _HEAD + ", ".join([*site.requirements, f"Python {site.python}", site.architecture])
    if relock or not file.exists():
        _download(site, directory, into, site.requirements)
        locked = {_lock(path): path for path in sorted(into.glob("*.whl"))}
        file.write_text("\n".join([wanted, *map(str, sorted(locked))]) + "\n")
        return locked
    lines = file.read_text().splitlines()
    if lines[:1] != [wanted]:
        was = lines[0].removeprefix(_HEAD) if lines else "nothing"
        raise ConfigurationError(f"{file}: made for {was}; the site asks for {wanted.removeprefix(_HEAD)}: --relock")
    locks = _parse(file, lines[1:])
    if not site.wheels.is_online:
        return _find(locks, directory / site.wheels.directory)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as exact:
        exact.write("\n".join(map(str, locks)))
        exact.flush()
        _download(site, directory, into, ["--require-hashes", "--no-deps", "-r", exact.name])
    return _find(locks, into)


def target_options(site: Site) -> list[str]:
    """Return pip's options for another Python or machine than this one's."""
    machine = _PLATFORMS[site.architecture]
    tags = [f"manylinux_2_{minor}_{machine}" for minor in _GLIBC]
    tags += [f"manylinux2014_{machine}", f"manylinux2010_{machine}", f"linux_{machine}"]
    platforms = [word for tag in tags for word in ("--platform", tag)]
    return ["--only-binary=:all:", "--python-version", site.python, "--implementation", "cp", *platforms]


def run_pip(arguments: Sequence[str], site: Site) -> None:
    """Run pip; what it says on failure is the error. Raises ConfigurationError.

    Where the site says where its wheels are, nothing that the builder's own pip is told may change it.
    """
    environment = dict(os.environ)
    if not site.wheels.asks_as_pip_does:
        kept = {f"PIP_{name}" for name in _CONNECTION}
        environment = {name: value for name, value in os.environ.items() if name[:4] != "PIP_" or name in kept}
        environment["PIP_CONFIG_FILE"] = os.devnull
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-8:]
        raise ConfigurationError(f"pip {arguments[0]}: " + "\n".join(said))


def _download(site: Site, directory: Path, into: Path, what: Iterable[str]) -> None:
    place = ["--find-links", str(directory / site.wheels.directory)] if site.wheels.directory else []
    if site.wheels.index not in ("", "pip"):
        place += ["--index-url", site.wheels.index]
    elif not site.wheels.is_online:
        place += ["--no-index"]
    run_pip(["download", "--quiet", "--dest", str(into), *target_options(site), *place, *what], site)


def _parse(file: Path, lines: Iterable[str]) -> list[Locked]:
    locks = []
    for number, line in enumerate(lines, 2):
        if line.strip():
            match = _LINE.fullmatch(line.strip())
            if match is None:
                raise ConfigurationError(f"{file}:{number}: this is no NAME==VERSION --hash=sha256:…")
            locks.append(Locked(**match.groupdict()))
    return locks


def _find(locks: Iterable[Locked], directory: Path) -> dict[Locked, Path]:
    """Find each wheel by its hash, whatever else is there."""
    there = {_lock(path): path for path in sorted(directory.glob("*.whl"))}
    by_hash = {lock.sha256: (lock, path) for lock, path in there.items()}
    found = {}
    for lock in locks:
        if lock.sha256 not in by_hash:
            others = [one for one in there if one.name == lock.name and one.version == lock.version]
            which = f"has the hash {others[0].sha256}, not {lock.sha256}" if others else "is not there"
            raise ConfigurationError(f"{directory}: the wheel {lock.name} {lock.version} {which}")
        found[lock] = by_hash[lock.sha256][1]
    return found


def _lock(path: Path) -> Locked:
    name, version = path.name.split("-")[:2]  # binary distribution format, "File name convention"
    name = re.sub(r"[-_.]+", "-", name).lower()
    return Locked(name, version, hashlib.sha256(path.read_bytes()).hexdigest())
