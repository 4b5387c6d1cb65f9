"""The voice of the demo: numbered chapters, what is asked, what came back, and what was to be shown by it.

In colour on a terminal, plain text elsewhere.
"""

import time
from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from crinoid.core.api.errors import CrinoidError


class NotAsTold(CrinoidError):
    """A step did not go as the story says."""


class Story:
    """Prints the story, and stops it at the first line that is not true."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._chapter = 0
        self._facts = 0
        self._began = time.monotonic()

    def begin(self, title: str) -> None:
        """Print the title."""
        self._say("", title, "bold")

    def chapter(self, title: str, *explanation: str) -> None:
        """Open a chapter."""
        self._chapter += 1
        self._say("", f"\n{self._chapter}. {title}", "bold cyan")
        for line in explanation:
            self._say("   ", line, "italic")

    def ask(self, line: str) -> None:
        """Tell what is asked of the node."""
        self._say("   $ ", line, "yellow")

    def answer(self, lines: str | Iterable[str]) -> None:
        """Tell what came back."""
        for line in lines.splitlines() if isinstance(lines, str) else lines:
            self._say("     ", line)

    def show(self, fact: str, holds: bool, seen: object = "") -> None:
        """Tell a fact that must hold; raise NotAsTold, with what was seen instead, when it does not."""
        if not holds:
            raise NotAsTold(f'not as told in chapter {self._chapter}: "{fact}"; seen: {seen}')
        self._facts += 1
        self._say("  ok ", fact, "green")

    def warn(self, line: str) -> None:
        """Tell what went wrong."""
        self._say("", line, "bold red")

    def end(self) -> None:
        """Count what was shown."""
        took = time.monotonic() - self._began
        self._say("", f"\nThe end: {self._chapter} chapters, {self._facts} facts shown, {took:.0f} seconds.", "bold")

    def _say(self, margin: str, text: str, style: str = "") -> None:
        self._console.print(Text(margin), Text(text, style=style), sep="", soft_wrap=True)
