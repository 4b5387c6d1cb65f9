"""Fixtures that several layers' tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from support.distributions import Site, site_on_path


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    """Distributions of the test's own, found by their entry points."""
    with site_on_path(tmp_path / "site") as made:
        yield made


@pytest.fixture
def quiet(site: Site) -> Site:
    """A site with a noop driver of every role."""
    site.install_quiet()
    return site
