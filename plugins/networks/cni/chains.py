"""A list of plugins, run in the order that each operation wants (SPEC.md, "Section 3").

ADD goes forwards and hands each result to the next; DEL goes backwards with the final result; CHECK, STATUS and GC ask
every plugin. Nothing here looks at today's configuration: it works with what it is given.
"""

import contextlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crinoid.core.api.errors import CrinoidError, DriverError
from crinoid.core.api.linux import namespaces
from crinoid.plugins.networks.cni import versions
from crinoid.plugins.networks.cni.configuration import Network, declared_capabilities
from crinoid.plugins.networks.cni.execution import UNKNOWN_CONTAINER, Call, PluginFailed, PluginMissing, execute
from crinoid.plugins.networks.cni.plans import NetworkPlan, Plan
from crinoid.plugins.networks.cni.results import InvalidResult, Result, read_result

_NOT_PASSED_ON = ("capabilities", "runtimeConfig", "prevResult")


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds that one run of one plugin may take."""

    add_s: float
    delete_s: float


class Chain:
    """The plugins of one network of one pod."""

    def __init__(self, plan: Plan, part: NetworkPlan, timeouts: Timeouts, log: logging.Logger) -> None:
        self._plan = plan
        self._part = part
        self._network = part.network
        self._timeouts = timeouts
        self._log = log

    async def add(self) -> Result:
        """Run ADD through the chain and return the last result; on an error undo what was added, then raise it."""
        result: Result | None = None
        for index, plugin in enumerate(self._network.plugins):
            try:
                result = await self._add(plugin, result)
            except CrinoidError as error:
                started = 0 if isinstance(error, PluginMissing) else 1
                await self._undo(index + started, result, error)
                raise
        assert result is not None  # a configuration has at least one plugin
        return result

    async def _add(self, plugin: Mapping[str, Any], previous: Result | None) -> Result:
        call = self._call("ADD", plugin, previous, self._plan.netns)
        output = await execute(call)
        try:
            return read_result(output, self._part.version)
        except InvalidResult as error:
            raise PluginFailed(f"{call}: it ended well and {error}") from error

    async def _undo(self, count: int, result: Result | None, reason: CrinoidError) -> None:
        """Take back the first ``count`` plugins, the failed one too: it may have come half way (SPEC.md, Lifecycle)."""
        try:
            await self._delete(count, result)
        except CrinoidError as error:
            reason.add_note(f"taking it back failed too: {error.message}")

    async def delete(self) -> None:
        """Run DEL backwards through the chain with the recorded result. Idempotent.

        It stops at a plugin that fails, as the specification says: a later try may succeed, and until then what the
        plugin stands on, such as the pod's address, stays taken. A plugin that is no longer installed is passed over,
        so that the others' resources are freed, and named in the error.
        """
        await self._delete(len(self._network.plugins), self._part.result)

    async def _delete(self, count: int, result: Result | None) -> None:
        # The specification gives DEL a result from 0.4.0 on.
        previous = result if versions.at_least(self._part.version, "0.4.0") else None
        netns = existing_namespace(self._plan.netns)
        missing: list[str] = []
        for plugin in reversed(self._network.plugins[:count]):
            try:
                await execute(self._call("DEL", plugin, previous, netns))
            except PluginMissing as error:
                missing.append(str(error))
            except PluginFailed as error:
                if error.code != UNKNOWN_CONTAINER:
                    raise
                self._log.info("nothing to undo: %s", error)
        if missing:
            raise PluginMissing("; ".join(missing))

    async def check(self) -> None:
        """Run CHECK where the version has it and the configuration allows it; raise what the first plugin says."""
        if self._network.disable_check or not versions.at_least(self._part.version, "0.4.0"):
            return
        if self._part.result is None:
            raise DriverError(f"network {self._network.name!r} ({self._part.file}): the attachment was never completed")
        for plugin in self._network.plugins:
            await execute(self._call("CHECK", plugin, self._part.result, self._plan.netns))

    def _call(self, command: str, plugin: Mapping[str, Any], previous: Result | None, netns: str) -> Call:
        content = request_configuration(self._network, plugin, self._part.version)
        if runtime_config := self._runtime_config(plugin):
            content["runtimeConfig"] = runtime_config
        if previous is not None:
            content["prevResult"] = previous
        return Call(
            plugin=str(plugin["type"]),
            network=self._network.name,
            file=self._part.file,
            command=command,
            bin_dirs=self._plan.bin_dirs,
            timeout_s=self._timeouts.add_s if command == "ADD" else self._timeouts.delete_s,
            content=content,
            parameters={
                "CNI_CONTAINERID": self._plan.container_id,
                "CNI_NETNS": netns,
                "CNI_IFNAME": self._part.interface,
                "CNI_ARGS": self._plan.args,
            },
        )

    def _runtime_config(self, plugin: Mapping[str, Any]) -> dict[str, Any]:
        """The capability arguments that the plugin's configuration declares."""
        declared = declared_capabilities(plugin)
        return {name: value for name, value in self._part.capabilities.items() if name in declared}


def existing_namespace(netns: str) -> str:
    """Return the path if a namespace is still pinned there, else nothing: DEL then frees what is left without it."""
    with contextlib.suppress(OSError):
        if netns and namespaces.is_pinned(Path(netns)):
            return netns
    return ""


def request_configuration(network: Network, plugin: Mapping[str, Any], version: str) -> dict[str, Any]:
    """Make what a plugin reads of its part of the list (SPEC.md, "Deriving request configuration")."""
    kept = {key: value for key, value in plugin.items() if key not in _NOT_PASSED_ON and not key.startswith("cni.dev/")}
    return {**kept, "cniVersion": version, "name": network.name}


async def ask_status(network: Network, version: str, bin_dirs: tuple[str, ...], timeout_s: float) -> None:
    """Run STATUS, which versions below 1.1.0 don't have; raise what the first plugin that is not ready says."""
    if versions.at_least(version, "1.1.0"):
        for plugin in network.plugins:
            content = request_configuration(network, plugin, version)
            await execute(_network_call("STATUS", network, content, bin_dirs, timeout_s))


async def collect(
    network: Network, version: str, bin_dirs: tuple[str, ...], timeout_s: float, valid: Iterable[tuple[str, str]]
) -> list[CrinoidError]:
    """Run GC through all plugins, whatever fails, and return the errors. ``valid``: container id and interface each."""
    if network.disable_gc or not versions.at_least(version, "1.1.0"):
        return []
    attachments = [{"containerID": container_id, "ifname": interface} for container_id, interface in valid]
    errors = []
    for plugin in network.plugins:
        content = request_configuration(network, plugin, version)
        # The specification's name, and the one that its first library release used by mistake.
        content["cni.dev/valid-attachments"] = content["cni.dev/attachments"] = attachments
        try:
            await execute(_network_call("GC", network, content, bin_dirs, timeout_s))
        except CrinoidError as error:
            errors.append(error)
    return errors


def _network_call(
    command: str, network: Network, content: Mapping[str, Any], bin_dirs: tuple[str, ...], timeout_s: float
) -> Call:
    return Call(
        plugin=str(content["type"]),
        network=network.name,
        file=network.file,
        command=command,
        bin_dirs=bin_dirs,
        timeout_s=timeout_s,
        content=content,
    )
