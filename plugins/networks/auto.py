"""The network driver ``auto``: ``cni`` where the node has a CNI configuration; until then ``bridge``, or none.

So a fresh node has a network with no configuration at all, and one whose administrator, or network add-on, put a file
into the directory uses that. Where an add-on brings it after the start, as on a node that joins a cluster, new pods get
CNI from then on, and never the bridge again while this process lives: an add-on that is being replaced may take its
file away for a moment. Every record is marked with the driver that made it: pods of before keep what they have, and it
is undone, and checked, by the driver that made it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from crinoid.core.api.config import DriverConfig
from crinoid.core.api.errors import CrinoidError, DriverError
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.linux.threads import call_within
from crinoid.core.api.values.network import Attachment, NetworkFeatures, NetworkRequest, NetworkStatus
from crinoid.plugins.networks.bridge import BridgeNetwork, BridgeOptions
from crinoid.plugins.networks.cni import CniNetwork, CniOptions

CNI, BRIDGE = "cni", "bridge"
_SUFFIXES = frozenset({".conflist", ".conf", ".json"})
_DRIVER, _DATA = "driver", "data"
_OWN_KEYS = {CNI: {"container_id", "networks"}, BRIDGE: {"link", "ranges"}}


class AutoOptions(DriverConfig):
    """The options of both networks; ``cni.conf_dir`` is the directory that decides."""

    fallback: Literal["bridge", "none"] = "bridge"
    """What pods get while there is no CNI configuration: the bridge, or none: NetworkReady is false until there is one,
    so that a kubelet starts pods on the host's network alone, as on a node that waits for its network add-on."""
    cni: CniOptions = CniOptions()
    """Options of the network where there is a CNI configuration."""
    bridge: BridgeOptions = BridgeOptions()
    """Options of the network where there is none."""


class AutoNetwork:
    """Attaches pods by CNI where it is configured, else to a bridge of our own."""

    api_version = "1.0"
    Config = AutoOptions

    def __init__(self, config: AutoOptions, host: Host) -> None:
        self._config = config
        self._log = host.log
        self._cni = CniNetwork(config.cni, host)
        self._cni.watch.call(self._choose)
        self._bridge = BridgeNetwork(config.bridge, host)
        configured = has_configuration(config.cni.conf_dir)
        self.chosen = CNI if configured or config.fallback == "none" else BRIDGE
        found = "a" if configured else "no"
        host.log.info("network %s: there is %s CNI configuration in %s", self.chosen, found, config.cni.conf_dir)

    @hookimpl
    def features(self) -> NetworkFeatures:
        return self._network(self.chosen).features()

    @hookimpl
    async def status(self) -> NetworkStatus:
        return await self._network(await self._choose()).status()

    @hookimpl
    async def plan(self, request: NetworkRequest) -> Mapping[str, object]:
        chosen = await self._choose()
        return _mark(chosen, await self._network(chosen).plan(request))

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        driver, content = _unmark(plan)
        attachment = await self._network(driver).attach(request, content)
        return Attachment(attachment.addresses, _mark(driver, attachment.data), attachment.dns)

    @hookimpl
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        if data:
            driver, content = _unmark(data)
            await self._network(driver).detach(request, content)

    @hookimpl
    async def check(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        driver, content = _unmark(data)
        await self._network(driver).check(request, content)

    @hookimpl
    async def set_pod_cidrs(self, cidrs: tuple[str, ...]) -> None:
        for driver in {CNI, self.chosen}:  # CNI may be what the next pod gets
            await self._network(driver).set_pod_cidrs(cidrs)

    @hookimpl
    async def collect_garbage(self, valid: tuple[tuple[NetworkRequest, Mapping[str, object]], ...]) -> None:
        """Let each of the two collect: what the one that is not chosen left goes, too."""
        owned: dict[str, list[tuple[NetworkRequest, Mapping[str, object]]]] = {CNI: [], BRIDGE: []}
        for request, data in valid:
            driver, content = _unmark(data)
            owned[driver].append((request, content))
        if owned[CNI] and self.chosen == BRIDGE:
            self._move_to_cni(f"the configuration in {self._config.cni.conf_dir} is gone, and pods are attached by it")
        errors = []
        for driver, theirs in owned.items():
            if driver == CNI and driver != self.chosen:
                continue  # it has no configuration that says what it might have left
            try:
                await self._network(driver).collect_garbage(tuple(theirs))
            except CrinoidError as error:
                errors.append(f"{driver}: {error.message}")
        if errors:
            raise DriverError("; ".join(errors))

    @hookimpl
    async def close(self) -> None:
        await self._cni.close()
        await self._bridge.close()

    async def _choose(self) -> str:
        """Return the driver of the next pod: from the first CNI configuration on, CNI."""
        if self.chosen == BRIDGE:
            options = self._config.cni
            self._cni.watch.start()
            what = f"CNI configuration in {options.conf_dir}"
            if await call_within(options.status_timeout_s, what, lambda: has_configuration(options.conf_dir)):
                self._move_to_cni(f"there is a CNI configuration in {options.conf_dir} now")
        return self.chosen

    def _move_to_cni(self, why: str) -> None:
        if self.chosen != CNI:  # two requests may have seen it at once
            self.chosen = CNI
            self._log.warning("network cni for new pods: %s; pods on the bridge keep it until they are removed", why)

    def _network(self, driver: str) -> CniNetwork | BridgeNetwork:
        return self._cni if driver == CNI else self._bridge


def has_configuration(directory: Path) -> bool:
    """Return whether there is a file in the directory that could be a CNI configuration, valid or not."""
    try:
        return any(path.suffix in _SUFFIXES for path in directory.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _mark(driver: str, content: Mapping[str, object]) -> dict[str, object]:
    return {_DRIVER: driver, _DATA: dict(content)}


def _unmark(data: Mapping[str, object]) -> tuple[str, Mapping[str, object]]:
    """Return the driver and its own record; one without a mark is of before the slot's driver was changed to this."""
    driver, content = data.get(_DRIVER), data.get(_DATA)
    if driver in (CNI, BRIDGE) and isinstance(content, Mapping):
        return str(driver), content
    for name, keys in _OWN_KEYS.items():
        if keys <= data.keys():
            return name, data
    raise DriverError(f"the record of an attachment is not one of the auto network: it names driver {driver!r}")
