"""Drivers with one bug each: the contract's test that is named for it fails, says so, and passes where the bug is not.

The bugs are in ``tests/contract/bugs``; docs/contract.md has the table.
"""

import functools
import inspect
import shutil
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from contract.bugs import Catch, bugs_of, extensions, guests, networks, registries, runtimes, snapshotters
from crinoid.core.api.host import Host
from crinoid.core.api.linux import links
from crinoid.core.api.testing import binding
from crinoid.core.api.testing.extensions import ExtensionContract
from crinoid.core.api.testing.networks import NetworkContract, Strangers, fresh_network_namespace
from crinoid.core.api.testing.registries import RegistryContract, RegistrySample
from crinoid.core.api.testing.runtimes import RuntimeContract
from crinoid.core.api.testing.snapshotters import SnapshotterContract
from crinoid.core.api.values.runtime import PodSandbox
from support.patience import patient


class Networks(NetworkContract):
    most_pods = networks.MOST_PODS
    module = networks

    @pytest.fixture(autouse=True)
    def node(self) -> Iterator[Strangers]:
        """As in the contract, but what is removed of strangers is left to the test."""
        with fresh_network_namespace():
            links.set_up("lo")
            yield Strangers()


class Extensions(ExtensionContract):
    module = extensions

    def make_unwilling_driver(self, host: Host) -> object:
        driver = self.make_driver(host)
        return extensions.Unwilling(host) if type(driver) is extensions.Good else driver


class Registries(RegistryContract):
    module = registries

    @pytest.fixture
    def sample(self, host: Host) -> RegistrySample:
        return registries.SAMPLE

    def make_lying_driver(self, host: Host, sample: RegistrySample) -> object:
        return self.make_driver(host, sample, registries.Server(lies=True))  # type: ignore[call-arg]

    def make_breaking_driver(self, host: Host, sample: RegistrySample) -> object:
        return self.make_driver(host, sample, registries.Server(breaks=True))  # type: ignore[call-arg]


class Snapshotters(SnapshotterContract):
    module = snapshotters


@pytest.mark.skipif(not shutil.which("runc"), reason="wants runc and conmon")
class Runtimes(RuntimeContract):
    module = runtimes


@pytest.mark.skipif(not shutil.which("runc"), reason="wants runc and conmon")
class Guests(RuntimeContract):
    has_guests = True
    module = guests

    def end_guest(self, host: Host, pod: PodSandbox) -> None:
        guests.end(host, pod)


CONTRACTS: tuple[Any, ...] = (Runtimes, Guests, Networks, Snapshotters, Registries, Extensions)


def only(contract: type, tests: dict[str, object], make: Callable[..., object], name: str) -> type:
    """Make a contract of some of another's tests, for another driver."""
    others = {one: None for one in dir(contract) if one.startswith("test_")}
    made = type(name, (contract,), {**others, **tests, "make_driver": make})
    made.__module__ = __name__
    return made


WAITS = {
    "extensions._SETTLE_S": patient(1.0),
    "registries._SETTLE_S": patient(1.0),
    "networks._SETTLE_TRIES": 20,
    "snapshotters._SETTLE_TRIES": 20,
}
"""How long a bug is waited for to go away: it does not. Drivers that are right have three to five times as long."""


def catching(test: Callable[..., Any], catch: Catch) -> Callable[..., Any]:
    """Make of a test one that passes if it fails, in the expected words."""

    @functools.wraps(test)
    async def caught(self: object, monkeypatch: pytest.MonkeyPatch, **given: object) -> None:
        if catch.hook_s is not None:
            monkeypatch.setattr(binding, "HOOK_S", catch.hook_s)
        for name, value in WAITS.items():
            monkeypatch.setattr(f"crinoid.core.api.testing.{name}", value)
        monkeypatch.setenv("CI", "true")  # where pytest shows a difference whole, however long that takes
        wanted = {name: given[name] for name in inspect.signature(test).parameters if name in given}
        with pytest.raises((Exception, pytest.fail.Exception), match=f"(?s){catch.words}"):
            await test(self, **wanted, **catch.arguments)

    parameters = inspect.signature(test).parameters
    kept = [each for name, each in parameters.items() if name not in catch.arguments and name != "monkeypatch"]
    caught.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [*kept, inspect.Parameter("monkeypatch", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    )
    marks = [mark for mark in getattr(test, "pytestmark", ()) if mark.name != "parametrize" or not catch.arguments]
    caught.pytestmark = marks  # type: ignore[attr-defined]
    return caught


def _cases() -> Iterator[tuple[str, type]]:
    for contract in CONTRACTS:
        module: ModuleType = contract.module
        bugs = bugs_of(module)
        for bug in bugs:
            test = catching(getattr(contract, bug.catch.test), bug.catch)
            name = f"Test{contract.__name__}{bug.__name__}"
            yield name, only(contract, {bug.catch.test: test}, _maker(bug), name)
        named = {bug.catch.test: getattr(contract, bug.catch.test) for bug in bugs}
        name = f"Test{contract.__name__}Good"
        yield name, only(contract, named, _maker(module.Good), name)


def _maker(driver: Any) -> Callable[..., object]:
    def make_driver(self: object, host: Host, *more: object) -> object:
        return driver(host, *more)

    return make_driver


globals().update(_cases())


def test_every_bug_says_what_is_wrong() -> None:
    for contract in CONTRACTS:
        for bug in bugs_of(contract.module):
            assert bug.__doc__ and bug.__doc__ != contract.module.Good.__doc__, bug


def test_there_are_enough_of_every_role() -> None:
    found = {contract.__name__: len(bugs_of(contract.module)) for contract in CONTRACTS}
    assert sum(found.values()) >= 100, found
    assert len(found) == 6 and min(found.values()) >= 15, found
