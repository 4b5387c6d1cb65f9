"""The daemons that stand under a kubelet while it is measured."""

import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench import cluster, report


@pytest.mark.parametrize("name", [*cluster.OURS, report.FLOOR])
def test_a_daemon_logs_as_a_sites_does(tmp_path: Path, name: str) -> None:
    """Tests have all logged, which is a tenth of the loop's time when pods are deleted."""
    place = SimpleNamespace(
        registry=SimpleNamespace(host="127.0.0.1:5000"), directory=tmp_path, cni_conf=tmp_path / "net.d", prefix=()
    )
    config = tomllib.loads(cluster._crinoid(cast(Any, place), name).config)
    assert config["log"]["level"] == "info"
    assert "default_runtime" in config["pods"]
