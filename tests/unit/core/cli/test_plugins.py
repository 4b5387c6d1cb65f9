"""Last errors, as a daemon's verbose Status tells them."""

import json

import pytest

from crinoid.core.cli.plugins import _describe, _read_slots
from crinoid.core.slots.drivers import InstalledDriver
from crinoid.core.slots.listing import Plugin, State

SLOTS = [
    {"role": "network", "slot": "default", "lastError": {"hook": "attach", "message": "no bridge", "at_ns": 1}},
    {"role": "network", "slot": "second", "lastError": None},
    {
        "role": "snapshotter",
        "slot": "default",
        "lastError": None,
        "process": {"pid": 0, "restarts": 3, "problem": "its process 7 has ended", "memoryBytes": None},
    },
]


def test_the_last_error_of_a_slot_is_shown_at_its_driver() -> None:
    told = _read_slots({"info": {"slots": json.dumps(SLOTS)}})
    plugin = Plugin(InstalledDriver("network", "cni", "crinoid", "1", "x"), State.SELECTED, ("default", "second"))
    assert _describe(plugin, told)["lastError"] == "attach: no bridge"


def test_a_process_that_is_down_is_shown_at_its_driver() -> None:
    told = _read_slots({"info": {"slots": json.dumps(SLOTS)}})
    driver = InstalledDriver("snapshotter", "native", "crinoid", "1", "x")
    row = _describe(Plugin(driver, State.SELECTED, ("default",), isolated=("default",)), told)
    assert (row["isolated"], row["lastError"]) == (["default"], "its process 7 has ended")
    assert row["processes"][0]["restarts"] == 3


@pytest.mark.parametrize("info", [{}, {"slots": "no json"}, {"slots": "5"}, {"slots": '[{"lastError": "x"}]'}])
def test_another_runtime_at_the_socket_tells_nothing(info: dict[str, str]) -> None:
    assert _read_slots({"info": info}) == {}
