"""The runtime role's own drivers, each for an OCI runtime's command line:
``runc``, ``crun``, and ``any_oci`` for others.

``oci`` answers the hooks for all of them: for a container it writes the bundle and has the binary (``binaries``) run
under a ``monitor``, which keeps streams, log and exit status; ``processes`` has signals, kills and cgroups.
"""
