"""The registry driver ``distribution``: images from registries over the network."""

from crinoid.plugins.registries.distribution.driver import DistributionRegistry

__all__ = ["DistributionRegistry"]
