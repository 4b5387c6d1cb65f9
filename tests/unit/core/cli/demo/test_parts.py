"""The demo's parts that need no root: its voice, its image, its search for traces, its choice of a subnet."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from crinoid.core.api.errors import ResourceExhausted, Unsupported
from crinoid.core.cli.demo import image, network
from crinoid.core.cli.demo.stage import Stage
from crinoid.core.cli.demo.story import NotAsTold, Story
from crinoid.core.cli.demo.traces import KINDS, Trace, Traces
from crinoid.core.config.loader import ConfigPaths, load

ROUTES = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"


def test_a_fact_that_does_not_hold_ends_the_story(capsys: pytest.CaptureFixture[str]) -> None:
    story = Story()
    story.chapter("One")
    story.show("water is wet", holds=True)
    with pytest.raises(NotAsTold, match=r'chapter 1: "fire is cold"; seen: 900'):
        story.show("fire is cold", holds=False, seen=900)
    story.end()
    told = capsys.readouterr().out
    assert "\n1. One\n  ok water is wet\n" in told
    assert "1 chapters, 1 facts shown" in told
    assert "fire" not in told


@pytest.mark.skipif(not Path("/bin/busybox").exists(), reason="no busybox")
def test_the_image_is_one_that_others_can_read(tmp_path: Path) -> None:
    directory = tmp_path / "layout"
    image.write_layout(directory, "demo.example/x:1")
    (named,) = json.loads((directory / "index.json").read_text())["manifests"]
    manifest = json.loads((directory / "blobs" / named["digest"].replace(":", "/")).read_text())
    with tarfile.open(directory / "blobs" / manifest["layers"][0]["digest"].replace(":", "/")) as layer:
        assert {"bin/busybox", "bin/sh", "proc", "www", "etc/passwd"} <= set(layer.getnames())
    if shutil.which("skopeo"):
        command = ["skopeo", "inspect", f"oci:{directory}:demo.example/x:1"]
        assert json.loads(subprocess.check_output(command, text=True))["Os"] == "linux"


def test_a_busybox_with_a_loader_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dynamic = tmp_path / "busybox"
    dynamic.write_bytes(b"\x7fELF" + b"\0" * 200 + b"/lib64/ld-linux-x86-64.so.2\0")
    monkeypatch.setattr(image, "_BUSYBOX", dynamic)
    with pytest.raises(Unsupported, match="busybox-static"):
        image.write_layout(tmp_path / "layout", "demo.example/x:1")


def route(destination: str, mask: str) -> str:
    """A line of /proc/net/route: numbers in the machine's byte order."""
    numbers = [f"{int.from_bytes(bytes(map(int, each.split('.'))), sys.byteorder):08X}" for each in (destination, mask)]
    return f"eth0\t{numbers[0]}\t00000000\t0001\t0\t0\t0\t{numbers[1]}\t0\t0\t0\n"


@pytest.mark.parametrize(
    ("routes", "expected"),
    [
        ([("0.0.0.0", "0.0.0.0")], "10.213.0.0/24"),
        ([("10.213.0.0", "255.255.255.0"), ("10.213.1.128", "255.255.255.128")], "10.213.2.0/24"),
        ([("10.213.0.0", "255.255.128.0")], "10.213.128.0/24"),
    ],
)
def test_a_subnet_is_chosen_that_no_route_has(
    routes: list[tuple[str, str]], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = tmp_path / "route"
    table.write_text(ROUTES + "".join(route(*each) for each in routes))
    monkeypatch.setattr(network, "_ROUTES", table)
    assert network.find_free_subnet() == IPv4Network(expected)


def test_no_subnet_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "route"
    table.write_text(ROUTES + route("10.0.0.0", "255.0.0.0"))
    monkeypatch.setattr(network, "_ROUTES", table)
    with pytest.raises(ResourceExhausted, match=r"10\.213\.0\.0/16"):
        network.find_free_subnet()


def test_the_configuration_is_valid_and_changes_by_lines(tmp_path: Path) -> None:
    stage = Stage("abc123", tmp_path, IPv4Network("10.213.7.0/24"), 8080, 8081)
    stage.write_files("127.0.0.1:5000")
    assert load(ConfigPaths.at(stage.config)).config.runtimes["demo"].driver == "runc"
    number = stage.change_line('driver = "runc"', 'driver = "crun"')
    assert stage.config.read_text().splitlines()[number - 1] == 'driver = "crun"'
    changed = load(ConfigPaths.at(stage.config)).config
    assert (changed.runtimes["demo"].driver, changed.runtimes["runc"].driver) == ("crun", "runc")
    assert len(stage.bridge) <= 15
    assert len(f"{stage.run}/plugins") < 60
    with pytest.raises(ValueError, match="not in list"):
        stage.change_line('driver = "runc"', 'driver = "crun"')


def test_traces_are_found_by_name_and_known_again() -> None:
    name = f"crinoid-demo-trace-{os.getpid()}"
    traces = Traces((name,))
    assert set(traces.note().values()) == {0}
    command = [sys.executable, "-c", "print(flush=True); input()", name]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        counts = traces.note()
        assert counts == dict.fromkeys(KINDS, 0) | {"processes": 1}
        assert [trace.kind for trace in traces.left()] == ["processes"]
        process.communicate(b"\n")
    assert traces.left() == []
    assert len(traces.seen) == 1


def test_what_was_seen_is_found_again_without_its_name() -> None:
    """A trace that lost the name, as a link taken from its bridge, is one all the same."""
    traces = Traces(("no-such-name",), {Trace("links", "lo")})
    assert traces.left() == [Trace("links", "lo")]
