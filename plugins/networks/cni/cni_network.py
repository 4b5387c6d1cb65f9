"""The hooks of the ``cni`` driver: where the configuration, the plan and the chains of plugins come together."""

import asyncio
import ipaddress
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from crinoid.core.api.config import AbsolutePath, DriverConfig
from crinoid.core.api.errors import CrinoidError, DriverError, InvalidArgument, Unavailable
from crinoid.core.api.finishing import finish
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.host import Host
from crinoid.core.api.linux import links, namespaces
from crinoid.core.api.linux.threads import call_within
from crinoid.core.api.values.network import Attachment, NetworkFeatures, NetworkRequest, NetworkStatus
from crinoid.plugins.networks.cni import chains, results, versions
from crinoid.plugins.networks.cni.chains import Chain
from crinoid.plugins.networks.cni.configuration import ConfigurationDirectory, Directory, Network
from crinoid.plugins.networks.cni.execution import Executable, SupportedVersions, find_plugin
from crinoid.plugins.networks.cni.firsts import Firsts
from crinoid.plugins.networks.cni.plans import (
    LOOPBACK,
    NetworkPlan,
    Plan,
    derive_capabilities,
    plan_attachment,
    plan_network,
)
from crinoid.plugins.networks.cni.rwlock import ReadWriteLock
from crinoid.plugins.networks.cni.watch import ConfigurationWatch

_FIRST_FAMILY = {"result": None, "ipv4-first": 4, "ipv6-first": 6}


class CniOptions(DriverConfig):
    """Where configurations and plugins lie, and how long a plugin may take."""

    conf_dir: AbsolutePath = Path("/etc/cni/net.d")
    """The directory of network configurations (.conflist, .conf, .json); the first valid one by name is used."""
    bin_dirs: tuple[AbsolutePath, ...] = (Path("/opt/cni/bin"), Path("/usr/lib/cni"), Path("/usr/libexec/cni"))
    """The directories in which plugins are looked for, in this order."""
    max_conf_num: int = Field(1, ge=0)
    """How many of the configurations each pod is attached to; 0 for all. The first one gives the pod's addresses."""
    interface_prefix: str = Field("eth", pattern=r"^[a-zA-Z][a-zA-Z0-9_.-]{0,11}$")
    """The pod's interfaces of the second and further configurations have this name and their number, from 1 on."""
    loopback: bool = True
    """Bring up lo in every pod. The driver does it by itself; no loopback plugin is needed."""
    address_order: Literal["result", "ipv4-first", "ipv6-first"] = "result"
    """Which address of a dual-stack pod is its first: as the plugins list them, or one family before the other."""
    add_timeout_s: float = Field(60.0, gt=0)
    """Seconds that one plugin may take to add a pod."""
    delete_timeout_s: float = Field(60.0, gt=0)
    """Seconds that one plugin may take to delete or check a pod, or to collect garbage."""
    status_timeout_s: float = Field(5.0, gt=0)
    """Seconds that one plugin may take to tell its status or its versions."""


class NotReady(Unavailable):
    """No pod can be attached now; ``status_reason`` is what Status shows."""

    def __init__(self, status_reason: str, message: str) -> None:
        self.status_reason = status_reason
        super().__init__(message)


class CniNetwork:
    """Attaches pods by the plugins of a Container Network Interface configuration."""

    api_version = "1.0"
    Config = CniOptions

    def __init__(self, config: CniOptions, host: Host) -> None:
        self._config = config
        self._log = host.log
        self._bin_dirs = tuple(str(directory) for directory in config.bin_dirs)
        self._directory = ConfigurationDirectory(config.conf_dir)
        self.watch = ConfigurationWatch(config.conf_dir, config.status_timeout_s, host.log)
        self.watch.call(self._read_directory)
        self._supported = SupportedVersions(config.status_timeout_s)
        self._timeouts = chains.Timeouts(config.add_timeout_s, config.delete_timeout_s)
        self._gc_lock = ReadWriteLock()
        self._firsts = Firsts()
        self._pod_cidrs: tuple[str, ...] = ()
        self._attached: dict[str, Plan] = {}

    @hookimpl
    def features(self) -> NetworkFeatures:
        return NetworkFeatures(host_network=False)

    @hookimpl
    async def status(self) -> NetworkStatus:
        directory = await self._read_directory()
        try:
            for network in self._choose(directory):
                await self._ask_status(network)
        except NotReady as error:
            return NetworkStatus(ready=False, reason=error.status_reason, message=error.message)
        return NetworkStatus(ready=True, message=_describe_problems(directory))

    @hookimpl
    async def plan(self, request: NetworkRequest) -> Mapping[str, object]:
        capabilities = derive_capabilities(request, request.pod_cidrs or self._pod_cidrs)
        chosen = self._choose(await self._read_directory())
        parts = []
        for index, network in enumerate(chosen):
            interface = request.interface if index == 0 else f"{self._config.interface_prefix}{index}"
            parts.append(plan_network(network, await self._negotiate(network), interface, capabilities))
        plan = plan_attachment(request, self._bin_dirs, parts)
        return plan.model_copy(update={"kernel_loopback": self._config.loopback}).write()

    @hookimpl
    async def attach(self, request: NetworkRequest, plan: Mapping[str, object]) -> Attachment:
        written = Plan.read(plan)
        async with self._gc_lock.shared():
            self._attached[written.container_id] = written
            if written.kernel_loopback:
                await _bring_up_loopback(written.netns)
            async with self._firsts.alone_if_first(written):
                return await self._add_all(written)

    @hookimpl
    async def detach(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        if not data:
            return
        plan = Plan.read(data).of_pod(request)
        async with self._gc_lock.shared():
            errors = await self._delete_all(plan, plan.networks)
        if errors:
            raise _join(errors)
        self._attached.pop(plan.container_id, None)

    @hookimpl
    async def check(self, request: NetworkRequest, data: Mapping[str, object]) -> None:
        plan = Plan.read(data)
        async with self._gc_lock.shared():
            for part in plan.networks:
                await self._chain(plan, part).check()

    @hookimpl
    async def set_pod_cidrs(self, cidrs: tuple[str, ...]) -> None:
        try:
            self._pod_cidrs = tuple(str(ipaddress.ip_network(cidr, strict=False)) for cidr in cidrs)
        except ValueError as error:
            raise InvalidArgument(f"pod CIDR: {error}") from error

    @hookimpl
    async def collect_garbage(self, valid: tuple[tuple[NetworkRequest, Mapping[str, object]], ...]) -> None:
        plans = [Plan.read(data) for _, data in valid]
        errors = []
        async with self._gc_lock.exclusive():
            owned = _list_attachments([*plans, *self._attached.values()])
            for network in self._selected(await self._read_directory()):
                errors += await self._collect(network, owned.get(network.name, set()))
        if errors:
            raise _join(errors)

    @hookimpl
    async def close(self) -> None:
        await self.watch.close()

    # What the hooks are made of, in the order of their use.

    async def _read_directory(self) -> Directory:
        self.watch.start()
        what = f"CNI configuration in {self._config.conf_dir}"
        directory, is_new = await call_within(self._config.status_timeout_s, what, self._directory.read)
        if is_new:
            names = ", ".join(f"{network.name} ({network.file})" for network in directory.networks) or "none"
            self._log.info("CNI networks in %s: %s", self._config.conf_dir, names)
            for problem in directory.problems:
                self._log.warning("CNI configuration skipped: %s", problem)
        return directory

    def _selected(self, directory: Directory) -> tuple[Network, ...]:
        return directory.networks[: self._config.max_conf_num or None]

    def _choose(self, directory: Directory) -> tuple[Network, ...]:
        """Return the networks of a new pod; raise NotReady when there are none."""
        if directory.networks:
            return self._selected(directory)
        problems = _describe_problems(directory)
        message = (
            f"no CNI configuration in {self._config.conf_dir}: put a .conflist file there; "
            "docs/troubleshooting.md#network-not-ready"
        )
        raise NotReady("NoNetworkConfiguration", f"{message} ({problems})" if problems else message)

    async def _ask_status(self, network: Network) -> None:
        version = await self._negotiate(network)
        try:
            await chains.ask_status(network, version, self._bin_dirs, self._config.status_timeout_s)
        except CrinoidError as error:
            raise NotReady("NetworkPluginNotReady", error.message) from error

    async def _find(self, plugin: str) -> Executable | None:
        try:
            return await find_plugin(plugin, self._bin_dirs, self._config.status_timeout_s)
        except OSError as error:
            raise NotReady("NetworkPluginMissing", f"plugin {plugin} can't be found: {error}") from error

    async def _negotiate(self, network: Network) -> str:
        """Return the version that the configuration offers and all its plugins speak; raise NotReady."""
        supported = {}
        for plugin in network.plugin_types:
            binary = await self._find(plugin)
            if binary is None:
                where = ", ".join(self._bin_dirs)
                raise NotReady(
                    "NetworkPluginMissing",
                    f"plugin {plugin} of {network.file} is not installed: no executable of this name in {where}; "
                    "docs/troubleshooting.md#cni-plugin-missing",
                )
            supported[plugin] = await self._supported.ask(binary)
        version = versions.negotiate(network.versions, supported)
        if version is None:
            raise NotReady("NetworkPluginVersion", _describe_versions(network, supported))
        return version

    async def _add_all(self, plan: Plan) -> Attachment:
        """Add the pod to its networks in order; on an error, take back those that were added."""
        done: list[NetworkPlan] = []
        try:
            for part in plan.networks:
                result = await self._chain(plan, part).add()
                done.append(part.model_copy(update={"result": result}))
            return self._describe(plan.model_copy(update={"networks": tuple(done)}))
        except CrinoidError as error:
            for failure in await self._delete_all(plan, done):
                error.add_note(f"taking it back failed too: {failure.message}")
            raise

    def _describe(self, plan: Plan) -> Attachment:
        """Make the kernel's view of a completed plan."""
        parts = plan.networks
        main, result = parts[0], parts[0].result or {}
        addresses = results.pod_addresses(result, main.version, main.interface)
        if not addresses:
            raise DriverError(f"network {main.network.name!r} ({main.file}) gave pod {plan.container_id} no address")
        family = _FIRST_FAMILY[self._config.address_order]
        dns = next((found for part in parts if (found := results.dns_of(part.result or {}))), None)
        return Attachment(results.sort_addresses(addresses, family), plan.write(), dns)

    async def _delete_all(self, plan: Plan, parts: Iterable[NetworkPlan]) -> list[CrinoidError]:
        """Take the pod off the networks, the last one first, whatever fails; return the errors.

        A deletion that has begun comes to its end, also when it is cancelled: the bridge plugin finds its firewall's
        rules by the link that it removes first, so nobody could remove them after a kill between the two.
        """
        errors = []
        for part in reversed(tuple(parts)):
            try:
                await finish(self._chain(plan, part).delete())
            except CrinoidError as error:
                errors.append(error)
        return errors

    async def _collect(self, network: Network, owned: set[tuple[str, str]]) -> list[CrinoidError]:
        try:
            version = await self._negotiate(network)
        except NotReady as error:
            return [error]
        return await chains.collect(network, version, self._bin_dirs, self._config.delete_timeout_s, sorted(owned))

    def _chain(self, plan: Plan, part: NetworkPlan) -> Chain:
        return Chain(plan, part, self._timeouts, self._log)


async def _bring_up_loopback(netns: str) -> None:
    try:
        await asyncio.to_thread(namespaces.call_in, Path(netns), lambda: links.set_up(LOOPBACK))
    except OSError as error:
        raise DriverError(f"lo can't be brought up in {netns}: {error.strerror}") from error


def _describe_problems(directory: Directory) -> str:
    return f"skipped {'; '.join(directory.problems)}" if directory.problems else ""


def _describe_versions(network: Network, supported: Mapping[str, frozenset[str] | None]) -> str:
    told = [f"{name} speaks {', '.join(sorted(spoken))}" for name, spoken in supported.items() if spoken is not None]
    return f"{network.file} asks for CNI version {' or '.join(network.versions)}, but {'; '.join(told)}"


def _list_attachments(plans: Iterable[Plan]) -> dict[str, set[tuple[str, str]]]:
    """Return container id and interface of every attachment, by network name."""
    owned: dict[str, set[tuple[str, str]]] = {}
    for plan in plans:
        for part in plan.networks:
            owned.setdefault(part.network.name, set()).add((plan.container_id, part.interface))
    return owned


def _join(errors: list[Any]) -> CrinoidError:
    return errors[0] if len(errors) == 1 else DriverError("; ".join(error.message for error in errors))
