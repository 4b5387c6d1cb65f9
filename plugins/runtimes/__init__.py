"""The runtime role's own drivers: runc and crun, driven by their command line, each container watched by one conmon.

How the modules hang together: ``runc`` and ``crun`` name a binary and its ways; ``oci`` answers the hooks for both.
For a container it writes the ``bundle`` (with ``seccomp`` resolved), lets ``conmon`` create it, reads its end from
``exits``, runs exec processes through ``execs`` and ``exec_streams`` (both by ``exec_processes``), and joins its
streams by ``attaches``. ``runtime_errors`` turns what a binary said into an error.
"""
