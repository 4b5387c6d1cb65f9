"""The table of a run, for the terminal and for docs/performance.md."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.document import Run, Summary, Verdict, summary
from bench.figures import BY_KEY

BEGIN = "<!-- From here to the end mark `make bench` writes; `python -m bench --render-only` does it from JSON. -->\n"
END = "<!-- The end mark. -->\n"
CLUSTER_BEGIN = "<!-- From here to its end mark `make bench-cluster` writes. -->\n"
FLOOR = "floor"
CLUSTER_END = "<!-- The end mark of the cluster. -->\n"
AXES = {
    "pods": "pods that stand there",
    "images": "images on the node",
    "layers": "layers of the image above the first",
}


def print_table(run: Run, console: Console | None = None) -> None:
    """Print medians of each endpoint, and for ours the ratio to the peer, beside its goal."""
    console = console or Console(width=None if Console().is_terminal else 180)
    compared = f"; ratios are to {run.peer}" if run.peer else ""
    table = _table(f"medians (least, 95 %){compared}", run.endpoints)
    for figure in run.figures():
        cells = [_cell(run, figure.key, endpoint) for endpoint in run.endpoints]
        table.add_row(figure.name(run.settings), *cells)
    if table.row_count:
        console.print(table)
    for axis in (axis for axis in AXES if run.results.growth.get(axis)):
        table = _table(f"medians at {_numbers(run, axis)} {AXES[axis]}", run.endpoints)
        for name, cells in _grown(run, axis):
            table.add_row(name, *cells)
        console.print(table)
    for line in _facts(run):
        console.print(line.replace("**", "").removeprefix("- "), highlight=False, markup=False)


def _table(title: str, endpoints: Sequence[str]) -> Table:
    table = Table(title=title)
    table.add_column("figure", ratio=3)
    for endpoint in endpoints:
        table.add_column(endpoint, justify="right", ratio=2)
    return table


def _cell(run: Run, key: str, endpoint: str) -> str:
    samples = run.results.samples[key].get(endpoint)
    if samples is None:
        return "-"
    text = _spread(summary(samples))
    verdict = run.verdict(key, endpoint) if endpoint in run.ours() else None
    if verdict is None:
        return text
    if verdict.goal is None:
        return f"{text}\n[bold]{verdict.value:.3g}[/]"
    colour, said = ("green", "met") if verdict.met else ("red", "NOT MET")
    value = "" if BY_KEY[key].absolute else f"[bold]{verdict.value:.3g}[/] "
    return f"{text}\n{value}[{colour}](goal {verdict.goal:g}: {said})[/]"


def _spread(found: Summary) -> str:
    return f"{_number(found.median)} ({_number(found.least)}, {_number(found.p95)})"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def markdown(run: Run) -> str:
    """Return the generated part of docs/performance.md."""
    parts = [_about(run), _goals(run), _missed(run), _medians(run), *(_growth(run, axis) for axis in AXES)]
    return "\n\n".join(part for part in parts if part) + "\n"


def update(path: Path, run: Run) -> None:
    """Write the generated part of a document between its marks."""
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{markdown(run)}\n{END}{after}")


def update_cluster(path: Path, run: Run) -> None:
    """Write the part that ``bench.cluster`` measured, between marks of its own."""
    before, _, rest = path.read_text().partition(CLUSTER_BEGIN)
    _, _, after = rest.partition(CLUSTER_END)
    path.write_text(f"{before}{CLUSTER_BEGIN}\n{cluster_markdown(run)}\n{CLUSTER_END}{after}")


def cluster_markdown(run: Run) -> str:
    """Return what is generated of a run of ``bench.cluster``."""
    parts = [_about(run), _ratios(run, "###"), _above_floor(run), _missed(run, "###"), _medians(run, "###")]
    return "\n\n".join(part for part in parts if part) + "\n"


def _above_floor(run: Run) -> str:
    """Say what pods take beyond what a kubelet takes on drivers that do nothing."""
    samples = run.results.samples.get("cluster-ready", {})
    if FLOOR not in samples or run.peer not in samples:
        return ""
    floor = summary(samples[FLOOR]).median
    above = {name: summary(samples[name]).median - floor for name in (*run.ours(), run.peer) if name in samples}
    told = [
        f"{name} {_number(above[name])} s, {_number(above[name] / above[run.peer])} of {run.peer}'s "
        f"{_number(above[run.peer])} s (the goal is 0.5)"
        for name in run.ours()
        if name in above
    ]
    return f"Above the floor of {_number(floor)} s: {'; '.join(told)}."


def generated(text: str) -> str:
    """Return what stands between the marks of a document."""
    return text.partition(BEGIN)[2].partition(END)[0].strip() + "\n"


def _about(run: Run) -> str:
    lines = [f"Measured {run.at.replace('T', ' ').replace('+00:00', ' UTC')}, in {run.took_s / 60:.0f} minutes.", ""]
    lines += ["| what | which |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in {**run.machine, **run.versions}.items()]
    return "\n".join([*lines, "", *_facts(run)])


def _facts(run: Run) -> Iterator[str]:
    """Yield what must be known beside the figures: CPU that others took, and gaps."""
    for scenario, parts in run.results.busy.items():
        told = ", ".join(f"{who} {percent:.0f} %" for who, percent in parts.items())
        yield f"- During `{scenario}` took, of one core: {told}."
    for gap in run.results.gaps:
        yield f"- **Gap**: `{gap.scenario}` of {gap.endpoint}: {gap.reason}"


def _goals(run: Run) -> str:
    return f"{_ratios(run)}\n\n![Ratios to the peer, and goals](performance.svg)"


def _ratios(run: Run, mark: str = "##") -> str:
    head = ["figure", *(f"{name}: ratio (goal)" for name in run.ours())]
    others = [(name, peer) for peer in run.peers()[1:] for name in run.ours()]
    head += [f"{name} to {peer}" for name, peer in others]
    lines = [f"{mark} Ratios to {run.peer}", "", _row(head), _row(["---"] + ["---:"] * (len(head) - 1))]
    for figure in run.figures():
        if figure.goals is None:
            continue
        cells = [_told(run.verdict(figure.key, name), figure.absolute) for name in run.ours()]
        more = [run.verdict(figure.key, name, peer) for name, peer in others]
        cells += ["" if figure.absolute else "gap" if found is None else _number(found.value) for found in more]
        lines.append(_row([figure.name(run.settings), *cells]))
    note = "Below 1 is better than the peer. A goal with a unit is a value, no ratio."
    return "\n".join([*lines, "", note])


def _told(verdict: Verdict | None, absolute: bool) -> str:
    if verdict is None:
        return "gap"
    unit = " s" if absolute else ""
    text = f"{_number(verdict.value)}{unit} ({verdict.goal:g}{unit})"
    return text if verdict.met else f"**{text} not met**"


def _missed(run: Run, mark: str = "##") -> str:
    lines = [
        f"- **{figure.label}**, {name}: {_number(verdict.value)}, the goal is {verdict.goal:g}"
        for figure, name, verdict in run.missed()
    ]
    return "\n".join([f"{mark} Goals that this run did not meet", "", *(lines or ["None."])])


def _medians(run: Run, mark: str = "##") -> str:
    lines = [f"{mark} Medians (least, 95th percentile)", "", _row(["figure", *run.endpoints])]
    lines.append(_row(["---"] + ["---:"] * len(run.endpoints)))
    for figure in run.figures():
        samples = run.results.samples[figure.key]
        cells = [_spread(summary(samples[name])) if name in samples else "gap" for name in run.endpoints]
        lines.append(_row([figure.name(run.settings), *cells]))
    return "\n".join(lines)


def _growth(run: Run, axis: str) -> str:
    if not run.results.growth.get(axis):
        return ""
    lines = [f"## Growth with the number of {AXES[axis]}", "", f"Medians at {_numbers(run, axis)}.", ""]
    lines += [_row(["figure", *run.endpoints]), _row(["---"] + ["---:"] * len(run.endpoints))]
    lines += [_row([name, *cells]) for name, cells in _grown(run, axis)]
    return "\n".join([*lines, "", f"![Growth with the number of {AXES[axis]}](performance-{axis}.svg)"])


def _grown(run: Run, axis: str) -> Iterator[tuple[str, list[str]]]:
    """Yield, for each figure, its name and each endpoint's medians in order."""
    numbers = sorted(run.results.growth[axis])
    for figure, name in run.grown(axis):
        rows = [run.growth(axis, figure.key, endpoint) for endpoint in run.endpoints]
        yield name, [" / ".join(_number(row[n]) if n in row else "gap" for n in numbers) for row in rows]


def _numbers(run: Run, axis: str) -> str:
    return ", ".join(map(str, sorted(run.results.growth[axis])))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
