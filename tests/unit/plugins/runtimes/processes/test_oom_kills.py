"""Kills for want of memory, of containers whose cgroup is there and of such whose cgroup systemd has removed."""

import shutil
from contextlib import ExitStack
from pathlib import Path

import pytest

from crinoid.core.api.linux.cgroups import Hierarchies
from crinoid.plugins.runtimes.processes import cgroup_places
from crinoid.plugins.runtimes.processes.oom_kills import OomKills


class Pod:
    """A pod's cgroup with those of its containers; the kernel counts in both."""

    def __init__(self, root: Path) -> None:
        self.root, self.kills = root, 0

    def make(self, name: str, kills: int = 0) -> str:
        (self.root / "pod" / name).mkdir(parents=True)
        self.kill(name, kills)
        return f"/pod/{name}"

    def kill(self, name: str, kills: int = 1) -> None:
        self.kills += kills
        (self.root / "pod/memory.events").write_text(f"oom 1\noom_kill {self.kills}\n")
        file = self.root / "pod" / name / "memory.events"
        before = int(file.read_text().split()[-1]) if file.exists() else 0
        file.write_text(f"oom 1\noom_kill {before + kills}\n")

    def remove(self, name: str) -> None:
        shutil.rmtree(self.root / "pod" / name)


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pod:
    monkeypatch.setattr(cgroup_places, "_hierarchies", lambda: Hierarchies(2, unified=str(tmp_path)))
    return Pod(tmp_path)


def test_one_whose_cgroup_has_gone(pod: Pod) -> None:
    kills = OomKills()
    with kills.watched(pod.make("a")) as a, kills.watched(pod.make("b")) as b:
        pod.kill("a", 3)
        pod.remove("a")
        pod.remove("b")
        assert a.has_killed()
        assert not b.has_killed(), "those were the other's"
        assert a.has_killed()
    with kills.watched(pod.make("c")) as c:
        pod.remove("c")
        assert not c.has_killed(), "they were before it"


def test_one_whose_cgroup_is_there(pod: Pod) -> None:
    kills = OomKills()
    with kills.watched(pod.make("a", 2)) as a, kills.watched(pod.make("b")) as b:
        assert a.has_killed()
        assert not b.has_killed()


def test_kills_of_those_that_live_on_or_have_ended_well_are_theirs(pod: Pod) -> None:
    kills = OomKills()
    with ExitStack() as living:
        living.enter_context(kills.watched(pod.make("living", 1)))
        with kills.watched(pod.make("well")):
            pod.kill("well")
            pod.kill("living")
            pod.remove("well")
        with kills.watched(pod.make("a")) as a:
            pod.remove("a")
            assert not a.has_killed()


def test_kills_of_one_that_is_watched_no_more_are_not_anothers(pod: Pod) -> None:
    """As where the wait for its end was cancelled."""
    kills = OomKills()
    with kills.watched(pod.make("other")) as other:
        living = pod.make("living")
        with pytest.raises(TimeoutError), kills.watched(living):
            pod.kill("living", 2)
            raise TimeoutError
        with kills.watched(pod.make("first")) as first:
            pod.remove("first")
            assert not first.has_killed()
        with pytest.raises(TimeoutError), kills.watched(living):
            raise TimeoutError
        pod.remove("other")
        assert not other.has_killed()


def test_kills_of_one_that_is_watched_late_are_its_own(pod: Pod) -> None:
    kills = OomKills()
    with kills.watched(pod.make("other")) as other, kills.watched(pod.make("late", 2)) as late:
        pod.remove("other")
        assert not other.has_killed()
        pod.kill("late")
        pod.remove("late")
        assert late.has_killed()


def test_a_daemon_that_starts_under_living_containers(pod: Pod) -> None:
    earlier, later = pod.make("earlier", 2), pod.make("later", 1)
    kills = OomKills()
    with kills.watched(earlier) as one, kills.watched(later) as other:
        pod.remove("earlier")
        assert one.has_killed()
        pod.remove("later")
        assert other.has_killed()


def test_nothing_is_kept(pod: Pod) -> None:
    kills = OomKills()
    with kills.watched(pod.make("a")) as a, kills.watched("/pod/a") as again:
        assert again is a
    assert not kills._above
