"""The driver ``oci``: any program with the command line of an OCI runtime, such as youki, runsc, or a wrapper of one.

What runc and crun are known to do besides is not taken for granted: a container's state is asked of the binary, it is
started by the binary, and exec processes are found by their parents unless ``exec_cgroup`` says that it can do more.
"""

import json
import re
from typing import Annotated, ClassVar

from pydantic import Field

from crinoid.core.api.errors import CrinoidError, Unsupported
from crinoid.core.api.values.runtime import RuntimeFeatures
from crinoid.plugins.runtimes.binaries.binary import Binary
from crinoid.plugins.runtimes.binaries.options import OciOptions
from crinoid.plugins.runtimes.binaries.versions import host_has_user_namespaces
from crinoid.plugins.runtimes.oci.oci_runtime import OciRuntime
from crinoid.plugins.runtimes.oci.traits import BinaryTraits

_VERSION = re.compile(r"\d+(?:\.\d+)+\S*")


class AnyOciOptions(OciOptions):
    """Options of the driver ``oci``."""

    binary: Annotated[str, Field(min_length=1)]
    """Name (looked up on PATH) or absolute path of the runtime's binary."""
    exec_cgroup: bool = False
    """Whether its ``exec`` has ``--cgroup``, which lets all that came from an exec process be found and killed."""


class AnyOciTraits(BinaryTraits):
    """The ways that every OCI runtime must have."""

    package = ""
    keeps_fifo = False

    def __init__(self, binary: Binary, options: OciOptions) -> None:
        super().__init__(binary, options)
        self.execs_in_cgroups = isinstance(options, AnyOciOptions) and options.exec_cgroup

    async def features(self) -> RuntimeFeatures:
        """Ask for version and, where the binary has that command, features (OCI runtime-spec, features.md)."""
        said = await self.binary.ask("--version", self.probe_s)
        version = _VERSION.search(said)
        if version is None:
            raise Unsupported(f"{self.binary.path} --version names no version: is it an OCI runtime?")
        try:
            features = json.loads(await self.binary.ask("features", self.probe_s))
            namespaces = (features.get("linux") or {}).get("namespaces") or ()
            mount_options = features.get("mountOptions") or ()
        except (CrinoidError, ValueError, AttributeError):
            namespaces = mount_options = ()
        return RuntimeFeatures(
            name=self.binary.path.name,
            version=version[0],
            recursive_read_only_mounts="rro" in mount_options,
            user_namespaces="user" in namespaces and host_has_user_namespaces(),
        )


class AnyOciRuntime(OciRuntime):
    """Containers by any OCI runtime and conmon."""

    Config: ClassVar[type[OciOptions]] = AnyOciOptions
    Traits = AnyOciTraits
