"""Keys that nothing reads in files of other programs' forms: said with the nearest known one, and passed over.

A pull is not refused for them, since a later containerd or docker may know more keys than this. A misspelt one would
otherwise show as a mirror that is not asked, or as credentials that are not sent.
"""

import difflib
import logging
from collections.abc import Collection, Iterator, Mapping

from crinoid.core.api.timeline import note


def unknown_keys(table: Mapping[str, object], known: Collection[str], place: str = "") -> Iterator[str]:
    """Say of each key of a table that is not known what may have been meant."""
    for name in table:
        if name not in known:
            near = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
            hint = f'; did you mean "{near[0]}"?' if near else f"; known: {', '.join(sorted(known))}"
            yield f"{place}{name}: unknown key, which is passed over{hint}"


class Teller:
    """Notes what is worth a warning with the pull under way, and logs each text once."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._told: set[str] = set()

    def __call__(self, text: str) -> None:
        """Note it, and log it where it is new."""
        note(text)
        if text not in self._told:
            self._told.add(text)
            self._log.warning("%s", text)
