"""NodeImages, crinoid's own service beside the CRI: images to and from files, names, disk usage.

Each method decodes, asks a service, encodes; ``calls`` does the rest. Who may speak here is who may speak CRI.
"""

from collections.abc import AsyncGenerator, Iterable

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.manifests import DescriptorDocument, PlatformDocument, is_digest
from crinoid.core.api.values.image import Descriptor, ImageReference, Platform
from crinoid.core.cri.services import Services
from crinoid.core.cri.wire import node_images_pb2 as wire
from crinoid.core.lifecycle.images.disk_usage import NodeUse
from crinoid.core.lifecycle.images.images import parse_platform
from crinoid.core.lifecycle.images.loading import Want
from crinoid.core.lifecycle.images.saving import SavedImage
from crinoid.core.state.records import ImageRecord

_PIECE_BYTES = 1 << 20
_ENVELOPE_BYTES = 1 << 10
"""Of a message, beside the piece of a blob that it carries."""


class NodeImages:
    """What ``node_images.proto`` says."""

    def __init__(self, services: Services, max_message_bytes: int) -> None:
        self._images = services.images
        self._loads = services.loads
        self._saves = services.saves
        self._disk = services.disk
        self._adoptions = services.adoptions
        self._max_piece_bytes = min(_PIECE_BYTES, max_message_bytes - _ENVELOPE_BYTES)

    async def load_image(self, request: wire.LoadImageRequest) -> AsyncGenerator[wire.LoadImageResponse, None]:
        names = [_name(text) for text in request.names]
        targets = [_decode_target(target) for target in request.targets]
        if not targets:
            raise InvalidArgument("targets: name the image's manifest or index")
        async for step in self._loads.load(names, targets, _platform(request.platform)):
            if isinstance(step, str):
                yield wire.LoadImageResponse(session=step, max_piece_bytes=self._max_piece_bytes)
            elif isinstance(step, Want):
                blob = step.blob
                wanted = wire.BlobWanted(number=step.number, digest=blob.digest, size=blob.size, offset=step.offset)
                yield wire.LoadImageResponse(wanted=wanted)
            else:
                yield wire.LoadImageResponse(image_id=step.id)

    async def provide_blob(self, request: wire.ProvideBlobRequest) -> wire.ProvideBlobResponse:
        wants_more = await self._loads.provide(
            request.session, request.number, request.content, request.last, request.fault[:1000]
        )
        return wire.ProvideBlobResponse(enough=not wants_more)

    async def save_images(self, request: wire.SaveImagesRequest) -> AsyncGenerator[wire.SaveImagesResponse, None]:
        async with self._saves.prepared(request.images, request.keep_index) as saving:
            yield wire.SaveImagesResponse(
                images=map(_encode_saved, saving.images), blobs=map(_encode_descriptor, saving.blobs)
            )
            for blob in saving.blobs:
                async for piece in self._saves.read(blob):
                    yield wire.SaveImagesResponse(content=piece)

    async def adopt_images(self, request: wire.AdoptImagesRequest) -> AsyncGenerator[wire.AdoptImagesResponse, None]:
        steps = self._adoptions.adopt(
            request.runtime, request.root, request.namespace, list(request.names), request.copy
        )
        async for step in steps:
            if isinstance(step, int):
                yield wire.AdoptImagesResponse(total=step)
            else:
                yield wire.AdoptImagesResponse(
                    name=step.name,
                    image_id=step.image_id,
                    cloned_bytes=step.cloned_bytes,
                    linked_bytes=step.linked_bytes,
                    copied_bytes=step.copied_bytes,
                    fault=step.fault,
                )

    async def tag_image(self, request: wire.TagImageRequest) -> wire.TagImageResponse:
        record = await self._images.tag(request.image, request.name)
        return wire.TagImageResponse(image_id=record.id, name=str(ImageReference.parse(request.name)))

    async def untag_image(self, request: wire.UntagImageRequest) -> wire.UntagImageResponse:
        record = await self._images.untag(request.name)
        left = len(record.tags) + len(record.digests)
        return wire.UntagImageResponse(image_id=record.id, name=str(ImageReference.parse(request.name)), left=left)

    async def image_disk_usage(self, _request: wire.ImageDiskUsageRequest) -> wire.ImageDiskUsageResponse:
        return _encode_use(await self._disk.measure())


def _name(text: str) -> ImageReference:
    name = ImageReference.parse(text)
    if name.digest:
        raise InvalidArgument(f"names: {text!r} has a digest: it comes of the image, and can't be given")
    return name


def _platform(text: str) -> Platform | None:
    parts = text.split("/")
    if text and (len(parts) not in (2, 3) or not all(parts)):
        raise InvalidArgument(f"platform {text!r} is not of the form os/architecture[/variant]")
    return parse_platform(text) if text else None


def _decode_target(target: wire.BlobDescriptor) -> DescriptorDocument:
    if not is_digest(target.digest) or target.size < 0:
        raise InvalidArgument(f"targets: {target.digest!r} of {target.size} bytes is no descriptor of a document")
    place = _platform(target.platform)
    return DescriptorDocument(
        media_type=target.media_type,
        digest=target.digest,
        size=target.size,
        platform=PlatformDocument(os=place.os, architecture=place.architecture, variant=place.variant)
        if place
        else None,
    )


def _encode_descriptor(blob: Descriptor) -> wire.BlobDescriptor:
    return wire.BlobDescriptor(media_type=blob.media_type, digest=blob.digest, size=blob.size)


def _encode_saved(image: SavedImage) -> wire.SavedImage:
    target = _encode_descriptor(image.target)
    if image.platform.architecture:
        target.platform = str(image.platform)
    return wire.SavedImage(
        names=image.names,
        target=target,
        config=_encode_descriptor(image.config),
        layers=map(_encode_descriptor, image.layers),
    )


def _encode_use(use: NodeUse) -> wire.ImageDiskUsageResponse:
    ended = [one for one in use.containers if one.is_ended]
    return wire.ImageDiskUsageResponse(
        images=[
            wire.ImageUsage(
                id=image.record.id,
                names=_names_of(image.record),
                unique_bytes=image.unique_bytes,
                shared_bytes=image.shared_bytes,
                containers=image.containers,
                pinned=image.record.pinned,
                layers=image.record.chain_ids,
            )
            for image in use.images
        ],
        layers=[
            wire.LayerUsage(
                chain_id=layer.chain_id,
                snapshotter=layer.snapshotter,
                unpacked_bytes=layer.unpacked_bytes,
                blob_bytes=layer.blob_bytes,
                images=layer.images,
                digest=layer.digest,
            )
            for layer in use.layers
        ],
        writables=[
            wire.WritableUsage(
                container_id=one.record.id,
                name=one.record.config.metadata.name,
                state=one.record.state.value,
                bytes=one.writable_bytes,
            )
            for one in use.containers
        ],
        volumes=[
            wire.VolumeUsage(container_id=one.record.id, bytes=one.volume_bytes)
            for one in use.containers
            if one.volume_bytes
        ],
        images_bytes=use.images_bytes,
        images_reclaimable_bytes=use.images_reclaimable_bytes,
        writables_bytes=sum(one.writable_bytes for one in use.containers),
        writables_reclaimable_bytes=sum(one.writable_bytes for one in ended),
        volumes_bytes=sum(one.volume_bytes for one in use.containers),
        volumes_reclaimable_bytes=sum(one.volume_bytes for one in ended),
    )


def _names_of(record: ImageRecord) -> Iterable[str]:
    return record.tags or record.digests
