"""Turns are taken in rotation, failures become gaps, and logs are counted line by line."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench import __main__ as command
from bench import scenarios
from bench.measure import Witness
from bench.results import Gap, Results
from bench.scenarios import logs
from bench.scenarios.node import Bench


class _Endpoint:
    """An endpoint that is told apart by its name, and can recover."""

    cgroup = "/none"
    engine = None

    def __init__(self, name: str) -> None:
        self.name = name
        self.acts: list[str] = []

    def revive(self) -> None:
        self.acts.append("revive")

    def remove_all(self) -> None:
        self.acts.append("remove all")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    endpoints: Any = [_Endpoint("a"), _Endpoint("b"), _Endpoint("c")]
    return Bench(endpoints, "", {}, tmp_path, 1, 1, 1.0)


def test_endpoints_take_turns_and_a_failure_is_a_gap(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []

    def turn(bench: Bench, endpoint: Any) -> None:
        taken.append(endpoint.name)
        if endpoint.name == "b":
            raise TimeoutError("b does not answer")
        bench.results.add("run", endpoint.name, 1.0)

    def turns(bench: Bench) -> Iterator[scenarios.Turn]:
        yield from [turn, turn]

    monkeypatch.setattr(scenarios, "SCENARIOS", {"first": turns, "second": turns})
    scenarios.run(bench, ["first", "second"], Witness(None))
    assert taken == ["a", "b", "c", "c", "a"] * 2
    assert bench.results.gaps == [Gap(name, "b", "b does not answer") for name in ("first", "second")]
    assert bench.results.samples == {"run": {"a": [1.0] * 4, "c": [1.0] * 4}}
    assert [endpoint.acts for endpoint in bench.endpoints] == [[], ["revive", "remove all"] * 2, []]  # type: ignore[attr-defined]
    assert set(bench.results.busy) == {"first", "second"}


@pytest.mark.parametrize(("scenario", "expected"), [("pulling", ["a", "b", "c"]), ("crowd", ["a", "c"])])
def test_another_snapshotter_is_measured_where_images_are(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, scenario: str, expected: list[str]
) -> None:
    taken: list[str] = []
    bench.images_only = frozenset({"b"})
    turns: Any = lambda bench: [lambda _bench, endpoint: taken.append(endpoint.name)]  # noqa: E731
    monkeypatch.setattr(scenarios, "SCENARIOS", {scenario: turns})
    scenarios.run(bench, [scenario], Witness(None))
    assert taken == expected


def test_samples_go_where_they_belong() -> None:
    results = Results()
    with results.at("pods", 10):
        results.add("run", "a", 1.0)
        with results.ignored():
            results.add("run", "a", 99.0)
        with results.ignored(False), results.timed("removal", "a"):
            pass
    results.add("run", "a", 2.0)
    assert results.samples == {"run": {"a": [2.0]}}
    assert results.growth["pods"][10]["run"] == {"a": [1.0]}
    assert 0 < results.growth["pods"][10]["removal"]["a"][0] < 1


def test_what_fails_has_no_time() -> None:
    results = Results()
    with pytest.raises(ValueError, match="no"), results.timed("run", "a"):
        raise ValueError("no")
    with pytest.raises(KeyError):
        results.add("not a figure", "a", 1.0)
    assert results.samples == {}


def _log(path: Path, *lines: tuple[str, bytes]) -> Path:
    path.write_bytes(b"".join(b"2026-01-01T00:00:00.0Z stdout %s %s\n" % (tag.encode(), text) for tag, text in lines))
    return path


def test_partial_lines_are_joined(tmp_path: Path) -> None:
    line = logs.LINE
    log = _log(tmp_path / "log", ("F", line), ("P", line[:30]), ("P", line[30:31]), ("F", line[31:]), ("F", line))
    assert logs.count_lines(log) == 3


@pytest.mark.parametrize("text", [logs.LINE[:-1], logs.LINE + b"x", b"", logs.LINE.replace(b"7", b"8")])
def test_a_broken_line_is_told(tmp_path: Path, text: bytes) -> None:
    with pytest.raises(AssertionError, match="a line was"):
        logs.count_lines(_log(tmp_path / "log", ("F", logs.LINE), ("F", text)))


def test_the_last_line_without_its_end_does_not_count(tmp_path: Path) -> None:
    assert logs.count_lines(_log(tmp_path / "log", ("F", logs.LINE), ("P", logs.LINE))) == 1


@pytest.mark.parametrize(
    ("names", "wanted", "expected"),
    [
        (["crinoid cni+runc", "containerd 1.6.20", "containerd 2.10.0", "containerd 2.9.1"], "", "containerd 2.10.0"),
        (["crinoid cni+runc", "containerd 1.6.20", "CRI-O 1.37.0"], "", "containerd 1.6.20"),
        (["crinoid cni+runc", "CRI-O 1.37.0"], "", "CRI-O 1.37.0"),
        (["crinoid cni+runc", "containerd 1.6.20", "containerd 2.3.4"], "containerd 1", "containerd 1.6.20"),
        (["crinoid cni+runc"], "", ""),
    ],
)
def test_the_peer(names: list[str], wanted: str, expected: str) -> None:
    assert command.peer_of(names, wanted) == expected


def test_the_command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(
        "sys.argv", ["bench", "--quick", "--only", "life,crowd", "--containerd", "/opt/c", "--crio", "/o"]
    )
    wanted = command.arguments()
    assert wanted.only == ["life", "crowd"]
    ours = ["crinoid bridge+crun", "crinoid cni+runc", "crinoid bridge+crun+erofs"]
    assert wanted.on == [*ours, "containerd", "containerd=/opt/c", "crio=/o"]
    assert wanted.images_only == {"crinoid bridge+crun+erofs"}
    assert (wanted.rounds, wanted.pods) == (6, 20)
    monkeypatch.setattr("sys.argv", ["bench", "--only", "live"])
    with pytest.raises(SystemExit):
        command.arguments()
    assert "no scenario live; there are: life, crowd" in capsys.readouterr().err
