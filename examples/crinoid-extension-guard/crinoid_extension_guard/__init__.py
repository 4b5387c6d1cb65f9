"""An extension that guards a node: an allow list of images, what each container gets, and a webhook that may refuse.

All three are asked in ``adjust_container``, before a container is made: first the list, which needs nobody, then the
webhook, then what is injected. A guard that does not answer is no reason to go on, so ``on_failure`` is ``fail``.
"""

import asyncio
import fnmatch
from collections.abc import Mapping
from typing import Annotated

import aiohttp
from pydantic import AnyHttpUrl, BaseModel, ConfigDict, Field, ValidationError

from crinoid.core.api.config import DriverConfig
from crinoid.core.api.errors import Refused, Unavailable
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.hooks.extension import ContainerAdjustment, ContainerView, ExtensionHooks, Kernel, PullView
from crinoid.core.api.host import Host
from crinoid.core.api.values.container import VolumeMount

_MAX_ANSWER_BYTES = 1 << 16
Pattern = Annotated[str, Field(min_length=1)]


class Injection(DriverConfig):
    """What containers get whose pods have these labels; all containers, where there are none."""

    labels: Mapping[str, str] = {}
    """Labels that a pod must have, each with this value."""
    environment: Mapping[str, str] = {}
    """Variables, unless the container has its own of that name."""
    mounts: Mapping[str, str] = {}
    """Directories or files of the node by their place in the container, such as a bundle of certificates; read-only."""


class GuardOptions(DriverConfig):
    """Options of the driver."""

    allow: tuple[Pattern, ...] = ("*",)
    """Images that may run, as patterns of full names: ``registry.example.org/*``, ``docker.io/library/busybox:1.*``."""
    exempt_namespaces: tuple[str, ...] = ("kube-system",)
    """Namespaces of pods that neither list nor webhook is asked about."""
    inject: tuple[Injection, ...] = ()
    """What containers get."""
    webhook: AnyHttpUrl | None = None
    """Asked about each container: see the README for what is sent and answered."""
    webhook_timeout_s: float = Field(2.0, gt=0, le=30)
    """How long it may take to answer."""


class Verdict(BaseModel):
    """What the webhook answers."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    allowed: bool
    reason: str = ""
    environment: Mapping[str, str] = {}


class GuardExtension(ExtensionHooks):
    """The driver. Hooks that it leaves out are not called."""

    api_version = "1.0"
    Config = GuardOptions
    on_failure = "fail"

    def __init__(self, config: GuardOptions, host: Host) -> None:
        self._config = config
        self._log = host.log
        self._session: aiohttp.ClientSession | None = None
        self._kernel: Kernel | None = None
        self.deadline_s = config.webhook_timeout_s + 2  # more than the webhook's own, so that its words are told

    @hookimpl
    async def connect(self, kernel: Kernel) -> None:
        self._kernel = kernel

    @hookimpl
    async def image_pulling(self, image: PullView) -> str | None:
        """Refuse before anything is fetched what could not run in any namespace."""
        if image.reference is not None and not self._config.exempt_namespaces:
            self._check_list((str(image.reference), f"{image.reference.name}@{image.target.digest}"))
        return None

    @hookimpl
    async def adjust_container(self, container: ContainerView) -> ContainerAdjustment | None:
        wanted: Mapping[str, str] = {}
        if container.pod.config.metadata.namespace not in self._config.exempt_namespaces:
            self._check_list(self._names_of(container))
            if self._config.webhook is not None:
                wanted = await self._review(container)
        environment: dict[str, str] = {}
        mounts: dict[str, str] = {}
        for one in self._config.inject:
            if one.labels.items() <= container.pod.config.labels.items():
                environment.update(one.environment)
                mounts.update(one.mounts)
        environment.update(wanted)
        own = {name for name, _ in container.config.envs}
        taken = {mount.container_path for mount in container.config.mounts}
        adjustment = ContainerAdjustment(
            envs=tuple((name, value) for name, value in environment.items() if name not in own),
            mounts=tuple(
                VolumeMount(container_path=place, host_path=source, readonly=True)
                for place, source in mounts.items()
                if place not in taken
            ),
        )
        return adjustment if adjustment != ContainerAdjustment() else None

    @hookimpl
    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _names_of(self, container: ContainerView) -> tuple[str, ...]:
        """Return what the node calls the image, and not what the client says of it."""
        image = None if self._kernel is None else self._kernel.image(container.image_id)
        names = (container.image_reference, *(() if image is None else (*image.tags, *image.digests)))
        return tuple(name for name in names if name) or (container.image_id,)

    def _check_list(self, names: tuple[str, ...]) -> None:
        """An image has several names; one that is allowed is enough, as all mean the same image."""
        if not any(fnmatch.fnmatchcase(name, pattern) for name in names for pattern in self._config.allow):
            allowed = ", ".join(self._config.allow)
            raise Refused(f"image {names[0]} is not on the list of images that may run: {allowed}")

    async def _review(self, container: ContainerView) -> Mapping[str, str]:
        """Ask the webhook; return the variables it wants. Raises Refused with its reason, Unavailable."""
        metadata, url = container.pod.config.metadata, str(self._config.webhook)
        question = {
            "pod": {
                "namespace": metadata.namespace,
                "name": metadata.name,
                "uid": metadata.uid,
                "labels": dict(container.pod.config.labels),
                "annotations": dict(container.pod.config.annotations),
            },
            "container": container.config.metadata.name,
            "image": container.image_reference or container.config.image,
            "imageId": container.image_id,
            "command": list(container.spec.get("process", {}).get("args", ())),
            "privileged": container.config.security.privileged,
        }
        if self._session is None:
            self._session = aiohttp.ClientSession()
        try:
            async with (
                asyncio.timeout(self._config.webhook_timeout_s),
                self._session.post(url, json=question, allow_redirects=False) as response,
            ):
                text = await response.content.read(_MAX_ANSWER_BYTES)
                if response.status != 200:
                    raise Unavailable(f"the webhook {url} answers {response.status} {response.reason}")
            verdict = Verdict.model_validate_json(text)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"the webhook {url} can't be asked: {error or type(error).__name__}") from error
        except ValidationError as error:
            raise Unavailable(f"the webhook {url} answers what is no verdict: {error.errors()[0]['msg']}") from error
        if not verdict.allowed:
            raise Refused(f"the webhook {url} does not allow it: {verdict.reason or 'it says no reason'}")
        return verdict.environment
