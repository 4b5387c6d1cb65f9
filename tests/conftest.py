"""What holds for all tests: on a slow machine each may take longer (see ``support.patience``), those that measure time
or the whole machine run alone (see ``support.turns``), and what pytest makes of a file's assertions is made once.
"""

import gc
import signal
import sys
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

from support import turns
from support.patience import SLOWNESS, patient


def pytest_configure(config: pytest.Config) -> None:
    """Let programs that tests start see an interrupt: a shell that starts pytest in the background has it ignored.

    And keep what pytest compiles, whatever ``PYTHONDONTWRITEBYTECODE`` says of other programs: to rewrite all files'
    assertions takes 13 s. Each of several workers begins at another file, so that most are rewritten by one of them.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.dont_write_bytecode = False
    # A machine with much to do is slow to draw examples. With CI set, Hypothesis leaves these two out by itself.
    slow = [hypothesis.HealthCheck.too_slow]
    hypothesis.settings.register_profile(
        "unhurried", hypothesis.settings.default, deadline=None, suppress_health_check=slow
    )
    hypothesis.settings.load_profile("unhurried")
    if hasattr(config, "workerinput"):
        files = [file for argument in config.args for file in _test_files(argument)]
        number = int(config.workerinput["workerid"].removeprefix("gw"))
        first = len(files) * number // int(config.workerinput["workercount"])
        config.args[:] = files[first:] + files[:first]


def _test_files(argument: str) -> list[str]:
    """The files of a directory that is to be tested; anything else stays as it is."""
    if not Path(argument).is_dir():
        return [argument]
    return sorted(map(str, Path(argument).rglob("test_*.py")))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from walking eight thousand tests again and again, now and while they run: nothing of
    them is garbage before the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Begin with files that have a test marked ``alone``, and with that test; and stretch the time limit of every test.

    Later on, such a test would wait for long ones of other workers, and keep the rest from going on meanwhile. The
    order is the same for all workers, wherever they have begun.
    """
    places = [config.rootpath / place for place in config.getini("testpaths")]
    items.sort(key=lambda item: ([not item.path.is_relative_to(place) for place in places], item.path))
    files = {item.path for item in items if _is_alone(item)}
    items.sort(key=lambda item: (0, str(item.path), not _is_alone(item)) if item.path in files else (1, "", True))
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
