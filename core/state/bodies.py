"""What records look like on disk: types of state's own, so that no change of the API's values is a new format unseen.

``store`` writes and reads records through ``dump`` and ``parse``. Each body is a JSON object with its version ``v``,
which is the schema's number when the format last changed (``migrations.SCHEMA``); bodies before that had none and count
as 1. An older body is brought forward when it is read (``UPGRADES``), a newer one is refused. Field names are those of
the values in ``PAIRS``: a test compares them, so that a field that comes, goes or changes its name there is decided
here, with a new version and a golden record where the change is not just one more field with a default.
"""

import contextlib
import functools
import json
import re
from collections.abc import Callable, Hashable, Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError

from crinoid.core.api.values import container, image, network, pod, runtime
from crinoid.core.state import records

VERSION = 2
"""The version of every body that is written."""

Json = dict[str, Any]
"""A JSON object; ``Any``: it is looked through by pydantic only after it was brought forward."""

UPGRADES: Mapping[int, Callable[[str, Json], Json]] = {
    1: lambda _kind, body: body,  # had no ``v``; all that came since has a default
}
"""By version: makes of a body of this version, of a table's kind, one of the next."""

ValueT = TypeVar("ValueT", runtime.ContainerHandle, runtime.PodSandbox, network.NetworkRequest)


# What the CRI's messages can carry: one record beyond that would fail the lists of all.
_Int32 = Annotated[int, Field(ge=-(2**31), lt=2**31)]
_Int64 = Annotated[int, Field(ge=-(2**63), lt=2**63)]
_UInt32 = Annotated[int, Field(ge=0, lt=2**32)]
_UInt64 = Annotated[int, Field(ge=0, lt=2**64)]


class _Body(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", from_attributes=True, defer_build=True)


class _Metadata(_Body):
    name: str
    namespace: str
    uid: str
    attempt: _UInt32 = 0


class _Dns(_Body):
    servers: tuple[str, ...] = ()
    searches: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class _Port(_Body):
    container_port: _Int32
    host_port: _Int32 = 0
    protocol: pod.Protocol = pod.Protocol.TCP
    host_ip: str = ""


class _IdMapping(_Body):
    host_id: _UInt32
    container_id: _UInt32
    length: _UInt32


class _UserNamespace(_Body):
    mode: pod.NamespaceMode = pod.NamespaceMode.NODE
    uids: tuple[_IdMapping, ...] = ()
    gids: tuple[_IdMapping, ...] = ()


class _Namespaces(_Body):
    network: pod.NamespaceMode = pod.NamespaceMode.POD
    pid: pod.NamespaceMode = pod.NamespaceMode.POD
    ipc: pod.NamespaceMode = pod.NamespaceMode.POD
    target_id: str = ""
    user: _UserNamespace | None = None


class _Profile(_Body):
    type: pod.ProfileType
    localhost_ref: str = ""


class _Selinux(_Body):
    user: str = ""
    role: str = ""
    type: str = ""
    level: str = ""


class _Resources(_Body):
    cpu_period: _Int64 = 0
    cpu_quota: _Int64 = 0
    cpu_shares: _Int64 = 0
    memory_limit_bytes: _Int64 = 0
    memory_swap_limit_bytes: _Int64 = 0
    oom_score_adj: _Int64 = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    hugepage_limits: Mapping[str, _UInt64] = Field(default_factory=dict)
    unified: Mapping[str, str] = Field(default_factory=dict)


class _PodSecurity(_Body):
    namespaces: _Namespaces = _Namespaces()
    selinux: _Selinux | None = None
    run_as_user: _Int64 | None = None
    run_as_group: _Int64 | None = None
    readonly_rootfs: bool = False
    supplemental_groups: tuple[_Int64, ...] = ()
    strict_groups: bool = False
    privileged: bool = False
    seccomp: _Profile | None = None
    apparmor: _Profile | None = None


class _PodConfig(_Body):
    metadata: _Metadata
    hostname: str = ""
    log_directory: str = ""
    dns: _Dns | None = None
    port_mappings: tuple[_Port, ...] = ()
    labels: Mapping[str, str] = Field(default_factory=dict)
    annotations: Mapping[str, str] = Field(default_factory=dict)
    cgroup_parent: str = ""
    security: _PodSecurity = _PodSecurity()
    sysctls: Mapping[str, str] = Field(default_factory=dict)
    overhead: _Resources | None = None
    resources: _Resources | None = None


class _Attachment(_Body):
    addresses: tuple[str, ...]
    data: Mapping[str, Any] = Field(default_factory=dict)  # Any: the driver's own
    dns: _Dns | None = None


class _Handle(_Body):
    container_id: str
    pod_id: str
    bundle: Path
    cgroup: str


class _Sandbox(_Body):
    pod_id: str
    config: _PodConfig
    namespaces: Mapping[str, Path]
    cgroup_parent: str


class _NetworkRequest(_Body):
    pod_id: str
    metadata: _Metadata
    netns: Path | None
    interface: str = network.DEFAULT_INTERFACE
    port_mappings: tuple[_Port, ...] = ()
    dns: _Dns | None = None
    ingress_bits_per_s: _Int64 = 0
    egress_bits_per_s: _Int64 = 0
    ips: tuple[str, ...] = ()
    pod_cidrs: tuple[str, ...] = ()
    cgroup_parent: str = ""
    annotations: Mapping[str, str] = Field(default_factory=dict)


class _Pod(_Body):
    v: int = VERSION
    id: str
    config: _PodConfig
    runtime_handler: str
    runtime: str
    network: str
    snapshotter: str
    state: records.PodState
    created_at_ns: _Int64
    namespaces: Mapping[str, Path] = Field(default_factory=dict)
    cgroup_parent: str = ""
    attachment: _Attachment | None = None
    init: _Handle | None = None
    resources: _Resources | None = None
    overhead: _Resources | None = None
    answered: bool = False


class _ContainerMetadata(_Body):
    name: str
    attempt: _UInt32 = 0


class _Mount(_Body):
    container_path: str
    host_path: str = ""
    readonly: bool = False
    recursive_read_only: bool = False
    selinux_relabel: bool = False
    propagation: container.MountPropagation = container.MountPropagation.PRIVATE
    uid_mappings: tuple[_IdMapping, ...] = ()
    gid_mappings: tuple[_IdMapping, ...] = ()
    image: str = ""
    image_sub_path: str = ""
    mount_options: tuple[str, ...] = ()


class _Device(_Body):
    container_path: str
    host_path: str
    permissions: str = "rwm"


class _Capabilities(_Body):
    add: tuple[str, ...] = ()
    drop: tuple[str, ...] = ()
    add_ambient: tuple[str, ...] = ()


class _ContainerSecurity(_Body):
    capabilities: _Capabilities = _Capabilities()
    privileged: bool = False
    namespaces: _Namespaces = _Namespaces()
    selinux: _Selinux | None = None
    run_as_user: _Int64 | None = None
    run_as_group: _Int64 | None = None
    run_as_username: str = ""
    readonly_rootfs: bool = False
    supplemental_groups: tuple[_Int64, ...] = ()
    strict_groups: bool = False
    no_new_privs: bool = False
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    seccomp: _Profile | None = None
    apparmor: _Profile | None = None


class _ContainerConfig(_Body):
    metadata: _ContainerMetadata
    image: str = ""
    user_specified_image: str = ""
    image_annotations: Mapping[str, str] = Field(default_factory=dict)
    command: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    working_dir: str = ""
    envs: tuple[tuple[str, str], ...] = ()
    mounts: tuple[_Mount, ...] = ()
    devices: tuple[_Device, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    labels: Mapping[str, str] = Field(default_factory=dict)
    annotations: Mapping[str, str] = Field(default_factory=dict)
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    resources: _Resources = _Resources()
    security: _ContainerSecurity = _ContainerSecurity()
    stop_signal: str = ""


class _User(_Body):
    uid: _Int64 = 0
    gid: _Int64 = 0
    supplemental_groups: tuple[_Int64, ...] = ()


class _Container(_Body):
    v: int = VERSION
    id: str
    pod_id: str
    config: _ContainerConfig
    handle: _Handle
    image_id: str
    image_ref: str
    state: records.ContainerState
    created_at_ns: _Int64
    started_at_ns: _Int64 = 0
    finished_at_ns: _Int64 = 0
    exit_code: _Int32 = 0
    reason: str = ""
    message: str = ""
    pid: _Int64 = 0
    log_path: str = ""
    user: _User = _User()
    resources: _Resources = _Resources()
    stop_signal: str = "SIGTERM"
    volume_images: Mapping[str, str] = Field(default_factory=dict)
    checkpoint: Path | None = None
    start_error: str = ""
    adjustments: tuple[tuple[str, str], ...] = ()
    answered: bool = False


class _Descriptor(_Body):
    media_type: str
    digest: str
    size: _Int64
    annotations: Mapping[str, str] = Field(default_factory=dict)
    urls: tuple[str, ...] = ()


class _Image(_Body):
    v: int = VERSION
    id: str
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    manifests: tuple[str, ...] = ()
    layers: tuple[_Descriptor, ...] = ()
    chain_ids: tuple[str, ...] = ()
    size_bytes: _Int64 = 0
    pulled_at_ns: _Int64 = 0
    config: str = "{}"
    pinned: bool = False
    artifact: str = ""
    annotations: Mapping[str, str] = Field(default_factory=dict)
    decisions: tuple[tuple[str, str], ...] = ()
    platform: str = ""


PAIRS: Mapping[type[_Body], type[Any]] = {
    _Metadata: pod.PodMetadata,
    _Dns: pod.DnsConfig,
    _Port: pod.PortMapping,
    _IdMapping: pod.IdMapping,
    _UserNamespace: pod.UserNamespace,
    _Namespaces: pod.NamespaceOptions,
    _Profile: pod.SecurityProfile,
    _Selinux: pod.SelinuxOptions,
    _Resources: pod.LinuxResources,
    _PodSecurity: pod.PodSecurity,
    _PodConfig: pod.PodConfig,
    _Attachment: network.Attachment,
    _Handle: runtime.ContainerHandle,
    _Sandbox: runtime.PodSandbox,
    _NetworkRequest: network.NetworkRequest,
    _Pod: records.PodRecord,
    _ContainerMetadata: container.ContainerMetadata,
    _Mount: container.VolumeMount,
    _Device: container.DeviceMapping,
    _Capabilities: container.Capabilities,
    _ContainerSecurity: container.ContainerSecurity,
    _ContainerConfig: container.ContainerConfig,
    _User: records.ProcessUser,
    _Container: records.ContainerRecord,
    _Descriptor: image.Descriptor,
    _Image: records.ImageRecord,
}
"""Which value each body is of."""

LATER: Mapping[type[_Body], tuple[str, ...]] = {
    _Container: ("start_error", "adjustments"),
    _Image: ("decisions", "platform"),
}
"""Fields that came after their version of the body, the outermost or one inside of it: at their default they aren't
written, so that a program from before them reads the body, too."""

LEFT_OUT: Mapping[type[Any], frozenset[str]] = {}
"""Fields of values that are not kept, by the value's class. They come back as their defaults."""

_HEAD = f'{{"v":{VERSION},'
_BYTES = frozenset({"envs", "command", "args", "working_dir"})
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:+-]*")
_BODIES: Mapping[type[Any], type[_Body]] = {value: body for body, value in PAIRS.items()}
_KINDS: Mapping[str, type[_Body]] = {"pods": _Pod, "containers": _Container, "images": _Image}


class Unreadable(ValueError):
    """A body can't be read; the message says why, and quotes nothing of it: it may be a container's environment."""


def dump(record: object) -> str:
    """Write a record, a handle or a network request as JSON.

    pydantic's own writer refuses text with bytes that are no UTF-8 (surrogateescape).
    """
    body = _BODIES[type(record)].model_validate(record)
    without = _unset(body)
    try:
        return body.model_dump_json(exclude=without)
    except PydanticSerializationError:
        return json.dumps(body.model_dump(mode="json", exclude=without))


@functools.cache
def _has_later(kind: type[_Body]) -> bool:
    """Return whether a body, or one in it, has fields that came later."""
    return kind in LATER or any(
        map(_has_later, _bodies_in(tuple(one.annotation for one in kind.model_fields.values())))
    )


def _bodies_in(annotations: tuple[Any, ...]) -> set[type[_Body]]:
    """The bodies that types are made of, such as ``tuple[_Port, ...]``; ``Any``: types of every form."""
    found = {one for one in annotations if isinstance(one, type) and issubclass(one, _Body)}
    return found.union(*(_bodies_in(get_args(one)) for one in annotations if get_args(one)))


def _unset(body: _Body) -> dict[str, Any] | None:
    """What pydantic is to leave out (its ``exclude``): LATER's fields that are at their default, at any depth."""
    kind, fields = type(body), type(body).model_fields
    if not _has_later(kind):  # as most: nothing of them is looked at
        return None
    later = LATER.get(kind, ())
    unset: dict[str, Any] = {name: True for name in later if getattr(body, name) == fields[name].default}
    for name in fields.keys() - unset.keys():
        value = getattr(body, name)
        if isinstance(value, _Body) and (below := _unset(value)):
            unset[name] = below
        elif isinstance(value, tuple):
            items = {
                index: below for index, one in enumerate(value) if isinstance(one, _Body) and (below := _unset(one))
            }
            unset |= {name: items} if items else {}
    return unset or None


def dump_value(value: object) -> Json:
    """The same as a JSON object, to be part of a ledger row."""
    body = _BODIES[type(value)].model_validate(value)
    return body.model_dump(mode="json", exclude=_unset(body))


def parse_value(cls: type[ValueT], data: object) -> ValueT:
    """Read what ``dump_value`` wrote. Raises Unreadable."""
    try:
        value: ValueT = _value(_BODIES[cls].model_validate(data))
    except ValidationError as error:
        raise Unreadable(_without_values(error)) from error
    return value


def parse(kind: str, key: object, text: object) -> Any:  # a record of the table's kind
    """Read a body, bringing an older one forward. Raises Unreadable."""
    found: _Body | None = None
    if isinstance(text, str) and text.startswith(_HEAD):  # as nearly all do, and the long way is longer
        with contextlib.suppress(ValidationError):
            found = _KINDS[kind].model_validate_json(text)
    if found is None:
        body = upgrade(kind, _opened(text))
        _check_text(body)
        try:
            found = _KINDS[kind].model_validate(body)
        except ValidationError as error:
            raise Unreadable(_without_values(error)) from error
    record = _value(found)
    if record.id != key or not is_id(key):
        raise Unreadable("its id is not that of its row" if is_id(key) else "its id is none")
    return record


def _check_text(body: Json) -> None:
    """Refuse text that no message can carry; what a process is given may be any bytes (surrogateescape)."""
    config = body.get("config")
    if isinstance(config, dict):
        body = {**body, "config": {name: one for name, one in config.items() if name not in _BYTES}}
    try:
        json.dumps(body, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise Unreadable("it holds text that is no Unicode") from error


def is_id(key: object) -> bool:
    """Return whether a row's id can be one: nothing that leads anywhere as part of a path."""
    return isinstance(key, str) and _ID.fullmatch(key) is not None


def mend(kind: str, text: object, instead: Mapping[str, object]) -> Any:  # a record of the table's kind
    """Make a record of what can be read of a body; ``instead`` has what takes the place of the fields that it lacks."""
    body: Json = {}
    with contextlib.suppress(Unreadable):
        body = _opened(text)
        body = upgrade(kind, body)  # of a newer version that is read which is still called the same
    body |= {"id": instead["id"], "v": VERSION}
    while True:
        try:
            return _value(_KINDS[kind].model_validate(body))
        except ValidationError as error:
            where = error.errors(include_url=False, include_input=False, include_context=False)[0]["loc"]
            if not _replace(body, where, instead):
                _cut(body, where)


def bring_down(kind: str, key: object, text: object) -> tuple[object, list[str]]:
    """Make of a body that a newer crinoid wrote one of this version, and name the fields that are lost with that.

    One that can't be read even so, or is none, is returned as it is, with why.
    """
    try:
        body = _opened(text)
        if not isinstance(body.get("v"), int) or body["v"] <= VERSION:
            parse(kind, key, text)
            return text, []
    except Unreadable as error:
        return text, [f"it can't be read ({error}), and is kept as it is"]
    lost: list[str] = []
    body["v"] = VERSION
    while True:
        try:
            _KINDS[kind].model_validate(body)
        except ValidationError as error:
            faults = error.errors(include_url=False, include_input=False, include_context=False)
            unknown = next((fault["loc"] for fault in faults if fault["type"] == "extra_forbidden"), None)
            if unknown is None:
                return text, [f"it can't be read ({_without_values(error)}), and is kept as it is"]
            _cut(body, unknown)
            lost.append(f"{'.'.join(map(str, unknown))} is not known here, and is lost")
        else:
            return json.dumps(body), lost


def upgrade(kind: str, body: Json) -> Json:
    """Bring a body forward to this version. Raises Unreadable for one that is newer, or has none."""
    version = body.get("v", 1)
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise Unreadable("its version is no number")
    if version > VERSION:
        raise Unreadable(f"a newer crinoid has written it (version {version}, this one knows {VERSION})")
    for number in range(version, VERSION):
        body = UPGRADES[number](kind, dict(body))
    return {**body, "v": VERSION}


def _opened(text: object) -> Json:
    if not isinstance(text, str | bytes):
        raise Unreadable(f"it is {type(text).__name__}, no text")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        where = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise Unreadable(f"it is no JSON{where}") from error
    if not isinstance(body, dict):
        raise Unreadable("it is no JSON object")
    return body


def _value(body: _Body) -> Any:  # of the class that PAIRS names
    """Make the value by pydantic, which is much quicker than a walk through the fields."""
    return _builder(cast(Hashable, PAIRS[type(body)])).validate_python(body.model_dump(exclude={"v"}))


@functools.cache
def _builder(cls: Hashable) -> TypeAdapter[Any]:
    return TypeAdapter(cast(Any, cls))


def _replace(body: Json, where: tuple[int | str, ...], instead: Mapping[str, object]) -> bool:
    """Put what ``instead`` has in the place of a fault; tell whether it has something, and it is not there already."""
    inside: Any = body
    other: Any = instead
    try:
        for step in where[:-1]:
            inside, other = inside[step], other[step]
        is_new = where[-1] not in inside or inside[where[-1]] != other[where[-1]]
        inside[where[-1]] = other[where[-1]]
    except (KeyError, IndexError, TypeError):
        return False
    return is_new


def _cut(body: Json, where: tuple[int | str, ...]) -> None:
    """Take out the innermost thing on the way to a fault."""
    for depth in range(len(where), 0, -1):
        inside: Any = body
        try:
            for step in where[: depth - 1]:
                inside = inside[step]
            del inside[where[depth - 1]]
        except (KeyError, IndexError, TypeError):
            continue
        return
    raise Unreadable(f"{'.'.join(map(str, where))}: nothing takes its place")


def _without_values(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'the whole'}: {first['msg']}"
