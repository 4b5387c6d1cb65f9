"""One CDI file: its form, its version, and where in it everything stands.

Fields and rules are those of the CDI specification. A file that says what its version does not know is refused, as the
specification wants it: an older reader would leave that part out.
"""

import posixpath
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    model_validator,
)

from crinoid.core.api.linux.files import read_regular
from crinoid.core.lifecycle.cdi.located import KeyPath, Located, Malformed, read_json, read_yaml
from crinoid.core.lifecycle.cdi.names import DEVICE, KIND

VERSIONS = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
MAX_FILE_BYTES = 4 << 20


def _check_env(text: str) -> str:
    if text.find("=") < 1 or "\0" in text:
        raise ValueError("must be NAME=VALUE")
    return text


def _check_absolute(text: str) -> str:
    if not text.startswith("/") or "\0" in text:
        raise ValueError("must be an absolute path")
    return text


def _check_inner(text: str) -> str:
    if posixpath.normpath(_check_absolute(text)) == "/":
        raise ValueError("must be a path below /")
    return text


def _check_class(text: str) -> str:
    """A class of service is a directory's name; a slash alone is the root's."""
    if text != "/" and (text in (".", "..") or "/" in text or "\n" in text or len(text) >= 4096):
        raise ValueError("must be the name of a directory, or /")
    return text


EnvVariable = Annotated[str, AfterValidator(_check_env)]
AbsolutePath = Annotated[str, AfterValidator(_check_absolute)]
InnerPath = Annotated[str, AfterValidator(_check_inner)]
Id = Annotated[int, Field(ge=0, lt=1 << 32)]


class _Part(BaseModel):
    """Keys count in any case, as for the readers that vendors test with: the specification's own example has
    ``additionalGIDs``."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _fold_keys(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        names = {name.lower(): name for name in cls.model_fields}
        folded: dict[object, object] = {}
        for key, inner in value.items():
            name = names.get(key.lower(), key) if isinstance(key, str) else key
            if name in folded:
                raise ValueError(f"key {key!r} comes twice, in another case")
            folded[name] = inner
        return folded


class DeviceNode(_Part):
    """A device node to make; what is absent is taken from the host's node."""

    path: InnerPath
    hostPath: AbsolutePath | Literal[""] = ""  # noqa: N815  # the specification's names
    type: Literal["", "b", "c", "u", "p"] = ""
    major: int = 0
    minor: int = 0
    fileMode: Annotated[int, Field(ge=0, le=0o7777)] | None = None  # noqa: N815
    permissions: Annotated[str, StringConstraints(pattern=r"^([rwm]{0,3}|none)$")] = ""
    uid: Id | None = None
    gid: Id | None = None


class CdiMount(_Part):
    """A mount to make."""

    hostPath: Annotated[str, StringConstraints(min_length=1)]  # noqa: N815
    containerPath: InnerPath  # noqa: N815
    options: list[str] = []
    type: str = ""


class CdiHook(_Part):
    """A program that the runtime runs at some point of the container's life."""

    hookName: Literal["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"]  # noqa: N815
    path: AbsolutePath
    args: list[str] = []
    env: list[EnvVariable] = []
    timeout: Annotated[int, Field(gt=0)] | None = None


class IntelRdt(_Part):
    """Settings of the resctrl file system; the two older switches went with version 1.1.0."""

    closID: Annotated[str, AfterValidator(_check_class)] = ""  # noqa: N815
    l3CacheSchema: str = ""  # noqa: N815
    memBwSchema: str = ""  # noqa: N815
    enableCMT: bool = False  # noqa: N815
    enableMBM: bool = False  # noqa: N815
    schemata: list[str] = []
    enableMonitoring: bool = False  # noqa: N815


class NetDevice(_Part):
    """A network interface of the host to be moved into the container."""

    hostInterfaceName: Annotated[str, StringConstraints(min_length=1)]  # noqa: N815
    name: Annotated[str, StringConstraints(min_length=1)]


class Edits(_Part):
    """What is to be changed in an OCI specification."""

    env: list[EnvVariable] = []
    deviceNodes: list[DeviceNode] = []  # noqa: N815
    netDevices: list[NetDevice] = []  # noqa: N815
    hooks: list[CdiHook] = []
    mounts: list[CdiMount] = []
    intelRdt: IntelRdt | None = None  # noqa: N815
    additionalGids: list[Id] = []  # noqa: N815


class CdiDevice(_Part):
    """A device: its name within the kind, and the edits that it needs."""

    name: Annotated[str, StringConstraints(pattern=f"^(?:{DEVICE.pattern})$")]
    annotations: dict[str, str] = {}
    containerEdits: Edits  # noqa: N815


class CdiSpec(_Part):
    """A whole file; the edits at its top go to a container with any of its devices."""

    cdiVersion: str  # noqa: N815
    kind: Annotated[str, StringConstraints(pattern=f"^(?:{KIND.pattern})$")]
    annotations: dict[str, str] = {}
    devices: Annotated[list[CdiDevice], Field(min_length=1)]
    containerEdits: Edits = Edits()  # noqa: N815


@dataclass(frozen=True, slots=True)
class Document:
    """A file that was read and found good. Two of them are the same only if they are the same object."""

    path: Path
    spec: CdiSpec
    text: Located

    def place(self, *keys: str | int) -> str:
        """Return ``file:line`` of a part, for messages."""
        return f"{self.path}:{self.text.line_of(keys)}"


class BrokenFile(Exception):
    """A file that can't be used; the message is ``file:line: reason``."""


def read_document(path: Path) -> Document:
    """Read a file that ends in ``.json`` or ``.yaml``. Raises BrokenFile; FileNotFoundError when it has just gone."""
    located = _parse(path)
    try:
        spec = CdiSpec.model_validate(_without_nulls(located.value))
    except ValidationError as error:
        first = error.errors()[0]
        keys = tuple(first["loc"])
        name = ".".join(str(key) for key in keys)
        raise BrokenFile(f"{path}:{located.line_of(keys)}: {name or 'the file'}: {_reason(first['msg'])}") from error
    document = Document(path, spec, located)
    _check(document)
    return document


def _parse(path: Path) -> Located:
    try:
        data = read_regular(path, MAX_FILE_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BrokenFile(f"{path}:1: it can't be read: {error.strerror}") from error
    try:
        text = data.decode()
        return read_json(text) if path.suffix == ".json" else read_yaml(text)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise BrokenFile(f"{path}:{line}: it is not UTF-8") from error
    except (Malformed, RecursionError) as error:
        line = error.line if isinstance(error, Malformed) else 1
        raise BrokenFile(f"{path}:{line}: {error}") from error


def _check(document: Document) -> None:
    """See to what concerns more than one field."""
    spec = document.spec
    version = spec.cdiVersion.removeprefix("v")
    if version not in VERSIONS:
        place = document.place("cdiVersion")
        raise BrokenFile(f"{place}: cdiVersion {spec.cdiVersion!r} is none of {', '.join(VERSIONS)}")
    for needed, keys in _newer_parts(spec):
        if VERSIONS.index(version) < VERSIONS.index(needed):
            name = ".".join(str(key) for key in keys)
            raise BrokenFile(f"{document.place(*keys)}: {name} needs cdiVersion {needed}, and the file says {version}")
    names: set[str] = set()
    for number, device in enumerate(spec.devices):
        if device.name in names:
            raise BrokenFile(f"{document.place('devices', number, 'name')}: device {device.name!r} comes twice")
        if device.containerEdits == Edits():
            raise BrokenFile(f"{document.place('devices', number)}: device {device.name!r} edits nothing")
        names.add(device.name)


def _newer_parts(spec: CdiSpec) -> Iterator[tuple[str, KeyPath]]:
    """Name the parts that came with some version, and that version."""
    if "." in spec.kind.partition("/")[2]:
        yield "0.6.0", ("kind",)
    if spec.annotations:
        yield "0.6.0", ("annotations",)
    yield from _newer_edits(spec.containerEdits, ("containerEdits",))
    for number, device in enumerate(spec.devices):
        if device.name[0].isdigit():
            yield "0.5.0", ("devices", number, "name")
        if device.annotations:
            yield "0.6.0", ("devices", number, "annotations")
        yield from _newer_edits(device.containerEdits, ("devices", number, "containerEdits"))


def _newer_edits(edits: Edits, path: KeyPath) -> Iterator[tuple[str, KeyPath]]:
    rdt = edits.intelRdt
    if edits.netDevices:
        yield "1.1.0", (*path, "netDevices")
    if rdt is not None:
        yield "1.1.0" if rdt.schemata or rdt.enableMonitoring else "0.7.0", (*path, "intelRdt")
    if edits.additionalGids:
        yield "0.7.0", (*path, "additionalGids")
    for number, node in enumerate(edits.deviceNodes):
        if node.hostPath:
            yield "0.5.0", (*path, "deviceNodes", number, "hostPath")
    for number, mount in enumerate(edits.mounts):
        if mount.type:
            yield "0.4.0", (*path, "mounts", number, "type")


def _without_nulls(value: Any) -> Any:
    """``null`` stands for an absent key, as it does for the readers that vendors test with."""
    if isinstance(value, dict):
        return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}
    if isinstance(value, list):
        return [_without_nulls(inner) for inner in value]
    return value


def _reason(message: str) -> str:
    return re.sub("^Value error, ", "", message)
