"""Finding and loading drivers of distributions that are missing, broken, doubled or out of date."""

import sys

import pytest

from crinoid.core.slots import drivers
from crinoid.core.slots.drivers import Installation, UnusableDriverError
from support.distributions import NETWORK, Site

ENTRY = "[crinoid.networks]\nstar = star_net:Driver\n"


def refusal(name: str = "star") -> str:
    with pytest.raises(UnusableDriverError) as caught:
        Installation().load("network", name)
    return str(caught.value)


def test_a_driver_of_a_stranger_is_found_and_loaded(site: Site) -> None:
    site.install("star-net", ENTRY)
    driver = Installation().load("network", "star")
    assert (driver.installed.distribution, driver.installed.version) == ("star-net", "1.0")
    assert driver.options.model_fields.keys() == {"subnet", "mtu"}


def test_an_installation_after_the_first_look_is_seen(site: Site) -> None:
    assert 'no network driver "star" is installed' in refusal()
    site.install("star-net", ENTRY)
    assert Installation().load("network", "star").installed.name == "star"


def test_an_absent_driver_is_told_with_the_nearest_name(site: Site) -> None:
    site.install("star-net", ENTRY)
    assert refusal("starr") == (
        'no network driver "starr" is installed: install the distribution that has it (entry point group'
        ' crinoid.networks), or name another (docs/troubleshooting.md#driver-not-installed); did you mean "star"?'
    )


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("import not_there\n", "ModuleNotFoundError: No module named 'not_there'"),
        ("raise RuntimeError('no')\n", "RuntimeError: no"),
        ("raise SystemExit('bye')\n", "SystemExit: bye"),
        ("assert False, 'never'\n", "AssertionError: never"),
        ("def broken(:\n", "SyntaxError: "),
        ("Other = 1\n", "AttributeError: "),
    ],
)
def test_a_driver_that_can_not_be_imported_names_its_distribution(site: Site, module: str, why: str) -> None:
    site.install("star-net", ENTRY, module)
    text = refusal()
    assert text.startswith('network driver "star" of distribution star-net 1.0 can\'t be imported from star_net:Driver')
    assert why in text
    assert text.endswith("Reinstall or upgrade it, or name another")


def test_a_name_that_two_distributions_claim_is_refused_with_both(site: Site) -> None:
    site.install("star-net", ENTRY)
    site.install("other-net", ENTRY.replace("star_net", "other_net"), version="2.1")
    assert refusal() == (
        'network driver "star" is claimed by distribution other-net 2.1 and distribution star-net 1.0:'
        " uninstall all but one of them"
    )
    assert "star_net" not in sys.modules, "neither of them was imported"


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('    api_version = "2.0"\n', "is for plugin API 2.0, but this is 1.0: install a version of it that fits"),
        ("    api_version = None\n", "names no plugin API version"),
        ("    Config = dict\n", "its Config is no DriverConfig"),
    ],
)
def test_a_class_that_is_no_driver_of_this_api_is_refused(site: Site, line: str, why: str) -> None:
    site.install("star-net", ENTRY, NETWORK + line)
    assert f'network driver "star" of distribution star-net 1.0{":" if "Config" in line else ""} {why}' in refusal()


def test_an_older_minor_version_of_the_api_is_taken(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "API_VERSION", "1.10")
    site.install("star-net", ENTRY, NETWORK + '    api_version = "1.9"\n')
    assert Installation().load("network", "star").factory.api_version == "1.9"


def test_a_function_is_no_driver(site: Site) -> None:
    site.install("star-net", ENTRY, "def Driver(config, host): ...\n")
    assert "star_net:Driver is no class" in refusal()


def test_the_listing_imports_nothing_until_it_is_asked_to(site: Site) -> None:
    site.install("star-net", ENTRY)
    site.install("bad-net", "[crinoid.networks]\nbad = bad_net:Driver\n", "raise RuntimeError('no')\n")
    listed = {driver.name: driver for driver in Installation().discover() if driver.role == "network"}
    assert listed["star"].target == "star_net:Driver"
    assert "star_net" not in sys.modules
    assert "bad_net" not in sys.modules
    loaded = {driver.name: driver for driver in Installation().discover(load=True) if driver.role == "network"}
    assert (loaded["star"].api_version, loaded["star"].error) == ("1.0", "")
    assert "RuntimeError: no" in loaded["bad"].error


def test_the_listing_has_the_built_in_drivers_of_every_role() -> None:
    names = {(driver.role, driver.name) for driver in Installation().discover() if driver.distribution == "crinoid"}
    assert names >= {("runtime", "runc"), ("network", "cni"), ("snapshotter", "overlay"), ("registry", "layout")}
