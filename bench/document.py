"""A run as a document: what it found, with what, where; to JSON and back. Tables and plots are made of it alone."""

import json
import platform
import statistics
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.figures import BY_KEY, FIGURES, Figure
from bench.results import Gap, Results, Samples

REPOSITORY = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Summary:
    """Least, median and 95th percentile of ``count`` values."""

    least: float
    median: float
    p95: float
    count: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """An endpoint's figure beside its goal: the ratio of medians, or the median where the goal is absolute."""

    value: float
    goal: float | None

    @property
    def met(self) -> bool:
        """Return whether the goal is met, as it is shown: to two digits behind the first that counts."""
        return self.goal is None or float(f"{self.value:.3g}") <= self.goal


@dataclass(frozen=True, slots=True)
class Run:
    """One run. ``took_s`` is how long it lasted; ``settings`` are what the figures' titles name."""

    at: str
    took_s: float
    machine: Mapping[str, str]
    versions: Mapping[str, str]
    settings: Mapping[str, float]
    endpoints: Sequence[str]
    peer: str
    results: Results

    def figures(self) -> list[Figure]:
        """Return the figures that were measured, in order."""
        return [figure for figure in FIGURES if figure.key in self.results.samples]

    def grown(self, axis: str) -> list[tuple[Figure, str]]:
        """Return the figures whose growth along an axis was measured, and what each is called there."""
        found = {key for samples in self.results.growth.get(axis, {}).values() for key in samples}
        settings: dict[str, float | str] = {**self.settings, "pods": "n", "seconds": self.settings["growth_seconds"]}
        return [(figure, figure.name(settings)) for figure in FIGURES if figure.key in found]

    def growth(self, axis: str, key: str, endpoint: str) -> dict[int, float]:
        """Return the medians of a figure by number."""
        numbers = self.results.growth.get(axis, {})
        found = {number: samples.get(key, {}).get(endpoint) for number, samples in sorted(numbers.items())}
        return {number: summary(values).median for number, values in found.items() if values}

    def verdict(self, key: str, endpoint: str, peer: str = "") -> Verdict | None:
        """Compare with the peer, or with an absolute goal; ``None`` where a side is missing."""
        figure, samples = BY_KEY[key], self.results.samples.get(key, {})
        goal = figure.goal(endpoint)
        if figure.absolute and goal is not None:
            return Verdict(summary(samples[endpoint]).median, goal) if endpoint in samples else None
        value = ratio(samples, endpoint, peer or self.peer)
        return None if value is None else Verdict(value, goal)

    def ours(self) -> list[str]:
        """Return the endpoints that are crinoid's."""
        return [name for name in self.endpoints if name.startswith("crinoid")]

    def peers(self) -> list[str]:
        """Return the endpoints that are compared with, the one of the goals first."""
        others = [name for name in self.endpoints if not name.startswith("crinoid") and name != self.peer]
        return [*([self.peer] if self.peer in self.endpoints else []), *others]

    def missed(self) -> list[tuple[Figure, str, Verdict]]:
        """Return the goals that are not met."""
        found = [(figure, name, self.verdict(figure.key, name)) for figure in self.figures() for name in self.ours()]
        return [(figure, name, verdict) for figure, name, verdict in found if verdict and not verdict.met]


def summary(values: Sequence[float]) -> Summary:
    """Return least, median and 95th percentile (the nearest value at or above it)."""
    ordered = sorted(values)
    rank = -(-len(ordered) * 95 // 100)
    return Summary(ordered[0], statistics.median(ordered), ordered[rank - 1], len(ordered))


def ratio(samples: Mapping[str, Sequence[float]], endpoint: str, peer: str) -> float | None:
    """Return the median of an endpoint as a part of the peer's."""
    if endpoint not in samples or peer not in samples:
        return None
    divisor = summary(samples[peer]).median
    return summary(samples[endpoint]).median / divisor if divisor else None


def now() -> str:
    """Return the time in the document's form."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def machine() -> dict[str, str]:
    """Describe this machine."""
    processor = _first_line("/proc/cpuinfo", "model name") or platform.machine()
    memory = int((_first_line("/proc/meminfo", "MemTotal") or "0").split()[0]) / (1 << 20)
    cgroups = "v1 and v2" if Path("/sys/fs/cgroup/unified").exists() else "v2"
    if not Path("/sys/fs/cgroup/cgroup.controllers").exists() and cgroups == "v2":
        cgroups = "v1"
    cores = str(len([line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("processor")]))
    return {
        "kernel": f"{platform.system()} {platform.release()}",
        "processor": f"{cores} of {processor}",
        "memory": f"{memory:.0f} GiB",
        "cgroups": cgroups,
    }


def _first_line(path: str, name: str) -> str:
    lines = [line.partition(":")[2].strip() for line in Path(path).read_text().splitlines() if line.startswith(name)]
    return lines[0] if lines else ""


def programs() -> dict[str, str]:
    """Return the versions of what crinoid runs on and with."""
    found = {"Python": platform.python_version(), "crinoid": _commit()}
    for program, words in {"runc": "--version", "crun": "--version", "conmon": "--version"}.items():
        found[program] = _said(program, words)
    found["CNI plugins"] = _debian("containernetworking-plugins")
    found["registry"] = _debian("docker-registry")
    return found


def _commit() -> str:
    git = ["git", "-C", str(REPOSITORY)]
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=False)
    kept = ["core", "plugins", "src"]
    state = subprocess.run([*git, "status", "--porcelain", *kept], capture_output=True, text=True, check=False)
    changed = " with changes" if any(line[:2] != "??" for line in state.stdout.splitlines()) else ""
    return f"commit {commit.stdout.strip()}{changed}" if commit.returncode == 0 else "of unknown commit"


def _said(*command: str) -> str:
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return "absent"
    return text.splitlines()[0].removeprefix(command[0]).strip().removeprefix("version ") if text else "unknown"


def _debian(package: str) -> str:
    try:
        command = ["dpkg-query", "--show", "--showformat=${Version}", package]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout or "absent"
    except FileNotFoundError:
        return "unknown"


def write(path: Path, run: Run) -> None:
    """Write a run as JSON."""
    results = run.results
    document = {name: getattr(run, name) for name in ("at", "took_s", "machine", "versions", "settings")}
    document |= {
        "endpoints": list(run.endpoints),
        "peer": run.peer,
        "samples": _rounded(results.samples),
        "growth": {
            axis: {str(number): _rounded(samples) for number, samples in numbers.items()}
            for axis, numbers in results.growth.items()
        },
        "gaps": [asdict(gap) for gap in results.gaps],
        "cpu_percent": results.busy,
    }
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def read(path: Path) -> Run:
    """Read a run that ``write`` wrote."""
    document = json.loads(path.read_text())
    growth = {
        axis: {int(number): samples for number, samples in numbers.items()}
        for axis, numbers in document["growth"].items()
    }
    gaps = [Gap(**gap) for gap in document["gaps"]]
    results = Results(document["samples"], growth, gaps, document["cpu_percent"])
    named = {name: document[name] for name in ("at", "took_s", "machine", "versions", "settings", "endpoints", "peer")}
    return Run(**named, results=results)


def _rounded(samples: Samples) -> Samples:
    """Keep what can be told apart: five digits."""
    return {
        key: {name: [float(f"{value:.5g}") for value in values] for name, values in of_figure.items()}
        for key, of_figure in samples.items()
    }
