"""The kernel is asked as long as somebody wants it, by one thread, and then no more."""

import threading
import time

import pytest

from crinoid.core.api.linux import cgroup_warmup
from crinoid.core.api.linux.cgroup_warmup import CgroupWarmup
from support.patience import patient


class Asked(threading.Semaphore):
    """Counts how often the kernel was asked by threads that began after it was made: earlier tests leave some, which
    rest for seconds before they end."""

    def __init__(self) -> None:
        super().__init__(0)
        self._others = set(threading.enumerate())

    def ask(self) -> None:
        """Take the place of ``cgroups.warm_up``."""
        if threading.current_thread() not in self._others:
            self.release()

    @property
    def threads(self) -> list[threading.Thread]:
        """Those that ask."""
        found = threading.enumerate()
        return [thread for thread in found if thread.name == "warmup" and thread not in self._others]

    def wait_for_end(self) -> None:
        """Wait until no thread is left."""
        deadline = time.monotonic() + patient(10)
        while self.threads:
            assert time.monotonic() < deadline, "the thread goes on"
            time.sleep(0.01)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    found = Asked()
    monkeypatch.setattr(cgroup_warmup, "_REST_S", 0.05)
    return found


def test_it_is_asked_again_and_again_by_one_thread_until_nobody_wants_it(asked: Asked) -> None:
    one = CgroupWarmup(asked.ask)
    with one.lasting():
        with one.lasting():
            assert len(asked.threads) == 1
        for _ in range(5):
            assert asked.acquire(timeout=patient(10))
    asked.wait_for_end()
    with one.lasting():
        assert asked.acquire(timeout=patient(10)), "it can be wanted again"
    asked.wait_for_end()


def test_it_lingers_and_ends(asked: Asked) -> None:
    one = CgroupWarmup(asked.ask)
    one.linger(0.02)
    assert asked.acquire(timeout=patient(10))
    asked.wait_for_end()


def test_it_rests_while_nobody_wants_it(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup_warmup, "_REST_S", patient(60))
    one = CgroupWarmup(asked.ask)
    with one.lasting():
        assert asked.acquire(timeout=patient(10))
    (thread,) = asked.threads
    time.sleep(0.05)  # it may be asked once more
    while asked.acquire(blocking=False):
        pass
    assert not asked.acquire(timeout=0.2)
    monkeypatch.setattr(cgroup_warmup, "_REST_S", 0.05)
    with one.lasting():
        assert asked.acquire(timeout=patient(10))
        assert asked.threads == [thread]
    asked.wait_for_end()
