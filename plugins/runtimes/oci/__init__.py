"""The hooks of the runtime role for any OCI runtime: ``oci_runtime`` answers them, for ``runc`` and ``crun`` alike.

It works on ``binaries``, ``processes`` and a ``monitor``, and knows nothing of which monitor that is.
"""
