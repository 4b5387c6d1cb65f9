"""The little HTTP/1.1 that an upgrade needs: a request's head, and an answer's. RFC 9112, sections 2 to 6.

A library's server would keep the connection to itself, as none knows SPDY.
"""

import asyncio
import re
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus

from crinoid.core.cri.streaming.transports import TcpTransport

MAX_HEAD_BYTES = 1 << 16
MAX_FIELDS = 200
"""A kubelet passes on its client's fields, and proxies add theirs: some dozens."""

_REQUEST_LINE = re.compile(r"([A-Z]+) (/[!-~]*) HTTP/1\.[01]")
# Blanks before a value have no place of their own here: they could be split in as many ways as there are, and a line of
# 60 kB that does not match would take 13 s, of anybody who can connect.
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([^\x00-\x08\x0a-\x1f\x7f]*)")


class BadRequest(Exception):
    """The client's request can't be served: ``status`` and the message go into the answer."""

    def __init__(self, status: HTTPStatus, message: str, fields: tuple[tuple[str, str], ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.fields = fields


@dataclass(frozen=True, slots=True)
class Request:
    """A request's head. Names of fields are lower case."""

    method: str
    path: str
    fields: tuple[tuple[str, str], ...]

    def get(self, name: str) -> str:
        """Return the first field of a name, ``""`` where there is none."""
        return next((value for key, value in self.fields if key == name), "")

    def words(self, name: str) -> tuple[str, ...]:
        """Return all words of a field that is a list, however many lines it takes."""
        values = (value for key, value in self.fields if key == name)
        return tuple(word.strip() for value in values for word in value.split(",") if word.strip())

    def upgrades_to(self, protocol: str) -> bool:
        """Return whether the client wants to go on with this protocol."""
        connection = {word.lower() for word in self.words("connection")}
        return "upgrade" in connection and protocol.lower() in {word.lower() for word in self.words("upgrade")}


async def read_request(transport: TcpTransport) -> Request | None:
    """Read a request's head; ``None`` when the client goes away instead. Raises BadRequest."""
    try:
        head = await transport.read_until(b"\r\n\r\n", MAX_HEAD_BYTES)
    except asyncio.LimitOverrunError:
        raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "the request's head is too long") from None
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    return parse_request(head)


def parse_request(head: bytes) -> Request:
    """Parse a request's head. Raises BadRequest."""
    if head.count(b"\r\n") > MAX_FIELDS + 2:
        raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"the request has more than {MAX_FIELDS} fields")
    first, *lines = head[:-4].decode("latin-1").split("\r\n")
    found = _REQUEST_LINE.fullmatch(first)
    fields = [_FIELD.fullmatch(line) for line in lines]
    if found is None or not all(fields):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "this is no HTTP/1.1 request")
    request = Request(found[1], found[2], tuple((field[1].lower(), field[2].strip()) for field in fields if field))
    if any(word != "0" for word in request.words("content-length")) or request.get("transfer-encoding"):
        raise BadRequest(HTTPStatus.BAD_REQUEST, "a request to upgrade has no body")
    return request


def make_answer(status: HTTPStatus, fields: Iterable[tuple[str, str]], text: str = "") -> bytes:
    """Make an answer, with a text as its body where it is no switch of protocols."""
    lines = [f"HTTP/1.1 {status.value} {status.phrase}", *(f"{name}: {value}" for name, value in fields)]
    body = f"{text}\n".encode() if text else b""
    if status is not HTTPStatus.SWITCHING_PROTOCOLS:
        lines += [
            "Content-Type: text/plain; charset=utf-8",
            "X-Content-Type-Options: nosniff",
            f"Content-Length: {len(body)}",
            "Connection: close",
        ]
    return "\r\n".join((*lines, "", "")).encode("latin-1", "replace") + body
