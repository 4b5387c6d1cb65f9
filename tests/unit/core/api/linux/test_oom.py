"""What may be set as oom_score_adj depends on a capability; capability names follow their bits."""

import os
import subprocess

import pytest

from crinoid.core.api.linux import capabilities, oom


def test_without_the_capability_our_own_value_is_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "effective", lambda: frozenset[str]())
    own = oom.own_oom_score_adj()
    assert oom.clamp_oom_score_adj(own - 1) == own
    assert oom.clamp_oom_score_adj(1000) == 1000


def test_a_raised_value_is_logged_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(capabilities, "effective", lambda: frozenset[str]())
    monkeypatch.setattr(oom, "own_oom_score_adj", lambda: 77)
    oom.clamp_oom_score_adj(78)
    assert caplog.messages == []
    for wanted in (76, -998):
        assert oom.clamp_oom_score_adj(wanted) == 77
    assert ["below 77" in message for message in caplog.messages] == [True]


def test_with_the_capability_only_the_kernels_range_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capabilities, "effective", lambda: frozenset({"CAP_SYS_RESOURCE"}))
    assert [oom.clamp_oom_score_adj(v) for v in (-2000, -998, 5, 2000)] == [-1000, -998, 5, 1000]


@pytest.mark.parametrize("wanted", [-1000, -500, 0, 500, 1000])
def test_the_kernel_takes_what_was_clamped(wanted: int) -> None:
    value = oom.clamp_oom_score_adj(wanted)
    subprocess.run(["sh", "-c", f"echo {value} > /proc/self/oom_score_adj"], check=True)


def test_capabilities_are_named_by_their_bits() -> None:
    assert capabilities.NAMES.index("CAP_SYS_ADMIN") == 21
    assert capabilities.NAMES.index("CAP_CHECKPOINT_RESTORE") == 40
    assert len(capabilities.known()) <= capabilities.last() + 1
    assert capabilities.effective() <= capabilities.bounding() or os.geteuid() != 0
