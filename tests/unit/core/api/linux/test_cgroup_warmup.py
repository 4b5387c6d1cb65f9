"""The kernel is asked as long as somebody wants it, by one thread, and then no more."""

import threading
import time

import pytest

from crinoid.core.api.linux import cgroup_warmup, cgroups
from crinoid.core.api.linux.cgroup_warmup import CgroupWarmup
from support.patience import patient


def wait_for_end() -> None:
    deadline = time.monotonic() + patient(10)
    while any(thread.name == "warmup" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "the thread goes on"
        time.sleep(0.01)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Counts how often the kernel was asked."""
    found = threading.Semaphore(0)
    monkeypatch.setattr(cgroups, "warm_up", found.release)
    monkeypatch.setattr(cgroup_warmup, "_REST_S", 0.05)
    return found


def test_it_is_asked_again_and_again_by_one_thread_until_nobody_wants_it(asked: threading.Semaphore) -> None:
    one = CgroupWarmup()
    with one.lasting():
        with one.lasting():
            assert [thread.name for thread in threading.enumerate()].count("warmup") == 1
        for _ in range(5):
            assert asked.acquire(timeout=patient(10))
    wait_for_end()
    with one.lasting():
        assert asked.acquire(timeout=patient(10)), "it can be wanted again"
    wait_for_end()


def test_it_lingers_and_ends(asked: threading.Semaphore) -> None:
    one = CgroupWarmup()
    one.linger(0.02)
    assert asked.acquire(timeout=patient(10))
    wait_for_end()


def test_it_rests_while_nobody_wants_it(asked: threading.Semaphore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup_warmup, "_REST_S", patient(60))
    one = CgroupWarmup()
    with one.lasting():
        assert asked.acquire(timeout=patient(10))
    thread = next(thread for thread in threading.enumerate() if thread.name == "warmup")
    time.sleep(0.05)  # it may be asked once more
    while asked.acquire(blocking=False):
        pass
    assert not asked.acquire(timeout=0.2)
    monkeypatch.setattr(cgroup_warmup, "_REST_S", 0.05)
    with one.lasting():
        assert asked.acquire(timeout=patient(10))
        assert [found for found in threading.enumerate() if found.name == "warmup"] == [thread]
    wait_for_end()
