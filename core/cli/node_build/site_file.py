"""What a site says in its file; docs/site.md has an example with each key."""

# ruff: noqa: RUF012  # pydantic copies its models' defaults; ruff does not see that these are models

import sys
import tomllib
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from crinoid.core.api.config import Described, Form
from crinoid.core.api.errors import ConfigurationError
from crinoid.core.config.origins import Origin, Origins, refuse
from crinoid.core.config.positions import index_keys
from crinoid.core.config.validation import validate

_NAME = Form("[a-z0-9][a-z0-9+.-]+", "a name of small letters, digits, plus, minus and dots, as Debian's packages have")
_VERSION = Form(r"[0-9][A-Za-z0-9.+~-]*", "a version that begins with a digit, as Debian's packages have")
_ACCOUNT = Form("[a-z_][a-z0-9_-]{0,30}", "an account's name")
_ONE_LINE = Form("[^\n]*", "one line")


def _check_prefix(path: str) -> str:
    if not path.startswith("/") or len(Path(path).parts) < 3 or ".." in Path(path).parts or " " in path:
        raise ValueError("must be an absolute path of its own without blanks, such as /opt/crinoid")
    return path.rstrip("/")


class Crinoid(Described):
    """Which crinoid."""

    version: str = ""
    """A range, such as >=0.1,<0.2; empty for the newest."""
    extras: tuple[str, ...] = ()
    """policy (signatures of images), tracing."""


class Wheels(Described):
    """Where the wheels come from."""

    directory: str = ""
    """A directory of wheels, beside the file. With it and no index nothing is fetched."""
    index: str = ""
    """URL of an index, or "pip" for pip's own, which is also meant where there is no directory. Beside a directory: for
    what is not there."""
    lock: str = "site.lock"
    """The file, beside this one, that says exactly which wheels: written by the first build, used by all others."""

    @property
    def asks_as_pip_does(self) -> bool:
        """Whether pip's own configuration says where wheels are."""
        return self.index == "pip" or not (self.index or self.directory)

    @property
    def is_online(self) -> bool:
        """Whether anything may be fetched."""
        return bool(self.index) or not self.directory


class File(Described):
    """A file of the site's own."""

    source: str
    """Its place, beside this file."""
    mode: Annotated[str, Form("0?[0-7]{3}", "octal permissions, such as 0644")] = "0644"
    """Permissions, octal; it belongs to root."""
    config: bool = False
    """Whether it is configuration, which dpkg does not overwrite where the node's administrator has changed it. All
    below /etc is."""


class Unit(Described):
    """The unit of systemd."""

    environment: dict[str, str] = {}
    """Environment variables of the daemon, such as proxies."""
    drop_ins: tuple[str, ...] = ()
    """Files for crinoid.service.d."""
    enable: bool = True
    """Whether the daemon starts at boot; it is never started by the installation."""


class Site(Described):
    """The whole file."""

    name: Annotated[str, _NAME] = "crinoid-node"
    """The package's name."""
    version: Annotated[str, _VERSION]
    """The build's version; a later one is an upgrade."""
    description: Annotated[str, _ONE_LINE] = "Kubernetes node with the container runtime crinoid"
    """One line about it."""
    maintainer: Annotated[str, _ONE_LINE] = "root <root@localhost>"
    """Name and address of who builds."""
    prefix: Annotated[str, AfterValidator(_check_prefix)] = "/opt/crinoid"
    """Where the installation lies."""
    python: Annotated[str, Form(r"3\.\d+", "a version such as 3.11")] = f"3.{sys.version_info.minor}"
    """The version of the nodes' own python3; by default that of whoever builds."""
    architecture: Annotated[str, Form("amd64|arm64", "amd64 or arm64")] = "amd64"
    """The nodes' architecture, as Debian names it."""
    depends: tuple[str, ...] = ("conmon", "runc | crun", "libnftables1")
    """Debian's packages that the build depends on, besides python3."""
    crinoid: Crinoid = Crinoid()
    """Which crinoid."""
    plugins: dict[str, str] = {}
    """Plugins by distribution with their ranges: "crinoid-example" = ">=1,<2"."""
    wheels: Wheels = Wheels()
    """Where the wheels come from."""
    config: tuple[str, ...] = ()
    """Configuration files: config.toml goes to /etc/crinoid, every other into its conf.d."""
    certs: str = ""
    """A directory as certs.d: mirrors and CAs of registries (docs/registries.md)."""
    files: dict[str, File] = {}
    """Further files by their place on the node."""
    runtime_classes: dict[str, str] = {}
    """RuntimeClasses by name with their handlers: manifests for the cluster, each of a slot of [runtimes]."""
    users: tuple[Annotated[str, _ACCOUNT], ...] = ()
    """System users, with a group of the same name, that the installation makes where they are missing."""
    groups: tuple[Annotated[str, _ACCOUNT], ...] = ()
    """System groups, such as that of server.group."""
    unit: Unit = Unit()
    """The unit."""

    @property
    def requirements(self) -> tuple[str, ...]:
        """What pip is asked for."""
        extras = f"[{','.join(self.crinoid.extras)}]" if self.crinoid.extras else ""
        plugins = sorted(f"{name}{range_}" for name, range_ in self.plugins.items())
        return (f"crinoid{extras}{self.crinoid.version}", *plugins)


def read_site(file: Path) -> Site:
    """Read and check the file. Raises ConfigurationError with every mistake, its line and key."""
    try:
        text = file.read_text("utf-8-sig")
        table = tomllib.loads(text)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: can't be read: {getattr(error, 'strerror', error)}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigurationError(f"{file}: this is no TOML: {error}") from error
    origins = Origins({key: Origin(file, line) for key, line in index_keys(text).items()})
    site = validate(Site, table, origins)
    if isinstance(site, list):
        refuse(site)
        raise AssertionError("refused")
    return site
