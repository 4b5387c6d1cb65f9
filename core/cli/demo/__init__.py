"""``crinoid demo``: a node at work, told as a story, from an image to an empty host.

``command`` sets the stage and takes it down again, ``chapters`` is the story, ``story`` its voice. The rest are its
props: ``image``, ``registry``, ``network``, ``daemon`` and ``node``; ``traces`` proves that nothing is left.
Everything that happens goes through the CRI's socket or is looked up on the host; nothing is made up.
"""

from crinoid.core.cli.demo.command import demo

__all__ = ["demo"]
