"""Which configuration a pod gets, and what is said of those that can't be used."""

import json
import os
from pathlib import Path

import pytest

from crinoid.plugins.networks.cni.configuration import ConfigurationDirectory, InvalidConfiguration, Network, load_file
from support.cni import Node


def chain(name: str, **more: object) -> dict[str, object]:
    return {"cniVersion": "1.0.0", "name": name, "plugins": [{"type": "bridge"}], **more}


def read(node: Node) -> tuple[list[str], tuple[str, ...]]:
    directory, _ = ConfigurationDirectory(node.conf_dir).read()
    return [network.name for network in directory.networks], directory.problems


def test_files_come_in_the_order_of_their_names_whatever_their_ending(node: Node) -> None:
    node.configure("20-b.conflist", chain("b"))
    node.configure("30-c.json", {"cniVersion": "0.3.1", "name": "c", "type": "ptp"})
    node.configure("10-a.conf", {"cniVersion": "0.3.1", "name": "a", "type": "bridge"})
    node.configure("00-ignored.txt", chain("ignored"))
    assert read(node) == (["a", "b", "c"], ())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "it is not JSON"),
        ("[]", "it is not a JSON object"),
        ({"name": "x", "plugins": []}, "it names no plugin"),
        ({"name": "x"}, "it names no plugin"),
        ({"plugins": [{"type": "bridge"}]}, "name: Field required"),
        (chain("no/slash"), "name: Value error, must begin with"),
        ({"name": "x", "plugins": [{"type": "../sh"}]}, "plugins.0.type: Value error, must be the file name"),
        ({"name": "x", "plugins": [{"kind": "bridge"}]}, "plugins.0.type: Field required"),
        ({"name": "x", "plugins": "bridge"}, "plugins: must be a list"),
        (chain("x", cniVersion="2.0.0"), "it is of CNI version 2.0.0; known are up to 1.1.0"),
        ("[" * 100_000, "it is not JSON"),
    ],
)
def test_a_file_that_can_not_be_used_is_skipped_and_reported(node: Node, content: object, reason: str) -> None:
    node.configure("00-broken.conflist", content)
    node.configure("10-good.conflist", chain("good"))
    names, problems = read(node)
    assert names == ["good"]
    assert len(problems) == 1
    assert problems[0].startswith(f"00-broken.conflist: {reason}")


def test_two_networks_of_one_name_are_reported(node: Node) -> None:
    node.configure("10-a.conflist", chain("same"))
    node.configure("20-b.conflist", chain("same"))
    assert read(node) == (["same"], ("20-b.conflist: 10-a.conflist has a network 'same' already",))


def test_a_dangling_link_and_a_missing_directory_do_no_harm(node: Node, tmp_path: Path) -> None:
    (node.conf_dir / "00-gone.conflist").symlink_to(tmp_path / "nowhere")
    assert read(node) == ([], ("00-gone.conflist: can't read 00-gone.conflist: No such file or directory",))
    assert ConfigurationDirectory(tmp_path / "no-such-directory").read()[0].networks == ()


def test_the_directory_is_read_again_only_when_a_file_changed(node: Node) -> None:
    directory = ConfigurationDirectory(node.conf_dir)
    node.configure("10-a.conflist", chain("a"))
    assert directory.read()[1] is True
    assert directory.read()[1] is False
    node.configure("10-a.conflist", chain("changed"))
    content, is_new = directory.read()
    assert (is_new, content.networks[0].name) == (True, "changed")
    (node.conf_dir / "10-a.conflist").unlink()
    assert directory.read()[0].networks == ()


def test_a_replaced_file_of_the_same_size_and_time_is_seen(node: Node) -> None:
    directory = ConfigurationDirectory(node.conf_dir)
    node.configure("10-a.conflist", chain("a"))
    times = (1_700_000_000, 1_700_000_000)
    os.utime(node.conf_dir / "10-a.conflist", times)
    directory.read()
    node.configure("new", chain("b"))
    os.utime(node.conf_dir / "new", times)
    (node.conf_dir / "new").rename(node.conf_dir / "10-a.conflist")
    assert directory.read()[0].networks[0].name == "b"


def test_plugins_of_the_directory_beside_are_appended_and_watched(node: Node) -> None:
    (node.conf_dir / "a").mkdir()
    node.configure("a/20-tuning.conf", {"type": "tuning"})
    node.configure("a/10-portmap.conf", {"type": "portmap"})
    node.configure("a/ignored.json", {"type": "ignored"})
    node.configure("10-a.conflist", chain("a"))
    directory = ConfigurationDirectory(node.conf_dir)
    assert directory.read()[0].networks[0].plugin_types == ("bridge", "portmap", "tuning")
    node.configure("a/30-bandwidth.conf", {"type": "bandwidth"})
    assert directory.read()[0].networks[0].plugin_types == ("bridge", "portmap", "tuning", "bandwidth")


def test_a_list_may_have_all_its_plugins_in_the_directory_beside(node: Node) -> None:
    (node.conf_dir / "a").mkdir()
    node.configure("a/10-ptp.conf", {"type": "ptp"})
    node.configure("10-a.conflist", {"cniVersion": "1.1.0", "name": "a"})
    assert load_file(node.conf_dir / "10-a.conflist").plugin_types == ("ptp",)


def test_load_only_inlined_plugins(node: Node) -> None:
    (node.conf_dir / "a").mkdir()
    node.configure("a/10-ptp.conf", {"type": "ptp"})
    node.configure("10-a.conflist", chain("a", loadOnlyInlinedPlugins=True))
    assert load_file(node.conf_dir / "10-a.conflist").plugin_types == ("bridge",)


def test_the_text_holds_everything_that_was_used(node: Node) -> None:
    (node.conf_dir / "a").mkdir()
    node.configure("a/10-ptp.conf", {"type": "ptp", "own": [1, 2]})
    node.configure("10-a.conflist", chain("a", disableCheck="true", disableGC=True, note="kept"))
    network = load_file(node.conf_dir / "10-a.conflist")
    assert Network.parse(network.file, network.text) == network
    assert (network.disable_check, network.disable_gc) == (True, True)
    assert json.loads(network.text)["note"] == "kept"
    assert network.plugins[1] == {"type": "ptp", "own": [1, 2]}


@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        ({"cniVersion": "0.4.0"}, ("0.4.0",)),
        ({"cniVersions": ["0.3.1", "1.1.0", "9.9.9"]}, ("1.1.0", "0.3.1")),
        ({"cniVersion": "1.0.0", "cniVersions": ["0.4.0"]}, ("1.0.0", "0.4.0")),
        ({}, ("0.1.0",)),
    ],
)
def test_versions_offered_are_the_known_ones_highest_first(offered: dict[str, object], expected: object) -> None:
    text = json.dumps({"name": "a", "plugins": [{"type": "bridge"}], **offered})
    assert Network.parse("a.conflist", text).versions == expected


def test_a_huge_file_is_refused(node: Node) -> None:
    node.configure("10-a.conflist", " " * (2 << 20))
    with pytest.raises(InvalidConfiguration, match="longer than 1048576 bytes"):
        load_file(node.conf_dir / "10-a.conflist")
