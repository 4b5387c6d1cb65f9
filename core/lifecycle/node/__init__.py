"""The node as a whole: ``node`` answers Status and RuntimeConfig, ``recovery`` runs at the daemon's start, and
``extension_kernel`` is what extensions may ask of the kernel.
"""
