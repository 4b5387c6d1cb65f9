"""The table, the JSON document and the plot of a run."""

import json
import math
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.scenarios import Results

GOALS: Mapping[str, tuple[float, float]] = {
    "RunPodSandbox, ms": (0.10, 0.50),
    "CreateContainer + StartContainer, ms": (0.45, 0.95),
    "pod ready, ms": (0.18, 0.60),
    "ten pods at once, ms": (0.25, 0.60),
    "StopPodSandbox + RemovePodSandbox, ms": (0.10, 0.60),
    "ExecSync(true), ms": (0.45, 0.90),
    "ListContainers, ListPodSandbox, ContainerStatus": (1.0, 1.0),
    "ListContainerStats": (0.25, 0.25),
    "ListPodSandboxStats": (0.25, 0.25),
    "PSS of daemon and monitors": (0.22, 0.22),
    "CPU of 10 s of polling": (0.12, 0.12),
    "a container that writes": (0.30, 0.30),
    "PullImage, 500 MB": (0.50, 0.50),
    "PullImage, 30,000": (0.80, 0.80),
    "restart until the first full list": (0.60, 0.60),
    "removing": (0.15, 0.50),
}
"""Ratios of medians to the peer that are aimed at, for ``bridge`` + crun and for CNI + runc."""


def goal_of(figure: str, endpoint: str) -> float | None:
    """Return the ratio aimed at, if there is one."""
    goals = next((value for prefix, value in GOALS.items() if figure.startswith(prefix)), None)
    return None if goals is None else goals[0 if "crun" in endpoint else 1]


def ratio(results: Results, figure: str, endpoint: str, peer: str) -> float | None:
    """Return the median of an endpoint as a part of the peer's."""
    samples = results.samples[figure]
    if endpoint not in samples or peer not in samples or not samples[peer].summary()["median"]:
        return None
    return samples[endpoint].summary()["median"] / samples[peer].summary()["median"]


def print_table(results: Results, endpoints: Sequence[str], peer: str) -> None:
    """Print least, median and 95th percentile of each, and the ratio to the peer beside its goal."""
    table = Table(title=f"medians (least, 95 %); ratios to {peer}")
    table.add_column("figure")
    for endpoint in endpoints:
        table.add_column(endpoint, justify="right")
    for figure in results.samples:
        table.add_row(figure, *(_cell(results, figure, endpoint, peer) for endpoint in endpoints))
    console = Console(width=None if Console().is_terminal else 200)
    console.print(table)
    for name, percent in results.foreign_cpu.items():
        console.print(f"during {name!r}, all but the daemons used {percent:.0f} % of one core", highlight=False)


def as_document(
    results: Results, endpoints: Sequence[str], peer: str, versions: Mapping[str, str]
) -> dict[str, object]:
    """Return all of a run as a JSON object."""
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "kernel": platform.release(),
        "versions": dict(versions),
        "peer": peer,
        "figures": {
            figure: {
                name: {**samples.summary(), "ratio": ratio(results, figure, name, peer), "values": samples.values}
                for name, samples in of_figure.items()
            }
            for figure, of_figure in results.samples.items()
        },
        "foreign_cpu_percent": results.foreign_cpu,
        "endpoints": list(endpoints),
    }


def write_json(path: Path, document: Mapping[str, object]) -> None:
    """Write the document."""
    path.write_text(json.dumps(document, indent=1) + "\n")


def write_svg(path: Path, results: Results, endpoints: Sequence[str], peer: str) -> None:
    """Draw the ratios as bars on a logarithmic scale; the line is the peer, the mark the goal."""
    rows = [(figure, name) for figure in results.samples for name in endpoints if name != peer]
    height, left, width = 22 * len(rows) + 60, 480, 420
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + width + 90}" height="{height}" font-size="12">']
    parts.append('<rect width="100%" height="100%" fill="white"/><g font-family="sans-serif">')
    for tick in (0.01, 0.03, 0.1, 0.3, 1, 3):
        x = left + _position(tick) * width
        stroke = "#444" if tick == 1 else "#ddd"
        parts.append(f'<line x1="{x:.0f}" y1="30" x2="{x:.0f}" y2="{height - 10}" stroke="{stroke}"/>')
        parts.append(f'<text x="{x:.0f}" y="22" text-anchor="middle">{tick:g}</text>')
    for number, (figure, name) in enumerate(rows):
        parts += _bar(number, figure, name, ratio(results, figure, name, peer), (left, width))
    path.write_text("\n".join([*parts, "</g></svg>"]) + "\n")


def _bar(number: int, figure: str, name: str, value: float | None, place: tuple[int, int]) -> list[str]:
    left, width = place
    y = 40 + 22 * number
    parts = [f'<text x="{left - 8}" y="{y + 12}" text-anchor="end">{figure} ({name})</text>']
    if value is None:
        return parts
    goal = goal_of(figure, name)
    colour = "#2a7f62" if goal is None or value <= goal else "#c0562f"
    bar = max(2.0, _position(value) * width)
    parts.append(f'<rect x="{left}" y="{y}" width="{bar:.0f}" height="15" fill="{colour}"/>')
    parts.append(f'<text x="{left + bar + 5:.0f}" y="{y + 12}">{value:.2f}</text>')
    if goal is not None:
        x = left + _position(goal) * width
        parts.append(f'<path d="M{x:.0f} {y - 2}v19" stroke="black" stroke-width="2"/>')
    return parts


def _position(value: float) -> float:
    """Place a ratio between 0.01 and 5 on a logarithmic scale from 0 to 1."""
    return (math.log10(min(max(value, 0.01), 5)) + 2) / (math.log10(5) + 2)


def _cell(results: Results, figure: str, endpoint: str, peer: str) -> str:
    samples = results.samples[figure].get(endpoint)
    if samples is None:
        return "-"
    summary = samples.summary()
    text = f"{summary['median']:.3g} ({summary['min']:.3g}, {summary['p95']:.3g})"
    value = None if endpoint == peer else ratio(results, figure, endpoint, peer)
    if value is None:
        return text
    goal = goal_of(figure, endpoint)
    verdict = "" if goal is None else f" [{'green' if value <= goal else 'red'}](goal {goal:g})[/]"
    return f"{text}\n[bold]{value:.3g}[/]{verdict}"
