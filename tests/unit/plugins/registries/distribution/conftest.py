"""A misbehaving registry, a mirror of it, and drivers that ask them."""

import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from crinoid.core.api.host import Host
from crinoid.core.api.testing.registries import BoundRegistry
from crinoid.plugins.registries.distribution import DistributionRegistry
from support.faults import FaultRegistry, fault_registry

MakeRegistry = Callable[..., BoundRegistry]


@pytest.fixture
async def server() -> AsyncIterator[FaultRegistry]:
    """The registry itself."""
    async with fault_registry() as running:
        yield running


@pytest.fixture
async def mirror() -> AsyncIterator[FaultRegistry]:
    """Another server: a mirror, a token server, a storage host."""
    async with fault_registry() as running:
        yield running


@pytest.fixture
def certs_d(tmp_path: Path) -> Path:
    """The directory of the registries' settings."""
    directory = tmp_path / "certs.d"
    directory.mkdir()
    return directory


@pytest.fixture
async def make_registry(server: FaultRegistry, certs_d: Path, tmp_path: Path) -> AsyncIterator[MakeRegistry]:
    """Make a driver that is quick to try again and asks ``server`` by plain http."""
    made = []

    def make(**options: object) -> BoundRegistry:
        defaults: dict[str, object] = {
            "plain_http": (server.host,),
            "config_paths": (certs_d,),
            "docker_configs": (tmp_path / "docker.json",),
            "tries": 3,
            "backoff_s": 0.01,
            "stall_timeout_s": 0.3,
        }
        driver = DistributionRegistry(
            DistributionRegistry.Config.model_validate(defaults | options),
            Host("test", tmp_path, tmp_path, logging.getLogger("test.distribution"), "7"),
        )
        made.append(BoundRegistry(driver))
        return made[-1]

    yield make
    for registry in made:
        await registry.close()
