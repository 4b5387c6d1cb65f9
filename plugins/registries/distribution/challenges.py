"""WWW-Authenticate headers: what a host wants to see before it answers (RFC 9110, section 11.6.1)."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105  # a pattern
_PARAMETER = re.compile(rf'\s*,?\s*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"=][^\s,"]*|(?=\s*(?:,|$))))')
_SCHEME = re.compile(rf"[\s,]*({_TOKEN})(?=[\s,]|$)")
_TOKEN68 = re.compile(r"\s+[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$))")


@dataclass(frozen=True, slots=True)
class Challenge:
    """One scheme, in lower case, with its parameters."""

    scheme: str
    parameters: Mapping[str, str] = field(default_factory=dict)


def read_challenges(headers: Iterable[str]) -> tuple[Challenge, ...]:
    """Read every challenge of every header, in order; what is not in the form ends the reading of its header."""
    return tuple(challenge for header in headers for challenge in _read(header[:8192]))


def _read(header: str) -> Iterator[Challenge]:
    position = 0
    while match := _SCHEME.match(header, position):
        scheme, position = match[1].lower(), match.end()
        parameters: dict[str, str] = {}
        while (found := _PARAMETER.match(header, position)) is not None:
            quoted, plain = found[2], found[3]
            parameters[found[1].lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            position = found.end()
        if not parameters and (skipped := _TOKEN68.match(header, position)):
            position = skipped.end()
        yield Challenge(scheme, parameters)
