"""Host resources of pods and containers, each in the ledger before it is made: cgroups, mounts, namespaces, addresses.

``resources`` makes and undoes them; ``cgroup_paths`` says where cgroups lie, ``user_namespaces`` what ids map to.
Called by ``sandbox``, ``volumes``, ``checkpoints``, ``containers`` and ``pods``, and at start by ``node.recovery``.
"""
