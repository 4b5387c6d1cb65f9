"""The OCI runtime specification of a container, from its CRI configuration, its image and its pod.

``build`` puts together what the modules beside it make: ``process`` (arguments, environment, capabilities), ``users``
(identity, from the image's passwd files), ``mounts``, ``isolation`` (namespaces, devices, resources).
"""

from crinoid.core.lifecycle.spec.build import SpecInput, build_init_spec, build_spec

__all__ = ["SpecInput", "build_init_spec", "build_spec"]
