"""Out of process: a slot's driver in a process of its own, with no change of the driver.

The kernel binds a proxy (``proxy``) in the driver's place: a class with the same hooks, made of the role's
specification, so facades, deadlines, names in errors and timelines are those of every slot. What a hook takes and
returns is turned into JSON and back by the types of the specification (``forms``), objects that live on one side are
called from the other (``interfaces``), and frames of both go over one unix socket (``channel``). ``plugin_process``
starts the child, watches it and starts it again; ``plugin_host`` is the child, which loads one driver as ``binding``
does and serves it. ``handshake`` has the values by which both find out that they fit, ``wire_errors`` the errors.

docs/isolation.md has the protocol in words, for drivers in other languages.
"""
