"""The open role: observers and adjusters, any number of them (entry points ``crinoid.extensions``).

Every hook is optional and is called in the order of the configuration. An extension that fails or overstays its
deadline is named in the log; whether the act fails with it is the slot's ``on_failure`` (``ignore`` or ``fail``).
"""

from dataclasses import dataclass, field

from crinoid.core.api.hooks import broadcast
from crinoid.core.api.values.container import ContainerConfig, DeviceMapping, VolumeMount
from crinoid.core.api.values.pod import PodConfig
from crinoid.core.api.values.runtime import ExitStatus


@dataclass(frozen=True, slots=True)
class PodView:
    """A pod as extensions see it."""

    pod_id: str
    config: PodConfig
    runtime_handler: str
    addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ContainerView:
    """A container as extensions see it; ``image_id`` is the digest of the image's configuration."""

    container_id: str
    pod: PodView
    config: ContainerConfig
    image_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerAdjustment:
    """What an adjuster adds to a container before it is created; later extensions see nothing of it."""

    envs: tuple[tuple[str, str], ...] = ()
    mounts: tuple[VolumeMount, ...] = ()
    devices: tuple[DeviceMapping, ...] = ()
    annotations: tuple[tuple[str, str], ...] = field(default=())


class ExtensionHooks:
    """What an extension may implement."""

    @broadcast
    async def pod_started(self, pod: PodView) -> None:
        """A pod sandbox is ready."""

    @broadcast
    async def pod_stopped(self, pod: PodView) -> None:
        """A pod sandbox was stopped: its network is gone."""

    @broadcast
    async def pod_removed(self, pod: PodView) -> None:
        """A pod sandbox and all its containers were removed."""

    @broadcast
    async def adjust_container(self, container: ContainerView) -> ContainerAdjustment | None:
        """A container is about to be created: return what to add to it, or ``None``."""

    @broadcast
    async def container_created(self, container: ContainerView) -> None:
        """A container was created and waits."""

    @broadcast
    async def container_started(self, container: ContainerView) -> None:
        """A container runs."""

    @broadcast
    async def container_exited(self, container: ContainerView, status: ExitStatus) -> None:
        """A container ended."""

    @broadcast
    async def container_removed(self, container: ContainerView) -> None:
        """A container was removed."""

    @broadcast
    async def image_pulled(self, reference: str, image_id: str) -> None:
        """A pull completed."""

    @broadcast
    async def image_removed(self, image_id: str) -> None:
        """An image with all its names was removed."""
