"""An OCI runtime's binary and the bundle that it works on, as ``monitor`` and ``oci`` use them.

``binary`` runs it, ``bundle`` names the files of a container's directory, ``options`` is the slot's table, and
``runtime_errors`` makes an error of what a binary said.
"""
