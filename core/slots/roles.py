"""The roles a driver can have: the entry point group that it is found in and the hooks that it answers."""

from collections.abc import Mapping
from dataclasses import dataclass

from crinoid.core.api.hooks.extension import ExtensionHooks
from crinoid.core.api.hooks.network import NetworkHooks
from crinoid.core.api.hooks.registry import RegistryHooks
from crinoid.core.api.hooks.runtime import RuntimeHooks
from crinoid.core.api.hooks.snapshotter import SnapshotterHooks


@dataclass(frozen=True, slots=True)
class Role:
    """One role. ``optional`` names the hooks that a driver may leave out; ``directory`` is the role's directory under
    ``run``, short because the path of a unix socket has at most 107 bytes."""

    name: str
    group: str
    specification: type
    optional: frozenset[str]
    directory: str

    @property
    def hooks(self) -> frozenset[str]:
        """Names of all hooks of the role."""
        return frozenset(name for name in vars(self.specification) if not name.startswith("_"))


ROLES: Mapping[str, Role] = {
    role.name: role
    for role in (
        Role(
            "runtime",
            "crinoid.runtimes",
            RuntimeHooks,
            frozenset(
                {"traits", "start_pod", "stop_pod", "wait_pod", "update_pod", "pod_stats", "forward_port"}
                | {"exec_sync", "exec_stream", "attach", "stats_many", "preview"}
                | {"check_checkpoint", "pause", "resume", "checkpoint", "restore"}
            ),
            "rt",
        ),
        Role(
            "network",
            "crinoid.networks",
            NetworkHooks,
            frozenset({"check", "set_pod_cidrs", "collect_garbage", "close"}),
            "net",
        ),
        Role(
            "snapshotter",
            "crinoid.snapshotters",
            SnapshotterHooks,
            frozenset({"write_layer", "bring_layer", "verify_layer"}),
            "snap",
        ),
        Role("registry", "crinoid.registries", RegistryHooks, frozenset({"list_referrers", "close"}), "reg"),
        Role(
            "extension",
            "crinoid.extensions",
            ExtensionHooks,
            frozenset(name for name in vars(ExtensionHooks) if not name.startswith("_")),
            "ext",
        ),
    )
}
