"""The registry driver ``distribution``: images from registries over the network."""

from crinoid.plugins.registries.distribution.distribution_registry import DistributionRegistry

__all__ = ["DistributionRegistry"]
