"""OCI layouts and archives of images as files: what is in them, and where each blob's bytes are.

For image sources that serve such files in place (``layout``), and for ``crinoid ctl load``.
"""
