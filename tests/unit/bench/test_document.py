"""The bench's arithmetic: medians, percentiles, ratios, goals, and a run that goes to JSON and back."""

from dataclasses import replace
from pathlib import Path

import pytest

from bench.document import Run, Summary, Verdict, ratio, read, summary, write
from bench.figures import BY_KEY, FIGURES

OURS, OTHER, PEER, NEWER = "crinoid bridge+crun", "crinoid cni+runc", "containerd 1.6.20", "containerd 2.3.4"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0], Summary(3.0, 3.0, 3.0, 1)),
        ([4.0, 1.0], Summary(1.0, 2.5, 4.0, 2)),
        ([float(n) for n in range(20, 0, -1)], Summary(1.0, 10.5, 19.0, 20)),
        ([float(n) for n in range(1, 101)], Summary(1.0, 50.5, 95.0, 100)),
    ],
)
def test_a_summary(values: list[float], expected: Summary) -> None:
    assert summary(values) == expected


def test_ratios_are_of_medians() -> None:
    assert ratio({"a": [1.0, 2.0, 9.0], "b": [4.0]}, "a", "b") == 0.5
    assert ratio({"a": [1.0]}, "a", "b") is None
    assert ratio({"b": [1.0]}, "a", "b") is None
    assert ratio({"a": [1.0], "b": [0.0]}, "a", "b") is None


def test_goals_are_for_ours_alone_and_by_set_up() -> None:
    figure = BY_KEY["run"]
    assert [figure.goal(name) for name in (OURS, OTHER, NEWER)] == [0.10, 0.50, None]
    assert BY_KEY["version"].goal(OURS) is None


def test_verdicts(run: Run) -> None:
    assert run.verdict("run", OURS) == Verdict(0.05, 0.10)
    assert run.verdict("run", OTHER) == Verdict(0.41, 0.50)
    assert run.verdict("run", OTHER, PEER) == Verdict(41 / 60, 0.50)
    assert run.verdict("logging", OTHER) is None
    assert run.verdict("version", OURS) == Verdict(pytest.approx(1.5), None)  # type: ignore[arg-type]


def test_an_absolute_goal_needs_no_peer(run: Run) -> None:
    assert run.verdict("idle", OURS) == Verdict(0.004, 0.01)
    assert run.verdict("idle", OTHER) == Verdict(0.02, 0.01)


def test_what_is_shown_as_the_goal_meets_it() -> None:
    assert Verdict(0.1004, 0.10).met
    assert not Verdict(0.101, 0.10).met
    assert Verdict(7.0, None).met


def test_missed_goals(run: Run) -> None:
    assert [(figure.key, name) for figure, name, _ in run.missed()] == [("idle", OTHER)]
    worse = replace(run, peer=PEER)
    assert [(figure.key, name) for figure, name, _ in worse.missed()] == [("run", OTHER), ("idle", OTHER)]


def test_the_peer_of_the_goals_comes_first(run: Run) -> None:
    assert run.peers() == [NEWER, PEER]
    assert run.ours() == [OURS, OTHER]
    assert replace(run, peer="nobody").peers() == [PEER, NEWER]


def test_growth_is_in_order(run: Run) -> None:
    assert run.growth("pods", "run", OURS) == {1: 5.0, 200: 8.0}
    assert list(run.growth("pods", "run", OURS)) == [1, 200]
    assert run.growth("pods", "polling", OURS) == {1: 0.01}
    assert run.growth("layers", "run", OURS) == {}
    assert [name for _, name in run.grown("pods")] == [
        "RunPodSandbox, ms",
        "CPU in 5 s of a kubelet's polling at n pods, s",
    ]


def test_a_run_comes_back_from_json(run: Run, tmp_path: Path) -> None:
    write(tmp_path / "run.json", run)
    assert read(tmp_path / "run.json") == run


def test_names_have_the_settings_in_them() -> None:
    settings = {"large_mb": 500, "large_files": 20_000}
    assert BY_KEY["pull-large"].name(settings) == "PullImage, 500 MB in 20,000 files, 4 layers, s"


def test_every_figure_has_a_key_and_a_label_of_its_own() -> None:
    assert len(BY_KEY) == len(FIGURES) == len({figure.label for figure in FIGURES})
