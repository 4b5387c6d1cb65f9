"""In a user namespace devices are bound, by the host's nodes."""

from typing import Any

import pytest

from crinoid.core.api.errors import Unsupported
from crinoid.core.lifecycle.spec.device_binds import bind_devices


def test_devices_become_binds() -> None:
    nodes = [
        {"path": "/dev/null", "type": "c", "major": 1, "minor": 3},
        {"path": "/dev/deep/zero", "type": "c", "major": 1, "minor": 5},
    ]
    spec: dict[str, Any] = {
        "mounts": [{"destination": "/dev"}, {"destination": "/dev/deep/er/x"}],
        "linux": {"devices": nodes},
    }
    bind_devices(spec)
    assert "devices" not in spec["linux"]
    made = {entry["destination"]: entry for entry in spec["mounts"]}
    assert list(made) == ["/dev", "/dev/null", "/dev/deep/zero", "/dev/deep/er/x"]
    assert made["/dev/null"]["source"] == "/dev/null"
    assert made["/dev/deep/zero"]["source"] == "/dev/zero"
    assert made["/dev/null"]["type"] == "bind"
    assert "nodev" not in made["/dev/null"]["options"]


def test_a_device_without_a_node_is_refused() -> None:
    spec: dict[str, Any] = {
        "mounts": [],
        "linux": {"devices": [{"path": "/dev/none", "type": "b", "major": 4000, "minor": 1}]},
    }
    with pytest.raises(Unsupported, match=r"device /dev/none \(b 4000:1\)"):
        bind_devices(spec)
