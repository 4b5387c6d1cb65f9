"""CreateContainer and UpdateContainer: plugins asked one after the other, each shown what those before it want.

Plugins that don't answer cost their deadline once, however many there are: one that has been silent for a quarter of
its deadline is late, and those behind it are asked meanwhile as if it wanted nothing. Mostly that comes true, as it is
cut off. Where a late one answers after all, and changes what the next are shown, their answers are void: they are told
that the container came to nothing, as when a creation fails, and are asked again. So no answer counts that was given
without the changes of those before.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Protocol, TypeVar

from google.protobuf.message import Message

from crinoid.core.api.errors import Refused
from crinoid.plugins.extensions.nri.plugin import Plugin, Request

HEAD_START_S = 0.1
"""How long a plugin may take until the next one is told of the same event, too, where the answers are independent."""
_LATE = 0.25  # of a plugin's deadline
A = TypeVar("A", bound=Message)
A_contra = TypeVar("A_contra", bound=Message, contravariant=True)


class Merged(Protocol[A_contra]):
    """What all answers so far make: ``request`` is what the next plugin is asked."""

    @property
    def request(self) -> Message:
        """The request with what was wanted so far."""

    def apply(self, answer: A_contra, plugin: str) -> None:
        """Merge an answer. Raises Refused."""


M = TypeVar("M", bound=Merged[Any])  # of the chain's answers, which a bound can't say


class _Asked(Generic[A]):
    """A plugin that was asked; ``task`` gives its answer, ``None`` without one, or raises Refused."""

    def __init__(self, plugin: Plugin, task: "asyncio.Task[A | None]") -> None:
        self.plugin = plugin
        self.task = task
        self.was_late = False


class Chain(Generic[A, M]):
    """One event of one container, that plugins are asked about in order."""

    def __init__(
        self,
        event: int,
        subject: str,
        expected: type[A],
        begin: Callable[[], M],
        revoke: Callable[[list[Plugin]], Awaitable[None]],
    ) -> None:
        """``begin`` returns the merged answers of nobody, ``revoke`` tells plugins that what they answered is void."""
        self._event = event
        self._subject = subject
        self._expected = expected
        self._begin = begin
        self._revoke = revoke

    async def ask(self, plugins: Sequence[Plugin]) -> M:
        """Ask all, and return what they want together. Raises Refused of the first that refuses or is refused."""
        settled: list[_Asked[A]] = []
        rest = list(plugins)
        while True:
            merged = self._begin()
            for one in settled:
                self._apply(merged, one)
            asked = await self._go_along(merged, rest)
            if not any(one.was_late for one in asked):
                return merged
            merged, valid = self._settle(settled, asked)
            settled += asked[:valid]
            silent = {one.plugin for one in asked if one.task.exception() is None and one.task.result() is None}
            rest = [plugin for plugin in rest[valid:] if plugin not in silent]
            if not rest:
                return merged
            await self._revoke([one.plugin for one in asked[valid:] if one.plugin not in silent])

    async def _go_along(self, merged: M, plugins: list[Plugin]) -> list[_Asked[A]]:
        """Ask each when the one before has answered or is late; return when all are at an end. Raises Refused where
        nobody was late, and returns without those behind a refusal where somebody was."""
        asked: list[_Asked[A]] = []
        is_late = False
        try:
            for plugin in plugins:
                message = type(merged.request)()
                message.CopyFrom(merged.request)
                question = Request(self._event, message, self._subject)
                one = _Asked(plugin, asyncio.create_task(plugin.ask(question, self._expected)))
                asked.append(one)
                await asyncio.wait({one.task}, timeout=HEAD_START_S if is_late else plugin.deadline_s * _LATE)
                one.was_late = not one.task.done()
                is_late = is_late or one.was_late
                try:
                    if not one.was_late:
                        self._apply(merged, one)
                except Refused:
                    if not is_late:
                        raise
                    break
            await asyncio.wait({one.task for one in asked}) if asked else None
        finally:
            for one in asked:
                one.task.cancel()
        return asked

    def _settle(self, settled: list[_Asked[A]], asked: list[_Asked[A]]) -> tuple[M, int]:
        """Merge all in order; return how many of those asked saw all that they had to see."""
        merged = self._begin()
        for one in settled:
            self._apply(merged, one)
        for count, one in enumerate(asked, 1):
            before = merged.request.SerializeToString(deterministic=True) if one.was_late else b""
            self._apply(merged, one)
            if one.was_late and merged.request.SerializeToString(deterministic=True) != before:
                return merged, count
        return merged, len(asked)

    def _apply(self, merged: M, one: _Asked[A]) -> None:
        answer = one.task.result()
        if answer is not None:
            merged.apply(answer, one.plugin.label)
