"""The ``distribution`` driver: pulls by the registry protocol, version 2 (OCI distribution-spec 1.1, "Pull").

``resolve`` fetches what a reference names and, where that is an index, the manifest for the platform; ``open_blob``
streams. Hosts come from ``hosts``, faults are walked around by ``attempts``, the exchanges are ``client``'s.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

from crinoid.core.api.errors import CorruptContent
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.linux.bulkheads import touching
from crinoid.core.api.manifests import INDEX_TYPES, choose, read_index, read_manifest
from crinoid.core.api.values.image import (
    BlobRequest,
    Descriptor,
    ReferrersRequest,
    ResolvedImage,
    ResolveRequest,
    SourceStatus,
)
from crinoid.plugins.registries.distribution.credentials import NodeCredentials
from crinoid.plugins.registries.distribution.hosts import check_hosts
from crinoid.plugins.registries.distribution.options import DistributionOptions

if TYPE_CHECKING:
    from crinoid.plugins.registries.distribution.client import RegistryClient

_MAX_DEPTH = 3


class DistributionRegistry:
    """An image source: every registry that the node can reach."""

    api_version = "1.0"
    Config = DistributionOptions

    def __init__(self, config: DistributionOptions, host: Host) -> None:
        self._config = config
        self._host = host
        self._client: RegistryClient | None = None

    @hookimpl
    async def resolve(self, request: ResolveRequest) -> ResolvedImage:
        """Fetch the manifest, through an index where there is one."""
        client = await self._connect()
        target = await client.fetch_document(request.reference, None, request.credentials)
        manifest = target
        for _ in range(_MAX_DEPTH):
            if manifest.descriptor.media_type not in INDEX_TYPES:
                break
            # The manifest for the platform, or another index, which may stand in an index (image-index.md).
            what = f"pull {request.reference}: index {manifest.descriptor.digest}"
            chosen = choose(read_index(manifest.content, what), request.platform, what)
            manifest = await client.fetch_document(request.reference, chosen, request.credentials)
        else:
            raise CorruptContent(f"pull {request.reference}: more than {_MAX_DEPTH} indexes inside each other")
        read_manifest(manifest.content, f"pull {request.reference}: manifest {manifest.descriptor.digest}")
        return ResolvedImage(target.descriptor, target.content, manifest.descriptor, manifest.content)

    @hookimpl
    async def open_blob(self, request: BlobRequest) -> AsyncIterator[bytes]:
        """Open a stream that resumes itself."""
        client = await self._connect()
        return await client.open_blob(request)

    @hookimpl
    async def list_referrers(self, request: ReferrersRequest) -> tuple[Descriptor, ...]:
        """Fetch the list, or the index that stands for it."""
        client = await self._connect()
        return await client.fetch_referrers(request)

    @hookimpl
    async def status(self) -> SourceStatus:
        """Tell of configuration that can't be read; such a file hinders pulls from its registry only."""

        def check() -> SourceStatus:
            problems, notes = check_hosts(self._config.config_paths)
            named = [
                path
                for option in ("config_paths", "docker_configs")
                for path in getattr(self._config, option)
                if path not in type(self._config).model_fields[option].default  # those are where something may be
            ]
            passed_over = [*notes, *(f"{path} is not there" for path in named if not _is_there(path))]
            problem = NodeCredentials(self._config.docker_configs, tell=passed_over.append).check()
            return SourceStatus(True, "; ".join([*problems, *([problem] if problem else [])]), tuple(passed_over))

        return await asyncio.to_thread(check)

    @hookimpl
    async def close(self) -> None:
        """Close all connections."""
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def _connect(self) -> "RegistryClient":
        def load() -> "type[RegistryClient]":
            from crinoid.plugins.registries.distribution.client import RegistryClient

            return RegistryClient

        if self._client is None:
            kind = await asyncio.to_thread(load)  # a fifth of a second, in which the loop serves others
            self._client = self._client or kind(self._config, self._host)
        return self._client


def _is_there(path: Path) -> bool:
    touching(path)
    try:
        return path.expanduser().exists()
    except RuntimeError:  # there is no such home
        return False
    except OSError:  # whoever reads it says why that can't be done
        return True
