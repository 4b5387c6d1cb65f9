"""``crinoid build``: a node build from one file, and ``crinoid build verify``: whether a node is that build.

Read in this order: ``site_file`` (what a site says), ``lock`` (which wheels, by hash), ``tree`` (all files of the
build), ``sbom`` and ``licences`` (what it is made of), ``hashes`` (its list of files, and verify), ``scripts`` (what
dpkg runs), ``archives`` (tar and deb), ``command``. Equal input gives equal bytes: nothing here asks for the time, the
user or the order of a directory. docs/site.md is for who builds.
"""

from crinoid.core.cli.node_build.command import build

__all__ = ["build"]
