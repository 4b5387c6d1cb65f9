"""Checkpoints: what the processes of containers do is written down, and goes on later in other containers.

``capture`` writes, with ``root_diff`` for what a container has changed in its image's files; ``archive`` knows the form
on disk, which is that of the peers; ``source`` finds and opens a checkpoint that CreateContainer is given instead of an
image; ``pod_restore`` makes a whole pod again. The processes themselves are the runtime driver's trade.
"""
