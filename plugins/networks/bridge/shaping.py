"""Bandwidth limits of a pod, as queueing disciplines on its link's end on the node (tc(8), linux/pkt_sched.h).

What the pod receives leaves the node by that link, so a token bucket there limits it. What the pod sends comes in by
it, where nothing can queue: it is redirected into a link of kind ifb that has the token bucket, and goes on from
there.
"""

import errno
import socket
import struct

from crinoid.core.api.errors import Unsupported
from crinoid.plugins.networks.bridge import interfaces
from crinoid.plugins.networks.bridge.netlink import (
    CREATE,
    REPLACE,
    Channel,
    Message,
    NetlinkError,
    attribute,
    nest,
    text,
)

_NEW_QUEUE, _NEW_FILTER = 36, 44
_HEADER = struct.Struct("=BxxxiIII")
_KIND, _OPTIONS = 1, 2
_ROOT, _INGRESS, _INGRESS_HANDLE = 0xFFFFFFFF, 0xFFFFFFF1, 0xFFFF0000
_TBF_PARAMETERS, _TBF_RATE64, _TBF_BURST = 1, 4, 6
_RATE = struct.Struct("=BBHhHI")
_TBF = struct.Struct("=III")
_ETHERNET = 1  # the link layer; without it the kernel wants a table of costs
_U32_SELECTOR, _U32_ACTION = 5, 7
_SELECTOR = struct.Struct("=BBBxHHhhI")
_KEY = struct.Struct("=IIii")
_TERMINAL = 1
_ACTION_KIND, _ACTION_OPTIONS, _MIRRED_PARAMETERS = 1, 2, 2
_MIRRED = struct.Struct("=IIiiiiI")
_STOLEN, _REDIRECT_OUT = 4, 1
_ALL_PROTOCOLS = 3
_MAX_32 = (1 << 32) - 1
_BURST_S, _QUEUE_S = 0.05, 0.1
_LEAST_BURST_BYTES = 128 << 10  # two of the largest packets that segmentation offload makes


def limit_link(channel: Channel, index: int, bits_per_s: int) -> None:
    """Let no more than this leave by the link. Raises Unsupported when the kernel can't."""
    rate = max(bits_per_s // 8, 1)
    burst = min(max(int(rate * _BURST_S), _LEAST_BURST_BYTES), _MAX_32)
    queue = min(burst + int(rate * _QUEUE_S), _MAX_32)
    spec = _RATE.pack(0, _ETHERNET, 0, 0, 0, min(rate, _MAX_32))
    options = [
        attribute(_TBF_PARAMETERS, spec + bytes(_RATE.size) + _TBF.pack(queue, 0, 0)),
        attribute(_TBF_BURST, struct.pack("=I", burst)),
    ]
    if rate > _MAX_32:
        options.append(attribute(_TBF_RATE64, struct.pack("=Q", rate)))
    payload = _HEADER.pack(0, index, 0x10000, _ROOT, 0) + text(_KIND, "tbf") + nest(_OPTIONS, *options)
    _execute(channel, "CONFIG_NET_SCH_TBF", Message(_NEW_QUEUE, payload, CREATE | REPLACE, "limit with tbf"))


def limit_sender(channel: Channel, link: int, buffer_name: str, mtu: int, bits_per_s: int) -> None:
    """Let no more than this come in by the link, by way of a new ifb link. Raises Unsupported when the kernel can't."""
    _execute(channel, "CONFIG_IFB", interfaces.make_buffer(buffer_name, mtu))
    found = interfaces.find_link(channel, buffer_name)
    assert found is not None
    limit_link(channel, found.index, bits_per_s)
    ingress = _HEADER.pack(0, link, _INGRESS_HANDLE, _INGRESS, 0) + text(_KIND, "ingress")
    _execute(
        channel, "CONFIG_NET_SCH_INGRESS", Message(_NEW_QUEUE, ingress, CREATE | REPLACE, "redirect what comes in")
    )
    _execute(channel, "CONFIG_NET_CLS_U32 and CONFIG_NET_ACT_MIRRED", _redirect_all(link, found.index))


def _redirect_all(link: int, target: int) -> Message:
    """A filter that matches everything."""
    selector = _SELECTOR.pack(_TERMINAL, 0, 1, 0, 0, 0, 0, 0) + _KEY.pack(0, 0, 0, 0)
    mirred = _MIRRED.pack(0, 0, _STOLEN, 0, 0, _REDIRECT_OUT, target)
    action = nest(1, text(_ACTION_KIND, "mirred"), nest(_ACTION_OPTIONS, attribute(_MIRRED_PARAMETERS, mirred)))
    options = nest(_OPTIONS, attribute(_U32_SELECTOR, selector), nest(_U32_ACTION, action))
    which = 1 << 16 | socket.htons(_ALL_PROTOCOLS)
    payload = _HEADER.pack(0, link, 0, _INGRESS_HANDLE, which) + text(_KIND, "u32") + options
    return Message(_NEW_FILTER, payload, CREATE | REPLACE, "redirect what comes in")


def _execute(channel: Channel, needs: str, message: Message) -> None:
    try:
        channel.execute([message])
    except NetlinkError as error:
        if error.errno in (errno.ENOENT, errno.EOPNOTSUPP):
            raise Unsupported(f"bandwidth limits need a kernel with {needs}: {error.strerror}") from error
        raise
