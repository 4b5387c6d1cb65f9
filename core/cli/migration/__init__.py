"""``crinoid config import``: what another runtime's files say, as a configuration of crinoid.

Read in this order: ``sources`` (files, with the line of each key), ``rules`` (what becomes of a key), the peers'
``containerd``, ``crio``, ``docker`` and ``registries_conf``, ``hosts`` (mirrors and TLS), ``draft`` (what comes of it
all), ``trial`` (what does not hold is taken out again), ``command``.

Every key of every file ends as one finding: carried, lost, or nothing to carry. Nothing is left out silently.
"""

from crinoid.core.cli.migration.command import import_

__all__ = ["import_"]
