"""``python -m bench.hooks``: what a hook costs in the daemon's process, and in one of its own (docs/isolation.md).

The same drivers, bound twice, called in turns, through the same facades: ours where a hook is light enough to show the
difference, else ones that do nothing. No root is needed. ``--render`` puts what is printed into docs/performance.md.
"""

import argparse
import asyncio
import json
import logging
import os
import platform
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

PAGE = Path("docs/performance.md")
BEGIN = "<!-- From here to its end mark `python -m bench.hooks --render` writes. -->\n"
END = "<!-- The end mark of the hooks. -->\n"
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


@dataclass(frozen=True, slots=True)
class Cost:
    """What calls have cost, in milliseconds a call: round by round, and of processor time on both sides."""

    rounds: list[float]
    own: float
    drivers: float

    def row(self) -> str:
        """Return the medians and the quickest as cells of a table."""
        return f"{statistics.median(self.rounds):.3f} | {min(self.rounds):.3f}"


async def measure(case: Case, both: dict[str, Slots]) -> dict[str, Cost]:
    """Return what a call costs; rounds are taken in turns."""
    found: dict[str, list[float]] = {name: [] for name in both}
    used: dict[str, list[float]] = {name: [0.0, 0.0] for name in both}
    for slots in both.values():
        await case.call(slots)
    for number in range(_ROUNDS):
        for name in list(both)[:: 1 if number % 2 else -1]:
            began_s, before = time.perf_counter(), _processor_times(both[name])
            for _ in range(case.calls):
                await case.call(both[name])
            found[name].append((time.perf_counter() - began_s) / case.calls * 1e3)
            for side, (now, then) in enumerate(zip(_processor_times(both[name]), before, strict=True)):
                used[name][side] += now - then
    calls = _ROUNDS * case.calls
    return {name: Cost(found[name], *(one / calls * 1e3 for one in used[name])) for name in both}


def _processor_times(slots: Slots) -> tuple[float, float]:
    """Return the seconds of processor time of this process, and of those of its slots' drivers."""
    pids = [slot.process.pid for slot in slots.all() if slot.process]
    tasks = [task for pid in pids for task in Path(f"/proc/{pid}/task").iterdir()]
    return time.process_time(), sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


async def run(directory: Path) -> str:
    """Bind all twice and measure; return the table."""
    both = {}
    for name, isolation in (("in process", False), ("isolated", True)):
        place = directory / name.replace(" ", "-")
        place.mkdir()
        both[name] = bind(Config.model_validate(_table(place, directory / "layouts", isolation)))
    image = ImageReference.parse("registry.test/blob:1")
    resolved = await both["in process"].registries["layout"].resolve(ResolveRequest(image, Platform("linux", "amd64")))
    layer = json.loads(resolved.manifest_content)["layers"][0]
    descriptor = Descriptor(layer["mediaType"], layer["digest"], layer["size"])
    lines = [
        "| ms a call | in process: median | quickest | in one of its own: median | quickest | more: median "
        "| CPU in process | CPU of the daemon | of the driver |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for case in cases(image, descriptor):
        inside, apart = (await measure(case, both)).values()
        more = statistics.median(apart.rounds) - statistics.median(inside.rounds)
        lines.append(
            f"| {case.name} | {inside.row()} | {apart.row()} | {more:.3f} "
            f"| {inside.own:.3f} | {apart.own:.3f} | {apart.drivers:.3f} |"
        )
    processes = {slot.label: slot.process.memory_bytes for slot in both["isolated"].all() if slot.process}
    sizes = ", ".join(f"{name} {(size or 0) / (1 << 20):.0f}" for name, size in processes.items())
    lines += [
        "",
        f"{_ROUNDS} rounds in turns, of {_CALLS} calls; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors, "
        f"Linux {os.uname().release}, Python {platform.python_version()}, {time.strftime('%Y-%m-%d')}. "
        f"Memory of the processes (RSS), MiB: {sizes}.",
    ]
    for slots in both.values():
        await slots.close()
    return "\n".join(lines) + "\n"


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
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--render", action="store_true", help=f"write the table into {PAGE}, too")
    arguments = parser.parse_args()
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
        table = asyncio.run(run(directory))
    print(table, end="")
    if arguments.render:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        _, _, after = rest.partition(END)
        PAGE.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}")


if __name__ == "__main__":
    main()
