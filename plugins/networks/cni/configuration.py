"""The first step of every call: what the administrator wrote into the configuration directory.

Files are taken in the order of their names; the first valid ones are the networks of every pod (one, unless the slot's
options say more). A file that can't be used is skipped and reported. The directory is read again whenever its files
changed, found out by ``stat`` alone.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from crinoid.core.api.linux.bulkheads import touching
from crinoid.core.api.linux.files import read_regular
from crinoid.plugins.networks.cni import versions

SUFFIXES = (".conflist", ".conf", ".json")
_MAX_FILE_BYTES = 1 << 20
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")


class InvalidConfiguration(Exception):
    """A file is no network configuration; the text says why."""


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise ValueError("must begin with a letter or digit and hold only letters, digits, '_', '.' and '-'")
    return name


def _check_type(plugin: str) -> str:
    if not plugin or "/" in plugin or "\\" in plugin or plugin in (".", ".."):
        raise ValueError("must be the file name of a plugin")
    return plugin


class PluginConfiguration(BaseModel):
    """One plugin of a list (SPEC.md, "Plugin configuration objects"); keys not named here are the plugin's own."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)

    type: Annotated[str, AfterValidator(_check_type)]
    capabilities: Mapping[str, bool] = Field(default_factory=dict)


class ListConfiguration(BaseModel):
    """A network configuration list (SPEC.md, "Configuration format")."""

    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)

    name: Annotated[str, AfterValidator(_check_name)]
    version: str = Field("", alias="cniVersion")
    versions: tuple[str, ...] = Field((), alias="cniVersions")
    disable_check: bool = Field(False, alias="disableCheck")
    disable_gc: bool = Field(False, alias="disableGC")
    only_inlined: bool = Field(False, alias="loadOnlyInlinedPlugins")
    plugins: tuple[PluginConfiguration, ...] = ()


@dataclass(frozen=True, slots=True)
class Network:
    """A valid configuration: ``text`` is all of it as JSON, with the plugins of its directory appended.

    ``file`` is the file's name, ``versions`` the known CNI versions offered, the highest first.
    """

    file: str
    text: str
    name: str
    versions: tuple[str, ...]
    plugins: tuple[Mapping[str, Any], ...]
    disable_check: bool = False
    disable_gc: bool = False

    @classmethod
    def parse(cls, file: str, text: str) -> "Network":
        """Read a list from its text, as found on disk or as recorded; raise InvalidConfiguration."""
        content = _read_object(text)
        try:
            model = ListConfiguration.model_validate(content)
        except ValidationError as error:
            raise InvalidConfiguration(_explain(error)) from error
        if not model.plugins:
            raise InvalidConfiguration("it names no plugin")
        return cls(
            file=file,
            text=text,
            name=model.name,
            versions=_offered(model),
            plugins=tuple(content["plugins"]),
            disable_check=model.disable_check,
            disable_gc=model.disable_gc,
        )

    @property
    def capabilities(self) -> frozenset[str]:
        """The capabilities that any of the plugins declares."""
        return frozenset(name for plugin in self.plugins for name in declared_capabilities(plugin))

    @property
    def plugin_types(self) -> tuple[str, ...]:
        """The file names of the plugins, in the order of the chain."""
        return tuple(str(plugin["type"]) for plugin in self.plugins)


def declared_capabilities(plugin: Mapping[str, Any]) -> frozenset[str]:
    """Return what a plugin wants to be told (SPEC.md, "Deriving runtimeConfig")."""
    return frozenset(name for name, wanted in (plugin.get("capabilities") or {}).items() if _is_true(wanted))


def _offered(model: ListConfiguration) -> tuple[str, ...]:
    written = (*model.versions, *((model.version,) if model.version else ())) or (versions.OLDEST,)
    offered = versions.order(written)
    if not offered:
        raise InvalidConfiguration(f"it is of CNI version {', '.join(written)}; known are up to {versions.KNOWN[-1]}")
    return offered


def _read_object(text: str) -> dict[str, Any]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidConfiguration(f"it is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise InvalidConfiguration("it is not a JSON object")
    return content


def _explain(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'it'}: {e['msg']}" for e in error.errors(include_url=False))


@dataclass(frozen=True, slots=True)
class Directory:
    """What was found: the valid networks, and of each file that is not used, its name and the reason."""

    networks: tuple[Network, ...] = ()
    problems: tuple[str, ...] = ()


_Fingerprint = tuple[tuple[str, int, int, int], ...]


class ConfigurationDirectory:
    """Reads the directory, and again only when a file of it changed."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fingerprint: _Fingerprint | None = None
        self._content = Directory()

    def read(self) -> tuple[Directory, bool]:
        """Return what the directory holds, and whether it was read anew. Blocks for a moment; never raises."""
        touching(self._directory)
        fingerprint = self._take_fingerprint()
        if fingerprint == self._fingerprint:
            return self._content, False
        self._content, self._fingerprint = self._load(), fingerprint
        return self._content, True

    def _take_fingerprint(self) -> _Fingerprint:
        """Name, inode, size and time of every file that counts, those of the plugin directories too."""
        files = [*_list_files(self._directory, SUFFIXES), *self._directory.glob("*/*.conf")]
        return tuple(sorted(_stat(file) for file in files))

    def _load(self) -> Directory:
        networks: dict[str, Network] = {}
        problems = []
        for file in _list_files(self._directory, SUFFIXES):
            try:
                network = load_file(file)
                if network.name in networks:
                    raise InvalidConfiguration(f"{networks[network.name].file} has a network {network.name!r} already")
                networks[network.name] = network
            except InvalidConfiguration as error:
                problems.append(f"{file.name}: {error}")
        return Directory(tuple(networks.values()), tuple(problems))


def load_file(file: Path) -> Network:
    """Read one file: a list, or a single plugin's configuration, which is a list of one (CNI before 1.0)."""
    content = _read_object(_read_text(file))
    if "plugins" not in content and "type" in content:
        content = {**{key: content[key] for key in content if key in ("name", "cniVersion")}, "plugins": [content]}
    elif not _is_true(content.get("loadOnlyInlinedPlugins")):
        content = {**content, "plugins": [*_as_list(content.get("plugins", [])), *_load_siblings(file, content)]}
    return Network.parse(file.name, json.dumps(content))


def _load_siblings(file: Path, content: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Read the plugins in the directory of the network's name beside the file (SPEC.md, loadOnlyInlinedPlugins)."""
    name = content.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        return []
    return [_read_object(_read_text(sibling)) for sibling in _list_files(file.parent / name, (".conf",))]


def _as_list(plugins: object) -> list[object]:
    if not isinstance(plugins, list):
        raise InvalidConfiguration("plugins: must be a list")
    return plugins


def _is_true(value: object) -> bool:
    return value is True or (isinstance(value, str) and value.lower() == "true")


def _read_text(file: Path) -> str:
    try:
        return read_regular(file, _MAX_FILE_BYTES).decode()
    except OSError as error:
        raise InvalidConfiguration(f"can't read {file.name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidConfiguration(f"{file.name} is not UTF-8 text") from error


def _list_files(directory: Path, suffixes: tuple[str, ...]) -> list[Path]:
    try:
        return sorted(entry for entry in directory.iterdir() if entry.suffix in suffixes and not entry.is_dir())
    except OSError:  # no such directory is the same as an empty one
        return []


def _stat(file: Path) -> tuple[str, int, int, int]:
    try:
        status = file.stat()
    except OSError:  # it went away in between, or is a link to nowhere
        return str(file), 0, 0, 0
    return str(file), status.st_ino, status.st_size, status.st_mtime_ns
