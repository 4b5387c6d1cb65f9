"""The other end of the streams, for ``crinoid ctl``: it works with any CRI endpoint's streaming server.

``dialing`` makes the connection, ``remotecommand`` runs an exec or attach on it, ``portforward`` carries connections.
SPDY is what every server has; a WebSocket tells the end of input only since ``v5.channel.k8s.io``.
"""
