"""The Node Resource Interface: plugins that watch, adjust and judge pods and containers, over a unix socket.

``nri_extension`` answers the kernel's hooks and attends to each plugin that connects or is started (``launch``). A
``plugin`` speaks ``ttrpc`` over a ``mux``; ``roster`` knows all of them and what each was told. ``encode`` turns the
kernel's views into messages (``wire``), ``results`` merges what plugins want, with ``owners`` for what they can't agree
on, ``decode`` turns that into adjustments, ``resources`` into limits. Source: containerd/nri, version 0.12.
"""

from crinoid.plugins.extensions.nri.nri_extension import NriExtension

__all__ = ["NriExtension"]
