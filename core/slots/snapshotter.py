"""The snapshotter role as ``lifecycle`` calls it: the hooks of ``core/api/hooks/snapshotter``."""

from crinoid.core.api.hooks.snapshotter import SnapshotterHooks
from crinoid.core.slots.answers import layers
from crinoid.core.slots.calls import Slot
from crinoid.core.slots.facades import calls_hooks


@calls_hooks(SnapshotterHooks, {"list_layers": layers})
class SnapshotterSlot(Slot, SnapshotterHooks):
    """One snapshotter. Every method is the hook of its name."""
