"""What a container's process starts with: arguments, environment, working directory, capabilities.

Sources: api.proto, ContainerConfig (``command`` replaces the image's entry point, ``args`` its command);
OCI image-spec, config.md; OCI runtime-spec, config.md, "process".
"""

import re
import resource
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from crinoid.core.api.errors import InvalidArgument
from crinoid.core.api.linux import capabilities as kernel
from crinoid.core.api.values.container import Capabilities, ContainerConfig
from crinoid.core.lifecycle.images.image_config import ContainerDefaults

_SURROGATES = re.compile("[\ud800-\udfff]")
_UNLIMITED = (1 << 64) - 1
_RLIMIT_LOCKS = 10  # the one that the module resource lacks
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def arguments(config: ContainerConfig, image: ContainerDefaults) -> list[str]:
    """Join command and args of the pod's manifest with those of the image, as Kubernetes defines it."""
    from_image = [*entry_point(image), *(config.args or image.cmd)]
    joined = [*config.command, *config.args] if config.command else from_image
    if not joined:
        raise InvalidArgument(
            f"container {config.metadata.name!r}: neither the container nor image {config.image} names a command"
        )
    if not joined[0]:
        whose = "the container's command" if config.command or config.args else "config.Entrypoint and config.Cmd"
        raise InvalidArgument(f"image {config.image}: {whose} begins with an empty text, which is no program")
    return joined


def entry_point(image: ContainerDefaults) -> tuple[str, ...]:
    """Return the image's entry point; a single empty text is how builders take one away (containerd#7229)."""
    return () if image.entrypoint == ("",) else image.entrypoint


def working_directory(config: ContainerConfig, image: ContainerDefaults) -> str:
    """Return the container's working directory, or the image's. A relative one is the OCI runtime's to refuse."""
    return config.working_dir or image.working_dir or "/"


def environment(
    config: ContainerConfig, image: ContainerDefaults, site: Mapping[str, str], home: str, hostname: str
) -> list[str]:
    """Merge the site's, the image's and the container's variables; later ones win over earlier ones.

    Bytes that are no UTF-8 become U+FFFD, as with peers: an OCI specification is JSON and can't carry them. An entry of
    the image that is only a name takes the variable away, as with containerd. Raises InvalidArgument for a value
    without a name.
    """
    merged = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname, "HOME": home, **site}
    if config.tty:
        merged["TERM"] = "xterm"
    for pair in image.env:
        name, equals, value = pair.partition("=")
        if equals and not name:
            raise InvalidArgument(f"image {config.image}: config.Env has a value without a name: {pair[:200]!r}")
        if equals:
            merged[name] = value
        else:
            merged.pop(name, None)
    merged |= dict(config.envs)
    return [_SURROGATES.sub("\N{REPLACEMENT CHARACTER}", f"{name}={value}") for name, value in merged.items()]


def rlimits(ulimits: Iterable[str]) -> list[dict[str, Any]]:
    """Turn ``nofile=1024:4096`` into the OCI form; -1 is no limit, and one number is both soft and hard.

    Without CAP_SYS_RESOURCE nobody can raise a hard limit above the daemon's own (setrlimit(2)): so much it is then.
    """
    may_raise = "CAP_SYS_RESOURCE" in kernel.effective()
    found = []
    for ulimit in ulimits:
        name, _, values = ulimit.partition("=")
        soft, _, hard = values.partition(":")
        kind = f"RLIMIT_{name.upper()}"
        most = _UNLIMITED if may_raise else _limit(resource.getrlimit(getattr(resource, kind, _RLIMIT_LOCKS))[1])
        found.append({"type": kind, "soft": min(_limit(soft), most), "hard": min(_limit(hard or soft), most)})
    return found


def capability_sets(wanted: Capabilities, privileged: bool, default: Sequence[str]) -> dict[str, Any]:
    """Compute the five capability sets of the OCI spec.

    ``ALL`` is taken first, then single names, and a drop wins over an add. No process gets what the daemon itself has
    not. Raises InvalidArgument for a name the kernel doesn't know.
    """
    available = kernel.effective()
    if privileged:
        granted = set(available)
    else:
        add, drop, ambient = (_names(names) for names in (wanted.add, wanted.drop, wanted.add_ambient))
        granted = set() if "ALL" in drop else set(_names(default))
        granted = (set(available) if "ALL" in add else granted | add | ambient) - drop
        granted -= {"ALL"}
        _refuse_unknown(granted)
    held = sorted(granted & available)
    inherited = sorted(_names(wanted.add_ambient) & granted)
    sets: dict[str, Any] = {"bounding": held, "effective": held, "permitted": held}
    if inherited:
        sets |= {"inheritable": inherited, "ambient": inherited}
    return sets


def _names(names: Iterable[str]) -> set[str]:
    upper = (name.upper() for name in names)
    return {name if name == "ALL" or name.startswith("CAP_") else f"CAP_{name}" for name in upper}


def _refuse_unknown(names: set[str]) -> None:
    if unknown := sorted(names - set(kernel.known())):
        raise InvalidArgument(f"capability {unknown[0]!r} is not known to this kernel")


def _limit(text: str | int) -> int:
    return int(text) if int(text) >= 0 else _UNLIMITED
