"""Unpacking: one layer, from a blob in the content store to a directory of the snapshotter.

The flow: ``layer.unpack_layer`` (in the daemon) has ``launcher`` start ``forking``, once for many layers, which forks
a ``child`` for each. That shuts itself in the target directory (``confinement``), then ``stream`` reads the ``blob``,
if need be behind its writer, decompresses and hashes, ``headers`` and ``extensions`` find the entries, ``extraction``
walks them and ``tree`` makes them. The child answers one record, and is gone.

This file imports nothing, and nothing that the child imports may import asyncio, pydantic or even ``re`` (as json,
typing and dataclasses do): the first layer of a pull waits for it.
"""
