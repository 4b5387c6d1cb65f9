"""What a configuration file may say, field by field; the descriptions here are what ``config schema`` prints.

Every table and every field has a default, so that no file at all makes a working node. ``loader`` builds a
:class:`Config` from the files.
"""

# ruff: noqa: RUF012  # pydantic copies its models' defaults; ruff does not see that these are models

import ipaddress
import re
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from crinoid.core.api.bounds import RLIMITS, SYSCTL
from crinoid.core.api.config import AbsolutePath, Described, Form
from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.linux import capabilities
from crinoid.core.api.values.image import ImageReference
from crinoid.core.config.origins import suggest

_ARCHITECTURES = (
    *("386", "amd64", "arm", "arm64", "loong64", "mips", "mips64", "mips64le", "mipsle", "ppc64", "ppc64le"),
    *("riscv64", "s390x", "x86_64", "aarch64", "i386", "armhf", "armel"),
)
"""Go's names (GOARCH) of what Linux runs on, and those that are read as such."""

DEFAULT_SLOT = "default"
"""The name of the slot that the tables ``[network]`` and ``[snapshotter]`` make."""


def _check_capability(name: str) -> str:
    if name not in capabilities.NAMES:
        raise ValueError("is no capability of Linux" + suggest(name, capabilities.NAMES))
    return name


def _check_ulimit(text: str) -> str:
    """``nofile=1024:4096``: getrlimit(2)'s names in lower case; -1 is no limit."""
    match = re.fullmatch(r"([a-z]+)=(-?[0-9]+)(?::(-?[0-9]+))?", text)
    if match is None:
        raise ValueError("must be name=soft[:hard], such as nofile=1024:4096")
    known = {name.removeprefix("RLIMIT_").lower() for name in RLIMITS}
    if match[1] not in known:
        raise ValueError(f"there is no limit {match[1]!r}" + suggest(match[1], known))
    soft, hard = (int(value) for value in (match[2], match[3] or match[2]))
    if min(soft, hard) < -1 or max(soft, hard) >= 1 << 64 or (hard != -1 and not -1 < soft <= hard):
        raise ValueError("the soft limit must be at most the hard one; -1 is no limit")
    return text


def _check_ulimits(ulimits: tuple[str, ...]) -> tuple[str, ...]:
    names = [text.partition("=")[0] for text in ulimits]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"the limit {name!r} is there more than once")
    return ulimits


def _check_platform(platform: str) -> str:
    """What no container could be made of would fail at each pull."""
    system, _, rest = platform.partition("/")
    architecture = rest.partition("/")[0]
    if platform and system != "linux":
        raise ValueError("must begin with linux: containers of another system can't run here")
    if platform and architecture not in _ARCHITECTURES:
        raise ValueError(f"there is no architecture {architecture!r}" + suggest(architecture, _ARCHITECTURES))
    return platform


def _check_endpoint(endpoint: str) -> str:
    try:
        _ = urlsplit(endpoint).port
    except ValueError as error:
        raise ValueError("must have a port of at most 65535") from error
    return endpoint


def _check_sysctls(sysctls: dict[str, str]) -> dict[str, str]:
    for name in sysctls:
        if not SYSCTL.fullmatch(name):
            raise ValueError(f"{name!r} is not a sysctl's name")
    return sysctls


def _check_environment(variables: dict[str, str]) -> dict[str, str]:
    for name, value in variables.items():
        if not name or "=" in name or "\0" in name + value:
            raise ValueError(f"{name!r} is not the name of a variable, or its value holds a NUL")
    return variables


def _check_references(references: Iterable[str]) -> None:
    for reference in references:
        try:
            ImageReference.parse(reference)
        except InvalidArgument as error:
            raise ValueError(str(error)) from error


def _check_reference(reference: str) -> str:
    _check_references([reference])
    return reference


def _check_pinned(references: tuple[str, ...]) -> tuple[str, ...]:
    _check_references(reference for reference in references if not reference.endswith("*"))
    return references


def _check_cgroup(path: str) -> str:
    if path and (not path.startswith("/") or ".." in PurePosixPath(path).parts):
        raise ValueError("must be a cgroup's path from the root of the hierarchy, such as /crinoid, without ..")
    return path


def _check_listen(listen: str) -> str:
    host, colon, port = listen.rpartition(":")
    if listen and not (colon and port.isascii() and port.isdigit() and int(port) <= 65535):
        raise ValueError("must be host:port with a port of at most 65535, such as 127.0.0.1:9090")
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        raise ValueError("must be host:port with an IPv6 address in brackets, such as [::1]:9090")
    return listen


def _check_address(address: str) -> str:
    try:
        ipaddress.ip_address(address)
    except ValueError as error:
        raise ValueError("must be an IP address, such as 127.0.0.1 or ::1") from error
    return address


Cgroup = Annotated[str, AfterValidator(_check_cgroup)]
Reference = Annotated[str, AfterValidator(_check_reference)]
Capability = Annotated[str, AfterValidator(_check_capability)]
Ulimit = Annotated[str, AfterValidator(_check_ulimit)]
SlotName = Annotated[
    str,
    Form(
        r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?",
        "a name of at most 63 letters, digits, dots, hyphens and underscores, with a letter or digit at both ends",
    ),
]
DriverName = Annotated[str, Form(".+", "the name of a driver; `crinoid plugins` lists those that are installed")]
Seconds = Annotated[float, Field(gt=0, le=1e9)]
Bytes = Annotated[int, Field(ge=0, le=1 << 60)]


class Section(Described):
    """A frozen table in which an unknown key is an error."""


class ServerConfig(Section):
    """The CRI endpoint."""

    socket: AbsolutePath = Path("/run/crinoid/crinoid.sock")
    """Path of the unix socket that serves the CRI."""
    mode: Annotated[str, Form("0?[0-7]{3}", "octal permissions, such as 0660")] = "0660"
    """Permissions of the socket, octal."""
    group: str = "root"
    """Group that owns the socket: a name or a number."""
    max_message_bytes: Annotated[int, Field(ge=1 << 16, le=1 << 30)] = 8 << 20
    """Largest request, in bytes; a larger one is answered RESOURCE_EXHAUSTED. What the kernel can execute has 6 MiB of
    arguments and environment at most, and etcd stores a pod of 1.5 MiB. All requests together may take ``max_requests``
    times as much. Answers have 64 MiB at most."""
    max_streams: Annotated[int, Field(ge=16)] = 512
    """Calls that one connection may have in flight. gRPC's clients hold further ones back. A call of who does not is
    reset with REFUSED_STREAM, which gRPC reports as UNAVAILABLE, or with ENHANCE_YOUR_CALM before SETTINGS have been
    acknowledged. A kubelet makes all of its calls over one connection, and draining a node leaves one StopContainer per
    container in flight for its grace period: 512 are four for each of 110 pods, a kubelet's default maximum, and 72 for
    the rest. Raise it with ``maxPods``."""
    max_requests: Annotated[int, Field(ge=16)] = 1024
    """Calls that all connections together may have under way; further ones are answered RESOURCE_EXHAUSTED."""
    max_connections: Annotated[int, Field(ge=4)] = 256
    """Connections that may be open at the same time; further ones are closed at once. A kubelet has two. Each is
    made anew after half a minute, by GOAWAY and without the loss of a call; one that lies idle is closed then."""
    graceful_stop_s: Seconds = 30.0
    """How long requests under way may take to end after SIGTERM, in seconds."""

    @property
    def mode_bits(self) -> int:
        """``mode`` as a number."""
        return int(self.mode, 8)


class StreamingConfig(Section):
    """The server of Exec, Attach and PortForward, which the kubelet connects to."""

    address: Annotated[str, AfterValidator(_check_address)] = "127.0.0.1"
    """Address to listen on. Keep it on loopback unless TLS with client certificates is set up: it grants what the
    kubelet may do in pods, to whoever knows a token."""
    port: Annotated[int, Field(ge=0, le=65535)] = 0
    """Port to listen on; 0 lets the kernel choose."""
    tls_cert: AbsolutePath | None = None
    """PEM file of the server's certificate chain; with it and the key the server speaks TLS only."""
    tls_key: AbsolutePath | None = None
    """PEM file of the certificate's key."""
    client_ca: AbsolutePath | None = None
    """PEM file of authorities; with it clients must show a certificate of theirs."""
    token_ttl_s: Seconds = 60.0
    """How long a URL that was handed out may be used, once, in seconds."""
    idle_timeout_s: Seconds = 4 * 3600.0
    """A connection on which nothing happens for so long is closed, in seconds."""
    creation_timeout_s: Seconds = 30.0
    """How long a client may take to open the streams of its request, in seconds."""
    max_connections: Annotated[int, Field(ge=1)] = 512
    """How many execs, attaches and port forwards may be open at one time. Beside its buffers (``max_buffer_bytes``)
    each takes some 200 KiB, and some file descriptors."""
    max_unauthenticated: Annotated[int, Field(ge=1)] = 64
    """How many connections may be open whose client has not shown a valid token yet, which it has 10 seconds for. When
    more come, the oldest is closed."""
    max_streams: Annotated[int, Field(ge=8)] = 512
    """How many SPDY streams one client may have open at one time. An exec has five at most; a port forward takes two
    for each connection it carries. (SPDY's draft wants 100 at least; Go's HTTP/2 server allows 250, one a request.)"""
    max_buffer_bytes: Annotated[int, Field(ge=1 << 20)] = 128 << 20
    """How much memory the buffers of all streams may take: one half for what clients have sent and processes have not
    read, the other for output of containers that attached clients have not fetched. Beyond it clients are no longer
    read from, but for a few KiB each, and the attach sessions that are furthest behind are ended with an error."""

    @model_validator(mode="after")
    def _check_tls(self) -> "StreamingConfig":
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("tls_cert and tls_key belong together")
        if self.client_ca is not None and self.tls_cert is None:
            raise ValueError("client_ca needs tls_cert and tls_key")
        return self


class LogConfig(Section):
    """The daemon's own log, on standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is logged."""
    format: Literal["auto", "json", "console"] = "auto"
    """How a line looks; auto is console on a terminal, plain lines with their priority in systemd's journal, and json
    elsewhere."""


class MetricsConfig(Section):
    """Prometheus metrics of the daemon."""

    listen: Annotated[str, AfterValidator(_check_listen)] = ""
    """host:port to serve /metrics, /healthz and /readyz on; empty turns it off."""


class WatchdogConfig(Section):
    """The watch over the daemon's event loop, on which all requests are served."""

    stall_s: Seconds = 1.0
    """How long the loop may stand still before the log says what holds it, and /healthz answers 503, in seconds."""


class TimelineConfig(Section):
    """What `crinoid explain` tells: a timeline of each request that changed something, below `root`."""

    size_bytes: Annotated[int, Field(ge=0, le=1 << 30)] = 32 << 20
    """How much of the disk timelines may take; the oldest go first. 32 MiB hold some 6,000 pods. 0 keeps none."""


class TracingConfig(Section):
    """OpenTelemetry traces: a span for each RPC and each hook."""

    endpoint: Annotated[
        str, Form("(https?://[^/ ]+.*)?", "a URL, such as http://127.0.0.1:4317"), AfterValidator(_check_endpoint)
    ] = ""
    """OTLP gRPC endpoint such as http://127.0.0.1:4317; empty turns tracing off."""
    sampling_ratio: Annotated[float, Field(ge=0, le=1)] = 1.0
    """Share of the requests without a parent span that are traced."""


class ImagesConfig(Section):
    """Pulling, storing and unpacking images."""

    sources: tuple[SlotName, ...] = ("layout", "distribution")
    """Slots of [registries] that are asked for an image, in this order, until one has it."""
    max_parallel_layers: Annotated[int, Field(ge=1, le=64)] = 4
    """Layers of one image that are fetched at the same time."""
    max_parallel_unpacks: Annotated[int, Field(ge=1, le=64)] = 2
    """Layers that are unpacked at the same time, of all pulls together, once they are fetched."""
    max_early_unpacks: Annotated[int, Field(ge=0, le=64)] = 4
    """Layers that are unpacked while they are still being fetched, besides those; 0 fetches each one first."""
    keep_free_percent: Annotated[float, Field(ge=0, le=50)] = 2.0
    """Share of a file system's space and inodes that unpacking layers and checkpoints leaves free, in percent: a few
    kilobytes of gzip can become gigabytes. 0 lets them fill it."""
    platform: Annotated[
        str,
        Form("([a-z0-9]+/[a-z0-9_]+(/[a-z0-9.]+)?)?", "os/architecture[/variant], such as linux/arm64/v8"),
        AfterValidator(_check_platform),
    ] = ""
    """os/architecture[/variant] to choose from an index; empty is the host's own."""
    pinned: Annotated[tuple[str, ...], AfterValidator(_check_pinned)] = ()
    """References, or beginnings of them that end in ``*``, that are reported as pinned, so that the kubelet's garbage
    collection leaves them."""
    pull_idle_timeout_s: Seconds = 300.0
    """A pull that makes no progress for so long is given up, in seconds."""


class PodsConfig(Section):
    """What pods and containers get when neither the kubelet nor the image says otherwise."""

    cgroup_driver: Literal["auto", "cgroupfs", "systemd"] = "auto"
    """Who makes cgroups; auto is systemd where it runs and cgroup v2 is used, else cgroupfs. The kubelet must agree."""
    cgroup_root: Annotated[Cgroup, StringConstraints(min_length=1)] = "/crinoid"
    """Parent cgroup of pods that come without one."""
    monitor_cgroup: Cgroup = ""
    """Cgroup path that containers' monitors run in; empty is one below the pod's own."""
    default_runtime: SlotName = "runc"
    """Slot of [runtimes] for pods that name no runtime handler."""
    init_binary: str = ""
    """Init process of a pod that shares its PID namespace; empty looks for catatonit and falls back to pause_image."""
    pause_image: Reference = "registry.k8s.io/pause:3.10.2"
    """Image whose process is the init of a shared PID namespace where there is no init binary."""
    default_capabilities: tuple[Capability, ...] = (
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FSETID",
        "CAP_FOWNER",
        "CAP_MKNOD",
        "CAP_NET_RAW",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETFCAP",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_SYS_CHROOT",
        "CAP_KILL",
        "CAP_AUDIT_WRITE",
    )
    """Capabilities of a container before its own additions and drops."""
    default_ulimits: Annotated[tuple[Ulimit, ...], AfterValidator(_check_ulimits)] = ("nofile=1024:524288",)
    """Resource limits as name=soft[:hard]; -1 is no limit. What is not named here containers have from the daemon. The
    default is what systemd gives services: programs that need more files raise the soft limit themselves, and ones that
    close every descriptor up to it don't take minutes."""
    default_sysctls: Annotated[dict[str, str], AfterValidator(_check_sysctls)] = {}
    """Sysctls of every pod with namespaces of its own; a pod's own ones win."""
    default_env: Annotated[dict[str, str], AfterValidator(_check_environment)] = {}
    """Environment variables of every container; the image's and the container's own win."""
    enable_unprivileged_ports: bool = True
    """Let any user in a pod bind ports below 1024 (net.ipv4.ip_unprivileged_port_start = 0)."""
    enable_unprivileged_icmp: bool = True
    """Let any user in a pod ping (net.ipv4.ping_group_range)."""
    shm_size_bytes: Bytes = 64 << 20
    """Size of a pod's /dev/shm."""
    pids_limit: Annotated[int, Field(ge=0, le=1 << 22)] = 0
    """Processes a container may have; 0 is no limit of its own."""
    apparmor_profile: str = ""
    """Loaded AppArmor profile for RuntimeDefault; empty leaves containers unconfined by AppArmor."""
    unset_seccomp: Literal["unconfined", "runtime-default"] = "unconfined"
    """Seccomp profile of containers for which the client names none; the kubelet always names one."""
    cdi_spec_dirs: tuple[AbsolutePath, ...] = (Path("/etc/cdi"), Path("/var/run/cdi"))
    """Directories of CDI files, which describe devices that containers may name; later directories win. Empty turns CDI
    off."""
    read_only_tmpfs: bool = False
    """Mount a tmpfs on /run, /tmp and /var/tmp of containers with a read-only root."""
    stop_timeout_s: Annotated[float, Field(ge=0)] = 10.0
    """Grace between SIGTERM and SIGKILL of a container that an extension has stopped, in seconds."""
    kill_timeout_s: Seconds = 30.0
    """How long after SIGKILL a container may take to end before the stop reports it as stuck, in seconds."""
    path_timeout_s: Seconds = 10.0
    """How long a volume, device or log directory may take to answer before a container with it is refused, in seconds;
    one whose server hangs would else hold up the pod."""
    checkpoint_timeout_s: Seconds = 300.0
    """How long a checkpoint or a restore may take where the request does not say, in seconds."""
    checkpoint_max_bytes: Annotated[int, Field(ge=1 << 20)] = 64 << 30
    """Largest checkpoint archive that is restored, and largest root file system difference in one, uncompressed, in
    bytes."""
    checkpoint_images: tuple[str, ...] = ()
    """Images that may be restored as checkpoints: patterns such as registry.example/forensics/*, of which one must fit
    a tag or digest of the image. A restored process has the user, capabilities and mounts that its checkpoint says,
    so name only images that you trust as you would a privileged container's."""
    exec_output_max_bytes: Annotated[int, Field(ge=1 << 10)] = (16 << 20) - (1 << 10)
    """Output of one synchronous exec that is kept, stdout and stderr together, in bytes. The kubelet and crictl take no
    answer above 16 MiB."""


class Deadlines(Section):
    """How long a role's hooks may take, in seconds."""

    default: Seconds = 60.0
    """Deadline of every hook that has none of its own here, in seconds."""

    def of(self, hook: str) -> float:
        """Return the deadline of a hook in seconds."""
        return float(getattr(self, hook if hook in type(self).model_fields else "default"))


class RuntimeDeadlines(Deadlines):
    """Deadlines of the runtime role; wait has none, exec_sync adds its own to the request's."""

    probe: Seconds = 15.0
    """probe, at start and for Status."""
    start_pod: Seconds = 120.0
    """start_pod, where a virtual machine starts."""
    create: Seconds = 120.0
    """create, up to the container's waiting process."""
    exec_sync: Seconds = 90.0
    """What exec_sync may take beyond the timeout of its request."""
    stats: Seconds = 10.0
    """stats of one container, or of all at one look."""


class NetworkDeadlines(Deadlines):
    """Deadlines of the network role; longer than those of the drivers themselves, which can say more."""

    attach: Seconds = 180.0
    """attach, with every plugin of a chain."""
    detach: Seconds = 180.0
    """detach, with every plugin of a chain."""
    status: Seconds = 10.0
    """status, for NetworkReady."""


class SnapshotterDeadlines(Deadlines):
    """Deadlines of the snapshotter role."""

    commit_layer: Seconds = 600.0
    """commit_layer, which syncs a whole layer to disk."""
    create_snapshot: Seconds = 600.0
    """create_snapshot, which may copy an image's files."""
    write_layer: Seconds = 1800.0
    """write_layer, which keeps a whole layer in a form of the driver's own."""
    bring_layer: Seconds = 1800.0
    """bring_layer, which may fetch a whole layer."""
    verify_layer: Seconds = 1800.0
    """verify_layer, which reads a whole layer."""
    remove_layer: Seconds = 300.0
    """remove_layer, which deletes a whole layer's files."""
    remove_snapshot: Seconds = 300.0
    """remove_snapshot, which deletes what a container wrote."""


class RegistryDeadlines(Deadlines):
    """Deadlines of the registry role."""

    resolve: Seconds = 180.0
    """resolve, with all mirrors and retries."""
    open_blob: Seconds = 180.0
    """open_blob, up to the stream; with all mirrors and retries."""
    next_piece: Seconds = 300.0
    """Each piece of a blob's stream, with the driver's own resumption."""
    status: Seconds = 10.0
    """status, for verbose Status."""


class DeadlinesConfig(Section):
    """How long each role's hooks may take before the slot is named in a DeadlineExceeded."""

    runtime: RuntimeDeadlines = RuntimeDeadlines()
    """Of the runtimes."""
    network: NetworkDeadlines = NetworkDeadlines()
    """Of the networks."""
    snapshotter: SnapshotterDeadlines = SnapshotterDeadlines()
    """Of the snapshotters."""
    registry: RegistryDeadlines = RegistryDeadlines()
    """Of the image sources."""
    grace_s: Seconds = 5.0
    """How long a hook that was cancelled may clean up before it is left behind and its caller answered, in seconds."""


class IsolationConfig(Section):
    """A process of its own for a slot's driver."""

    user: str = ""
    """User that the process runs as, a name or a number; empty is the daemon's own. What else than root can do is for
    the driver to know: a runtime, a network and a snapshotter most often can't do without."""
    python: AbsolutePath | None = None
    """Interpreter of the environment that the driver is installed in, with the same crinoid beside it; absent is the
    daemon's own."""
    program: tuple[str, ...] = ()
    """Program and arguments instead of an interpreter: a driver in another language, which speaks the protocol of
    docs/isolation.md on descriptor 3."""
    memory_bytes: Annotated[int, Field(ge=0)] = 0
    """Memory that the process and what it starts may take, in bytes, by a cgroup; 0 is no limit. A driver takes some
    50 MiB at least."""
    unresponsive_s: Seconds = 30.0
    """How long something may hold the thread that its hooks run in before the process is killed and started again, in
    seconds."""

    @model_validator(mode="after")
    def _check(self) -> "IsolationConfig":
        if self.python is not None and self.program:
            raise ValueError("python and program exclude each other")
        return self


def _to_isolation(value: object) -> object:
    """Make a table of true."""
    if isinstance(value, bool):
        return {} if value else None
    # After a validator of ours a list is held to be one of Python's, which strictly is no tuple.
    program = value.get("program") if isinstance(value, dict) else None
    return {**value, "program": tuple(program)} if isinstance(value, dict) and isinstance(program, list) else value


class SlotConfig(Section):
    """A named use of a driver."""

    driver: DriverName
    """Name of the driver, as its distribution gave it in the role's entry point group."""
    options: dict[str, Any] = {}
    """The driver's own options."""
    isolation: Annotated[
        IsolationConfig | None,
        BeforeValidator(_to_isolation, json_schema_input_type=bool | IsolationConfig),
    ] = None
    """Run the driver in a process of its own, spoken to over a socket: true, or a table that says more. What blocks,
    leaks or crashes there harms no other slot."""


class RuntimeSlotConfig(SlotConfig):
    """A runtime handler, as a RuntimeClass names it."""

    network: SlotName = DEFAULT_SLOT
    """Network of this handler's pods: default, or a name of [networks]."""
    snapshotter: SlotName = DEFAULT_SLOT
    """Snapshotter of this handler's containers: default, or a name of [snapshotters]."""
    enabled: bool = True
    """Whether the slot is there at all; false takes away one that a default or an earlier file made."""


class ExtensionSlotConfig(SlotConfig):
    """An observer or adjuster."""

    on_failure: Literal["ignore", "fail"] = "ignore"
    """Whether a failure of this extension is only logged, or fails the act that it was told of. A driver may say fail
    by itself, as policy does."""
    deadline_s: Seconds = 5.0
    """How long each of its hooks may take, in seconds."""
    enabled: bool = True
    """Whether the extension is used at all."""


class Config(Section):
    """The whole configuration of a node."""

    root: AbsolutePath = Path("/var/lib/crinoid")
    """Directory of all that survives a reboot: records, images, snapshots, drivers' own state. It is closed to all but
    root, and must not hold directories of others, nor lie within another crinoid's."""
    run: AbsolutePath = Path("/run/crinoid")
    """Directory of all that does not survive a reboot: pins, mounts, sockets. Keep it short: sockets lie below. As with
    root, one daemon has it alone."""
    server: ServerConfig = ServerConfig()
    """The CRI endpoint."""
    streaming: StreamingConfig = StreamingConfig()
    """Exec, attach and port forwarding."""
    log: LogConfig = LogConfig()
    """The daemon's log."""
    metrics: MetricsConfig = MetricsConfig()
    """Prometheus metrics."""
    watchdog: WatchdogConfig = WatchdogConfig()
    """Watch over the event loop."""
    timeline: TimelineConfig = TimelineConfig()
    """Timelines of pods, containers and images."""
    tracing: TracingConfig = TracingConfig()
    """OpenTelemetry traces."""
    images: ImagesConfig = ImagesConfig()
    """Images."""
    pods: PodsConfig = PodsConfig()
    """Defaults of pods and containers."""
    deadlines: DeadlinesConfig = DeadlinesConfig()
    """Deadlines of the hooks."""
    runtimes: dict[SlotName, RuntimeSlotConfig] = {"runc": RuntimeSlotConfig(driver="runc")}
    """Runtime handlers by name. The slot runc is there unless it is disabled."""
    network: SlotConfig = SlotConfig(driver="auto")
    """The network of pods whose handler names no other; the slot is called default."""
    networks: dict[SlotName, SlotConfig] = {}
    """Further networks by name, for handlers to choose."""
    snapshotter: SlotConfig = SlotConfig(driver="overlay")
    """The snapshotter of handlers that name no other; the slot is called default."""
    snapshotters: dict[SlotName, SlotConfig] = {}
    """Further snapshotters by name, for handlers to choose."""
    registries: dict[SlotName, SlotConfig] = {
        "layout": SlotConfig(driver="layout"),
        "distribution": SlotConfig(driver="distribution"),
    }
    """Image sources by name; images.sources says which are asked, and in what order."""
    extensions: dict[SlotName, ExtensionSlotConfig] = {}
    """Extensions by name, called in the order in which they stand in the files."""

    @property
    def enabled_runtimes(self) -> dict[str, RuntimeSlotConfig]:
        """The runtimes slots that are not disabled."""
        return {name: slot for name, slot in self.runtimes.items() if slot.enabled}


BUILT_IN: dict[str, Any] = {
    "runtimes": {"runc": {"driver": "runc"}},
    "network": {"driver": "auto"},
    "snapshotter": {"driver": "overlay"},
    "registries": {"layout": {"driver": "layout"}, "distribution": {"driver": "distribution"}},
}
"""What lies beneath the files: slots that a file may change key by key, and others may join."""
