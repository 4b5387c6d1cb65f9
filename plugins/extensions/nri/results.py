"""What all plugins together want: each one's answer is merged into the request that the next one gets.

:class:`Creation` collects adjustments of a container that is being made, and updates of others; :class:`Changes` the
updates alone, also those of a container whose limits are being changed. Source: containerd/nri, pkg/adaptation.
"""

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, TypeVar

from crinoid.core.api.adjustments import check_resources
from crinoid.core.api.errors import InvalidArgument, Refused
from crinoid.plugins.extensions.nri.decode import removed
from crinoid.plugins.extensions.nri.owners import CPU_FIELDS, MEMORY_FIELDS, Owners
from crinoid.plugins.extensions.nri.resources import decode_resources
from crinoid.plugins.extensions.nri.wire import nri_pb2

F = nri_pb2.Field
T = TypeVar("T")
Repeated = Any
"""A repeated field of a message; protobuf's own types for it are not public."""


class Changes:
    """Updates of containers that exist, by id, in the order in which plugins asked for them."""

    def __init__(self, owners: Owners, own: nri_pb2.UpdateContainerRequest | None = None) -> None:
        """``own``: the change that is under way, whose limits plugins may alter."""
        self.wanted: dict[str, nri_pb2.ContainerUpdate] = {}
        self._owners = owners
        self._own = own

    @property
    def of_others(self) -> list[nri_pb2.ContainerUpdate]:
        """The updates that are not of the change under way."""
        own_id = self._own.container.id if self._own else ""
        return [update for update in self.wanted.values() if update.container_id != own_id]

    def add(self, updates: Iterable[nri_pb2.ContainerUpdate], plugin: str) -> None:
        """Merge what a plugin wants. Raises Refused for what contradicts another, unless that may be ignored."""
        for update in updates:
            wanted = self.wanted.setdefault(
                update.container_id,
                nri_pb2.ContainerUpdate(container_id=update.container_id, ignore_failure=update.ignore_failure),
            )
            wanted.ignore_failure = wanted.ignore_failure and update.ignore_failure
            try:
                self._merge(wanted, update, plugin)
            except Refused:
                if not update.ignore_failure:
                    raise

    def _merge(self, wanted: nri_pb2.ContainerUpdate, update: nri_pb2.ContainerUpdate, plugin: str) -> None:
        try:
            check_resources(decode_resources(update.linux.resources))
        except InvalidArgument as error:
            what = f"invalid limits of container {update.container_id}"
            raise Refused(f"NRI plugin {plugin} wants {what}: {error}") from error
        is_own = self._own is not None and self._own.container.id == update.container_id
        target = self._own.linux_resources if self._own and is_own else wanted.linux.resources
        merged = nri_pb2.LinuxResources()
        merged.CopyFrom(target)
        merge_resources(update.linux.resources, merged, self._owners, update.container_id, plugin)
        target.CopyFrom(merged)


class LimitsChange:
    """A container whose limits are being changed: the request as the next plugin gets it, and what else is wanted."""

    def __init__(self, request: nri_pb2.UpdateContainerRequest) -> None:
        self.request = nri_pb2.UpdateContainerRequest()
        self.request.CopyFrom(request)
        self.changes = Changes(Owners(), self.request)
        self.evictions: list[nri_pb2.ContainerEviction] = []

    def apply(self, answer: nri_pb2.UpdateContainerResponse, plugin: str) -> None:
        """Merge what a plugin wants. Raises Refused for what contradicts another plugin."""
        self.changes.add(answer.update, plugin)
        self.evictions.extend(answer.evict)


class Creation:
    """A container that is being made: the request as the next plugin gets it, and the adjustments so far."""

    def __init__(
        self, request: nri_pb2.CreateContainerRequest, check: Callable[[nri_pb2.CreateContainerResponse, str], None]
    ) -> None:
        """``check`` raises Refused for an answer that is invalid by itself, whoever wants what else."""
        self.request = nri_pb2.CreateContainerRequest()
        self.request.CopyFrom(request)
        self._check = check
        self.adjust = nri_pb2.ContainerAdjustment()
        self.owners = Owners()
        self.changes = Changes(self.owners)
        self.evictions: list[nri_pb2.ContainerEviction] = []
        self.pristine = nri_pb2.Container()
        self.pristine.CopyFrom(request.container)
        self.authors: list[str] = []
        """The plugins that have changed something, in their order."""
        self._id = request.container.id
        self._plugin = ""

    def apply(self, answer: nri_pb2.CreateContainerResponse, plugin: str) -> None:
        """Merge what a plugin wants. Raises Refused for what contradicts another plugin, or is invalid."""
        self._check(answer, plugin)
        self._plugin = plugin
        if any(update.container_id == self._id for update in answer.update):
            raise Refused(f"NRI plugin {plugin} updates container {self._id} while it is being made")
        if answer.HasField("adjust"):
            self.authors.append(plugin)
            self._apply_process(answer.adjust)
            self._apply_linux(answer.adjust.linux)
            self._apply_singles(answer.adjust.linux)
        self.changes.add(answer.update, plugin)
        self.evictions.extend(answer.evict)

    def _apply_process(self, wanted: nri_pb2.ContainerAdjustment) -> None:
        container, adjust = self.request.container, self.adjust
        self._merge_map(wanted.annotations, adjust.annotations, container.annotations, F.Annotations)
        self._merge_keyed(
            wanted.mounts, adjust.mounts, container.mounts, F.Mounts, lambda mount: str(mount.destination)
        )
        self._apply_env(wanted.env)
        self._apply_args(list(wanted.args))
        for descriptor, hooks in wanted.hooks.ListFields():
            getattr(adjust.hooks, descriptor.name).extend(hooks)
            getattr(container.hooks, descriptor.name).extend(hooks)
        if wanted.hooks.ListFields():
            self.owners.join(self._id, F.OciHooks, self._plugin)
        for limit in wanted.rlimits:
            self._claim(F.Rlimits, limit.type)
            adjust.rlimits.append(limit)
            container.rlimits.append(limit)
        for device in wanted.CDI_devices:
            self._claim(F.CdiDevices, device.name)
            adjust.CDI_devices.append(device)

    def _apply_env(self, wanted: Repeated) -> None:
        container = self.request.container
        changed = {removed(env.key) or env.key for env in wanted}
        self._merge_keyed(wanted, self.adjust.env, None, F.Env, lambda env: str(env.key))
        kept = [one for one in container.env if one.partition("=")[0] not in changed]
        added = [f"{env.key}={env.value}" for env in wanted if removed(env.key) is None]
        container.env[:] = [*kept, *added]

    def _apply_args(self, args: list[str]) -> None:
        if not args:
            return
        if not args[0]:
            self.owners.clear(self._id, F.Args, self._plugin)
            args = args[1:]
        self._claim(F.Args)
        self.adjust.args[:] = args
        self.request.container.args[:] = args

    def _apply_linux(self, wanted: nri_pb2.LinuxContainerAdjustment) -> None:
        linux, adjust = self.request.container.linux, self.adjust.linux
        self._merge_keyed(wanted.devices, adjust.devices, linux.devices, F.Devices, lambda device: str(device.path))
        self._merge_keyed(
            wanted.namespaces, adjust.namespaces, linux.namespaces, F.Namespace, lambda one: str(one.type)
        )
        self._merge_map(wanted.sysctl, adjust.sysctl, linux.sysctl, F.Sysctl)
        self._merge_map(wanted.net_devices, adjust.net_devices, linux.net_devices, F.LinuxNetDevices)
        if wanted.HasField("resources"):
            merge_resources(wanted.resources, adjust.resources, self.owners, self._id, self._plugin)
            merge_resources(wanted.resources, linux.resources, Owners(), self._id, self._plugin)

    def _apply_singles(self, wanted: nri_pb2.LinuxContainerAdjustment) -> None:
        linux, adjust = self.request.container.linux, self.adjust.linux
        if wanted.cgroups_path:
            self._claim(F.CgroupsPath)
            linux.cgroups_path = adjust.cgroups_path = wanted.cgroups_path
        for name, field in _SINGLES.items():
            if wanted.HasField(name):
                self._claim(field)
                getattr(adjust, name).CopyFrom(getattr(wanted, name))
                if name != "memory_policy":  # a container does not show it
                    getattr(linux, name).CopyFrom(getattr(wanted, name))
        if wanted.HasField("rdt"):
            self._apply_rdt(wanted.rdt)

    def _apply_rdt(self, wanted: nri_pb2.LinuxRdt) -> None:
        if wanted.remove:
            for field in _RDT.values():
                self.owners.clear(self._id, field, self._plugin)
            self.adjust.linux.rdt.CopyFrom(nri_pb2.LinuxRdt(remove=True))
        for name, field in _RDT.items():
            if wanted.HasField(name):
                self._claim(field)
                getattr(self.adjust.linux.rdt, name).CopyFrom(getattr(wanted, name))
                self.adjust.linux.rdt.remove = False

    def _claim(self, field: int, entry: str | None = None) -> None:
        self.owners.claim(self._id, field, self._plugin, entry)

    def _merge_map(
        self, wanted: MutableMapping[str, Any], adjust: MutableMapping[str, Any], shown: Any, field: int
    ) -> None:
        for key in wanted:
            if (name := removed(key)) is not None:
                self.owners.clear(self._id, field, self._plugin, name)
                adjust.pop(name, None)
                shown.pop(name, None)
                _put(adjust, key, wanted[key])
        for key in wanted:
            if removed(key) is None:
                self._claim(field, key)
                _put(adjust, key, wanted[key])
                _put(shown, key, wanted[key])

    def _merge_keyed(
        self, wanted: Repeated, adjust: Repeated, shown: Repeated | None, field: int, key: Callable[[Any], str]
    ) -> None:
        """Merge a list whose elements have keys; a dash before a key removes."""
        gone = {name for one in wanted if (name := removed(key(one))) is not None}
        added = [one for one in wanted if removed(key(one)) is None]
        for name in gone:
            self.owners.clear(self._id, field, self._plugin, name)
        for one in added:
            self._claim(field, key(one))
        markers = [one for one in wanted if removed(key(one)) is not None]
        replaced = gone | {key(one) for one in added}
        _replace(adjust, [*(one for one in adjust if key(one) not in replaced), *markers, *added])
        if shown is not None:
            _replace(shown, [*(one for one in shown if key(one) not in replaced), *added])


_SINGLES = {
    "oom_score_adj": F.OomScoreAdj,
    "io_priority": F.IoPriority,
    "seccomp_policy": F.SeccompPolicy,
    "scheduler": F.LinuxSched,
    "memory_policy": F.MemoryPolicy,
}
_RDT = {"clos_id": F.RdtClosID, "schemata": F.RdtSchemata, "enable_monitoring": F.RdtEnableMonitoring}


def merge_resources(
    wanted: nri_pb2.LinuxResources, target: nri_pb2.LinuxResources, owners: Owners, container_id: str, plugin: str
) -> None:
    """Write limits that a plugin gives over those of ``target``. Raises Refused when another plugin gave them."""
    for section, fields in (("memory", MEMORY_FIELDS), ("cpu", CPU_FIELDS)):
        given, into = getattr(wanted, section), getattr(target, section)
        for descriptor, _value in given.ListFields():
            owners.claim(container_id, fields[descriptor.name], plugin)
        into.MergeFrom(given)
    for page in wanted.hugepage_limits:
        owners.claim(container_id, F.HugepageLimits, plugin, page.page_size)
        _replace(target.hugepage_limits, [*(one for one in target.hugepage_limits if one.page_size != page.page_size)])
        target.hugepage_limits.append(page)
    for key, value in wanted.unified.items():
        owners.claim(container_id, F.CgroupsUnified, plugin, key)
        target.unified[key] = value
    for name, field in (("blockio_class", F.BlockioClass), ("rdt_class", F.RdtClass), ("pids", F.PidsLimit)):
        if wanted.HasField(name):
            owners.claim(container_id, field, plugin)
            getattr(target, name).CopyFrom(getattr(wanted, name))
    target.devices.extend(wanted.devices)


def _replace(target: Repeated, elements: list[Any]) -> None:
    copies = []
    for element in elements:
        copy = type(element)()
        copy.CopyFrom(element)
        copies.append(copy)
    del target[:]
    target.extend(copies)


def _put(target: Any, key: str, value: Any) -> None:
    """Maps of messages take no assignment."""
    if isinstance(value, str):
        target[key] = value
    else:
        target[key].CopyFrom(value)
