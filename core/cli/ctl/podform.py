"""The short form of a pod: what ``run`` reads from a file or makes of its flags, and the CRI's messages it stands for.

A file is YAML; what is wrong in it is told with file, line, key and the nearest valid name.
"""

import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, model_validator

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.cli.ctl.manifests import STDIN, encode_bytes, index_lines, read_mapping, read_text
from crinoid.core.cli.ctl.session import Json
from crinoid.core.config.origins import Origins
from crinoid.core.config.validation import validate

LOGS = Path("/var/log/pods")
LOG_DIRECTORY = "io.crinoid.ctl.log-directory"
"""Annotation of pods whose directory of logs was chosen here; it goes with the pod."""
_PORT = re.compile(
    r"(?:(?P<ip>[0-9.]+|\[[0-9a-fA-F:]+\]):)?(?P<host>[0-9]+):(?P<container>[0-9]+)(?:/(?P<protocol>\w+))?"
)
_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "Ki": 1 << 10, "Mi": 1 << 20, "Gi": 1 << 30}
_QUANTITY = re.compile(r"([0-9]+)(k|M|G|Ki|Mi|Gi)?")
_CPU_PERIOD_US = 100_000
_MASKED = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
_READ_ONLY = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
"""What the kubelet hides from containers that are not privileged; the CRI has no defaults of its own."""
_CONFINEMENT: Json = {
    "masked_paths": list(_MASKED),
    "readonly_paths": list(_READ_ONLY),
    "seccomp": {"profile_type": "RuntimeDefault"},
}


def _to_text(value: object) -> object:
    """Let numbers and truth values of YAML stand for their text."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float) else value


def _check_port(text: str) -> str:
    match = _PORT.fullmatch(text)
    if match is None or (match["protocol"] or "tcp").lower() not in ("tcp", "udp", "sctp"):
        raise ValueError("must be [IP:]HOST:CONTAINER[/tcp|udp|sctp], such as 8080:80")
    if not all(0 < int(match[side]) < 65536 for side in ("host", "container")):
        raise ValueError("ports are numbers from 1 to 65535")
    return text


def _check_quantity(text: str) -> str:
    if _QUANTITY.fullmatch(text) is None:
        raise ValueError("must be a number of bytes, with k, M, G, Ki, Mi or Gi if need be, such as 64Mi")
    return text


Text = Annotated[str, BeforeValidator(_to_text)]
Name = Annotated[
    str, BeforeValidator(_to_text), StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$")
]
Port = Annotated[str, BeforeValidator(_to_text), AfterValidator(_check_port)]
Quantity = Annotated[str, BeforeValidator(_to_text), AfterValidator(_check_quantity)]


class Form(BaseModel):
    """A part of the short form; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class MountForm(Form):
    """A directory or file of the host inside the container."""

    host: Text
    """Path on the host."""
    container: Text
    """Path in the container."""
    readonly: bool = False
    """Whether the container may only read it."""


class ContainerForm(Form):
    """A container of the pod."""

    name: Name
    """Name, once in the pod."""
    image: Text
    """Image reference or id."""
    command: tuple[Text, ...] = ()
    """Command in place of the image's entrypoint and arguments."""
    args: tuple[Text, ...] = ()
    """Arguments in place of the image's."""
    env: dict[str, Text] = {}
    """Environment variables."""
    workdir: Text = ""
    """Working directory in place of the image's."""
    user: Text = ""
    """User name or number, and :GROUP number if need be, in place of the image's."""
    mounts: tuple[MountForm, ...] = ()
    """What of the host it sees."""
    memory: Quantity = "0"
    """Limit of memory, such as 64Mi; 0 is none."""
    cpus: Annotated[float, Field(ge=0)] = 0.0
    """How many CPUs it may use, such as 0.5; 0 is no limit."""
    readonly: bool = False
    """Whether its root is read-only."""
    privileged: bool = False
    """Whether it may do all that root on the host may."""
    stdin: bool = False
    """Whether its standard input stays open for one who attaches."""
    tty: bool = False
    """Whether it has a terminal."""


class PodForm(Form):
    """A pod."""

    name: Name
    """Name."""
    namespace: Name = "default"
    """Namespace."""
    uid: Name | Literal[""] = ""
    """Unique id; made anew where it is left out."""
    network: Literal["pod", "host"] = "pod"
    """A network of its own, or the host's."""
    hostname: Text = ""
    """Host name; the pod's name where it is left out."""
    runtime: Text = ""
    """Runtime handler; the default one where it is left out."""
    labels: dict[str, Text] = {}
    """Labels."""
    annotations: dict[str, Text] = {}
    """Annotations."""
    ports: tuple[Port, ...] = ()
    """Ports of the host that lead into the pod: [IP:]HOST:CONTAINER[/PROTOCOL]."""
    log_directory: Text = ""
    """Directory of the logs; one below /var/log/pods where it is left out."""
    cgroup_parent: Text = ""
    """Cgroup that the pod's is made in."""
    containers: Annotated[tuple[ContainerForm, ...], Field(min_length=1)]
    """Containers, started in this order."""

    @model_validator(mode="after")
    def _fit_together(self) -> "PodForm":
        names = [container.name for container in self.containers]
        if len(set(names)) < len(names):
            raise ValueError("two containers have the same name")
        if self.ports and self.network == "host":
            raise ValueError("ports need network: pod; on the host's network every port is the host's")
        return self


def read_form(path: Path) -> PodForm:
    """Read a file. Raises InvalidArgument that tells every mistake with its line, or NotFound."""
    text = read_text(path)
    shown = Path("<stdin>") if path == STDIN else path
    return make_form(read_mapping(shown, text), Origins(index_lines(shown, text)), str(shown))


def make_form(table: dict[str, Any], origins: Origins, source: str) -> PodForm:
    """Check a table; ``source`` is told of a mistake that has no place of its own."""
    if "kind" in table and table.keys() & {"apiVersion", "metadata", "spec"}:
        raise InvalidArgument(
            f"{source}: this is a manifest of Kubernetes ({str(table['kind'])[:100]}), which only a kubelet can make "
            "a pod of; the form that is read here is in docs/ctl.md"
        )
    form = validate(PodForm, table, origins)
    if isinstance(form, list):
        problems = sorted(form, key=lambda problem: problem.origin.line if problem.origin else 0)
        lines = [str(problem) if problem.origin else f"{source}: {problem}" for problem in problems]
        raise InvalidArgument("\n".join(lines))
    return form


def to_pod_config(form: PodForm) -> Json:
    """Return the PodSandboxConfig of a pod."""
    uid = form.uid or str(uuid.uuid4())
    own_logs = str(name_log_directory(form.name, form.namespace, uid))
    return {
        "metadata": {"name": form.name, "namespace": form.namespace, "uid": uid, "attempt": 0},
        "hostname": form.hostname or (form.name if form.network == "pod" else ""),
        "log_directory": form.log_directory or own_logs,
        "port_mappings": [_to_port_mapping(port) for port in form.ports],
        "labels": form.labels,
        "annotations": form.annotations | ({} if form.log_directory else {LOG_DIRECTORY: own_logs}),
        "linux": {
            "cgroup_parent": form.cgroup_parent,
            "security_context": {
                "namespace_options": _to_namespaces(form),
                "privileged": any(container.privileged for container in form.containers),
            },
        },
    }


def name_log_directory(name: str, namespace: str, uid: str) -> Path:
    """Return the directory of a pod's logs, named as the kubelet does."""
    return LOGS / f"{namespace}_{name}_{uid}"


def find_own_logs(metadata: Json, annotations: Mapping[str, str]) -> Path | None:
    """Return the directory of logs that was chosen here for a pod, which may be removed with it; no other ever is."""
    directory = name_log_directory(metadata["name"], metadata["namespace"], metadata["uid"])
    is_own = (
        annotations.get(LOG_DIRECTORY) == str(directory)
        and directory.parent == LOGS
        and directory.name not in ("", "..")
    )
    return directory if is_own else None


def to_container_config(form: PodForm, container: ContainerForm) -> Json:
    """Return the ContainerConfig of a container of the pod; its log is where the kubelet would put it."""
    return {
        "metadata": {"name": container.name, "attempt": 0},
        "image": {"image": container.image, "user_specified_image": container.image},
        "command": list(container.command),
        "args": list(container.args),
        "working_dir": container.workdir,
        "envs": [{"key": key, "value": encode_bytes(value)} for key, value in container.env.items()],
        "mounts": [
            {"host_path": mount.host, "container_path": mount.container, "readonly": mount.readonly}
            for mount in container.mounts
        ],
        "log_path": f"{container.name}/0.log",
        "stdin": container.stdin,
        "stdin_once": container.stdin,
        "tty": container.tty,
        "linux": {
            "resources": _to_resources(container),
            "security_context": {
                "namespace_options": _to_namespaces(form),
                "privileged": container.privileged,
                "readonly_rootfs": container.readonly,
                **({} if container.privileged else _CONFINEMENT),
                **_to_user(container.user),
            },
        },
    }


def parse_quantity(text: str) -> int:
    """Return the bytes that a checked quantity means."""
    match = _QUANTITY.fullmatch(text)
    assert match is not None, "the form has checked it"
    return int(match[1]) * _UNITS[match[2] or ""]


def _to_namespaces(form: PodForm) -> Json:
    return {"network": "NODE" if form.network == "host" else "POD", "pid": "CONTAINER"}


def _to_port_mapping(port: str) -> Json:
    match = _PORT.fullmatch(port)
    assert match is not None, "the form has checked it"
    return {
        "protocol": (match["protocol"] or "tcp").upper(),
        "host_port": int(match["host"]),
        "container_port": int(match["container"]),
        "host_ip": (match["ip"] or "").strip("[]"),
    }


def _to_resources(container: ContainerForm) -> Json:
    resources = {"memory_limit_in_bytes": parse_quantity(container.memory)}
    if container.cpus:
        resources |= {"cpu_period": _CPU_PERIOD_US, "cpu_quota": int(container.cpus * _CPU_PERIOD_US)}
    return resources


def _to_user(user: str) -> Json:
    """Split ``USER[:GROUP]``; the CRI takes a user by number or by name, a group by number only."""
    name, _, group = user.partition(":")
    fields: Json = {}
    if name.isdecimal():
        fields["run_as_user"] = {"value": int(name)}
    elif name:
        fields["run_as_username"] = name
    if group:
        if not group.isdecimal():
            raise InvalidArgument(f"user {user!r}: the group must be a number")
        fields["run_as_group"] = {"value": int(group)}
    return fields
