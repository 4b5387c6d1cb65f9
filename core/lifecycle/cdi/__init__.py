"""Devices by the Container Device Interface: vendors describe them in files, containers name them, the spec gets them.

``names`` reads what a container asks for, ``spec_directories`` knows all files of the configured directories and keeps
up with their changes, ``cdi_files`` reads one file (with ``located``, for errors), ``injection`` edits the OCI
specification. Source: the CDI specification, versions 0.3.0 to 1.1.0.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from crinoid.core.api.values.container import ContainerConfig
from crinoid.core.lifecycle.cdi.names import requested_devices

if TYPE_CHECKING:
    from crinoid.core.lifecycle.cdi.injection import JsonObject
    from crinoid.core.lifecycle.cdi.spec_directories import Directories

__all__ = ["CdiDevices", "requested_devices"]


class CdiDevices:
    """All devices of the node that have a CDI name."""

    def __init__(self, directories: Iterable[Path]) -> None:
        """``directories``: where vendors' files lie, the least important first."""
        self._paths = tuple(directories)
        self._directories: Directories | None = None

    def add(self, spec: "JsonObject", config: ContainerConfig) -> None:
        """Put the devices that a container asks for into its specification. Blocks: files are looked at.

        Raises InvalidArgument for what is no device name, NotFound for a device that no file has, FailedPrecondition
        for one that two files claim or whose resources are not on the host, Unsupported for what no runtime can do. The
        message names file and line.
        """
        if names := requested_devices(config):
            from crinoid.core.lifecycle.cdi.injection import inject
            from crinoid.core.lifecycle.cdi.spec_directories import (
                Directories,  # with YAML; most nodes have no such devices
            )

            self._directories = self._directories or Directories(self._paths)
            inject(spec, self._directories.find(names))
