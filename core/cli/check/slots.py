"""The slots of the configuration: each driver is loaded, made and asked whether it can work on this host.

The drivers are made with throw-away directories, so that a daemon that runs is not disturbed.
"""

import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

from crinoid import __version__
from crinoid.core.api.errors import ConfigurationError, CrinoidError
from crinoid.core.api.linux import rights
from crinoid.core.api.values.image import SourceStatus
from crinoid.core.api.values.network import NetworkStatus
from crinoid.core.cli.check.disk import existing
from crinoid.core.cli.check.findings import Area, Finding
from crinoid.core.config.loader import Loaded
from crinoid.core.config.models import DEFAULT_SLOT
from crinoid.core.slots.binding import Slots, bind

_AREA = Area("slots")


async def examine_slots(loaded: Loaded) -> AsyncIterator[Finding]:
    """Ask every configured slot about itself."""
    with tempfile.TemporaryDirectory(prefix=".crinoid-check-", dir=existing(loaded.config.root)) as name:
        directory = Path(name)
        rights.correct(directory, rights.PASSAGE)  # a driver's process may be another user's
        config = loaded.config.model_copy(update={"root": directory / "root", "run": directory / "run"})
        try:
            slots = bind(config, loaded.origins, version=__version__)
        except ConfigurationError as error:
            for line in error.message.splitlines():
                yield _AREA.failure("drivers", line, "correct the configuration or the installation")
            return
        async for finding in _ask(slots):
            yield finding
        await slots.close()


async def _ask(slots: Slots) -> AsyncIterator[Finding]:
    for runtime in slots.runtimes.values():
        default = runtime.name == slots.default_runtime
        try:
            features = await runtime.probe()
            yield _AREA.ok(f"runtime {runtime.name}", f"{features.name} {features.version}")
        except CrinoidError as error:
            judge = _AREA.failure if default else _AREA.warning
            yield judge(f"runtime {runtime.name}", error.message, "pods of this handler can't run until then")
    for snapshotter in slots.snapshotters.values():
        try:
            await snapshotter.probe()
            yield _AREA.ok(f"snapshotter {snapshotter.name}", snapshotter.driver)
        except CrinoidError as error:
            yield _AREA.failure(f"snapshotter {snapshotter.name}", error.message, "no container can be made until then")
    async for finding in _ask_status(slots):
        yield finding


async def _ask_status(slots: Slots) -> AsyncIterator[Finding]:
    for network in slots.networks.values():
        name = f"network {network.name}"
        try:
            status = await network.status()
        except CrinoidError as error:
            yield _AREA.failure(name, error.message, "report it to the driver's authors: status never raises")
            continue
        yield judge_network(network.name, network.driver, status)
    for source in slots.registries.values():
        name = f"image source {source.name}"
        try:
            ready = await source.status()
        except CrinoidError as error:
            yield _AREA.warning(name, error.message, "images of this source can't be pulled")
            continue
        for finding in judge_source(source.name, source.driver, ready):
            yield finding


def judge_source(name: str, driver: str, status: SourceStatus) -> Iterator[Finding]:
    """Judge an image source's status, and tell its notes."""
    what = f"image source {name}"
    if status.ready and not status.message:
        yield _AREA.ok(what, driver)
    else:
        hint = "the pulls that need it fail until then" if status.ready else "see its options"
        yield _AREA.warning(what, status.message, hint)
    for text in status.notes:
        yield _AREA.warning(what, text, "correct or remove it; pulls go on without it")


def judge_network(name: str, driver: str, status: NetworkStatus) -> Finding:
    """Judge a network's status: the default one has to work, or wait for nothing but a cluster's network add-on."""
    if status.ready:
        return _AREA.ok(f"network {name}", f"{driver} is ready")
    waits = name != DEFAULT_SLOT or status.reason == "NoNetworkConfiguration"
    judge = _AREA.warning if waits else _AREA.failure
    return judge(f"network {name}", f"{status.reason}: {status.message}", "the node is NotReady until then")
