"""Last errors, as a daemon's verbose Status tells them."""

import json

import pytest

from crinoid.core.cli.plugins import _describe, _read_errors
from crinoid.core.slots.drivers import InstalledDriver
from crinoid.core.slots.listing import Plugin, State

SLOTS = [
    {"role": "network", "slot": "default", "lastError": {"hook": "attach", "message": "no bridge", "at_ns": 1}},
    {"role": "network", "slot": "second", "lastError": None},
]


def test_the_last_error_of_a_slot_is_shown_at_its_driver() -> None:
    errors = _read_errors({"info": {"slots": json.dumps(SLOTS)}})
    plugin = Plugin(InstalledDriver("network", "cni", "crinoid", "1", "x"), State.SELECTED, ("default", "second"))
    assert _describe(plugin, errors)["lastError"] == "attach: no bridge"


@pytest.mark.parametrize("info", [{}, {"slots": "no json"}, {"slots": "5"}, {"slots": '[{"lastError": "x"}]'}])
def test_another_runtime_at_the_socket_tells_nothing(info: dict[str, str]) -> None:
    assert _read_errors({"info": info}) == {}
