"""Makes the drivers and binds them to their slots: by ``bind_in_turns`` once by ``daemon``, at the start.

A driver is made with its options and a host of its own, registered in a pluggy manager of its own, and checked
against its role's hooks. Anything wrong stops the start. One manager a slot holds for extensions too: called together
they would share one deadline and one failure, and pluggy would call the last one first.
"""

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

import pluggy

from crinoid import __version__
from crinoid.core.api.buffers import BufferPool
from crinoid.core.api.errors import ConfigurationError, CrinoidError, InvalidArgument, StateUnavailable
from crinoid.core.api.hooks import PROJECT
from crinoid.core.api.host import Host
from crinoid.core.api.linux import rights
from crinoid.core.api.values.image import Platform
from crinoid.core.config.models import (
    DEFAULT_SLOT,
    Config,
    Deadlines,
    DeadlinesConfig,
    ExtensionSlotConfig,
    RuntimeSlotConfig,
    SlotConfig,
)
from crinoid.core.config.origins import NO_ORIGINS, Origins, Problem, refuse
from crinoid.core.slots.calls import Binding, Slot
from crinoid.core.slots.drivers import SLOW_S, InstalledDriver, check_hooks
from crinoid.core.slots.extension import ExtensionSlot, ExtensionSlots
from crinoid.core.slots.instruments import NO_INSTRUMENTS, Instruments
from crinoid.core.slots.isolation.proxy import Proxy
from crinoid.core.slots.network import NetworkSlot
from crinoid.core.slots.registry import RegistrySlot
from crinoid.core.slots.roles import ROLES
from crinoid.core.slots.running import HookCalls, describe
from crinoid.core.slots.runtime import RuntimeSlot
from crinoid.core.slots.selection import Selection, ValidSlot, check
from crinoid.core.slots.snapshotter import SnapshotterSlot

LOG = logging.getLogger("crinoid.slots")
_Apart = Mapping[int, Future[tuple[object, Host]]]
"""What drivers in processes of their own have come to, by the ``id`` of their slot."""


@dataclass(slots=True)
class Slots:
    """Every slot of the node. ``registries`` are in the order in which they are asked; a reload puts others there."""

    runtimes: Mapping[str, RuntimeSlot]
    networks: Mapping[str, NetworkSlot]
    snapshotters: Mapping[str, SnapshotterSlot]
    registries: Mapping[str, RegistrySlot]
    extensions: ExtensionSlots = field(default_factory=ExtensionSlots)
    default_runtime: str = "runc"

    @property
    def network(self) -> NetworkSlot:
        """The network of handlers that name no other."""
        return self.networks[DEFAULT_SLOT]

    @property
    def snapshotter(self) -> SnapshotterSlot:
        """The snapshotter of handlers that name no other."""
        return self.snapshotters[DEFAULT_SLOT]

    def runtime(self, handler: str) -> RuntimeSlot:
        """Return the slot of a runtime handler, empty for the default; raise InvalidArgument for an unknown one."""
        slot = self.runtimes.get(handler or self.default_runtime)
        if slot is None:
            known = ", ".join(sorted(self.runtimes))
            raise InvalidArgument(
                f'runtime handler "{handler}" is not in the configuration; known: {known}; '
                "docs/troubleshooting.md#unknown-runtime-handler"
            )
        return slot

    def network_of(self, handler: str) -> NetworkSlot:
        """Return the network that a runtime handler's pods are attached to."""
        return self.networks[self._config_of(handler).network]

    def snapshotter_of(self, handler: str) -> SnapshotterSlot:
        """Return the snapshotter that a runtime handler's containers stand on."""
        return self.snapshotters[self._config_of(handler).snapshotter]

    def platform_of(self, handler: str) -> Platform | None:
        """Return what the images of a runtime handler are for, ``None`` for the node's own, also of an unknown one."""
        slot = self.runtimes.get(handler or self.default_runtime)
        return None if slot is None else slot.traits().platform

    def all(self) -> tuple[Slot, ...]:
        """Return every slot."""
        groups: tuple[Iterable[Slot], ...] = (
            self.runtimes.values(),
            self.networks.values(),
            self.snapshotters.values(),
            self.registries.values(),
            self.extensions.slots,
        )
        return tuple(slot for group in groups for slot in group)

    def change_deadlines(self, deadlines: DeadlinesConfig) -> None:
        """Have calls from now on end by other deadlines; those of extensions are in their slots."""
        groups: tuple[tuple[Iterable[Slot], Deadlines], ...] = (
            (self.runtimes.values(), deadlines.runtime),
            (self.networks.values(), deadlines.network),
            (self.snapshotters.values(), deadlines.snapshotter),
        )
        for slots, of_role in groups:
            for slot in slots:
                slot.change_deadlines(of_role)

    async def close(self) -> None:
        """Let extensions, image sources and networks finish, and end what drivers have for processes of their own; one
        that fails is logged. Idempotent as far as they are."""
        await self.extensions.close()
        closing: tuple[RegistrySlot | NetworkSlot, ...] = (*self.registries.values(), *self.networks.values())
        for slot in closing:
            try:
                await slot.close()
            except CrinoidError as error:
                LOG.warning("%s", error.message)
        await asyncio.gather(*(slot.end() for slot in self.all()), return_exceptions=True)

    def _config_of(self, handler: str) -> RuntimeSlotConfig:
        config = self.runtime(handler).config
        assert isinstance(config, RuntimeSlotConfig)
        return config


def bind(
    config: Config,
    origins: Origins = NO_ORIGINS,
    instruments: Instruments = NO_INSTRUMENTS,
    version: str = "",
    calls: HookCalls | None = None,
) -> Slots:
    """Load, make and bind every driver that the configuration selects, and make the slots' directories.

    ``version`` is crinoid's own; ``calls`` is where hooks are noted while they run. Raises a ConfigurationError that
    lists every driver that can't be used, with the distribution it is of.
    """
    binder = _Binder(config, origins, instruments, version, calls or HookCalls(config.deadlines.grace_s))
    slots = check(config, origins)
    return assemble(config, binder.bind_all(slots, binder.start_processes(slots)))


async def bind_in_turns(
    valid: Sequence[ValidSlot], config: Config, origins: Origins, instruments: Instruments, calls: HookCalls
) -> Slots:
    """As ``bind``, of drivers that ``check`` has loaded already, one in each turn of the loop that runs.

    Thirty slots take a tenth of a second of processor time, which is some seconds on a node that is busy.
    """
    binder = _Binder(config, origins, instruments, __version__, calls)
    apart = await asyncio.to_thread(binder.start_processes, valid)
    bindings = []
    for binding in binder.bind_each(valid, apart):
        bindings.append(binding)
        await asyncio.sleep(0)
    return assemble(config, bindings)


def prepare_reload(
    config: Config,
    origins: Origins,
    instruments: Instruments,
    version: str,
    calls: HookCalls,
    current: Collection[ExtensionSlot],
) -> Callable[[], tuple[Mapping[str, RegistrySlot], tuple[ExtensionSlot, ...]]]:
    """As ``bind``, for what is made anew beside what is in use: what takes its time, in any thread. Return what makes
    the image sources, and the extensions of those that are in use (``current``), in the loop's.

    Both raise ConfigurationError, with nothing left running.
    """
    binder = _Binder(config, origins, instruments, version, calls)
    slots = check(config, origins)
    registries = [slot for slot in slots if slot.selection.role == "registry"]
    configs = {slot.selection.name: slot.selection.config for slot in slots if slot.selection.role == "extension"}
    drivers = {slot.name: slot.driver for slot in current}
    anew = {
        slot.selection.name: slot
        for slot in slots
        if slot.selection.role == "extension"
        and slot.driver.is_replaceable
        and drivers.get(slot.selection.name) == slot.selection.config.driver
    }
    made = (*registries, *anew.values())
    for slot in slots:
        if all(slot is not one for one in made):
            slot.driver.discard()
    apart = binder.start_processes(made)

    def make() -> tuple[Mapping[str, RegistrySlot], tuple[ExtensionSlot, ...]]:
        try:
            extensions = _rebind_extensions(binder, current, configs, anew, apart)
        except BaseException:
            _end_processes(apart)
            raise
        return assemble(config, binder.bind_all(registries, apart)).registries, extensions

    return make


def _rebind_extensions(
    binder: "_Binder",
    current: Iterable[ExtensionSlot],
    configs: Mapping[str, SlotConfig],
    anew: Mapping[str, ValidSlot],
    apart: _Apart,
) -> tuple[ExtensionSlot, ...]:
    """Return the extensions that are in use with what the configuration says of each now.

    A driver that says it is ``replaceable`` is made anew, with its options and the files that they name; of others
    deadline and ``on_failure`` change. One whose driver is another one now, or none, stays as it is. Raises
    ConfigurationError.
    """
    found: list[ExtensionSlot] = []
    for slot in current:
        changed = configs.get(slot.name)
        binding: Binding | None = slot.binding
        if isinstance(changed, ExtensionSlotConfig) and changed.driver == slot.driver:
            if (valid := anew.get(slot.name)) is not None:
                binding = binder.bind_one(valid, apart)
            else:
                former = slot.binding.config  # what stays as it is, so that each reload names it
                kept = {"options": former.options, "isolation": former.isolation}
                changed = changed.model_copy(update=kept)
                binding = replace(slot.binding, config=changed)
            slot = ExtensionSlot(binding, changed) if binding is not None else slot
        found.append(slot)
    refuse(binder.problems)
    return tuple(found)


def adopt(
    driver: object,
    installed: InstalledDriver,
    config: SlotConfig,
    host: Host,
    instruments: Instruments = NO_INSTRUMENTS,
    calls: HookCalls | None = None,
) -> Binding:
    """Bind a driver that is made already to the slot that its host names; tests bind fakes so.

    Raises a ConfigurationError when the driver does not fit the hooks of its role.
    """
    role = ROLES[installed.role]
    manager = _HookManager(PROJECT)
    manager.add_hookspecs(role.specification)
    check_hooks(driver, installed)  # its class was checked before; this is about what the object has set itself
    manager.register(driver, installed.name)
    implemented = frozenset(caller.name for caller in manager.get_hookcallers(driver) or ())
    if not implemented:
        LOG.warning("%s has no hook, so it will never be called", installed.title)
    return Binding(
        role=role,
        name=host.slot,
        config=config,
        driver=installed,
        hooks=manager.hook,
        implemented=implemented,
        instruments=instruments,
        state_dir=host.state_dir,
        run_dir=host.run_dir,
        own_deadline_s=_own_deadline_s(driver, installed),
        own_on_failure=_own_on_failure(driver, installed),
        calls=calls or HookCalls(),
        unremoved=host.unremoved,
        process=driver.process if isinstance(driver, Proxy) else None,
    )


def assemble(config: Config, bindings: Iterable[Binding]) -> Slots:
    """Put facades on bindings, by role and name."""
    bindings = tuple(bindings)
    deadlines = config.deadlines

    def of(role: str) -> Iterable[Binding]:
        return (binding for binding in bindings if binding.role.name == role)

    return Slots(
        MappingProxyType({b.name: RuntimeSlot(b, deadlines.runtime) for b in of("runtime")}),
        MappingProxyType({b.name: NetworkSlot(b, deadlines.network) for b in of("network")}),
        MappingProxyType({b.name: SnapshotterSlot(b, deadlines.snapshotter) for b in of("snapshotter")}),
        MappingProxyType({b.name: RegistrySlot(b, deadlines.registry) for b in of("registry")}),
        ExtensionSlots(
            [ExtensionSlot(b, b.config) for b in of("extension") if isinstance(b.config, ExtensionSlotConfig)]
        ),
        config.pods.default_runtime,
    )


class _HookManager(pluggy.PluginManager):
    """As pluggy's, but that it looks at attributes with the name of a hook alone: all others cost 3 ms a driver."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> "pluggy.HookimplOpts | None":
        return super().parse_hookimpl_opts(plugin, name) if hasattr(self.hook, name) else None


class _Binder:
    """Binds one slot after the other and collects what is wrong with their drivers."""

    def __init__(
        self, config: Config, origins: Origins, instruments: Instruments, version: str, calls: HookCalls
    ) -> None:
        self._config = config
        self._origins = origins
        self._instruments = instruments
        self._version = version
        self._calls = calls
        self._buffers = BufferPool(config.streaming.max_buffer_bytes // 2)  # the server has the other half
        self.problems: list[Problem] = []

    def start_processes(self, slots: Iterable[ValidSlot]) -> _Apart:
        """Make the drivers that have processes of their own, side by side; blocks, in any thread."""
        with ThreadPoolExecutor(max_workers=4) as threads:
            return {id(slot): threads.submit(self._make, slot) for slot in slots if slot.selection.config.isolation}

    def bind_all(self, slots: Sequence[ValidSlot], apart: _Apart) -> list[Binding]:
        """Make all other drivers and bind them; raise a ConfigurationError that lists every problem, with nothing
        running."""
        return [*self.bind_each(slots, apart)]

    def bind_each(self, slots: Sequence[ValidSlot], apart: _Apart) -> Iterator[Binding]:
        """As ``bind_all``, a slot at a time; problems are raised after the last."""
        try:
            for slot in slots:
                if (binding := self.bind_one(slot, apart)) is not None:
                    yield binding
            refuse(self.problems)
        except BaseException:
            _end_processes(apart)
            raise

    def bind_one(self, slot: ValidSlot, apart: _Apart) -> Binding | None:
        """Make a driver, unless it is made already, and bind it; ``None``, and a problem, where that can't be."""
        with self._collected(slot):
            driver, host = apart[id(slot)].result() if id(slot) in apart else self._make(slot)
            return self._adopt(slot, driver, host)
        return None

    @contextlib.contextmanager
    def _collected(self, slot: ValidSlot) -> Iterator[None]:
        try:
            yield
        except ConfigurationError as error:
            key = (*slot.selection.key, "driver")
            self.problems.append(Problem(key, str(error), self._origins.nearest(key)))

    def _make(self, slot: ValidSlot) -> tuple[object, Host]:
        """Make a slot's directories and its driver."""
        selection, role = slot.selection, ROLES[slot.selection.role]
        if slot.driver.import_s > SLOW_S:
            title = slot.driver.installed.title
            LOG.warning("%s has taken %.1f s to import; the start waits for it", title, slot.driver.import_s)
        directory = _directory_name(selection)
        state_dir = _make_directory(self._config.root / "plugins" / role.name / directory)
        run_dir = _make_directory(self._config.run / role.directory / directory)
        if (isolation := selection.config.isolation) is not None and isolation.user:
            hand_over({state_dir: self._config.root, run_dir: self._config.run}, isolation.user)
        log = logging.getLogger(f"crinoid.plugins.{role.name}.{selection.name}")
        host = Host(selection.name, state_dir, run_dir, log, self._version, self._buffers)
        if selection.config.isolation is not None:
            return make(slot, host), host
        with self._calls.blocking(f'{role.name} "{selection.name}"', "__init__"):
            return make(slot, host), host

    def _adopt(self, slot: ValidSlot, driver: object, host: Host) -> Binding:
        config = slot.selection.config
        binding = adopt(driver, slot.driver.installed, config, host, self._instruments, self._calls)
        if binding.process is not None:
            binding.process.attach()
        return binding


def _end_processes(apart: _Apart) -> None:
    for made in apart.values():
        if made.exception() is None and isinstance(proxy := made.result()[0], Proxy):
            proxy.process.end_now()


def _directory_name(selection: Selection) -> str:
    """Give each driver of a slot a directory of its own: what one made must not meet another's."""
    name, driver = selection.name, selection.config.driver
    return name if name == driver else f"{name}.{driver}"


def hand_over(directories: Mapping[Path, Path], user: str) -> None:
    """Give a slot's directories to the user of its driver's process, and let him pass to them from the given tops on.

    What lies in them already is left as it is: it may be another driver's.
    """
    from crinoid.core.slots.isolation.plugin_process import find_user  # of no use to a daemon without such slots

    uid, gid = find_user(user)
    for directory, top in directories.items():
        os.chown(directory, uid, gid)
        for above in directory.parents:
            rights.correct(above, rights.PASSAGE)
            if above == top:
                break


def make(slot: ValidSlot, host: Host) -> object:
    """Make a slot's driver. Raises ConfigurationError for whatever its ``__init__`` raises."""
    try:
        driver: object = slot.driver.factory(slot.options, host)
    except CrinoidError as error:
        raise ConfigurationError(f"{slot.driver.installed.title} can't be used: {error.message}") from error
    except BaseException as error:
        raise ConfigurationError(f"{slot.driver.installed.title} can't be made: {describe(error)}") from error
    return driver


def _own_deadline_s(driver: object, installed: InstalledDriver) -> float | None:
    deadline_s = getattr(driver, "deadline_s", None)
    if deadline_s is not None and not (isinstance(deadline_s, int | float) and deadline_s > 0):
        raise ConfigurationError(
            f"{installed.title}: its deadline_s is {deadline_s!r}, not a number of seconds above 0"
        )
    return deadline_s


def _own_on_failure(driver: object, installed: InstalledDriver) -> str:
    on_failure = getattr(driver, "on_failure", "ignore")
    if on_failure not in ("ignore", "fail"):
        raise ConfigurationError(f'{installed.title}: its on_failure is {on_failure!r}, neither "ignore" nor "fail"')
    return str(on_failure)


def _make_directory(path: Path) -> Path:
    """Make a private directory, which it may not have been, and its parents."""
    try:
        rights.make_directories(path)
        rights.correct(path, rights.DIRECTORY)
    except OSError as error:
        kind = StateUnavailable if error.errno in StateUnavailable.PASSING else ConfigurationError
        raise kind(f"{path}: the slot's directory can't be made: {error.strerror}") from error
    return path
