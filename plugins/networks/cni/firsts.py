"""Lets the first attachment of a kind go alone.

Plugins make what all pods share, such as chains of the packet filter, when the first pod needs it. Some fail where two
of them do so at the same time: ``portmap``, up to 1.1 at least, sees that a chain is missing, and then can't make it.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator

from crinoid.plugins.networks.cni.plans import Plan

Kind = tuple[str, tuple[str, ...]]
"""A configuration's text, and which capability arguments a pod has for it."""


class Firsts:
    """Remembers the kinds that were attached in this process. Belongs to the event loop's thread."""

    def __init__(self) -> None:
        self._known: set[Kind] = set()
        self._alone = asyncio.Lock()

    @contextlib.asynccontextmanager
    async def alone_if_first(self, plan: Plan) -> AsyncIterator[None]:
        """Run an attachment: at once where all its kinds are known, else while no other one is a first.

        Once the first has come to its end without an error, those that waited for it go on together.
        """
        kinds = _kinds(plan)
        if not kinds <= self._known:
            async with self._alone:
                if not kinds <= self._known:
                    yield
                    self._known |= kinds
                    return
        yield


def _kinds(plan: Plan) -> set[Kind]:
    return {
        (part.text, tuple(sorted(name for name, value in part.capabilities.items() if value))) for part in plan.networks
    }
