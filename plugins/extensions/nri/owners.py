"""Who changed what: two plugins may not set the same thing, unless the later one removes the earlier one's first."""

from collections.abc import Iterator

from crinoid.core.api.errors import Refused
from crinoid.plugins.extensions.nri.wire import nri_pb2

F = nri_pb2.Field
MEMORY_FIELDS = {
    "limit": F.MemLimit,
    "reservation": F.MemReservation,
    "swap": F.MemSwapLimit,
    "kernel": F.MemKernelLimit,
    "kernel_tcp": F.MemTCPLimit,
    "swappiness": F.MemSwappiness,
    "disable_oom_killer": F.MemDisableOomKiller,
    "use_hierarchy": F.MemUseHierarchy,
}
CPU_FIELDS = {
    "shares": F.CPUShares,
    "quota": F.CPUQuota,
    "period": F.CPUPeriod,
    "realtime_runtime": F.CPURealtimeRuntime,
    "realtime_period": F.CPURealtimePeriod,
    "cpus": F.CPUSetCPUs,
    "mems": F.CPUSetMems,
}
_CLEARED = "-"


class Owners:
    """The owners of everything that plugins changed, by container; ``told`` is what validators are given."""

    def __init__(self) -> None:
        self.told = nri_pb2.OwningPlugins()

    def claim(self, container_id: str, field: int, plugin: str, entry: str | None = None) -> None:
        """Note that a plugin sets a field, or an entry of it. Raises Refused when another one has."""
        owners = self._owners(container_id, field, entry)
        key = field if entry is None else entry
        other = owners.get(key, "").removeprefix(_CLEARED)
        if other not in ("", plugin):
            what = F.Name(field) + (f" {entry}" if entry is not None else "")
            raise Refused(f"NRI plugins {other} and {plugin} both set {what} of container {container_id}")
        owners[key] = plugin

    def clear(self, container_id: str, field: int, plugin: str, entry: str | None = None) -> None:
        """Note that a plugin removed a field or an entry of it; only that one may set it now."""
        self._owners(container_id, field, entry)[field if entry is None else entry] = _CLEARED + plugin

    def owner(self, container_id: str, field: int) -> str:
        """Return the plugin that set a field; empty: none did."""
        if container_id not in self.told.owners:
            return ""
        return str(self.told.owners[container_id].simple.get(field, "")).removeprefix(_CLEARED)

    def list(self, container_id: str) -> Iterator[tuple[str, str]]:
        """Yield who changed what, for people: the plugin, and the field with the name of its entry, without values."""
        if container_id not in self.told.owners:
            return
        found = self.told.owners[container_id]
        changes = [(field, "", plugin) for field, plugin in found.simple.items()]
        changes += [
            (field, f" {entry}", who) for field, one in found.compound.items() for entry, who in one.owners.items()
        ]
        for field, entry, plugin in sorted(changes):
            removed = " removed" if plugin.startswith(_CLEARED) else ""
            for one in plugin.removeprefix(_CLEARED).split(","):
                yield f"NRI plugin {one}", f"{F.Name(field)}{entry}{removed}"

    def join(self, container_id: str, field: int, plugin: str) -> None:
        """Note a plugin beside others, for a field to which all may add."""
        owners = self._owners(container_id, field, None)
        owners[field] = f"{owners[field]},{plugin}" if field in owners else plugin

    def _owners(self, container_id: str, field: int, entry: str | None) -> "dict[int | str, str]":
        fields = self.told.owners[container_id]
        return fields.simple if entry is None else fields.compound[field].owners  # type: ignore[return-value]  # maps
