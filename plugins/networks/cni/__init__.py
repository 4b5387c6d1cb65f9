"""The network driver ``cni``: any Container Network Interface plugin, run as a program (CNI specification 1.1).

Read in this order: ``configuration`` (what the administrator wrote), ``plans`` (what is written down before anything is
done), ``execution`` (one plugin, run once), ``chains`` (a list of plugins, forwards and back), ``results`` (what they
answer), ``cni_network`` (the hooks).
"""

from crinoid.plugins.networks.cni.cni_network import CniNetwork, CniOptions

__all__ = ["CniNetwork", "CniOptions"]
