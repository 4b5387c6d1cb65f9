"""A run as the bench would find it, small enough to know every figure of."""

import pytest

from bench.document import Run
from bench.results import Gap, Results

OURS, OTHER, PEER, NEWER = "crinoid bridge+crun", "crinoid cni+runc", "containerd 1.6.20", "containerd 2.3.4"


@pytest.fixture
def run() -> Run:
    """Two of ours, two peers; one goal met and missed, one gap, growth along one axis."""
    results = Results(
        samples={
            "run": {OURS: [4.0, 5.0, 9.0], OTHER: [40.0, 41.0, 42.0], PEER: [50.0, 60.0, 70.0], NEWER: [100.0]},
            "idle": {OURS: [0.004], OTHER: [0.02], PEER: [0.0], NEWER: [1.1]},
            "logging": {OURS: [0.5], NEWER: [2.0]},
            "version": {OURS: [0.3], OTHER: [0.3], PEER: [0.2], NEWER: [0.2]},
        },
        growth={
            "pods": {
                200: {"run": {OURS: [8.0], NEWER: [180.0]}},
                1: {"run": {OURS: [4.0, 6.0, 5.0], NEWER: [90.0]}, "polling": {OURS: [0.01], NEWER: [0.1]}},
            }
        },
        gaps=[Gap("logging", PEER, "1,999 of 2,000 lines are in the log")],
        busy={"life": {"other processes": 3.5, "the kernel": 1.0}},
    )
    settings = {"pods": 50, "seconds": 10.0, "growth_seconds": 5.0, "log_mb": 200}
    versions = {"crinoid": "commit 0123456789ab", NEWER: "containerd v2.3.4"}
    names = [OURS, OTHER, PEER, NEWER]
    return Run("2026-01-02T03:04:05+00:00", 90.0, {"kernel": "Linux 6"}, versions, settings, names, NEWER, results)
