"""The registry role, the image sources: finds an image and streams its blobs (entry points ``crinoid.registries``).

The story of a pull: ``resolve`` turns a reference into a manifest, then ``open_blob`` streams the config and each
layer; several streams run at once. The kernel verifies every digest while it stores, unpacks what has come of a large
layer meanwhile, and never asks twice for a blob that it has. Several sources may be configured; they are asked in order
until one has the reference.
"""

from collections.abc import AsyncIterator

from crinoid.core.api.hooks import hookspec
from crinoid.core.api.values.image import (
    BlobRequest,
    Descriptor,
    ReferrersRequest,
    ResolvedImage,
    ResolveRequest,
    SourceStatus,
)


class RegistryHooks:
    """What an image source driver implements."""

    @hookspec
    async def resolve(self, request: ResolveRequest) -> ResolvedImage:  # type: ignore[empty-body]  # a specification
        """Find what the reference means for the platform.

        Raises NotFound when this source has no such image (the next source is asked, then), Unauthenticated or
        PermissionDenied when it refuses, Unavailable when it can't be reached, CorruptContent when it lies,
        Unsupported when the image has no manifest for the platform.
        """

    @hookspec
    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:  # type: ignore[empty-body]
        """Open a stream of the blob from ``offset`` on, in pieces of any size up to a MiB; never more than its size.

        A stream that breaks is resumed by the driver, with a bounded number of tries, before it raises Unavailable.
        The kernel closes the iterator (``aclose``) when it ends early. Raises NotFound.
        """

    @hookspec
    async def list_referrers(self, request: ReferrersRequest) -> tuple[Descriptor, ...]:  # type: ignore[empty-body]
        """Optional. Return the manifests that refer to another (distribution-spec 1.1, "Listing Referrers"), by its
        digest; none where there are none, or where this source has no such list. Signatures are found so.

        Raises what ``resolve`` raises, but NotFound.
        """

    @hookspec
    async def status(self) -> SourceStatus:  # type: ignore[empty-body]
        """Return whether the source can be asked, without asking it. Shown by verbose Status."""

    @hookspec
    async def close(self) -> None:
        """Optional. Release connections and files at the daemon's end."""
