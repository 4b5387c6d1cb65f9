"""``isolation`` of a slot: true, false, or a table."""

from pathlib import Path
from typing import Any

import pytest

from crinoid.core.config.models import IsolationConfig, SlotConfig
from crinoid.core.config.origins import NO_ORIGINS
from crinoid.core.config.validation import validate


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        (True, IsolationConfig()),
        (False, None),
        ({}, IsolationConfig()),
        ({"user": "nobody", "memory_bytes": 1}, IsolationConfig(user="nobody", memory_bytes=1)),
        ({"unresponsive_s": 2}, IsolationConfig(unresponsive_s=2)),
        ({"python": "/opt/bin/python"}, IsolationConfig(python=Path("/opt/bin/python"))),
        ({"program": ["/bin/driver", "-v"]}, IsolationConfig(program=("/bin/driver", "-v"))),
    ],
)  # fmt: skip
def test_what_it_means(written: Any, meant: IsolationConfig | None) -> None:
    found = validate(SlotConfig, {"driver": "x", "isolation": written}, NO_ORIGINS)
    assert isinstance(found, SlotConfig)
    assert found.isolation == meant


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("yes", "isolation: "),
        ({"usr": "x"}, 'isolation.usr: unknown key; did you mean "user"?'),
        ({"memory_bytes": -1}, "isolation.memory_bytes: should be greater than or equal to 0"),
        ({"python": "bin/python"}, "isolation.python: must be an absolute path"),
        ({"python": "/p", "program": ["/q"]}, "isolation: python and program exclude each other"),
    ],
)
def test_what_it_can_not_be(written: Any, words: str) -> None:
    found = validate(SlotConfig, {"driver": "x", "isolation": written}, NO_ORIGINS)
    assert isinstance(found, list)
    assert words in str(found[0])
