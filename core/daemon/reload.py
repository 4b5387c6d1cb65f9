"""Another configuration for a daemon that runs (SIGHUP, ``crinoid reload``): what can change at once does.

All files are read and every driver is looked at first, as at a start, so a mistake changes nothing. What can't change
is named: a takeover (``crinoid upgrade``, systemd's reload) or a restart brings it.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from crinoid.core.api.errors import CrinoidError, Unavailable
from crinoid.core.api.hooks.extension import Kernel
from crinoid.core.config.loader import Loaded
from crinoid.core.config.models import Config, ExtensionSlotConfig
from crinoid.core.config.origins import name_key
from crinoid.core.config.positions import KeyPath
from crinoid.core.daemon import logs
from crinoid.core.daemon.composition import pinning
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.slots.answers import nothing
from crinoid.core.slots.binding import Slots
from crinoid.core.slots.extension import ExtensionSlot
from crinoid.core.slots.registry import RegistrySlot

LOG = logging.getLogger(__name__)
_IMAGES = frozenset({"pinned", "sources", "max_parallel_layers", "pull_idle_timeout_s"})
_DEADLINES = ("runtime", "network", "snapshotter", "registry")
_AT_ONCE: tuple[KeyPath, ...] = (
    ("log",),
    *(("images", name) for name in sorted(_IMAGES)),
    ("registries",),
    *(("deadlines", role) for role in _DEADLINES),
)
"""What changes without another process, besides what ``_Extensions`` tells. All else is handed out at the start."""
_OF_EXTENSIONS = frozenset({"deadline_s", "on_failure"})


@dataclass(frozen=True, slots=True)
class NewSlots:
    """What is made of a configuration beside what is in use."""

    registries: Mapping[str, RegistrySlot]
    extensions: tuple[ExtensionSlot, ...]


class Reload:
    """Applies configurations one after the other."""

    def __init__(
        self,
        loaded: Loaded,
        read: Callable[[], Loaded],
        images: ImageService,
        slots: Slots,
        prepare: Callable[[Loaded], Callable[[], NewSlots]],
        kernel: Kernel,
    ) -> None:
        """``loaded`` is in force; ``read`` loads what the files say, ``prepare`` returns what makes its image sources
        and extensions, which are then given the kernel. Both are called in a thread."""
        self.loaded = loaded
        """What is in force now."""
        self._read = read
        self._images = images
        self._slots = slots
        self._prepare = prepare
        self._kernel = kernel
        self._turn = asyncio.Lock()
        self._is_over = False
        self._closing: set[asyncio.Task[None]] = set()

    async def apply(self) -> tuple[str, ...]:
        """Read the files and apply them; return lines that tell what changed and what did not.

        Image sources are made anew each time, as credentials and certificates lie in files of their own, and so are
        extensions that can be, as ``policy`` with its keys; what is under way ends with the former ones. Raises
        ConfigurationError where anything is wrong, Unavailable once the daemon ends, and what such an extension raises;
        nothing has changed then.
        """
        async with self._turn:
            self._require_time()
            loaded = await asyncio.to_thread(self._read)  # models take a tenth of a second
            new = loaded.config
            made = (await asyncio.to_thread(self._prepare, loaded))()
            before = self._slots.extensions.slots
            rebound = [(slot, old) for slot, old in zip(made.extensions, before, strict=True) if slot is not old]
            renewed = [slot for slot, old in rebound if slot.binding.hooks is not old.binding.hooks]
            try:
                self._require_time()  # what was made meanwhile would outlive all that the daemon closes
                for slot in renewed:
                    await slot.call("connect", nothing, kernel=self._kernel)
            except BaseException:
                self._close_later(made.registries, renewed)
                raise
            changed = list(_differences(self.loaded.config.model_dump(), new.model_dump()))
            at_once = (*_AT_ONCE, *_of_extensions((slot for slot, _ in rebound), {slot.name for slot in renewed}))
            kept = [key for key in changed if not any(key[: len(one)] == one for one in at_once)]
            logs.set_up(new.log)
            self.loaded = replace(loaded, config=_merge(self.loaded.config, new, made.extensions))
            self._images.reconfigure(pinning(self.loaded.config))
            former, self._slots.registries = self._slots.registries, made.registries
            self._slots.extensions.slots = made.extensions
            self._slots.change_deadlines(self.loaded.config.deadlines)
            ended = [old for old in before if old.name in {slot.name for slot in renewed}]
            self._close_later(former, ended)
        applied = [name_key(key) for key in changed if key not in kept]
        lines: tuple[str, ...] = (
            f"changed: {', '.join(applied)}" if applied else "nothing has changed that can change at once",
            "image sources have read their files anew",
        )
        if kept:
            names = ", ".join(map(name_key, kept))
            lines += (f"not changed, as it takes a takeover (crinoid upgrade) or a restart: {names}",)
        LOG.info("reloaded: %s", "; ".join(lines))
        return lines

    async def close(self) -> None:
        """Apply no more; wait for what is under way, which comes to nothing. Idempotent."""
        self._is_over = True
        async with self._turn:
            pass

    def _require_time(self) -> None:
        if self._is_over:
            raise Unavailable(
                "nothing is reloaded: the daemon ends, or another takes over, which has read its files itself"
            )

    def _close_later(self, registries: Mapping[str, RegistrySlot], extensions: Iterable[ExtensionSlot]) -> None:
        """Close what is not in use any more, or never came to it."""
        closing = asyncio.create_task(self._close(registries, extensions), name="close what a reload has replaced")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def _close(self, registries: Mapping[str, RegistrySlot], extensions: Iterable[ExtensionSlot]) -> None:
        await self._images.settle_pulls()
        closing: tuple[Awaitable[None], ...] = (
            *(slot.close() for slot in registries.values()),
            *(slot.call("close", nothing) for slot in extensions),
        )
        for one in closing:
            try:
                await one
            except CrinoidError as error:
                LOG.warning("%s", error.message)
        for slot in (*registries.values(), *extensions):
            await slot.end()


def _of_extensions(extensions: Iterable[ExtensionSlot], renewed: Collection[str]) -> Iterator[KeyPath]:
    """Return the keys of extensions that have changed with them; those of another driver now, or none, have not."""
    for slot in extensions:
        yield from (("extensions", slot.name, key) for key in sorted(_OF_EXTENSIONS))
        if slot.name in renewed:
            yield from (("extensions", slot.name, key) for key in ("isolation", "options"))


def _merge(old: Config, new: Config, extensions: Iterable[ExtensionSlot]) -> Config:
    """Return the old configuration with what changes at once from the new one."""
    images = old.images.model_copy(update={name: getattr(new.images, name) for name in _IMAGES})
    deadlines = old.deadlines.model_copy(update={role: getattr(new.deadlines, role) for role in _DEADLINES})
    kept = dict(old.extensions) | {
        slot.name: slot.config for slot in extensions if isinstance(slot.config, ExtensionSlotConfig)
    }
    update = {"log": new.log, "images": images, "registries": new.registries, "deadlines": deadlines}
    return old.model_copy(update={**update, "extensions": kept})


def _differences(old: Mapping[str, object], new: Mapping[str, object], base: KeyPath = ()) -> Iterator[KeyPath]:
    """Find the keys whose values differ; a table that is new or gone is one key."""
    for name in dict.fromkeys((*old, *new)):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, (*base, name))
        elif before != after:
            yield (*base, name)
