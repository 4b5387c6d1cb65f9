"""A sample of the contracts with the drivers in another process; ``make test-isolated`` has all of them so."""

from typing import ClassVar

from crinoid.core.api.config import NoOptions
from crinoid.core.api.host import Host
from crinoid.core.api.testing.extensions import ExtensionContract
from crinoid.core.api.testing.networks import NetworkContract
from crinoid.core.api.testing.noops import NoopExtension
from crinoid.plugins.networks.host import HostNetwork, HostOptions


class TestHost(NetworkContract):
    is_isolated: ClassVar[bool] = True

    def make_driver(self, host: Host) -> object:
        return HostNetwork(HostOptions(), host)


class TestNoopExtension(ExtensionContract):
    is_isolated: ClassVar[bool] = True

    def make_driver(self, host: Host) -> object:
        return NoopExtension(NoOptions(), host)
