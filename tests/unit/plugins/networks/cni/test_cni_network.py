"""The driver against plugins that are scripts: what they are told, in which order, and what their failures become."""

import asyncio
import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.api.errors import CrinoidError, DeadlineExceeded, DriverError, InvalidArgument, Unavailable
from crinoid.core.api.values.network import NetworkRequest
from crinoid.core.api.values.pod import DnsConfig, PortMapping, Protocol
from crinoid.plugins.networks.cni import cni_network as driver_module
from support.cni import Node, quote, result

ERROR = json.dumps({"cniVersion": "1.0.0", "code": 7, "msg": "bad subnet", "details": "10.0.0.0/33"})
DONE = "exit 0"


async def attach(driver: Any, request: NetworkRequest) -> Any:
    return await driver.attach(request, await driver.plan(request))


async def until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("it did not happen within a minute")


async def fail_to_attach(driver: Any, request: NetworkRequest) -> CrinoidError:
    with pytest.raises(CrinoidError) as caught:
        await attach(driver, request)
    return caught.value


async def test_add_hands_each_result_to_the_next_plugin(node: Node, request_a: NetworkRequest) -> None:
    node.add_working_plugin("first", result("10.1.0.5/24"))
    node.add_working_plugin("second", result("10.1.0.5/24", "fd00::5/64", dns={"nameservers": ["10.1.0.1"]}))
    node.configure_chain({"type": "first", "own": {"deep": [1]}}, "second")
    attachment = await attach(node.driver(), request_a)
    assert attachment.addresses == ("10.1.0.5", "fd00::5")
    assert attachment.dns == DnsConfig(servers=("10.1.0.1",))
    first, second = node.calls()
    assert first.content == {"cniVersion": "1.0.0", "name": "blue", "type": "first", "own": {"deep": [1]}}
    assert second.content["prevResult"] == result("10.1.0.5/24")


async def test_the_parameters_of_add(
    node: Node, request_a: NetworkRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNI_ARGS", "FROM=OUTSIDE")
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/systemd/notify")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example")
    node.add_working_plugin("first")
    node.configure_chain("first")
    await attach(node.driver(), request_a)
    environment = node.calls()[0].environment
    assert environment["CNI_CONTAINERID"] == "pod1"
    assert environment["CNI_NETNS"] == str(tmp_path / "netns")
    assert environment["CNI_IFNAME"] == "eth0"
    assert environment["CNI_PATH"] == str(tmp_path / "bin")
    assert environment["CNI_ARGS"] == (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=pod1;K8S_POD_UID=uid-1"
    )
    assert environment["HTTPS_PROXY"] == "http://proxy.example"
    assert "NOTIFY_SOCKET" not in environment


async def test_capabilities_go_to_the_plugins_that_declare_them(
    node: Node, make_request: Callable[..., NetworkRequest]
) -> None:
    names = ("portMappings", "bandwidth", "dns", "ips", "ipRanges", "cgroupPath", "io.kubernetes.cri.pod-annotations")
    node.add_working_plugin("all")
    node.add_working_plugin("none")
    node.configure_chain(
        {"type": "all", "capabilities": dict.fromkeys(names, True)}, {"type": "none", "capabilities": {"dns": False}}
    )
    request = make_request(
        port_mappings=(
            PortMapping(80, 8080),
            PortMapping(53, 5353, Protocol.UDP, "127.0.0.1"),
            PortMapping(9, 0),
        ),
        dns=DnsConfig(servers=("10.0.0.10",), options=("ndots:5",)),
        ingress_bits_per_s=1000,
        ips=("10.1.0.9",),
        pod_cidrs=("10.244.1.0/24", "fd00:1::/64"),
        cgroup_parent="/kubepods/pod1",
        annotations={"a": "b"},
    )
    await attach(node.driver(), request)
    everything, nothing = node.calls()
    assert everything.content["runtimeConfig"] == {
        "portMappings": [
            {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
            {"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "127.0.0.1"},
        ],
        "bandwidth": {"ingressRate": 1000, "ingressBurst": 4294967295, "egressRate": 0, "egressBurst": 0},
        "dns": {"servers": ["10.0.0.10"], "options": ["ndots:5"]},
        "ips": ["10.1.0.9"],
        "ipRanges": [[{"subnet": "10.244.1.0/24"}], [{"subnet": "fd00:1::/64"}]],
        "cgroupPath": "/kubepods/pod1",
        "io.kubernetes.cri.pod-annotations": {"a": "b"},
    }
    assert "capabilities" not in everything.content
    assert "runtimeConfig" not in nothing.content


async def test_a_plan_holds_no_capability_that_nobody_declares(
    node: Node, make_request: Callable[..., NetworkRequest]
) -> None:
    node.add_working_plugin("first")
    node.configure_chain({"type": "first", "capabilities": {"ips": True, "dns": "false"}})
    request = make_request(ips=("10.1.0.9",), dns=DnsConfig(("10.0.0.10",)), annotations={"big": "x" * 1000})
    plan: Any = await node.driver().plan(request)
    assert plan["networks"][0]["capabilities"] == {"ips": ["10.1.0.9"]}


async def test_pod_cidrs_of_the_node_are_used_where_the_pod_has_none(node: Node, request_a: NetworkRequest) -> None:
    node.add_working_plugin("first")
    node.configure_chain({"type": "first", "capabilities": {"ipRanges": True}})
    driver = node.driver()
    await driver.set_pod_cidrs(("10.244.7.0/24",))
    await attach(driver, request_a)
    assert node.calls()[0].content["runtimeConfig"] == {"ipRanges": [[{"subnet": "10.244.7.0/24"}]]}
    with pytest.raises(InvalidArgument, match="pod CIDR"):
        await driver.set_pod_cidrs(("10.244.7.0/99",))


async def test_del_goes_backwards_with_what_was_recorded_whatever_is_configured_now(
    node: Node, make_request: Callable[..., NetworkRequest]
) -> None:
    node.add_working_plugin("first")
    node.add_working_plugin("second")
    node.configure_chain({"type": "first", "mark": "old"}, {"type": "second", "capabilities": {"portMappings": True}})
    request = make_request(port_mappings=(PortMapping(80, 8080),))
    attachment = await attach(node.driver(), request)
    added = node.calls()
    (node.conf_dir / "10-x.conflist").unlink()
    node.configure_chain("other", file="00-new.conflist", name="new")
    later = node.driver(bin_dirs=(Path("/nowhere"),))  # another daemon, with another configuration
    stored = json.loads(json.dumps(attachment.data))
    await later.detach(make_request(), stored)
    second, first = node.calls()[2:]
    assert [second.command, second.plugin, first.command, first.plugin] == ["DEL", "second", "DEL", "first"]
    assert first.content["mark"] == "old"
    assert second.content["runtimeConfig"] == added[1].content["runtimeConfig"]
    assert first.content["prevResult"] == second.content["prevResult"] == result("10.1.0.5/24")
    assert first.environment["CNI_ARGS"] == added[0].environment["CNI_ARGS"]
    assert first.environment["CNI_NETNS"] == "", "a namespace that is gone is not named"


async def test_del_by_the_plan_alone_has_no_result(node: Node, request_a: NetworkRequest) -> None:
    node.add_working_plugin("first")
    node.configure_chain("first")
    driver = node.driver()
    plan = await driver.plan(request_a)
    assert node.commands() == [], "planning runs nothing but VERSION"
    await driver.detach(request_a, plan)
    assert node.commands() == ["DEL first"]
    assert "prevResult" not in node.calls()[0].content


@pytest.mark.parametrize("change", [{"netns": "/proc/1/ns/net"}, {"container_id": "another"}])
async def test_a_damaged_plan_reaches_no_other_namespace(
    node: Node, request_a: NetworkRequest, change: dict[str, str]
) -> None:
    node.add_working_plugin("first")
    node.configure_chain("first")
    driver = node.driver()
    plan = await driver.plan(request_a)
    with pytest.raises(DriverError, match="nothing is done"):
        await driver.detach(request_a, {**plan, **change})
    assert node.commands() == []


async def test_versions_before_04_get_no_result_at_del(node: Node, request_a: NetworkRequest) -> None:
    node.add_working_plugin("first", {**result("10.1.0.5/24"), "cniVersion": "0.3.1"})
    node.configure_chain("first", cniVersion="0.3.1")
    driver = node.driver()
    await driver.detach(request_a, (await attach(driver, request_a)).data)
    assert "prevResult" not in node.calls()[1].content


async def test_a_failing_add_is_taken_back_and_told_in_full(node: Node, request_a: NetworkRequest) -> None:
    node.add_working_plugin("first")
    node.add_plugin("second", ADD=f"printf '%s' {quote(ERROR)}; exit 1")
    node.add_working_plugin("third")
    node.configure_chain("first", "second", "third")
    error = await fail_to_attach(node.driver(), request_a)
    assert isinstance(error, DriverError)
    assert error.message == (
        "plugin second (10-x.conflist, network 'blue') ADD: exit code 1, "
        "CNI error 7 (invalid network configuration): bad subnet; 10.0.0.0/33"
    )
    assert node.commands() == ["ADD first", "ADD second", "DEL second", "DEL first"]


async def test_a_del_that_fails_while_taking_back_is_told_too(node: Node, request_a: NetworkRequest) -> None:
    node.add_plugin("first", ADD="echo oops >&2; exit 3", DEL="echo worse >&2; exit 4")
    node.configure_chain("first")
    error = await fail_to_attach(node.driver(), request_a)
    assert "ADD: exit code 3 and no CNI error but 'oops'" in error.message
    assert "taking it back failed too" in error.message
    assert "DEL: exit code 4 and no CNI error but 'worse'" in error.message


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("echo rubbish", "it ended well and printed no CNI result but 'rubbish'"),
        ("exit 0", "it ended well and printed no CNI result but nothing"),
        ("kill -SEGV $$", "it was killed by signal 11; it said nothing"),
        ("exit 2", "exit code 2 and no CNI error but nothing"),
        ("echo '{\"ips\": []}'", "gave pod pod1 no address"),
    ],
)
async def test_what_else_a_plugin_can_do_wrong(node: Node, request_a: NetworkRequest, script: str, words: str) -> None:
    node.add_plugin("first", ADD=script)
    node.configure_chain("first")
    error = await fail_to_attach(node.driver(), request_a)
    assert words in error.message
    assert "10-x.conflist" in error.message
    assert node.commands() == ["ADD first", "DEL first"]


async def test_try_again_later_is_a_passing_fault(node: Node, request_a: NetworkRequest) -> None:
    node.add_plugin("first", ADD="""echo '{"code": 11, "msg": "no lease yet"}'; exit 1""")
    node.configure_chain("first")
    error = await fail_to_attach(node.driver(), request_a)
    assert isinstance(error, Unavailable)
    assert "CNI error 11 (try again later): no lease yet" in error.message


async def test_a_plugin_that_hangs_is_killed_with_its_children(node: Node, request_a: NetworkRequest) -> None:
    node.add_plugin("first", ADD=f"sleep 60 & echo $! > {node.root}/pid; wait")
    node.configure_chain("first")
    error = await fail_to_attach(node.driver(add_timeout_s=3), request_a)
    assert isinstance(error, DeadlineExceeded)
    assert isinstance(error, DriverError)
    assert "plugin first (10-x.conflist, network 'blue') ADD: it had not ended after 3 s" in error.message
    child = Path("/proc", (node.root / "pid").read_text().strip())
    await until(lambda: not child.exists() or "State:\tZ" in (child / "status").read_text())
    assert node.commands() == ["ADD first", "DEL first"]


async def test_a_plugin_that_can_not_be_executed(node: Node, request_a: NetworkRequest) -> None:
    node.write_script("first", "#!/no/such/interpreter\n")
    node.configure_chain("first")
    error = await fail_to_attach(node.driver(), request_a)
    assert "plugin first" in error.message
    assert "can't be run" in error.message


async def test_a_plugin_that_went_away_is_named_and_the_others_are_undone(
    node: Node, request_a: NetworkRequest
) -> None:
    node.add_working_plugin("first")
    node.add_working_plugin("second")
    node.configure_chain("first", "second")
    driver = node.driver()
    attachment = await attach(driver, request_a)
    kept = (node.root / "bin" / "second").read_text()
    (node.root / "bin" / "second").unlink()
    with pytest.raises(DriverError, match=r"plugin second .* DEL: there is no executable 'second' in .*/bin"):
        await driver.detach(request_a, attachment.data)
    assert node.commands()[2:] == ["DEL first"]
    node.write_script("second", kept)
    await driver.detach(request_a, attachment.data)
    assert node.commands()[3:] == ["DEL second", "DEL first"]


async def test_del_stops_at_a_plugin_that_fails(node: Node, request_a: NetworkRequest) -> None:
    node.add_working_plugin("first")
    node.add_working_plugin("second", DEL="exit 1")
    node.configure_chain("first", "second")
    driver = node.driver()
    attachment = await attach(driver, request_a)
    with pytest.raises(DriverError, match=r"plugin second .* DEL"):
        await driver.detach(request_a, attachment.data)
    assert node.commands()[2:] == ["DEL second"]


async def test_del_of_a_container_that_the_plugin_does_not_know_is_done(node: Node, request_a: NetworkRequest) -> None:
    node.add_working_plugin("first", DEL="""echo '{"code": 3, "msg": "who?"}'; exit 1""")
    node.configure_chain("first")
    driver = node.driver()
    await driver.detach(request_a, (await attach(driver, request_a)).data)


async def test_a_cancelled_add_leaves_no_process(node: Node, request_a: NetworkRequest) -> None:
    node.add_plugin("first", ADD=f"echo $$ > {node.root}/pid; sleep 60")
    node.configure_chain("first")
    task = asyncio.create_task(attach(node.driver(), request_a))
    await until(lambda: (node.root / "pid").exists() and (node.root / "pid").read_text() != "")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not Path("/proc", (node.root / "pid").read_text().strip()).exists()


async def test_a_cancelled_del_comes_to_its_end(node: Node, request_a: NetworkRequest) -> None:
    """What a plugin that is killed in its middle leaves, the next DEL may not find."""
    begun, go = node.root / "begun", node.root / "go"
    node.add_working_plugin(
        "first", DEL=f"touch {begun}; until [ -e {go} ]; do sleep 0.01; done; touch {node.root}/done"
    )
    node.configure_chain("first")
    driver = node.driver()
    task = asyncio.create_task(driver.detach(request_a, (await attach(driver, request_a)).data))
    await until(begun.exists)
    task.cancel()
    await asyncio.sleep(0.05)
    go.touch()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (node.root / "done").exists()


async def test_the_highest_version_that_all_plugins_speak_is_used(node: Node, request_a: NetworkRequest) -> None:
    node.add_working_plugin("first", versions=("0.3.1", "0.4.0", "1.0.0"))
    node.configure_chain("first", cniVersion="1.1.0", cniVersions=["0.4.0", "1.0.0", "1.1.0"])
    await attach(node.driver(), request_a)
    assert node.calls()[0].content["cniVersion"] == "1.0.0"


async def test_a_result_of_another_version_is_brought_into_the_one_in_use(
    node: Node, request_a: NetworkRequest
) -> None:
    node.add_working_plugin("first", {"cniVersion": "0.2.0", "ip4": {"ip": "10.1.0.5/24"}})
    node.add_working_plugin("second", {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.5/24"}]})
    node.configure_chain("first", "second", cniVersion="0.4.0")
    attachment = await attach(node.driver(), request_a)
    assert node.calls()[1].content["prevResult"]["ips"] == [{"version": "4", "address": "10.1.0.5/24"}]
    assert attachment.addresses == ("10.1.0.5",)


@pytest.mark.parametrize("disable_check", [False, True])
async def test_check_asks_every_plugin_with_the_result(
    node: Node, request_a: NetworkRequest, disable_check: bool
) -> None:
    node.add_working_plugin("first")
    node.add_working_plugin("second", CHECK=f"printf '%s' {quote(ERROR)}; exit 1")
    node.configure_chain("first", "second", disableCheck=disable_check)
    driver = node.driver()
    attachment = await attach(driver, request_a)
    expected = (
        contextlib.nullcontext() if disable_check else pytest.raises(DriverError, match=r"plugin second .* CHECK")
    )
    with expected:
        await driver.check(request_a, attachment.data)
    assert node.commands()[2:] == ([] if disable_check else ["CHECK first", "CHECK second"])
    assert all(call.content["prevResult"] == result("10.1.0.5/24") for call in node.calls()[2:])


async def test_without_configuration_it_is_not_ready_and_says_where_one_belongs(
    node: Node, request_a: NetworkRequest
) -> None:
    node.configure("00-broken.conflist", "{")
    driver = node.driver()
    status = await driver.status()
    assert (status.ready, status.reason) == (False, "NoNetworkConfiguration")
    assert f"no CNI configuration in {node.conf_dir}" in status.message
    assert "00-broken.conflist: it is not JSON" in status.message
    with pytest.raises(Unavailable, match="no CNI configuration"):
        await driver.plan(request_a)


async def test_it_gets_ready_when_a_configuration_appears(node: Node, request_a: NetworkRequest) -> None:
    driver = node.driver()
    assert not (await driver.status()).ready
    node.add_working_plugin("first")
    node.configure_chain("first")
    status = await driver.status()
    assert (status.ready, status.reason, status.message) == (True, "", "")
    assert (await attach(driver, request_a)).addresses == ("10.1.0.5",)


async def test_a_ready_network_reports_the_files_that_were_skipped(node: Node) -> None:
    node.add_working_plugin("first")
    node.configure_chain("first")
    node.configure("00-broken.conf", "{}")
    status = await node.driver().status()
    assert (status.ready, status.message) == (True, "skipped 00-broken.conf: name: Field required")


async def test_a_missing_plugin_makes_it_not_ready(node: Node, request_a: NetworkRequest) -> None:
    node.configure_chain("absent")
    (node.root / "bin" / "absent").write_text("not executable")
    status = await node.driver().status()
    assert (status.ready, status.reason) == (False, "NetworkPluginMissing")
    assert "plugin absent of 10-x.conflist is not installed" in status.message
    assert str(node.root / "bin") in status.message


async def test_a_version_that_a_plugin_does_not_speak_makes_it_not_ready(node: Node) -> None:
    node.add_working_plugin("first", versions=("0.4.0", "1.0.0"))
    node.configure_chain("first", cniVersion="1.1.0")
    driver = node.driver()
    status = await driver.status()
    assert (status.ready, status.reason) == (False, "NetworkPluginVersion")
    assert "10-x.conflist asks for CNI version 1.1.0, but first speaks 0.4.0, 1.0.0" in status.message
    node.add_working_plugin("first", versions=("1.1.0",))  # an update of the plugin is noticed
    assert (await driver.status()).ready


async def test_status_is_asked_of_plugins_of_version_11(node: Node) -> None:
    words = """echo '{"code": 50, "msg": "agent is starting"}'; exit 1"""
    node.add_working_plugin("first")
    node.add_working_plugin("second", STATUS=f"[ -e {node.root}/ready ] || {{ {words}; }}")
    node.configure_chain("first", "second", cniVersion="1.1.0")
    driver = node.driver()
    status = await driver.status()
    assert (status.ready, status.reason) == (False, "NetworkPluginNotReady")
    assert "plugin second" in status.message
    assert "CNI error 50 (plugin not available): agent is starting" in status.message
    (node.root / "ready").touch()
    assert (await driver.status()).ready
    assert node.commands() == ["STATUS first", "STATUS second"] * 2
    assert node.calls()[0].content == {"cniVersion": "1.1.0", "name": "blue", "type": "first"}


async def test_status_is_not_asked_of_older_plugins(node: Node) -> None:
    node.add_working_plugin("first", STATUS="exit 1")
    node.configure_chain("first", cniVersion="1.0.0")
    assert (await node.driver().status()).ready
    assert node.commands() == []


async def test_garbage_collection_names_what_is_owned_and_what_was_attached_since(
    node: Node, make_request: Callable[..., NetworkRequest]
) -> None:
    node.add_working_plugin("first", GC="exit 1")
    node.add_working_plugin("second")
    node.configure_chain("first", "second", cniVersion="1.1.0")
    kept, new, ended = (make_request(name) for name in ("kept", "new", "ended"))
    owned = (await attach(node.driver(), kept)).data
    driver = node.driver()
    await attach(driver, new)
    await driver.detach(ended, (await attach(driver, ended)).data)
    with pytest.raises(DriverError, match=r"plugin first .* GC: exit code 1"):
        await driver.collect_garbage(((kept, owned),))
    collected = [call for call in node.calls() if call.command == "GC"]
    assert [call.plugin for call in collected] == ["first", "second"], "an error does not keep it from the others"
    expected = [{"containerID": "kept", "ifname": "eth0"}, {"containerID": "new", "ifname": "eth0"}]
    assert all(call.content["cni.dev/valid-attachments"] == expected for call in collected)


@pytest.mark.parametrize("more", [{"disableGC": True, "cniVersion": "1.1.0"}, {"cniVersion": "1.0.0"}])
async def test_garbage_collection_is_left_out(node: Node, more: dict[str, Any]) -> None:
    node.add_working_plugin("first")
    node.configure_chain("first", **more)
    await node.driver().collect_garbage(())
    assert node.commands() == []


async def test_garbage_collection_refuses_to_guess_what_is_owned(node: Node, request_a: NetworkRequest) -> None:
    node.add_working_plugin("first")
    node.configure_chain("first", cniVersion="1.1.0")
    with pytest.raises(DriverError, match="recorded plan"):
        await node.driver().collect_garbage(((request_a, {"unreadable": True}),))
    assert node.commands() == []


async def test_garbage_collection_waits_for_attachments_under_way(node: Node, request_a: NetworkRequest) -> None:
    node.add_plugin("first", ADD=f"sleep 0.3; printf '%s' {quote(json.dumps(result('10.1.0.5/24')))}")
    node.configure_chain("first", cniVersion="1.1.0")
    driver = node.driver()
    adding = asyncio.create_task(attach(driver, request_a))
    await until(lambda: node.commands() == ["ADD first"])
    await driver.collect_garbage(())
    assert adding.done()
    assert node.calls()[1].content["cni.dev/valid-attachments"] == [{"containerID": "pod1", "ifname": "eth0"}]


async def test_several_networks(node: Node, request_a: NetworkRequest) -> None:
    node.add_working_plugin("first", result("10.1.0.5/24"))
    node.add_working_plugin("other", result("10.2.0.5/24"))
    node.configure_chain("first", file="10-a.conflist", name="a")
    node.configure_chain("other", file="20-b.conflist", name="b")
    driver = node.driver(max_conf_num=0, interface_prefix="net")
    attachment = await attach(driver, request_a)
    assert attachment.addresses == ("10.1.0.5",), "the first network gives the pod's addresses"
    await driver.detach(request_a, attachment.data)
    assert node.commands() == ["ADD first", "ADD other", "DEL other", "DEL first"]
    assert [call.environment["CNI_IFNAME"] for call in node.calls()] == ["eth0", "net1", "net1", "eth0"]


async def test_a_failure_of_the_second_network_takes_back_the_first(node: Node, request_a: NetworkRequest) -> None:
    node.add_working_plugin("first")
    node.add_plugin("other", ADD="exit 1")
    node.configure_chain("first", file="10-a.conflist", name="a")
    node.configure_chain("other", file="20-b.conflist", name="b")
    await fail_to_attach(node.driver(max_conf_num=0), request_a)
    assert node.commands() == ["ADD first", "ADD other", "DEL other", "DEL first"]
    assert "prevResult" in node.calls()[3].content


async def test_lo_is_brought_up_without_a_plugin(
    node: Node, request_a: NetworkRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    brought_up: list[str] = []

    async def bring_up(netns: str) -> None:
        brought_up.append(netns)

    monkeypatch.setattr(driver_module, "_bring_up_loopback", bring_up)
    node.add_working_plugin("loopback", {"cniVersion": "1.1.0", "ips": [{"address": "127.0.0.1/8"}]})
    node.add_working_plugin("first")
    node.configure_chain("first")
    await attach(node.driver(loopback=True), request_a)
    await attach(node.driver(loopback=False), replace(request_a, pod_id="other"))
    assert node.commands() == ["ADD first", "ADD first"]
    assert brought_up == [str(request_a.netns)]


async def test_a_pod_whose_lo_an_earlier_version_had_a_plugin_for(node: Node, request_a: NetworkRequest) -> None:
    node.add_working_plugin("loopback")
    node.add_working_plugin("first")
    node.configure_chain("first")
    plan: dict[str, Any] = dict((await attach(node.driver(), request_a)).data)
    text = json.dumps({"name": "cni-loopback", "cniVersion": "1.0.0", "plugins": [{"type": "loopback"}]})
    lo: dict[str, Any] = {
        "file": "built-in",
        "text": text,
        "version": "1.0.0",
        "interface": "lo",
        "capabilities": {},
        "result": None,
    }
    await node.driver().detach(request_a, plan | {"networks": [lo, *plan["networks"]]})
    assert node.commands() == ["ADD first", "DEL first", "DEL loopback"]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("result", ("fd00::5", "10.1.0.5")),
        ("ipv4-first", ("10.1.0.5", "fd00::5")),
        ("ipv6-first", ("fd00::5", "10.1.0.5")),
    ],
)
async def test_the_order_of_dual_stack_addresses(
    node: Node, request_a: NetworkRequest, order: str, expected: tuple[str, ...]
) -> None:
    node.add_working_plugin("first", result("fd00::5/64", "10.1.0.5/24"))
    node.configure_chain("first")
    assert (await attach(node.driver(address_order=order), request_a)).addresses == expected


async def test_names_that_the_protocol_can_not_carry(
    node: Node, make_request: Callable[..., NetworkRequest], request_a: NetworkRequest
) -> None:
    node.add_working_plugin("first")
    node.configure_chain("first")
    driver = node.driver()
    for request in (
        make_request("../up"),
        make_request(interface="much-too-long-a-name"),
        replace(request_a, metadata=replace(request_a.metadata, name="a;K8S_POD_UID=other")),
        replace(request_a, netns=None),
    ):
        with pytest.raises(InvalidArgument):
            await driver.plan(request)


async def test_nothing_recorded_means_nothing_to_undo(node: Node, request_a: NetworkRequest) -> None:
    await node.driver().detach(request_a, {})
    with pytest.raises(DriverError, match="recorded plan of a CNI attachment does not parse"):
        await node.driver().detach(request_a, {"networks": 7})
