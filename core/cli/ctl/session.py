"""The conversation of one verb with its endpoint: which socket, how long a call may take, how a verb is run.

A verb is a coroutine that takes a Session first; ``in_session`` makes a function of it that click can call.
"""

import asyncio
import contextlib
import functools
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from crinoid.core.api.errors import CrinoidError, Unavailable
from crinoid.core.cli.options import config_of_daemon
from crinoid.core.config.paths import ConfigPaths

if TYPE_CHECKING:
    from crinoid.core.cri.client import Client

Json = dict[str, Any]
"""A message of the CRI; ``Any`` because its form is the message's."""
T = TypeVar("T")

ASK_TIMEOUT_S = 10.0
ACT_TIMEOUT_S = 300.0
INTERRUPTED = 130
_FIRST_PAUSE_S = 0.1
_LONGEST_PAUSE_S = 5.0
_IMAGE_RPCS = frozenset({"ListImages", "ImageStatus", "PullImage", "RemoveImage", "ImageFsInfo"})


@dataclass(frozen=True, slots=True)
class Target:
    """What stood before the verb: the endpoints and the deadline of a call in seconds, each ``None`` by default.

    ``max_retries`` is how often an endpoint that nobody serves is tried again, negative without end.
    """

    paths: ConfigPaths
    runtime: str | None = None
    images: str | None = None
    timeout_s: float | None = None
    max_retries: int = 0
    debug: bool = False
    quiet: bool = False
    """Whether nothing may be written but what the verb writes."""

    def find_endpoint(self) -> str:
        """Return the endpoint that was named, or the socket of the configuration."""
        if self.runtime:
            return self.runtime
        return f"unix://{config_of_daemon(self.paths, self.quiet).server.socket}"


class Session:
    """Calls by the name of the RPC; requests and answers are those of ``cri.client``."""

    def __init__(self, runtime: "Client", images: "Client", timeout_s: float | None, debug: bool = False) -> None:
        self._runtime = runtime
        self._images = images
        self._timeout_s = timeout_s
        self._debug = debug

    async def ask(self, rpc: str, request: Mapping[str, Any] | None = None) -> Json:
        """Call an RPC that changes nothing and is soon answered."""
        return await self._call(rpc, request, self._timeout_s or ASK_TIMEOUT_S)

    async def act(self, rpc: str, request: Mapping[str, Any] | None = None, grace_s: float = 0.0) -> Json:
        """Call an RPC that does something, which may take ``grace_s`` longer than others."""
        return await self._call(rpc, request, (self._timeout_s or ACT_TIMEOUT_S) + grace_s)

    async def wait_for(self, rpc: str, request: Mapping[str, Any], limit_s: float | None) -> Json:
        """Call an RPC that may take as long as the user lets it; ``None`` is for ever."""
        return await self._call(rpc, request, limit_s)

    async def _call(self, rpc: str, request: Mapping[str, Any] | None, limit_s: float | None) -> Json:
        if not self._debug:
            return await self._client(rpc).call(rpc, request, limit_s)
        tell(f"{rpc} {_write(request or {})}")
        began_s = time.monotonic()
        try:
            answer = await self._client(rpc).call(rpc, request, limit_s)
        except CrinoidError as error:
            tell(f"{rpc} failed after {time.monotonic() - began_s:.3f} s: {error.message}")
            raise
        tell(f"{rpc} answered after {time.monotonic() - began_s:.3f} s: {_write(answer)}")
        return answer

    def stream(self, rpc: str, request: Mapping[str, Any] | None = None) -> AsyncIterator[Json]:
        """Call an RPC that answers until it is interrupted."""
        return self._client(rpc).stream(rpc, request)

    async def ask_crinoid(self, rpc: str, limit_s: float | None = None, **fields: Any) -> Any:
        """Call an RPC of crinoid's own, which other runtimes don't have; ``Any``: see ``Client.call_crinoid``."""
        return await self._images.call_crinoid(rpc, limit_s, **fields)

    def stream_crinoid(self, rpc: str, **fields: Any) -> AsyncIterator[Any]:
        """As ``ask_crinoid``, of an RPC that answers with a stream."""
        return self._images.stream_crinoid(rpc, **fields)

    def _client(self, rpc: str) -> "Client":
        return self._images if rpc in _IMAGE_RPCS else self._runtime


def in_session(verb: Callable[..., Awaitable[int | None]]) -> Callable[..., None]:
    """Make a function for click of a verb; what the verb returns, if anything, is the exit code."""

    @functools.wraps(verb)
    def run(*arguments: Any, **options: Any) -> None:
        context = click.get_current_context()
        try:
            code = asyncio.run(_converse(context.find_object(Target), verb, arguments, options))
        except KeyboardInterrupt:
            code = INTERRUPTED
        context.exit(code or 0)

    return run


async def for_each(items: Iterable[T], act: Callable[[T], Awaitable[object]]) -> int:
    """Act on every item, tell each failure, and return the exit code: 1 when any failed."""
    code = 0
    for item in items:
        try:
            await act(item)
        except CrinoidError as error:
            tell(error.message)
            code = 1
    return code


def tell(message: str) -> None:
    """Say something to the user that is no output."""
    click.echo(f"crinoid: {message}", err=True)


def _write(message: Mapping[str, Any]) -> str:
    """Write a message without what registries are logged in with."""
    shown = {name: "(not shown)" if name == "auth" and value else value for name, value in message.items()}
    return json.dumps(shown, ensure_ascii=False, default=str)


async def _converse(
    target: Target | None,
    verb: Callable[..., Awaitable[int | None]],
    arguments: tuple[Any, ...],
    options: Mapping[str, Any],
) -> int | None:
    from crinoid.core.cri.client import Client  # it needs grpc, which takes long to import

    assert target is not None, "the group puts it there"
    endpoint = target.find_endpoint()
    await _wait_until_served(endpoint, target.max_retries)
    async with AsyncExitStack() as stack:
        runtime = await stack.enter_async_context(Client(endpoint))
        images = await stack.enter_async_context(Client(target.images)) if target.images else runtime
        return await verb(Session(runtime, images, target.timeout_s, target.debug), *arguments, **options)


async def _wait_until_served(endpoint: str, retries: int) -> None:
    """Ask for the version until somebody answers, or the retries are used up; what is wrong then, the verb says."""
    from crinoid.core.cri.client import Client

    pause_s = _FIRST_PAUSE_S
    while retries:
        with contextlib.suppress(Unavailable):
            async with Client(endpoint) as client:  # a new one each time: grpc has pauses of its own
                await client.call("Version", {}, ASK_TIMEOUT_S)
                return
        await asyncio.sleep(pause_s)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        retries -= 1
