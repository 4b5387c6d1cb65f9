"""What a shell offers for an argument that names a pod, a container or an image: asked of the endpoint, and soon."""

import asyncio
import contextlib
from collections.abc import Iterable
from typing import Any

import click
from click.shell_completion import CompletionItem

from crinoid.core.api.errors import CrinoidError
from crinoid.core.cli.ctl.session import Json, Target

_LIMIT_S = 2.0


class _Named(click.types.StringParamType):
    """Text that is the name of one kind of object; ``rpc`` lists them under ``field``."""

    def __init__(self, name: str, rpc: str, field: str) -> None:
        self.name = name
        self._rpc = rpc
        self._field = field

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the names that begin so, and the ids once some of one is typed."""
        found: list[Json] = []
        with contextlib.suppress(CrinoidError, TimeoutError, OSError):  # a shell has no place for errors
            found = asyncio.run(asyncio.wait_for(self._list(_find_target(ctx)), _LIMIT_S))
        names = {name for one in found for name in _names(one)} | (
            {one["id"] for one in found} if incomplete else set()
        )
        return [CompletionItem(name) for name in sorted(names) if name.startswith(incomplete)]

    async def _list(self, target: Target) -> list[Json]:
        from crinoid.core.cri.client import Client  # it needs grpc, which takes long to import

        endpoint = target.images if self._rpc == "ListImages" and target.images else target.find_endpoint()
        async with Client(endpoint) as client:
            answer = await client.call(self._rpc, {}, _LIMIT_S)
        listed: list[Json] = answer[self._field]
        return listed


CONTAINER = _Named("container", "ListContainers", "containers")
POD = _Named("pod", "ListPodSandbox", "items")
IMAGE = _Named("image", "ListImages", "images")


def _names(one: Json) -> Iterable[str]:
    return one["repo_tags"] if "repo_tags" in one else (one["metadata"]["name"],)


def _find_target(ctx: click.Context) -> Target:
    """Read what stands before the verb; the group itself is not called while a shell completes."""
    options: dict[str, Any] = {}
    context: click.Context | None = ctx
    while context is not None and "runtime_endpoint" not in options:
        options, context = context.params, context.parent
    return Target(options["paths"], options["runtime_endpoint"], options["image_endpoint"], quiet=True)
