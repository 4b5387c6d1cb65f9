"""Images: from a reference in a request to unpacked layers that a snapshotter holds."""
