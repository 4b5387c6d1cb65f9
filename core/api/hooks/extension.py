"""The open role: observers and adjusters, any number of them (entry points ``crinoid.extensions``).

Every hook is optional and is called in the order of the configuration. An extension that fails or overstays its
deadline is named in the log; whether the act fails with it is the slot's ``on_failure`` (``ignore`` or ``fail``). One
that wants an act not to happen raises Refused from a hook whose name ends in ``ing``, or from ``adjust_container``:
that always counts. A driver that needs more time than other extensions may have an attribute ``deadline_s``, in
seconds; a deadline in the configuration wins over it. So does ``on_failure`` over an attribute of that name: a driver
that guards something says ``"fail"``, as nothing passes a guard that does not answer.

The story: ``connect`` once, before the first request; then for each pod ``pod_starting``, ``pod_started``, its
containers, ``pod_stopping``, ``pod_stopped``, ``pod_removed``; for each container ``adjust_container``,
``container_created``, ``container_starting``, ``container_started``, ``container_exited``, ``container_removed``. What
was begun and failed ends with ``…_removed`` at once. Stopping and removing never fail because of an extension. An end
may be told twice, of what the extension never heard of, and (a container that ended while the daemon was away) before
``connect``. ``testing.extensions`` has the story as tests.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from crinoid.core.api.hooks import broadcast
from crinoid.core.api.values.adjustment import OciDevice, OciDeviceRule, OciHook, OciMount, Rlimit
from crinoid.core.api.values.container import ContainerConfig, DeviceMapping, VolumeMount
from crinoid.core.api.values.image import Descriptor, ImageReference, ResolvedImage
from crinoid.core.api.values.pod import LinuxResources, PodConfig
from crinoid.core.api.values.runtime import ContainerStatus, ExitStatus, OciSpec


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod as extensions see it.

    ``namespaces`` maps ``network``, ``ipc``, … to pinned paths. ``resources`` and ``overhead`` are the last that were
    told (``None``: none). ``ready`` is false once the pod was stopped.
    """

    pod_id: str
    config: PodConfig
    runtime_handler: str
    addresses: tuple[str, ...] = ()
    namespaces: Mapping[str, Path] = field(default_factory=dict)
    cgroup_parent: str = ""
    resources: LinuxResources | None = None
    overhead: LinuxResources | None = None
    ready: bool = True


@dataclass(frozen=True, slots=True)
class ContainerView:
    """A container as extensions see it; ``image_id`` is the digest of the image's configuration.

    ``spec`` is its OCI specification, empty when that can't be read; in ``adjust_container`` as it would be without
    extensions. ``state`` is ``ABSENT`` until the container is made. ``resources`` are the limits in force. Times are in
    ns since the epoch, 0 until they happen.
    """

    container_id: str
    pod: PodView
    config: ContainerConfig
    image_id: str
    image_reference: str = ""
    state: ContainerStatus = ContainerStatus.ABSENT
    spec: OciSpec = field(default_factory=dict)
    resources: LinuxResources = LinuxResources()
    pid: int = 0
    created_at_ns: int = 0
    started_at_ns: int = 0
    finished_at_ns: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerAdjustment:
    """What an adjuster changes in a container before it is created; later extensions see nothing of it.

    First is removed what ``removed_…`` names, by variable, mount point, device path and annotation; then comes what is
    added, which replaces what has the same name; ``mounts`` can't be image volumes. ``args`` replaces the command,
    ``resources`` the limits that it gives, ``cgroup`` the cgroup path: of one that is not there yet, as what is in it
    ends with the container (with systemd ``slice:prefix:ID`` with the container's id). ``cdi_devices`` are
    full names. ``spec_patch`` is a JSON merge patch (RFC 7396) of the OCI specification, for all that has no field
    here; it comes last. An invalid one is a failure of the extension: ``adjustments.check_adjustment`` tells.
    ``author`` names who wants it in messages, where an extension speaks for others; empty is the extension itself.
    ``authors`` says then which of them changed which field, as pairs for people (``("NRI plugin x", "Env PATH")``):
    names, no values.
    """

    envs: tuple[tuple[str, str], ...] = ()
    mounts: tuple[VolumeMount, ...] = ()
    devices: tuple[DeviceMapping, ...] = ()
    annotations: tuple[tuple[str, str], ...] = field(default=())
    removed_envs: tuple[str, ...] = ()
    removed_mounts: tuple[str, ...] = ()
    removed_devices: tuple[str, ...] = ()
    removed_annotations: tuple[str, ...] = ()
    oci_mounts: tuple[OciMount, ...] = ()
    oci_devices: tuple[OciDevice, ...] = ()
    oci_device_rules: tuple[OciDeviceRule, ...] = ()
    oci_hooks: tuple[OciHook, ...] = ()
    cdi_devices: tuple[str, ...] = ()
    args: tuple[str, ...] = ()
    rlimits: tuple[Rlimit, ...] = ()
    resources: LinuxResources | None = None
    oom_score_adj: int | None = None
    cgroup: str = ""
    spec_patch: Mapping[str, Any] = field(default_factory=dict)
    author: str = ""
    authors: tuple[tuple[str, str], ...] = ()


class ImageDocuments(Protocol):
    """What image sources have of an image beside its layers: manifests by tag or digest, and small blobs."""

    async def resolve(self, reference: ImageReference) -> ResolvedImage:
        """Find a manifest, verified. Raises what image sources raise, NotFound where none has it."""

    async def read(self, reference: ImageReference, blob: Descriptor, max_bytes: int) -> bytes:
        """Read a blob of what ``resolve`` found, verified. Raises CorruptContent for one that is longer, too."""

    async def list_referrers(self, reference: ImageReference, artifact_type: str) -> tuple[Descriptor, ...]:
        """Return the manifests whose subject is the manifest of the reference's digest."""


@dataclass(frozen=True, slots=True)
class PullView:
    """An image that is about to be fetched, or taken in from an archive or from another runtime.

    ``target`` is what the reference means, an index or a manifest, and ``manifest`` the one for the node; their
    digests are verified. ``source`` is the slot of the image source that answered, ``archive`` or ``containerd`` where
    it was none. The reference is ``None`` for an image that is to get no name. ``documents`` asks the configured
    sources, with the credentials of the pull.
    """

    reference: ImageReference | None
    target: Descriptor
    manifest: Descriptor
    source: str
    documents: ImageDocuments


@dataclass(frozen=True, slots=True)
class ImageView:
    """An image of the node. ``manifests`` are the digests of all indexes and manifests that led to it.

    ``decisions`` are the words that extensions returned from ``image_pulling``, each with the name of its slot.
    """

    image_id: str
    tags: tuple[str, ...] = ()
    digests: tuple[str, ...] = ()
    manifests: tuple[str, ...] = ()
    decisions: tuple[tuple[str, str], ...] = ()


class Kernel(Protocol):
    """What an extension may ask of the kernel, from ``connect`` to ``close``, at any time and in any hook."""

    def pods(self) -> tuple[PodView, ...]:
        """Return all pods there are."""

    async def containers(self) -> tuple[ContainerView, ...]:
        """Return all containers as they were when this was called, ended ones too."""

    def image(self, name: str) -> ImageView | None:
        """Return the image of a name or an id; ``None`` where there is none."""

    @property
    def documents(self) -> ImageDocuments:
        """What image sources have, asked with the node's own credentials."""

    async def update_container(self, container_id: str, resources: LinuxResources) -> None:
        """Change limits of a created or running container; zero and empty fields stay. No extension is asked about it.

        Raises NotFound, FailedPrecondition for one that has ended, and what its runtime raises.
        """

    async def stop_container(self, container_id: str, reason: str) -> None:
        """Stop a container with the node's grace period; ``reason`` goes to the log. Idempotent.

        Raises DeadlineExceeded when it outlives SIGKILL. Don't await this in a hook: it waits for ``container_exited``.
        """


class ExtensionHooks:
    """What an extension may implement."""

    @broadcast
    async def connect(self, kernel: Kernel) -> None:
        """The node is recovered and about to serve."""

    @broadcast
    async def close(self) -> None:
        """The daemon stops; pods and containers run on."""

    @broadcast
    async def pod_starting(self, pod: PodView) -> None:
        """A pod sandbox is made, network and all, and not yet known to clients. May refuse it."""

    @broadcast
    async def pod_started(self, pod: PodView) -> None:
        """A pod sandbox is ready."""

    @broadcast
    async def pod_updating(
        self, pod: PodView, resources: LinuxResources | None, overhead: LinuxResources | None
    ) -> None:
        """A pod's limits are about to change to these; ``None`` stays. May refuse it."""

    @broadcast
    async def pod_updated(self, pod: PodView) -> None:
        """A pod's limits were changed."""

    @broadcast
    async def pod_stopping(self, pod: PodView) -> None:
        """The containers of a pod sandbox have ended; its network is still there."""

    @broadcast
    async def pod_stopped(self, pod: PodView) -> None:
        """A pod sandbox was stopped: its network is gone."""

    @broadcast
    async def pod_removed(self, pod: PodView) -> None:
        """A pod sandbox and all its containers were removed, or could not be made."""

    @broadcast
    async def adjust_container(self, container: ContainerView) -> ContainerAdjustment | None:
        """A container is about to be created: return what to change in it, or ``None``. May refuse it."""

    @broadcast
    async def container_created(self, container: ContainerView) -> None:
        """A container was created and waits."""

    @broadcast
    async def container_starting(self, container: ContainerView) -> None:
        """A container is about to run. May refuse it."""

    @broadcast
    async def container_started(self, container: ContainerView) -> None:
        """A container runs."""

    @broadcast
    async def container_updating(self, container: ContainerView, resources: LinuxResources) -> LinuxResources | None:
        """A container's limits are about to change to these, of which zero and empty ones stay: return what to change
        instead, or ``None``. Each extension is given what the one before it returned. May refuse it."""

    @broadcast
    async def container_updated(self, container: ContainerView) -> None:
        """A container's limits were changed."""

    @broadcast
    async def container_exited(self, container: ContainerView, status: ExitStatus) -> None:
        """A container ended."""

    @broadcast
    async def container_removed(self, container: ContainerView) -> None:
        """A container was removed, or could not be made after extensions adjusted it."""

    @broadcast
    async def image_pulling(self, image: PullView) -> str | None:
        """It is known what an image's name means, and nothing else of it is fetched: return words that are kept with
        the image and shown of it, or ``None``. May refuse it."""

    @broadcast
    async def image_pulled(self, reference: str, image_id: str) -> None:
        """A pull completed."""

    @broadcast
    async def image_removed(self, image_id: str) -> None:
        """An image with all its names was removed."""
