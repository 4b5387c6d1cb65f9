"""Which hosts are asked for a registry's images, and how: ``certs.d/<registry>/hosts.toml``, as containerd has it.

Read at every pull, so that a change counts at once. Beside that form, a directory with ``*.crt``, ``*.cert`` and
``*.key`` is read as Docker reads it. Plain http is used only for a URL that says so, or for a registry named in
``plain_http``.
"""

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.api.linux.bulkheads import touching
from crinoid.core.api.linux.files import read_regular
from crinoid.core.api.timeline import note
from crinoid.core.api.values.image import DEFAULT_REGISTRY
from crinoid.plugins.registries.distribution.unknown_keys import unknown_keys

_MAX_FILE_BYTES = 1 << 20
_ALL = frozenset({"pull", "resolve", "push"})
_HUB = "registry-1.docker.io"
_DURATION = re.compile(r"(\d+(?:\.\d*)?|\.\d+)(ms|us|µs|ns|h|m|s)")
_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "ns": 1e-9}
_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class Tls:
    """How a host proves itself, and we to it; ``client`` holds pairs of certificate and key."""

    ca: tuple[Path, ...] = ()
    client: tuple[tuple[Path, Path], ...] = ()
    skip_verify: bool = False


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One host: ``url`` is the root of its API with no slash at the end (``https://registry.example/v2``).

    ``namespace`` is the registry that a mirror stands in for, sent as ``ns``; empty for the registry itself.
    """

    url: str
    is_mirror: bool = False
    capabilities: frozenset[str] = _ALL
    tls: Tls = Tls()
    headers: tuple[tuple[str, str], ...] = ()
    dial_timeout_s: float | None = None
    namespace: str = ""

    @property
    def host(self) -> str:
        """Host and port."""
        return urlsplit(self.url).netloc

    @property
    def label(self) -> str:
        """How messages name it."""
        parts = urlsplit(self.url)
        return f"{'mirror ' if self.is_mirror else ''}{parts.scheme}://{parts.netloc}"

    @property
    def trust(self) -> str:
        """How messages say by what the host is known."""
        if self.url.startswith("http://"):
            return "plain http: it is not verified"
        said = "certificate not verified (skip_verify)" if self.tls.skip_verify else "CA: those of the system"
        if self.tls.ca and not self.tls.skip_verify:
            said += "".join(f", {path}" for path in self.tls.ca)
        return said + "".join(f"; client certificate {cert}" for cert, _ in self.tls.client)


def find_endpoints(
    registry: str, config_paths: tuple[Path, ...], plain_http: tuple[str, ...], tell: Callable[[str], None] = note
) -> tuple[Endpoint, ...]:
    """Return the hosts to ask for a registry's images, in order; the last one is the registry itself.

    ``tell`` gets what is passed over. Raises ConfigurationError, naming the file, for a ``hosts.toml`` that can't be
    read.
    """
    scheme = "http" if registry in plain_http else "https"
    own = f"{scheme}://{_HUB if registry == DEFAULT_REGISTRY else registry}/v2"
    # containerd's order: host_port_ (for file systems without colons), then the name as it is, then _default.
    host, colon, port = registry.rpartition(":")
    names = ([f"{host}_{port}_"] if colon and port.isdigit() else []) + [registry, "_default"]
    for directory in (path / name for name in names for path in config_paths):
        touching(directory.parent)
        if not directory.is_dir():
            continue
        if (file := directory / "hosts.toml").exists():
            note(f"hosts of {registry}: {file}")
            return _read_hosts(file, registry, own, tell)
        for text in _misnamed(directory):
            tell(text)
        note(f"certificates of {registry}: {directory}")
        pairs = tuple((cert, cert.with_suffix(".key")) for cert in sorted(directory.glob("*.cert")))
        return (Endpoint(own, tls=Tls(ca=tuple(sorted(directory.glob("*.crt"))), client=pairs)),)
    note(f"hosts of {registry}: itself, as there is no hosts.toml for it")
    return (Endpoint(own),)


def check_hosts(config_paths: tuple[Path, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what is wrong with the files of all registries, and what of them is passed over, one sentence each."""
    problems: list[str] = []
    notes: list[str] = []
    for path in config_paths:
        touching(path)
        notes += [text for directory in sorted(path.glob("*/")) for text in _misnamed(directory)]
        for file in sorted(path.glob("*/hosts.toml")):
            try:
                endpoints = _read_hosts(file, file.parent.name, f"https://{file.parent.name}/v2", notes.append)
            except ConfigurationError as error:
                problems.append(error.message)
                continue
            named = {path for one in endpoints for path in (*one.tls.ca, *(p for pair in one.tls.client for p in pair))}
            problems += [f"{file}: {path} is not there" for path in sorted(named) if not path.is_file()]
    return tuple(problems), tuple(notes)


def _misnamed(directory: Path) -> Iterator[str]:
    """Say which TOML files of a registry's directory nobody reads, where there is no hosts.toml."""
    if not (directory / "hosts.toml").exists():
        for file in sorted(directory.glob("*.toml")):
            yield f"{file} is not read: the file's name must be hosts.toml"


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_seconds(value: Any) -> Any:
    """Read a duration in Go's form, such as ``1m30s``."""
    if not isinstance(value, str):
        return value
    parts = _DURATION.findall(value)
    if not parts or "".join(number + unit for number, unit in parts) != value:
        raise ValueError(f"{value!r} is not a duration such as 10s")
    return sum(float(number) * _SECONDS[unit] for number, unit in parts)


def _in_small_letters(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


_Capability = Annotated[Literal["pull", "resolve", "push", "referrers"], BeforeValidator(_in_small_letters)]
_Strings = Annotated[tuple[str, ...], BeforeValidator(_as_list)]


class _HostTable(BaseModel):
    """One host's table, and the top of the file for the registry itself; keys of other programs are told of, and passed
    over."""

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    capabilities: tuple[_Capability, ...] = ()
    ca: _Strings = ()
    client: Annotated[tuple[str | tuple[str, str], ...], BeforeValidator(_as_list)] = ()
    skip_verify: bool = False
    header: Mapping[str, _Strings] = {}
    override_path: bool = False
    dial_timeout: Annotated[float | None, BeforeValidator(_as_seconds), Field(gt=0)] = None


class _HostsFile(_HostTable):
    server: str = ""
    host: Mapping[str, _HostTable] = {}


def _read_hosts(file: Path, registry: str, own: str, tell: Callable[[str], None]) -> tuple[Endpoint, ...]:
    try:
        table = tomllib.loads(read_regular(file, _MAX_FILE_BYTES).decode())
        hosts = _HostsFile.model_validate(table)
        mirrors = [_endpoint(url, table, file.parent, registry, True) for url, table in hosts.host.items()]
        server = _endpoint(hosts.server or own, hosts, file.parent, registry, False)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file}: {error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise ConfigurationError(f"{file}: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    except ValueError as error:
        raise ConfigurationError(f"{file}: {error}") from error
    for text in unknown_keys(table, _HostsFile.model_fields):
        tell(f"{file}: {text}")
    for url, mirror_table in table.get("host", {}).items():
        for text in unknown_keys(mirror_table, _HostTable.model_fields, f'host."{url}".'):
            tell(f"{file}: {text}")
    # The registry stands behind its mirrors; one that is listed among them keeps that place and those settings.
    if all(mirror.url != server.url for mirror in mirrors):
        return (*mirrors, server)
    return tuple(replace(mirror, is_mirror=mirror.url != server.url) for mirror in mirrors)


def _endpoint(text: str, table: _HostTable, directory: Path, registry: str, is_mirror: bool) -> Endpoint:
    """Read one host's URL, which is https without a scheme, and its table. Raises ValueError."""
    parts = urlsplit(text if "://" in text else f"https://{text}")
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or "@" in parts.netloc:
        raise ValueError(f"{text!r} is not the URL of a registry: http(s)://host[:port][/path], with no user in it")
    _ = parts.port  # raises ValueError for one that is no number
    if parts.netloc in (DEFAULT_REGISTRY, "index.docker.io"):
        parts = parts._replace(netloc=_HUB)  # Docker Hub's API is at another name than its images
    path = parts.path.rstrip("/")
    if not table.override_path and not path.endswith("/v2"):  # override_path: a path that holds the "v2" elsewhere
        path += "/v2"
    pairs = []
    for item in table.client:
        cert, key = (item, "") if isinstance(item, str) else item
        pairs.append((directory / cert, directory / (key or cert)))  # one file may hold both
    headers = []
    for name, values in table.header.items():
        if not _HEADER_NAME.fullmatch(name) or any(set(value) & {"\r", "\n", "\0"} for value in values):
            raise ValueError(f"header {name!r} can't be sent")
        headers += [(name, value) for value in values]
    return Endpoint(
        url=f"{parts.scheme}://{parts.netloc}{path}",
        is_mirror=is_mirror,
        capabilities=frozenset(table.capabilities) or _ALL,
        tls=Tls(tuple(directory / path for path in table.ca), tuple(pairs), table.skip_verify),
        headers=tuple(headers),
        dial_timeout_s=table.dial_timeout,
        namespace="" if parts.netloc == (_HUB if registry == DEFAULT_REGISTRY else registry) else registry,
    )
