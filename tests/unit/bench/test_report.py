"""Tables and plots are made of a run alone, and say what was missed."""

import io
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.console import Console

from bench import plots, report
from bench.document import Run, read
from bench.plots import Scale
from bench.results import Results

OURS, NEWER = "crinoid bridge+crun", "containerd 2.3.4"
DOCS = Path(__file__).parents[3] / "docs"
CLUSTER = DOCS / "performance-cluster.json"
_SVG = "{http://www.w3.org/2000/svg}"


def _texts(drawing: str) -> list[str]:
    return [element.text or "" for element in ElementTree.fromstring(drawing).iter(f"{_SVG}text")]


def test_the_printed_table(run: Run) -> None:
    output = io.StringIO()
    report.print_table(run, Console(file=output, width=160))
    text = " ".join(output.getvalue().split())
    assert "0.05 (goal 0.1: met)" in text
    assert "(goal 0.01: NOT MET)" in text
    assert "5 (4, 9)" in text
    assert "CPU in 10 s left alone at 50 pods, s" in text
    assert "medians at 1, 200 pods that stand there" in text
    assert "During `life` took, of one core: other processes 4 %, the kernel 1 %." in text
    assert "Gap: `logging` of containerd 1.6.20: 1,999 of 2,000 lines are in the log" in text


def test_nothing_measured_is_no_error(run: Run) -> None:
    empty = replace(run, results=Results(), endpoints=[])
    report.print_table(empty, Console(file=io.StringIO()))
    report.markdown(empty)
    ElementTree.fromstring(plots.draw_ratios(empty))


def test_the_document_tells_goals_and_gaps(run: Run) -> None:
    lines = report.markdown(run).splitlines()
    assert "| RunPodSandbox, ms | 0.05 (0.1) | 0.41 (0.5) | 0.0833 | 0.683 |" in lines
    assert "| CPU in 10 s left alone at 50 pods, s | 0.004 s (0.01 s) | **0.02 s (0.01 s) not met** |  |  |" in lines
    assert (
        "| a container that writes 200 MB of 100-byte lines, until it ends, s | 0.25 (0.3) | gap | gap | gap |" in lines
    )
    assert "- **CPU left alone**, crinoid cni+runc: 0.02, the goal is 0.01" in lines
    assert "| RunPodSandbox, ms | 5 / 8 | gap / gap | gap / gap | 90 / 180 |" in lines
    assert "| crinoid | commit 0123456789ab |" in lines


def test_the_generated_part_alone_is_written(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text(f"before\n{report.BEGIN}old\n{report.END}after\n")
    report.update(path, run)
    report.update(path, run)
    text = path.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert report.generated(text) == report.markdown(run)


def test_the_plot_of_ratios(run: Run) -> None:
    texts = _texts(plots.draw_ratios(run))
    assert {"0.05", "0.41", "0.25", "gap", "ratio to containerd 2.3.4", "goal", "containerd 1.6.20"} <= set(texts)
    assert "Medians, as a ratio to containerd 2.3.4: below 1 is less time, memory or CPU" in texts
    assert "CPU left alone" not in texts  # its goal is no ratio
    missed = _texts(plots.draw_ratios(replace(run, peer="containerd 1.6.20")))
    assert "0.68, goal not met" in missed


def test_plots_by_name(run: Run) -> None:
    drawn = plots.draw_all(run, "performance")
    assert list(drawn) == ["performance.svg", "performance-pods.svg"]
    for drawing in drawn.values():
        assert "prefers-color-scheme: dark" in drawing
        ElementTree.fromstring(drawing)


def test_the_plot_of_growth_has_a_line_for_each_endpoint(run: Run) -> None:
    root = ElementTree.fromstring(plots.draw_growth(run, "pods"))
    points = [len((line.get("points") or "").split()) for line in root.iter(f"{_SVG}polyline")]
    assert points == [2, 0, 0, 2, 1, 0, 0, 1][: len(points)]
    assert "RunPodSandbox, ms" in _texts(plots.draw_growth(run, "pods"))


@pytest.mark.parametrize(("value", "expected"), [(0.01, 0), (0.1, 50), (1, 100), (0.0001, 0), (7, 100)])
def test_a_scale(value: float, expected: float) -> None:
    assert Scale(0.01, 1, 0, 100).place(value) == pytest.approx(expected)


def test_the_committed_document_is_that_of_the_committed_figures() -> None:
    """After a change run ``python -m bench --render-only --json docs/performance.json``."""
    run, text = read(DOCS / "performance.json"), (DOCS / "performance.md").read_text()
    assert report.generated(text) == report.markdown(run)
    for name, drawing in plots.draw_all(run, "performance").items():
        assert (DOCS / name).read_text() == drawing, name


def test_each_missed_goal_has_its_reason() -> None:
    text = (DOCS / "performance.md").read_text()
    reasons = text.partition("## Why goals are not met\n")[2].partition("\n## ")[0]
    runs = [read(path) for path in (DOCS / "performance.json", CLUSTER) if path.exists()]
    untold = {figure.label for run in runs for figure, _, _ in run.missed() if f"**{figure.label}**" not in reasons}
    assert not untold, "say under 'Why goals are not met' in docs/performance.md what was measured to be the reason"


def test_the_cluster_of_the_document_is_that_of_its_json(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "document.md"
    file.write_text(f"before\n{report.CLUSTER_BEGIN}\nold\n{report.CLUSTER_END}after\n")
    report.update_cluster(file, run)
    text = file.read_text()
    assert text == f"before\n{report.CLUSTER_BEGIN}\n{report.cluster_markdown(run)}\n{report.CLUSTER_END}after\n"
    assert text.count("### Ratios to") == 1
    if CLUSTER.exists():
        assert report.cluster_markdown(read(CLUSTER)) in (DOCS / "performance.md").read_text()


def test_what_is_above_the_floor(run: Run) -> None:
    samples = {"cluster-ready": {OURS: [12.0, 14.0], NEWER: [20.0], report.FLOOR: [10.0]}}
    above = replace(run, peer=NEWER, settings={"cluster_pods": 80}, results=Results(samples))
    assert (
        "Above the floor of 10 s: crinoid bridge+crun 3 s, 0.3 of containerd 2.3.4's 10 s"
        in report.cluster_markdown(above)
    )
