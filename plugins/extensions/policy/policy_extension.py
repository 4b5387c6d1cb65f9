"""The extension ``policy``: decides which images are fetched, and which containers are made of.

A pull is judged when it is known what the name means and before anything else is fetched, by the digests of index and
manifest and never by the tag, whichever mirror answered. The same goes for what is loaded from archives or adopted.
What it decides is kept with the image, with a mark of the policy that decided. Images that are there without this
policy's mark (from before, or from before a change of its rules or keys) are judged when a container, or an image
volume, is made of them.
"""

import hashlib
import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from crinoid.core.api.errors import CrinoidError, Refused, SignatureValidationFailed
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.hooks.extension import ContainerView, ImageDocuments, ImageView, Kernel, PullView
from crinoid.core.api.host import Host
from crinoid.core.api.values.image import ImageReference
from crinoid.plugins.extensions.policy.options import PolicyOptions, Rule
from crinoid.plugins.extensions.policy.signatures import find_signature

if TYPE_CHECKING:
    from crinoid.plugins.extensions.policy.keys import PublicKey

_NAMELESS = ImageReference("localhost", "nameless", "latest")
"""What rules see of an image that has no name."""
_MAX_SAID = 5


class PolicyExtension:
    """Which images may run."""

    api_version = "1.0"
    Config = PolicyOptions
    on_failure = "fail"
    deadline_s = 60.0
    replaceable = True

    def __init__(self, config: PolicyOptions, host: Host) -> None:
        self._config = config
        self._log: logging.Logger = host.log
        self._keys = _read_keys(config)
        self._mark = _mark_of(config, self._keys)
        self._kernel: Kernel | None = None
        self._decided: dict[str, str] = {}

    @hookimpl
    async def connect(self, kernel: Kernel) -> None:
        """Know where to ask of images that are there."""
        self._kernel = kernel

    @hookimpl
    async def image_pulling(self, image: PullView) -> str:
        """Judge an image that is about to be fetched."""
        digests = tuple(dict.fromkeys((image.target.digest, image.manifest.digest)))
        words = await self._judge(image.reference or _NAMELESS, digests, image.documents)
        return f"{words} [{self._mark}]"

    @hookimpl
    async def adjust_container(self, container: ContainerView) -> None:
        """Judge the images that a container is made of, where they were not judged by this policy before."""
        if self._config.present == "trust" or self._kernel is None:
            return
        names = [container.image_id, *(mount.image for mount in container.config.mounts if mount.image)]
        for name in dict.fromkeys(names):
            if (image := self._kernel.image(name)) is not None:
                await self._judge_present(image, self._kernel.documents)

    @hookimpl
    async def image_removed(self, image_id: str) -> None:
        """Forget what was decided on it."""
        self._decided.pop(image_id, None)

    async def _judge_present(self, image: ImageView, documents: ImageDocuments) -> None:
        if any(words.endswith(f"[{self._mark}]") for _, words in image.decisions) or image.image_id in self._decided:
            return
        refusal: CrinoidError | None = None
        for reference in _names_of(image):
            try:
                words = await self._judge(reference, image.manifests, documents)
            except CrinoidError as error:
                refusal = refusal or error
                continue
            self._log.info("image %s, which was there: %s", image.image_id, words)
            self._decided[image.image_id] = words
            return
        assert refusal is not None, "there is one name at least"
        raise type(refusal)(
            f"{refusal} (it was on the node, and policy has not decided on it before; a pull with the credentials of "
            "its registry decides anew)"
        ) from refusal

    async def _judge(self, reference: ImageReference, digests: Iterable[str], documents: ImageDocuments) -> str:
        """Return why an image may be had. Raises Refused, and what image sources raise that hide its signatures."""
        digests = tuple(digests)
        for number, rule in enumerate(self._config.rules, 1):
            if rule.is_about(reference.name, digests):
                return await self._apply(f"rule {number} ({rule})", rule, reference, digests, documents)
        if self._config.default == "allow":
            return "allowed by default"
        raise Refused(f"image {reference}: no rule allows {reference.name}, and the default is to deny")

    async def _apply(
        self, name: str, rule: Rule, reference: ImageReference, digests: tuple[str, ...], documents: ImageDocuments
    ) -> str:
        if rule.action == "allow":
            return f"allowed by {name}"
        if rule.action == "deny":
            raise Refused(f"image {reference}: denied by {name}")
        said: list[str] = []
        keys = [self._keys[path] for path in rule.keys]
        for digest in digests:
            async for signed in find_signature(documents, reference, digest, keys, said):
                if rule.signs(signed.repository):
                    return f"allowed by {name}: {digest} is signed by {signed.key}"
                said.append(f"a signature by {signed.key} is for {signed.repository or 'no repository'}")
        found = "; ".join(tuple(dict.fromkeys(said))[:_MAX_SAID]) or "there is no signature of it"
        wanted = ", ".join(key.name for key in keys)
        raise SignatureValidationFailed(
            f"image {reference} ({digests[0] if digests else 'no digest'}) is not signed by {wanted}, as {name} wants: "
            f"{found}"
        )


def _names_of(image: ImageView) -> list[ImageReference]:
    names = {ImageReference.parse(name).name: ImageReference.parse(name) for name in (*image.tags, *image.digests)}
    return list(names.values()) or [_NAMELESS]


def _read_keys(config: PolicyOptions) -> "Mapping[Path, PublicKey]":
    paths = {path for rule in config.rules for path in rule.keys}
    if not paths:
        return {}
    from crinoid.plugins.extensions.policy.keys import PublicKey  # it needs a library that not every node has

    return {path: PublicKey(path) for path in paths}


def _mark_of(config: PolicyOptions, keys: "Mapping[Path, PublicKey]") -> str:
    """Return what tells this policy from one with other rules, or with other keys in the same files."""
    prints = [f"{path} {keys[path].fingerprint}" for path in sorted(keys)]
    text = "\n".join([config.model_dump_json(exclude={"present"}), *prints])
    return f"policy {hashlib.sha256(text.encode()).hexdigest()[:16]}"
