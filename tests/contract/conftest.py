"""``--isolated``: every contract of this directory, with its driver in another process (``make test-isolated``)."""

from collections.abc import Iterator

import pytest

from crinoid.core.api.host import Host
from crinoid.core.api.testing.contract import Contract
from crinoid.core.api.testing.extensions import ExtensionContract
from support.isolation import ForkedProcess, role_of


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option."""
    parser.addoption("--isolated", action="store_true", help="put the drivers under test into processes of their own")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what looks into drivers that have bugs, as their contracts are to fail.

    Not by ``--ignore``: workers are given the files by name (``tests/conftest.py``), and then it counts for nothing.
    """
    if config.getoption("--isolated"):
        items[:] = [item for item in items if item.path.name != "test_seeded_bugs.py"]


@pytest.fixture(autouse=True)
def isolated(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put drivers of contracts into children, where the command line or the contract's class says so."""
    contract = request.instance
    if not isinstance(contract, Contract) or not (
        request.config.getoption("--isolated", default=False) or getattr(contract, "is_isolated", False)
    ):
        yield
        return
    processes: list[ForkedProcess] = []
    role = role_of(contract.specification)

    def wrap(name: str) -> None:
        if (make := getattr(contract, name, None)) is not None:

            def make_isolated(host: Host, *more: object) -> object:
                processes.append(ForkedProcess(role, lambda inside: make(inside, *more), host))
                return processes[-1].proxy

            monkeypatch.setattr(contract, name, make_isolated, raising=False)

    wrap("make_driver")
    # Of the contract's own that says that there is none, nothing is to be made elsewhere.
    if getattr(type(contract), "make_unwilling_driver", None) is not ExtensionContract.make_unwilling_driver:
        wrap("make_unwilling_driver")
    yield
    for process in processes:
        process.end_now()
