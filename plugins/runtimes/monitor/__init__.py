"""The process that stays beside each container: it keeps streams, log and exit status while the daemon is away.

``monitor`` is what the rest of the runtimes knows of it; everything that knows conmon's command line, files, sockets
and FIFOs is behind that, in this package.
"""
