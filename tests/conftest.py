"""What holds for all tests: on a slow machine each may take longer (see ``support.patience``)."""

import signal

import pytest

from support.patience import SLOWNESS, patient


def pytest_configure() -> None:
    """Let programs that tests start see an interrupt: a shell that starts pytest in the background has it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Stretch the time limit of every test."""
    if SLOWNESS == 1:
        return
    for item in items:
        marker = item.get_closest_marker("timeout")
        limit = marker.args[0] if marker is not None else config.getini("timeout")
        item.add_marker(pytest.mark.timeout(patient(float(limit))), append=False)
