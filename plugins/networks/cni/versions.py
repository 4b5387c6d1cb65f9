"""Versions of the CNI specification: which there are, and which one a chain of plugins speaks.

The runtime picks the highest version that the configuration offers (SPEC.md, "Version considerations"); where a plugin
says by VERSION that it can't speak it, the next lower one that all of them can.
"""

from collections.abc import Iterable, Mapping

KNOWN = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Every released version, in order."""

OLDEST = KNOWN[0]
"""What a configuration without ``cniVersion`` means."""


def order(offered: Iterable[str]) -> tuple[str, ...]:
    """Return the known versions among those offered, the highest first."""
    wanted = set(offered)
    return tuple(version for version in reversed(KNOWN) if version in wanted)


def at_least(version: str, threshold: str) -> bool:
    """Return whether a known version is the threshold or later."""
    return KNOWN.index(version) >= KNOWN.index(threshold)


def negotiate(offered: tuple[str, ...], supported: Mapping[str, frozenset[str] | None]) -> str | None:
    """Return the highest offered version that every plugin speaks, ``None`` when there is none.

    ``offered``: known versions, the highest first. ``supported``: by plugin type; ``None`` for a plugin that doesn't
    tell, which is taken to speak what it is asked.
    """
    told = [versions for versions in supported.values() if versions is not None]
    return next((version for version in offered if all(version in versions for versions in told)), None)
