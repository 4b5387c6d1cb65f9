"""The words that both ends of a stream use: protocols, header fields, and the names of streams."""

SPDY, WEBSOCKET = "SPDY/3.1", "websocket"
"""What a connection can be upgraded to."""
VERSION_FIELD = "X-Stream-Protocol-Version"
"""Header field with the protocols that a SPDY client offers, and the one that was chosen."""

ERROR, STDIN, STDOUT, STDERR, RESIZE = "error", "stdin", "stdout", "stderr", "resize"
CHANNELS = (STDIN, STDOUT, STDERR, ERROR, RESIZE)
"""Channels of the WebSocket protocols, by number."""
