"""Stop signals by both their names."""

import pytest

from crinoid.core.cri.signals import decode_signal, encode_signal
from crinoid.core.cri.wire import api_pb2


def test_every_number_has_a_name_that_leads_back() -> None:
    for wire_name, number in api_pb2.Signal.items():
        if number:
            assert encode_signal(decode_signal(number)) == wire_name


def test_names() -> None:
    assert decode_signal(api_pb2.SIGNAL_RUNTIME_DEFAULT) == ""
    assert decode_signal(api_pb2.SIGNAL_SIGTERM) == "SIGTERM"
    assert decode_signal(api_pb2.SIGNAL_SIGRTMINPLUS3) == "SIGRTMIN+3"
    assert decode_signal(api_pb2.SIGNAL_SIGRTMAXMINUS14) == "SIGRTMAX-14"


@pytest.mark.parametrize(
    ("name", "wire"),
    [
        ("SIGTERM", "SIGNAL_SIGTERM"),
        ("term", "SIGNAL_SIGTERM"),
        ("15", "SIGNAL_SIGTERM"),
        ("37", "SIGNAL_SIGRTMINPLUS3"),
        ("RTMIN+3", "SIGNAL_SIGRTMINPLUS3"),
        ("SIGRTMIN+16", "SIGNAL_SIGRTMAXMINUS14"),
        ("64", "SIGNAL_SIGRTMAX"),
        ("SIGRTMIN+30", "SIGNAL_SIGRTMAX"),
        ("", "SIGNAL_RUNTIME_DEFAULT"),
        ("0", "SIGNAL_RUNTIME_DEFAULT"),
        ("999", "SIGNAL_RUNTIME_DEFAULT"),
        ("SIGNONSENSE", "SIGNAL_RUNTIME_DEFAULT"),
    ],
)
def test_spellings_of_images(name: str, wire: str) -> None:
    assert encode_signal(name) == wire
