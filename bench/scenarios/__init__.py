"""What is measured. A scenario is a row of turns, and every turn is taken by each endpoint, in rotation (A B C, B C A).

So a drift of the machine hits all alike, and so does what one turn leaves to the next, such as inodes that ext4 passes
over for minutes after many files were removed. An endpoint that fails a turn leaves a gap with its reason, and takes no
further part in that scenario. The pods of a turn are its own, and are gone when it ends.
"""

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import grpc

from bench.endpoints import Endpoint
from bench.measure import Busy, Witness
from bench.results import Gap
from bench.scenarios import growth, life, logs, many, pulls, standing
from bench.scenarios.node import Bench as Bench

Turn = Callable[[Bench, Endpoint], None]
Scenario = Callable[[Bench], Iterator[Turn]]

SCENARIOS: Mapping[str, Scenario] = {
    "life": life.turns,
    "crowd": life.crowd_turns,
    "standing": standing.turns,
    "logging": logs.turns,
    "pulling": pulls.turns,
    "pulling-again": pulls.again_turns,
    "many-images": many.turns,
    "growth-pods": growth.pod_turns,
    "growth-images": growth.image_turns,
    "growth-layers": growth.layer_turns,
}
IMAGE_SCENARIOS = frozenset({"life", "pulling", "pulling-again", "many-images"})
"""Those in which the snapshotter matters; of them alone ``Bench.images_only`` is part."""


def run(bench: Bench, names: Sequence[str], witness: Witness) -> None:
    """Run scenarios by name; note what everybody else's CPU was meanwhile."""
    for name in names:
        tell(f"{name} …")
        began, before = time.monotonic(), witness.look(_cgroups(bench))
        _take_turns(bench, name)
        after, seconds = witness.look(_cgroups(bench)), time.monotonic() - began
        bench.results.busy[name] = shares(before, after, seconds)
        told = ", ".join(f"{who} {percent:.0f} %" for who, percent in bench.results.busy[name].items())
        tell(f"{name} took {seconds:.0f} s; of one core meanwhile: {told}")


def shares(before: Busy, after: Busy, seconds: float) -> dict[str, float]:
    """Return what took CPU between two looks, in percent of one core."""
    bench, kernel, stolen = after.bench - before.bench, after.kernel - before.kernel, after.stolen - before.stolen
    others = after.machine - before.machine - bench - kernel
    parts = {"the bench and its endpoints": bench, "other processes": others, "the kernel": kernel, "the host": stolen}
    return {name: round(100 * max(0.0, part) / seconds, 1) for name, part in parts.items()}


def _take_turns(bench: Bench, name: str) -> None:
    out: set[str] = set()
    endpoints = [one for one in bench.endpoints if one.name not in bench.images_only or name in IMAGE_SCENARIOS]
    for number, turn in enumerate(_turns(bench, name)):
        first = number % max(1, len(endpoints))
        for endpoint in (*endpoints[first:], *endpoints[:first]):
            if endpoint.name in out:
                continue
            try:
                turn(bench, endpoint)
            except Exception as error:  # noqa: BLE001  # whatever fails there is a gap here
                out.add(endpoint.name)
                note_gap(bench, name, endpoint.name, error)
                _recover(endpoint)


def _turns(bench: Bench, name: str) -> Iterator[Turn]:
    """Yield a scenario's turns; one that can't be made ready, such as by pushing its images, is everybody's gap."""
    try:
        yield from SCENARIOS[name](bench)
    except Exception as error:  # noqa: BLE001  # the other scenarios are none the worse
        note_gap(bench, name, "all endpoints", error)


def note_gap(bench: Bench, scenario: str, endpoint: str, error: Exception) -> None:
    """Note and tell what could not be measured."""
    bench.results.gaps.append(Gap(scenario, endpoint, _reason(error)))
    tell(f"gap: {scenario} of {endpoint}: {_reason(error)}")


def _recover(endpoint: Endpoint) -> None:
    if endpoint.engine is not None and endpoint.engine.log.exists():
        tell(f"… the last of its log:\n{endpoint.engine.log.read_text(errors='replace')[-1000:]}")
    try:
        endpoint.revive()
        endpoint.remove_all()
    except Exception as error:  # noqa: BLE001  # the next scenario says so again
        tell(f"{endpoint.name} does not recover: {_reason(error)}")


def _reason(error: Exception) -> str:
    text = f"{error.code().name}: {error.details()}" if isinstance(error, grpc.Call) else str(error)
    return " ".join(f"{text or type(error).__name__}".split())[:300]


def _cgroups(bench: Bench) -> list[str]:
    return [endpoint.cgroup for endpoint in bench.endpoints]


def tell(text: str) -> None:
    """Say how far the run is."""
    print(text, file=sys.stderr, flush=True)
