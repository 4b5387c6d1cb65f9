"""What a Status says, from any server."""

import json

import pytest

from crinoid.core.api.errors import DriverError
from crinoid.core.cri.streaming.client.remotecommand import parse_status
from crinoid.core.cri.streaming.remotecommand import error_status, exit_status


@pytest.mark.parametrize("code", [0, 1, 137, 255])
def test_exit_codes(code: int) -> None:
    assert parse_status(json.dumps(exit_status(code)).encode()) == code


def test_a_failure_is_told_in_the_servers_words() -> None:
    with pytest.raises(DriverError, match=r"^no such program$"):
        parse_status(json.dumps(error_status("no such program")).encode())


@pytest.mark.parametrize(
    "text",
    [
        "what?",
        "[]",
        "{}",
        '{"status": "Failure", "reason": "NonZeroExitCode"}',
        '{"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": []}}',
        '{"status": "Failure", "reason": "NonZeroExitCode", "details": {"causes": [{"reason": "ExitCode"}]}}',
    ],
)
def test_what_is_no_status_is_shown(text: str) -> None:
    with pytest.raises(DriverError, match="not understood") as caught:
        parse_status(text.encode())
    assert text in caught.value.message
