"""Rules of pods and containers that need no host: sysctls, bandwidth, signals, resolver, cgroup paths, rates."""

import signal

import pytest

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.values.pod import DnsConfig, LinuxResources
from crinoid.core.lifecycle.containers.containers import merge_resources
from crinoid.core.lifecycle.containers.stop_signals import signal_number
from crinoid.core.lifecycle.pods.pod_plan import bandwidth_limits
from crinoid.core.lifecycle.resources.cgroup_paths import CgroupPaths
from crinoid.core.lifecycle.sandbox.pod_files import resolv_conf
from crinoid.core.lifecycle.sandbox.pod_sysctls import check_sysctls
from crinoid.core.lifecycle.stats.stats import Rates, parse_interfaces

BOTH = ("network", "ipc")


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("net.ipv4.tcp_syncookies", "net/ipv4/tcp_syncookies"),
        ("net/ipv4/tcp_syncookies", "net/ipv4/tcp_syncookies"),
        ("net.ipv4.conf.eth0/1.forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ("net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding"),
        ("kernel.shm_rmid_forced", "kernel/shm_rmid_forced"),
        ("kernel.sem", "kernel/sem"),
        ("fs.mqueue.msg_max", "fs/mqueue/msg_max"),
    ],
)
def test_sysctls_of_a_pods_own_namespaces(name: str, path: str) -> None:
    assert check_sysctls({name: "1"}, BOTH) == {path: "1"}


@pytest.mark.parametrize("name", ["vm.swappiness", "kernel.pid_max", "", "net", "net..x", "net/../vm/x", "fs.file-max"])
def test_other_sysctls_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="sysctl"):
        check_sysctls({name: "1"}, BOTH)


@pytest.mark.parametrize("name", ["net.ipv4.ip_forward", "kernel.sem"])
def test_sysctls_of_the_hosts_namespaces_are_refused(name: str) -> None:
    with pytest.raises(InvalidArgument, match="host's"):
        check_sysctls({name: "1"}, ())


@pytest.mark.parametrize(
    ("text", "bits"), [("10M", 10_000_000), ("1k", 1000), ("1Mi", 1 << 20), ("1.5G", 1_500_000_000), ("1e6", 1_000_000)]
)
def test_bandwidth(text: str, bits: int) -> None:
    assert bandwidth_limits({"kubernetes.io/ingress-bandwidth": text}) == (bits, 0)
    assert bandwidth_limits({"kubernetes.io/egress-bandwidth": text}) == (0, bits)


@pytest.mark.parametrize("text", ["", "fast", "10", "-1M", "999999P", "10Mb", "1e99999"])
def test_bandwidth_that_is_none(text: str) -> None:
    with pytest.raises(InvalidArgument, match="bandwidth"):
        bandwidth_limits({"kubernetes.io/ingress-bandwidth": text})


@pytest.mark.parametrize(
    ("name", "number"),
    [("SIGTERM", 15), ("term", 15), ("9", 9), ("SIGRTMIN+3", signal.SIGRTMIN + 3), ("RTMAX-1", signal.SIGRTMAX - 1)],
)
def test_signals(name: str, number: int) -> None:
    assert signal_number(name) == number


_ODD_SIGNALS = (
    "\u00b2",
    "\uff11",
    "9" * 5000,
    "0" * 5000 + "9",
    "SIGRTMIN+\u00b2",
    "SIGRTMIN+" + "9" * 5000,
    "\u017figterm",
)


@pytest.mark.parametrize("name", ["", "SIGNONE", "0", "99", "SIGRTMIN+99", "-9", *_ODD_SIGNALS])
def test_signals_that_are_none(name: str) -> None:
    with pytest.raises(InvalidArgument, match="stop signal"):
        signal_number(name)


def test_resolv_conf() -> None:
    dns = DnsConfig(("1.1.1.1", "::1"), ("a.b", "c"), ("ndots:5", "edns0"))
    assert resolv_conf(dns) == "search a.b c\nnameserver 1.1.1.1\nnameserver ::1\noptions ndots:5 edns0\n"
    assert resolv_conf(DnsConfig()) == ""
    assert resolv_conf(DnsConfig(("1.1.1.1",), (), ("", "a b"))) == "nameserver 1.1.1.1\noptions  a b\n"
    with pytest.raises(InvalidArgument, match="more than one line"):
        resolv_conf(DnsConfig(("1.1.1.1\nnameserver 6.6.6.6",)))


def test_cgroup_parents() -> None:
    files, systemd = CgroupPaths(False, "/crinoid"), CgroupPaths(True, "/crinoid")
    assert files.pod_parent("", "p") == "/crinoid/p"
    assert files.pod_parent("kubepods/pod1/", "p") == "/kubepods/pod1"
    assert systemd.pod_parent("/a/kubepods-pod1.slice", "p") == "kubepods-pod1.slice"
    assert systemd.pod_parent("", "p") == "crinoid-p.slice", "of its own, as with cgroupfs"
    assert systemd.pod_parent("/", "p") == systemd.pod_parent("-.slice", "p") == "-.slice"
    assert files.pod_parent("/n" * 62, "p") == "/n" * 62, "with room for containers and what is executed in them"
    bad = ("a.slice", "/a/../b", "/a\nb", "/n" * 63, "/n" * 1500)
    no_slices = ("/a/b", "a-.slice", "-a.slice", "a--b.slice", "a b.slice")
    for paths, given in (*((systemd, one) for one in no_slices), *((files, one) for one in bad)):
        with pytest.raises(InvalidArgument):
            paths.pod_parent(given, "p")
    assert files.of_container("/a", "c") == "/a/c"
    assert systemd.of_container("a.slice", "c") == "a.slice:crinoid:c"


def test_rates_need_a_second() -> None:
    rates = Rates()
    second = 1_000_000_000
    assert rates.rate("c", 10 * second, 5 * second) is None
    assert rates.rate("c", 10 * second + 5, 6 * second) is None
    assert rates.rate("c", 12 * second, 6 * second) == second // 2
    assert rates.rate("c", 12 * second + 5, 9 * second) == second // 2
    rates.keep(["other"])
    assert rates.rate("c", 20 * second, 9 * second) is None


def test_rates_begin_anew_after_a_reset() -> None:
    """A cgroup that was made anew counts from 0, and a clock may be set back by hours: neither is a use of nothing."""
    rates = Rates()
    second = 1_000_000_000
    rates.rate("c", 10 * second, 50 * second)
    assert rates.rate("c", 12 * second, 51 * second) == second // 2
    assert rates.rate("c", 12 * second + 5, 3 * second) is None
    assert rates.rate("c", 14 * second, 4 * second) is not None
    assert rates.rate("c", 9 * second, 5 * second) is None
    assert rates.rate("c", 11 * second, 6 * second) == second // 2


def test_updates_leave_what_is_zero() -> None:
    old = LinuxResources(cpu_shares=5, cpuset_cpus="0", memory_limit_bytes=7)
    assert merge_resources(old, LinuxResources(cpu_shares=9)) == LinuxResources(
        cpu_shares=9, cpuset_cpus="0", memory_limit_bytes=7
    )
    joined = merge_resources(LinuxResources(unified={"a": "1", "b": "1"}), LinuxResources(unified={"b": "2"}))
    assert joined == LinuxResources(unified={"a": "1", "b": "2"})


def test_interfaces() -> None:
    head = "Inter-|   Receive\n face |bytes\n"
    text = f"{head}    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  eth0: 100 2 3 4 5 6 7 8 900 10 11 0 0 0 0 0\n"
    (eth0,) = parse_interfaces(text.encode())
    assert (eth0.name, eth0.rx_bytes, eth0.rx_errors, eth0.tx_bytes, eth0.tx_errors) == ("eth0", 100, 3, 900, 11)


def test_a_pod_names_its_interfaces_as_it_likes() -> None:
    names = (b"\xff\xfe", b"\xe2\x80\xa8", b"\xc2\x85", b"\x1c", b"a\x7f", b"lo\x1f")
    rows = b"".join(b"  %b: 100 2 3 4 5 6 7 8 900 10 11 0 0 0 0 0\n" % name for name in names)
    found = parse_interfaces(b"head\nhead\n" + rows)
    assert [one.name for one in found] == [name.decode(errors="replace") for name in names]
    assert {one.rx_bytes for one in found} == {100}
