"""An image source over any web server of static files: one OCI image layout for each repository, below one URL.

The layout of ``example.org/team/app`` is at ``URL/example.org/team/app``, as ``skopeo copy SOURCE
oci:DIRECTORY/example.org/team/app:TAG`` writes it: ``index.json`` names the tags, and the blobs lie beside it by their
digests. Nothing is listed and nothing is computed, so nginx, a bucket with a web address, ``python -m http.server`` do.
"""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator

import aiohttp
from pydantic import AnyHttpUrl, Field

from crinoid.core.api import manifests
from crinoid.core.api.config import DriverConfig
from crinoid.core.api.errors import CorruptContent, NotFound, PermissionDenied, Unavailable
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.hooks.registry import RegistryHooks
from crinoid.core.api.host import Host
from crinoid.core.api.values.image import (
    BlobRequest,
    Descriptor,
    ImageReference,
    ResolvedImage,
    ResolveRequest,
    SourceStatus,
)

_REF_NAME = "org.opencontainers.image.ref.name"
_PIECE_BYTES = 1 << 18
_MAX_DOCUMENT_BYTES = 4 << 20
_TRIES = 5
_PAUSE_S = 0.2


class HttpOptions(DriverConfig):
    """Options of the driver."""

    url: AnyHttpUrl = AnyHttpUrl("http://localhost/images")
    """Where the layouts are; a user name and password in it are sent by basic authentication."""
    timeout_s: float = Field(30.0, gt=0)
    """How long the server may send nothing."""


class HttpRegistry(RegistryHooks):
    """The driver."""

    api_version = "1.0"
    Config = HttpOptions

    def __init__(self, config: HttpOptions, host: Host) -> None:
        at = config.url
        login = base64.b64encode(f"{at.username}:{at.password or ''}".encode()).decode()
        self._headers = {"Accept-Encoding": "identity"} | ({"Authorization": f"Basic {login}"} if at.username else {})
        host_part = f"{at.host}:{at.port}" if at.port else at.host
        self._url = f"{at.scheme}://{host_part}{at.path or ''}".rstrip("/")  # errors name it: without the password
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=config.timeout_s, sock_read=config.timeout_s)
        self._session: aiohttp.ClientSession | None = None

    @hookimpl
    async def status(self) -> SourceStatus:
        return SourceStatus(True)

    @hookimpl
    async def resolve(self, request: ResolveRequest) -> ResolvedImage:
        """Go from the layout's index to the manifest for the platform, and verify each document."""
        reference, what = request.reference, f"image {request.reference}"
        if reference.digest:
            target = Descriptor("", reference.digest, 0)
        else:
            target = self._tagged(await self._read(f"{reference.name}/index.json", what), reference)
        content = await self._document(reference, target.digest)
        media_type = manifests.classify(content, target.media_type, what)
        target = Descriptor(media_type, target.digest, len(content))
        if media_type not in manifests.INDEX_TYPES:
            return ResolvedImage(target, content, target, content)
        chosen = manifests.choose(manifests.read_index(content, what), request.platform, what)
        return ResolvedImage(target, content, chosen, await self._document(reference, chosen.digest))

    @hookimpl
    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:
        """The answer to the first request is awaited here, so that a blob that is not there is told at once."""
        path = _blob_path(request.reference, request.blob.digest)
        response = await self._get(path, f"image {request.reference}", request.offset)
        return self._stream(request, response)

    @hookimpl
    async def close(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def _tagged(self, index: bytes, reference: ImageReference) -> Descriptor:
        """Find a tag in an OCI layout's index (image-layout.md, "index.json file")."""
        what = f"{self._url}/{reference.name}/index.json"
        for entry in manifests.read_index(index, what).manifests:
            if entry.annotations.get(_REF_NAME) in (reference.tag, str(reference)):
                return entry.descriptor()
        raise NotFound(f"image {reference}: {what} does not name the tag {reference.tag}")

    async def _document(self, reference: ImageReference, digest: str) -> bytes:
        content = await self._read(_blob_path(reference, digest), f"image {reference}")
        manifests.verify(content, digest, f"image {reference}")
        return content

    async def _read(self, path: str, what: str) -> bytes:
        async with await self._get(path, what) as response:
            try:
                content = await response.content.read(_MAX_DOCUMENT_BYTES + 1)
                while len(content) <= _MAX_DOCUMENT_BYTES and (piece := await response.content.read(_PIECE_BYTES)):
                    content += piece
            except (aiohttp.ClientError, TimeoutError) as error:
                raise Unavailable(f"{what}: {self._url}/{path} broke off: {error}") from error
        if len(content) > _MAX_DOCUMENT_BYTES:
            raise CorruptContent(f"{what}: {self._url}/{path} is longer than {_MAX_DOCUMENT_BYTES} bytes")
        return content

    async def _get(self, path: str, what: str, offset: int = 0) -> aiohttp.ClientResponse:
        """Send a request; the caller closes the response."""
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, auto_decompress=False)
        headers = self._headers | ({"Range": f"bytes={offset}-"} if offset else {})
        try:
            response = await self._session.get(f"{self._url}/{path}", headers=headers)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unavailable(f"{self._url}/{path} can't be asked for: {error or type(error).__name__}") from error
        if response.status in (200, 206, 416):
            return response
        response.close()
        if response.status in (404, 410):
            raise NotFound(f"{what}: {self._url}/{path} is not there")
        if response.status in (401, 403):
            raise PermissionDenied(f"{self._url}/{path}: the server answers {response.status}")
        raise Unavailable(f"{self._url}/{path}: the server answers {response.status} {response.reason}")

    async def _stream(self, request: BlobRequest, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        """Yield the rest of a blob; a stream that breaks goes on where it was, a bounded number of times in a row."""
        path, at, failed = _blob_path(request.reference, request.blob.digest), request.offset, 0
        while True:
            try:
                async with response:
                    skip = 0 if response.status == 206 else at  # a server may know no ranges
                    async for piece in response.content.iter_chunked(_PIECE_BYTES):
                        rest = piece[skip : skip + request.blob.size - at]
                        skip = max(0, skip - len(piece))
                        if response.status != 416 and rest:
                            at, failed = at + len(rest), 0
                            yield rest
                        if at >= request.blob.size:
                            return
                if at >= request.blob.size or response.status == 416:
                    return
                failure: Exception | None = None  # it ended early, and without an error
            except (aiohttp.ClientError, TimeoutError, OSError) as error:
                failure = error
            failed += 1
            if failed >= _TRIES:
                raise Unavailable(f"{self._url}/{path} breaks off at byte {at} of {request.blob.size}: {failure}")
            await asyncio.sleep(_PAUSE_S * failed)
            with contextlib.suppress(Unavailable):
                response = await self._get(path, f"image {request.reference}", at)


def _blob_path(reference: ImageReference, digest: str) -> str:
    if not manifests.is_digest(digest):
        raise CorruptContent(f"image {reference}: {digest!r} is no digest")
    return f"{reference.name}/blobs/{digest.replace(':', '/')}"
