"""The configuration's JSON Schema, and the listing of plugins."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from crinoid.core.config.loader import ConfigPaths, load
from crinoid.core.slots.listing import Plugin, State, list_plugins
from crinoid.core.slots.schema import make_schema
from support.distributions import NETWORK, QUIET_CONFIG, Site


def _references(part: Any) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for value in part.values():
            yield from _references(value)
    elif isinstance(part, list):
        for value in part:
            yield from _references(value)


def test_the_schema_has_the_options_of_a_stranger(site: Site) -> None:
    site.install("star-net", "[crinoid.networks]\nstar = star_net:Driver\n")
    schema = make_schema()
    assert {"$ref": "#/$defs/network-star-slot"} in schema["properties"]["network"]["oneOf"]
    slot = schema["$defs"]["network-star-slot"]
    assert slot["properties"]["driver"]["const"] == "star"
    assert slot["title"] == "star (star-net 1.0)"
    assert slot["required"] == ["driver"]
    options = schema["$defs"][slot["properties"]["options"]["$ref"].removeprefix("#/$defs/")]
    assert options["properties"]["mtu"] == {"default": 1500, "description": "Bytes.", "title": "Mtu", "type": "integer"}
    assert options["additionalProperties"] is False


def test_every_reference_in_the_schema_leads_somewhere() -> None:
    schema = make_schema()
    found = set(_references(schema))
    assert "#/$defs/runtime-runc-slot" in found
    assert {reference.removeprefix("#/$defs/") for reference in found} <= schema["$defs"].keys()


def test_a_slot_that_is_there_by_default_need_not_name_its_driver() -> None:
    schema = make_schema()
    names = [choice["$ref"] for choice in schema["properties"]["runtimes"]["properties"]["runc"]["oneOf"]]
    assert "#/$defs/runtime-runc-slot-by-default" in names
    assert "#/$defs/runtime-crun-slot" in names
    assert "required" not in schema["$defs"]["runtime-runc-slot-by-default"]


def test_a_broken_driver_is_left_out_of_the_schema(site: Site) -> None:
    site.install("bad-net", "[crinoid.networks]\nbad = bad_net:Driver\n", "import not_there\n")
    assert "network-bad-slot" not in make_schema()["$defs"]


@pytest.fixture
def plugins(quiet: Site, tmp_path: Path) -> dict[tuple[str, str], Plugin]:
    """The listing with a driver in each state."""
    quiet.install("star-net", "[crinoid.networks]\nstar = star_net:Driver\n")
    quiet.install("spare-net", "[crinoid.networks]\nspare = spare_net:Driver\n")
    quiet.install("bad-net", "[crinoid.networks]\nbad = bad_net:Driver\n", "import not_there\n")
    quiet.install("old-net", "[crinoid.networks]\nold = old_net:Driver\n", NETWORK + '    api_version = "0.9"\n')
    file = tmp_path / "config.toml"
    text = (
        '[network]\ndriver = "quiet"\n[networks.s]\ndriver = "star"\noptions.mtuu = 1\n[networks.g]\ndriver = "gone"\n'
    )
    file.write_text((QUIET_CONFIG + text).format(directory=tmp_path))
    loaded = load(ConfigPaths.at(file))
    return {(p.driver.role, p.driver.name): p for p in list_plugins(loaded.config, loaded.origins)}


def test_each_plugin_has_its_state_and_slots(plugins: dict[tuple[str, str], Plugin]) -> None:
    states = {name: plugin.state for (role, name), plugin in plugins.items() if role == "network"}
    assert states == {
        "quiet": State.SELECTED,
        "star": State.MISCONFIGURED,
        "spare": State.AVAILABLE,
        "bad": State.BROKEN,
        "old": State.BROKEN,
        "gone": State.MISSING,
        "auto": State.AVAILABLE,
        "bridge": State.AVAILABLE,
        "cni": State.AVAILABLE,
        "host": State.AVAILABLE,
    }
    assert plugins["network", "quiet"].slots == ("default",)
    assert plugins["network", "quiet"].driver.api_version == "1.0"
    assert plugins["network", "gone"].slots == ("g",)


def test_each_state_has_its_reason(plugins: dict[tuple[str, str], Plugin]) -> None:
    assert 'networks.s.options.mtuu: unknown key; did you mean "mtu"?' in plugins["network", "star"].error
    assert "plugin API 0.9" in plugins["network", "old"].error
    assert 'no network driver "gone" is installed' in plugins["network", "gone"].error
    assert plugins["network", "spare"].error == ""


def test_without_a_configuration_nothing_is_in_use() -> None:
    assert {plugin.state for plugin in list_plugins(None)} <= {State.AVAILABLE, State.BROKEN}
