"""The network driver ``bridge``: the embedded network, with no files to configure and no programs to run.

Read in this order: ``netlink`` (messages), ``interfaces`` (links, addresses, routes), ``shaping`` (bandwidth),
``nftables`` (tables and their elements), ``records`` (what is written down of a pod), ``addresses`` (who has which),
``rules`` (what the packet filter is told), ``sysctls``, ``node`` (all of it brought together, blocking),
``bridge_network`` (the hooks).
"""

from crinoid.plugins.networks.bridge.bridge_network import BridgeNetwork, BridgeOptions

__all__ = ["BridgeNetwork", "BridgeOptions"]
