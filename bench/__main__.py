"""``python -m bench``: starts crinoid and its peers, measures, prints the table; exit 0 whatever the figures."""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack, nullcontext, suppress
from functools import partial
from pathlib import Path
from types import FrameType

from bench import document, images, plots, report, scenarios
from bench.document import Run
from bench.endpoints import OTHER_SNAPSHOTTERS, OURS, Endpoint, named, start
from bench.measure import witness
from bench.scenarios import SCENARIOS, Bench, note_gap, tell
from bench.scenarios.pulls import pull
from crinoid.core.cri.wire import api_pb2 as cri
from support.registry import running_registry

DOCUMENT = document.REPOSITORY / "docs" / "performance.md"
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_QUICK = ("life", "crowd", "standing", "logging", "pulling")
_EPILOGUE = f"""
scenarios: {", ".join(SCENARIOS)}
endpoints: {", ".join((*OURS, *OTHER_SNAPSHOTTERS))}, containerd;
  containerd=PROGRAM, crio=PROGRAM, crinoid NETWORK+RUNTIME[+SNAPSHOTTER]

  python -m bench --quick --only life,crowd --on 'crinoid bridge+crun,containerd'
  python -m bench --only pulling,life --on 'crinoid bridge+crun,crinoid bridge+crun+erofs,containerd'
  python -m bench --containerd /opt/containerd-2/containerd --json docs/performance.json --render

All is stopped and removed at the end, also after Ctrl-C. Ratios are to the newest containerd unless --peer
names another.
"""


def main() -> None:
    """Run the benchmark."""
    wanted = arguments()
    for number in _ENDING:  # SIGINT, too: shells let what they start in the background ignore it
        signal.signal(number, _interrupt)
    if wanted.render_only:
        render(wanted.json, document.read(wanted.json))
        return
    try:
        run, whole = measure(wanted)
    except KeyboardInterrupt:
        sys.exit("interrupted before anything was measured")
    report.print_table(run)
    if not whole:
        sys.exit("interrupted; nothing was written")
    if wanted.json:
        document.write(wanted.json, run)
        if wanted.render:
            render(wanted.json, document.read(wanted.json))


def arguments() -> argparse.Namespace:
    """Read the command line."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("bench", description=__doc__, epilog=_EPILOGUE, formatter_class=form)
    parser.add_argument("--quick", action="store_true", help="small and few: under two minutes")
    parser.add_argument("--only", action="append", default=[], metavar="SCENARIO,…", help="measure only these")
    parser.add_argument("--on", action="append", default=[], metavar="ENDPOINT,…", help="start only these")
    parser.add_argument("--containerd", action="append", default=[], metavar="PROGRAM", help="one more containerd")
    parser.add_argument("--crio", action="append", default=[], metavar="PROGRAM", help="a CRI-O, pinns beside it")
    parser.add_argument("--endpoint", action="append", default=[], metavar="NAME=unix:///path[,handler]")
    parser.add_argument("--peer", default="", help="the endpoint that ratios are to, by the beginning of its name")
    parser.add_argument("--pods", type=int, default=50, help="pods that stand there")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, help="write all samples here")
    parser.add_argument("--render", action="store_true", help="write docs/performance.md and its plots, too")
    parser.add_argument("--render-only", action="store_true", help="measure nothing; render what --json has")
    parser.add_argument("--directory", help="where to keep images and state; on the disk that nodes use")
    wanted = parser.parse_args()
    wanted.only = _parts(wanted.only) or list(_QUICK if wanted.quick else SCENARIOS)
    wanted.images_only = frozenset() if _parts(wanted.on) else frozenset(OTHER_SNAPSHOTTERS)
    wanted.on = _parts(wanted.on) or [*OURS, *OTHER_SNAPSHOTTERS, "containerd"]
    wanted.on += [f"containerd={program}" for program in wanted.containerd]
    wanted.on += [f"crio={program}" for program in wanted.crio]
    if unknown := sorted(set(wanted.only) - set(SCENARIOS)):
        parser.error(f"no scenario {', '.join(unknown)}; there are: {', '.join(SCENARIOS)}")
    if (wanted.render or wanted.render_only) and not wanted.json:
        parser.error("--render needs --json")
    if wanted.quick:
        wanted.rounds, wanted.pods = min(wanted.rounds, 6), min(wanted.pods, 20)
    return wanted


def measure(wanted: argparse.Namespace) -> tuple[Run, bool]:
    """Start everything, measure, and stop everything; tell whether all was measured."""
    began, at, whole = time.monotonic(), document.now(), False
    with ExitStack() as stack:
        stack.callback(tell, "all is stopped and removed")
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="crinoid-bench-", dir=wanted.directory))
        )
        _spread(directory)
        try:
            watch = stack.enter_context(witness())
            bench = set_up(stack, directory, wanted)
            with suppress(KeyboardInterrupt):  # what was measured by then is shown
                scenarios.run(bench, wanted.only, watch)
                whole = True
            versions = {**document.programs(), **{one.name: _version(one) for one in bench.endpoints}}
        finally:
            _undisturbed()
    names = [endpoint.name for endpoint in bench.endpoints]
    took, settings = time.monotonic() - began, settings_of(bench)
    peer = peer_of(names, wanted.peer)
    return Run(at, took, document.machine(), versions, settings, names, peer, bench.results), whole


def set_up(stack: ExitStack, directory: Path, wanted: argparse.Namespace) -> Bench:
    """Start registry and endpoints, and pull what every scenario needs."""
    tell("images, registry and endpoints …")
    compiler = document.REPOSITORY / "tools" / "compile_bytecode.py"  # as an installed crinoid is
    subprocess.run([sys.executable, str(compiler)], check=True)
    registry = stack.enter_context(running_registry(directory / "registry"))
    sizes = images.QUICK if wanted.quick else images.Sizes()
    references = images.push_all(directory, registry, any(name.startswith("pulling") for name in wanted.only), sizes)
    found: list[Endpoint] = []
    seconds = 3.0 if wanted.quick else 10.0
    bench = Bench(found, registry.host, references, directory / "logs", wanted.rounds, wanted.pods, seconds)
    makers: list[tuple[str, Callable[[], AbstractContextManager[Endpoint]]]]
    makers = [(name, partial(start, name, directory / f"node{n}", registry.host)) for n, name in enumerate(wanted.on)]
    makers += [(text, partial(_connect, text)) for text in wanted.endpoint]
    for name, make in makers:
        try:
            endpoint = stack.enter_context(make())
            pull(endpoint, references["busybox"])
            found.append(endpoint)
        except Exception as error:  # noqa: BLE001  # a run without it is better than none
            note_gap(bench, "set-up", name, error)
    bench.quick, bench.sizes, bench.running_registry = wanted.quick, sizes, registry
    bench.log_mb, bench.images_only = 20 if wanted.quick else 200, wanted.images_only
    return bench


def settings_of(bench: Bench) -> dict[str, float]:
    """Return what the figures' titles name."""
    settings = {"pods": bench.pods, "seconds": bench.seconds, "growth_seconds": bench.growth_seconds}
    settings |= {"rounds": bench.rounds, "log_mb": bench.log_mb, "tiny_files": bench.sizes.tiny_files}
    return settings | {"large_mb": bench.sizes.large_mb, "large_files": bench.sizes.large_files}


def peer_of(names: list[str], wanted: str) -> str:
    """Return the endpoint that ratios are to: the one whose name begins so, else the newest containerd."""
    others = [name for name in names if not name.startswith("crinoid")]
    if wanted:
        return next((name for name in names if name.startswith(wanted)), wanted)
    known = [name for name in others if name.startswith("containerd")]
    return max(known, key=_numbers, default=others[0] if others else "")


def render(path: Path, run: Run) -> None:
    """Write the generated part of docs/performance.md, and the plots beside the JSON document."""
    report.update(DOCUMENT, run)
    plots.write_all(run, path)


def _numbers(name: str) -> list[int]:
    """Return the numbers of a version, to compare by."""
    return [int(part) for part in name.rpartition(" ")[2].split(".") if part.isdigit()]


def _parts(values: list[str]) -> list[str]:
    """Split what stands with commas between."""
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


def _version(endpoint: Endpoint) -> str:
    try:
        answer = endpoint.client.call("Version", cri.VersionRequest(), 5)
    except Exception:  # noqa: BLE001  # it is gone: its gaps tell why
        return "does not answer"
    return f"{answer.runtime_name} {answer.runtime_version}"


def _connect(text: str) -> AbstractContextManager[Endpoint]:
    return nullcontext(named(text))


def _spread(directory: Path) -> None:
    """Have ext4 lay the directories inside apart, as it does with those at the top of a disk."""
    subprocess.run(["chattr", "+T", str(directory)], check=False, capture_output=True)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _undisturbed() -> None:
    """Let nobody interrupt what follows, the stopping of everything."""
    for number in _ENDING:
        signal.signal(number, signal.SIG_IGN)
    tell("stopping everything …")


if __name__ == "__main__":
    main()
