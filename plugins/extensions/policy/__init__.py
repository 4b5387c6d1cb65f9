"""Which images may run: by registry, repository and digest, and by cosign signatures with public keys.

``policy_extension`` answers the kernel's hooks, ``options`` are the rules, ``signatures`` finds what was signed with an
image, and ``keys`` verifies it.
"""

from crinoid.plugins.extensions.policy.policy_extension import PolicyExtension

__all__ = ["PolicyExtension"]
