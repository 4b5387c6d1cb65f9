"""The kernel is asked as long as somebody wants it, by one thread, and then no more."""

import threading
import time

import pytest

from crinoid.core.api.linux import cgroups
from crinoid.core.api.linux.haste import Haste
from support.patience import patient


def wait_for_end() -> None:
    deadline = time.monotonic() + patient(10)
    while any(thread.name == "haste" for thread in threading.enumerate()):
        assert time.monotonic() < deadline, "the thread goes on"
        time.sleep(0.01)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> threading.Semaphore:
    """Counts how often the kernel was asked."""
    found = threading.Semaphore(0)
    monkeypatch.setattr(cgroups, "hasten", found.release)
    return found


def test_it_is_asked_again_and_again_by_one_thread_until_nobody_wants_it(asked: threading.Semaphore) -> None:
    haste = Haste()
    with haste.lasting():
        with haste.lasting():
            assert [thread.name for thread in threading.enumerate()].count("haste") == 1
        for _ in range(5):
            assert asked.acquire(timeout=patient(10))
    wait_for_end()
    with haste.lasting():
        assert asked.acquire(timeout=patient(10)), "it can be wanted again"
    wait_for_end()


def test_it_lingers_and_ends(asked: threading.Semaphore) -> None:
    haste = Haste()
    haste.linger(0.02)
    assert asked.acquire(timeout=patient(10))
    wait_for_end()


def test_a_kernel_that_refuses_is_no_error() -> None:
    haste = Haste()
    with haste.lasting():
        cgroups.hasten()
    wait_for_end()
