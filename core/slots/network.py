"""The network role as ``lifecycle`` calls it: the hooks of ``core/api/hooks/network``."""

from dataclasses import replace

from crinoid.core.api.hooks.network import NetworkHooks
from crinoid.core.api.values.network import Attachment
from crinoid.core.slots.answers import json_object, one
from crinoid.core.slots.calls import Slot
from crinoid.core.slots.facades import calls_hooks


def _attachment(answer: object) -> Attachment:
    """What undoes an attachment goes to disk."""
    attachment = one(Attachment)(answer)
    return replace(attachment, data=json_object(attachment.data))


@calls_hooks(NetworkHooks, {"plan": json_object, "attach": _attachment})
class NetworkSlot(Slot, NetworkHooks):
    """One network. Every method is the hook of its name."""
