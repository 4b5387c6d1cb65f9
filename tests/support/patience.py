"""How long tests wait: the same factor as of the contracts, ``CRINOID_TEST_SLOWNESS``."""

from crinoid.core.api.testing.patience import SLOWNESS, patient

__all__ = ["SLOWNESS", "patient"]
