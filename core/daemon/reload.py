"""Another configuration for a daemon that runs (SIGHUP, ``crinoid reload``): what can change at once does.

All files are read and every driver is looked at first, as at a start, so a mistake changes nothing. What can't change
is named: a takeover (``crinoid upgrade``, systemd's reload) or a restart brings it.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator, Mapping

from crinoid.core.api.errors import CrinoidError
from crinoid.core.config.loader import Loaded
from crinoid.core.config.models import Config
from crinoid.core.config.origins import name_key
from crinoid.core.config.positions import KeyPath
from crinoid.core.daemon import logs
from crinoid.core.daemon.composition import pinning
from crinoid.core.lifecycle.images.images import ImageService
from crinoid.core.slots.binding import Slots
from crinoid.core.slots.registry import RegistrySlot

LOG = logging.getLogger(__name__)
_IMAGES = frozenset({"pinned", "sources", "max_parallel_layers", "pull_idle_timeout_s"})
_AT_ONCE: tuple[KeyPath, ...] = (
    ("log",),
    *(("images", name) for name in sorted(_IMAGES)),
    ("registries",),
    ("deadlines", "registry"),
)
"""What changes without another process. All else is handed out to parts of the daemon when it starts."""


class Reload:
    """Applies configurations one after the other."""

    def __init__(
        self,
        config: Config,
        read: Callable[[], Loaded],
        images: ImageService,
        slots: Slots,
        prepare: Callable[[Loaded], Callable[[], Mapping[str, RegistrySlot]]],
    ) -> None:
        """``config`` is in force; ``read`` loads what the files say, ``prepare`` returns what makes its image
        sources. Both are called in a thread."""
        self._config = config
        self._read = read
        self._images = images
        self._slots = slots
        self._prepare = prepare
        self._turn = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    async def apply(self) -> tuple[str, ...]:
        """Read the files and apply them; return lines that tell what changed and what did not.

        Image sources are made anew each time, as credentials and certificates lie in files of their own; pulls under
        way end with the former ones. Raises ConfigurationError where anything is wrong; nothing has changed then.
        """
        async with self._turn:
            loaded = await asyncio.to_thread(self._read)  # models take a tenth of a second
            new = loaded.config
            registries = (await asyncio.to_thread(self._prepare, loaded))()
            changed = list(_differences(self._config.model_dump(), new.model_dump()))
            kept = [key for key in changed if not any(key[: len(one)] == one for one in _AT_ONCE)]
            logs.set_up(new.log)
            self._config = _merge(self._config, new)
            self._images.reconfigure(pinning(self._config))
            former, self._slots.registries = self._slots.registries, registries
            closing = asyncio.create_task(self._close(former), name="close the former image sources")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
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

    async def _close(self, registries: Mapping[str, RegistrySlot]) -> None:
        await self._images.settle_pulls()
        for slot in registries.values():
            try:
                await slot.close()
            except CrinoidError as error:
                LOG.warning("%s", error.message)
            await slot.end()


def _merge(old: Config, new: Config) -> Config:
    """Return the old configuration with what changes at once from the new one."""
    images = old.images.model_copy(update={name: getattr(new.images, name) for name in _IMAGES})
    deadlines = old.deadlines.model_copy(update={"registry": new.deadlines.registry})
    update = {"log": new.log, "images": images, "registries": new.registries, "deadlines": deadlines}
    return old.model_copy(update=update)


def _differences(old: Mapping[str, object], new: Mapping[str, object], base: KeyPath = ()) -> Iterator[KeyPath]:
    """Find the keys whose values differ; a table that is new or gone is one key."""
    for name in dict.fromkeys((*old, *new)):
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(before, after, (*base, name))
        elif before != after:
            yield (*base, name)
