"""Exec, Attach and PortForward as the kubelet's clients speak them, beside the CRI's own socket.

An RPC gets a URL with a one-time token from ``server``. Whoever comes with it is read by ``http`` and upgraded to SPDY
(``frames``, ``spdy``) or WebSocket (``websocket``); both give byte streams by name, on which ``remotecommand`` runs an
exec or attach and ``portforward`` carries connections into the pod. Nothing here knows what a container is: that is
asked of the protocol ``services.Streams``. ``client`` is the other end.
"""
