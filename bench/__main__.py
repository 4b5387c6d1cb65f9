"""``python -m bench``: starts crinoid and its peer, measures, prints the table; exit 0 whatever the figures."""

import argparse
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

from bench import endpoints, images, report, scenarios
from bench.endpoints import Endpoint
from crinoid import __version__
from crinoid.core.cri.wire import api_pb2 as cri
from support.registry import running_registry

ENDPOINTS = ["crinoid bridge+crun", "crinoid cni+runc", "containerd"]


def main() -> None:
    """Run the benchmark."""
    wanted = arguments()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="crinoid-bench-", dir=wanted.folder)))
        bench = set_up(stack, folder, wanted)
        results = scenarios.run(bench, wanted.only or default_scenarios(wanted.quick))
        names = [endpoint.name for endpoint in bench.endpoints]
        report.print_table(results, names, wanted.peer)
        document = report.as_document(results, names, wanted.peer, versions(bench.endpoints))
        if wanted.json:
            report.write_json(wanted.json, document)
        if wanted.svg:
            report.write_svg(wanted.svg, results, names, wanted.peer)


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="few rounds, no pulls: under two minutes")
    known = ", ".join(scenarios.SCENARIOS)
    parser.add_argument("--only", action="append", default=[], help=f"scenarios, with commas between: {known}")
    parser.add_argument("--on", action="append", default=[], help=f"endpoints, likewise: {', '.join(ENDPOINTS)}, …")
    parser.add_argument("--endpoint", action="append", default=[], help="NAME=unix:///path[,handler]: one more")
    parser.add_argument("--peer", default="containerd", help="the endpoint that ratios are to")
    parser.add_argument("--pods", type=int, default=50, help="pods that stand there")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write all samples here")
    parser.add_argument("--svg", type=Path, help="draw the ratios here")
    parser.add_argument("--folder", help="where to keep images and state; on the disk that nodes use")
    wanted = parser.parse_args()
    wanted.only, wanted.on = parts(wanted.only), parts(wanted.on) or ENDPOINTS
    if unknown := set(wanted.only) - set(scenarios.SCENARIOS):
        parser.error(f"no scenario {sorted(unknown)}; there are: {known}")
    if wanted.quick:
        wanted.rounds, wanted.pods = min(wanted.rounds, 6), min(wanted.pods, 20)
    return wanted


def parts(values: list[str]) -> list[str]:
    """Split what stands with commas between."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def default_scenarios(quick: bool) -> list[str]:
    """Return what is measured when nothing is named."""
    return ["life", "crowd", "standing"] if quick else list(scenarios.SCENARIOS)


def set_up(stack: ExitStack, folder: Path, wanted: argparse.Namespace) -> scenarios.Bench:
    """Start registry and endpoints, and pull what every scenario needs."""
    registry = stack.enter_context(running_registry(folder / "registry"))
    pulls = "pulling" in (wanted.only or default_scenarios(wanted.quick))
    references = images.push_all(folder, registry, pulls)
    found: list[Endpoint] = [stack.enter_context(start(name, folder / name, registry.host)) for name in wanted.on]
    found += [endpoints.named(text) for text in wanted.endpoint]
    for endpoint in found:
        spec = cri.ImageSpec(image=references["busybox"])
        endpoint.client.call("PullImage", cri.PullImageRequest(image=spec))
    seconds = 4.0 if wanted.quick else 10.0
    return scenarios.Bench(found, registry.host, references, folder / "logs", wanted.rounds, wanted.pods, seconds)


def start(name: str, folder: Path, registry: str) -> AbstractContextManager[Endpoint]:
    """Start an endpoint of our own making: ``containerd``, or ``crinoid NETWORK+RUNTIME``."""
    if name == "containerd":
        return endpoints.containerd(folder, registry)
    network, _, runtime = name.removeprefix("crinoid ").partition("+")
    return endpoints.crinoid(folder, name, network, runtime, registry)


def versions(found: Sequence[Endpoint]) -> dict[str, str]:
    """Return the versions of all that was measured."""
    known = {"crinoid": __version__}
    for endpoint in found:
        answer = endpoint.client.call("Version", cri.VersionRequest())
        known[endpoint.name] = f"{answer.runtime_name} {answer.runtime_version}"
    for program in ("runc", "crun", "conmon"):
        text = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
        known[program] = text.splitlines()[0] if text else "absent"
    return known


if __name__ == "__main__":
    main()
