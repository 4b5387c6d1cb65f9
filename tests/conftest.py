"""What holds for all tests: on a slow machine each may take longer (see ``support.patience``), and those that measure
time or the whole machine run alone (see ``support.turns``)."""

import signal
from collections.abc import Generator

import pytest

from support import turns
from support.patience import SLOWNESS, patient


def pytest_configure() -> None:
    """Let programs that tests start see an interrupt: a shell that starts pytest in the background has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with files that have a test marked ``alone``, and stretch the time limit of every test.

    Later on, such a test would wait for long ones of other workers, and keep the rest from going on meanwhile.
    """
    files = {item.path for item in items if _is_alone(item)}
    items.sort(key=lambda item: item.path not in files)
    if SLOWNESS == 1:
        return
    for item in items:
        marker = item.get_closest_marker("timeout")
        limit = marker.args[0] if marker is not None else config.getini("timeout")
        item.add_marker(pytest.mark.timeout(patient(float(limit))), append=False)


_turns = turns.Turns()


@pytest.hookimpl(wrapper=True, tryfirst=True)  # around pytest-timeout's: its clock starts when the turn has come
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """With several workers, a test marked ``alone`` waits until all others are done with theirs."""
    if not hasattr(item.config, "workerinput"):
        return (yield)
    is_alone = _is_alone(item)
    with _turns.one(alone=is_alone, goes_on=is_alone and nextitem is not None and _is_alone(nextitem)):
        return (yield)


def _is_alone(item: pytest.Item) -> bool:
    return item.get_closest_marker("alone") is not None
