"""What devices are called, ``vendor.com/class=name``, and which of them a container asks for."""

import re

from crinoid.core.api import bounds
from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.values.container import ContainerConfig

ANNOTATION_PREFIX = "cdi.k8s.io/"
KIND = re.compile(r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?/[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
DEVICE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")


def is_qualified(name: str) -> bool:
    """Return whether this is the full name of a device."""
    kind, found, device = name.partition("=")
    return bool(found and KIND.fullmatch(kind) and DEVICE.fullmatch(device))


def requested_devices(config: ContainerConfig) -> tuple[str, ...]:
    """Return the devices of the request's own field, then those of annotations, each once. Raises InvalidArgument."""
    found = [(name, "CDI_devices") for name in config.cdi_devices]
    for key in sorted(config.annotations):
        if key.startswith(ANNOTATION_PREFIX):
            found += [(name, f"annotation {key}") for name in config.annotations[key].split(",")]
    if len(found) > bounds.MAX_DEVICES:
        raise InvalidArgument(f"CDI_devices: {len(found)} are too many: a container can have {bounds.MAX_DEVICES}")
    for name, place in found:
        if not is_qualified(name):
            raise InvalidArgument(
                f"container {config.metadata.name!r}: {place}: {name!r} is no CDI device: write vendor/class=device"
            )
    return tuple(dict.fromkeys(name for name, _place in found))
