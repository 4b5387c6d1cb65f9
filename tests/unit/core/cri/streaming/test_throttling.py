"""Lines that strangers cause are few, and what is left out is counted."""

import logging
import time

import pytest

from crinoid.core.cri.streaming.throttling import ThrottledLog


def test_lines_are_bounded_and_counted(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    log = ThrottledLog(logging.getLogger("strangers"))
    caplog.set_level(logging.INFO)
    for number in range(1000):
        log.info("stranger %d", number)
    assert [record.getMessage() for record in caplog.records] == [f"stranger {number}" for number in range(20)]
    caplog.clear()
    now[0] += 1
    log.warning("one more")
    assert [record.getMessage() for record in caplog.records] == [
        "980 lines of streaming connections were left out: there were too many",
        "one more",
    ]
