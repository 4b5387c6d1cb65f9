"""``python -m bench.hooks``: what a hook costs in the daemon's process, and in one of its own (docs/isolation.md).

The same drivers, bound twice, called in turns, through the same facades: ours where a hook is light enough to show the
difference, else ones that do nothing. No root is needed. The table goes into docs/performance.md.
"""

import argparse
import asyncio
import json
import logging
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crinoid.core.api.hooks.extension import ContainerView, PodView
from crinoid.core.api.values.container import ContainerConfig, ContainerMetadata
from crinoid.core.api.values.image import BlobRequest, Descriptor, ImageReference, Platform, ResolveRequest
from crinoid.core.api.values.network import NetworkRequest
from crinoid.core.api.values.pod import PodConfig, PodMetadata
from crinoid.core.api.values.runtime import ContainerHandle
from crinoid.core.config.models import Config
from crinoid.core.slots.binding import Slots, bind
from support.distributions import Site
from support.images import Entry, build_image, make_layer

_ROUNDS, _CALLS = 20, 50
_BLOB_BYTES = 64 << 20
_EXTENSION = """
from crinoid.core.api.hooks import hookimpl
from crinoid.core.api.testing.noops import NoopExtension

class Driver(NoopExtension):
    @hookimpl
    async def adjust_container(self, container):
        return None
"""
_POD = PodConfig(metadata=PodMetadata("pod", "default", "uid"), annotations={f"key{n}": "value" for n in range(20)})
_SPEC = {
    "process": {"args": ["sleep", "1000"], "env": [f"VARIABLE_{n}=a value of some length" for n in range(60)]},
    "mounts": [{"destination": f"/m{n}", "source": f"/s{n}", "options": ["bind", "ro"]} for n in range(30)],
    "linux": {"seccomp": {"syscalls": [{"names": [f"call{n}" for n in range(300)], "action": "ALLOW"}]}},
}


@dataclass(frozen=True, slots=True)
class Case:
    """One hook, called with what a daemon would call it with."""

    name: str
    call: Callable[[Slots], Awaitable[Any]]
    calls: int = _CALLS
    """In a round."""


def cases(image: ImageReference, layer: Any) -> list[Case]:
    """Return the hooks."""
    handle = ContainerHandle("c" * 64, "p" * 64, Path("/run/crinoid/containers/c"), "/kubepods/pod/c")
    request = NetworkRequest(pod_id="p" * 64, metadata=_POD.metadata, netns=None)
    config = ContainerConfig(metadata=ContainerMetadata("c"), envs=tuple((f"V{n}", "value") for n in range(60)))
    view = ContainerView("c" * 64, PodView("p" * 64, _POD, "runc"), config, "sha256:0", spec=_SPEC)

    async def read_blob(slots: Slots) -> None:
        async with aclosing(await slots.registries["layout"].open_blob(BlobRequest(image, layer))) as pieces:
            assert sum([len(piece) async for piece in pieces]) == layer.size

    return [
        Case("network `host` status", lambda slots: slots.network.status()),
        Case("network `host` plan", lambda slots: slots.network.plan(request)),
        Case("snapshotter (none) has_layer", lambda slots: slots.snapshotter.has_layer("sha256:0")),
        Case("runtime (none) state", lambda slots: slots.runtime("").state(handle)),
        Case(
            "image source `layout` resolve",
            lambda slots: slots.registries["layout"].resolve(ResolveRequest(image, Platform("linux", "amd64"))),
        ),
        Case(
            f"extension (none) adjust_container, a specification of {len(json.dumps(_SPEC)) >> 10} KiB",
            lambda s: s.extensions.adjust_container(view),
        ),
        Case(f"image source `layout`, a blob of {layer.size >> 20} MiB", read_blob, 1),
    ]


async def measure(case: Case, both: dict[str, Slots]) -> dict[str, list[float]]:
    """Return milliseconds a call, round by round; rounds are taken in turns."""
    found: dict[str, list[float]] = {name: [] for name in both}
    for slots in both.values():
        await case.call(slots)
    for number in range(_ROUNDS):
        for name in list(both)[:: 1 if number % 2 else -1]:
            began_s = time.perf_counter()
            for _ in range(case.calls):
                await case.call(both[name])
            found[name].append((time.perf_counter() - began_s) / case.calls * 1e3)
    return found


async def run(directory: Path) -> None:
    """Bind all twice, measure, and print the table."""
    both = {}
    for name, isolation in (("in process", False), ("isolated", True)):
        place = directory / name.replace(" ", "-")
        place.mkdir()
        both[name] = bind(Config.model_validate(_table(place, directory / "layouts", isolation)))
    image = ImageReference.parse("registry.test/blob:1")
    resolved = await both["in process"].registries["layout"].resolve(ResolveRequest(image, Platform("linux", "amd64")))
    layer = json.loads(resolved.manifest_content)["layers"][0]
    descriptor = Descriptor(layer["mediaType"], layer["digest"], layer["size"])
    print("| hook | in process, ms | in a process of its own, ms | more, ms |\n|---|---|---|---|")
    for case in cases(image, descriptor):
        found = await measure(case, both)
        inside, apart = (statistics.median(found[name]) for name in both)
        print(f"| {case.name} | {inside:.3f} | {apart:.3f} | {apart - inside:.3f} |")
    processes = {slot.label: slot.process.memory_bytes for slot in both["isolated"].all() if slot.process}
    print("\nRSS, MiB:", ", ".join(f"{name} {(size or 0) / (1 << 20):.0f}" for name, size in processes.items()))
    print(f"load: {os.getloadavg()[0]:.1f}; {_ROUNDS} rounds in turns, of {_CALLS} calls, medians")
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(f"CPU of this process: {used.ru_utime + used.ru_stime:.1f} s")
    for slots in both.values():
        await slots.close()


def _table(place: Path, layouts: Path, isolation: bool) -> dict[str, Any]:
    """Return a configuration: of every slot the driver is in the process, or not."""

    def slot(driver: str, **more: object) -> dict[str, Any]:
        return {"driver": driver, "isolation": isolation, **more}

    return {
        "root": place / "root",
        "run": place / "run",
        "pods": {"default_runtime": "quiet"},
        "images": {"sources": ["layout"]},
        "runtimes": {"quiet": slot("quiet")},
        "network": slot("host"),
        "snapshotter": slot("quiet"),
        "registries": {"layout": slot("layout", options={"directory": str(layouts)})},
        "extensions": {"looks": slot("looks", deadline_s=60.0)},
    }


def main() -> None:
    """Run it."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory(prefix="crinoid-hooks-") as name:
        directory = Path(name)
        site = Site(directory / "site")
        site.directory.mkdir()
        site.install_quiet()
        site.install("looks", "[crinoid.extensions]\nlooks = looks:Driver\n", _EXTENSION)
        sys.path.insert(0, str(site.directory))
        os.environ["PYTHONPATH"] = f"{site.directory}:{os.environ.get('PYTHONPATH', '')}"
        content = os.urandom(_BLOB_BYTES)
        build_image(directory / "layouts", "registry.test/blob:1", [make_layer([Entry(path="f", content=content)])])
        asyncio.run(run(directory))


if __name__ == "__main__":
    main()
