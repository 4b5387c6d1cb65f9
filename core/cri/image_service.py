"""ImageService: each method decodes, asks the images service, encodes; ``calls`` does the rest."""

import json
from collections.abc import AsyncGenerator, Sequence

from crinoid.core.api.errors import RegistryUnavailable, SignatureValidationFailed, StateNotUsable, Unavailable
from crinoid.core.cri.decode.images import (
    decode_credentials,
    decode_image,
    decode_image_filter,
    decode_pod_of_pull,
)
from crinoid.core.cri.encode.images import encode_image, encode_image_fs_info
from crinoid.core.cri.encode.pods import encode_info
from crinoid.core.cri.lists import EncodedList
from crinoid.core.cri.services import Services
from crinoid.core.cri.wire import api_pb2
from crinoid.core.lifecycle.images.images import VERIFY
from crinoid.core.state.records import ImageRecord


class ImageService:
    """Images and what they take."""

    def __init__(self, services: Services) -> None:
        self._images = services.images
        self._pods = services.pods
        self._image_list = EncodedList(self._encode)

    async def list_images(self, request: api_pb2.ListImagesRequest) -> bytes:
        def make() -> bytes:
            reference = decode_image_filter(request)
            return self._image_list.join(self._select(reference), full=not reference)

        return self._image_list.answer(request.SerializeToString(), self._images.version, make)

    async def stream_images(self, request: api_pb2.StreamImagesRequest) -> AsyncGenerator[bytes, None]:
        reference = decode_image_filter(request)
        for batch in self._image_list.batches(self._select(reference), full=not reference):
            yield batch

    async def image_status(self, request: api_pb2.ImageStatusRequest) -> api_pb2.ImageStatusResponse:
        reference, handler = decode_image(request), request.image.runtime_handler
        if request.verbose:
            record = self._images.find(reference, handler or None)
        else:
            record = self._images.find_usable(reference, handler)
        if record is None:  # by the API an empty answer, no error
            return api_pb2.ImageStatusResponse()
        info = dict(self._images.info(record)) if request.verbose else {}
        if request.verbose and request.image.annotations.get(VERIFY) == "true":
            info["damage"] = json.dumps(await self._images.verify(record))
        return api_pb2.ImageStatusResponse(image=self._encode(record), info=encode_info(info))

    async def pull_image(self, request: api_pb2.PullImageRequest) -> api_pb2.PullImageResponse:
        reference, credentials = decode_image(request), decode_credentials(request)
        annotations, handler = dict(request.image.annotations), request.image.runtime_handler
        if not handler and (pod := decode_pod_of_pull(request)) is not None:
            handler = self._pods.handler_of(pod)
        try:
            image_id = await self._images.pull(reference, credentials, annotations, handler)
        except SignatureValidationFailed as error:
            raise SignatureValidationFailed(f"{error.reason}: {error.message}") from error
        except StateNotUsable:
            raise
        except Unavailable as error:
            raise RegistryUnavailable(f"{RegistryUnavailable.reason}: {error.message}") from error
        return api_pb2.PullImageResponse(image_ref=image_id)

    async def remove_image(self, request: api_pb2.RemoveImageRequest) -> api_pb2.RemoveImageResponse:
        await self._images.remove(decode_image(request), request.image.runtime_handler)
        return api_pb2.RemoveImageResponse()

    async def image_fs_info(self, request: api_pb2.ImageFsInfoRequest) -> api_pb2.ImageFsInfoResponse:
        images, containers = await self._images.filesystems()
        return encode_image_fs_info(images, containers)

    def _select(self, reference: str) -> Sequence[ImageRecord]:
        """Find the images of a list: all, or the one of a reference."""
        if not reference:
            return self._images.list()
        found = self._images.find(reference)
        return () if found is None else (found,)

    def _encode(self, record: ImageRecord) -> api_pb2.Image:
        return encode_image(record, self._images.user_of(record))
