"""Network interfaces of this namespace, as they are."""

import pytest

from crinoid.core.api.linux import links


def test_loopback_is_the_first_interface() -> None:
    assert links.names()[0] == "lo"


def test_whether_loopback_is_up_agrees_with_proc() -> None:
    with open("/proc/net/if_inet6") as table, open("/proc/net/fib_trie") as routes:
        has_address = " lo\n" in table.read() or "127.0.0.1" in routes.read()
    assert links.is_up("lo") == has_address


def test_an_interface_that_is_not_there_is_an_error() -> None:
    with pytest.raises(OSError, match="No such device"):
        links.is_up("absent0")
    with pytest.raises(OSError, match="No such device"):
        links.set_up("absent0")
