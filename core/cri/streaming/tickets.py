"""One-time tokens: what a client was promised, kept for a minute under a name that nobody can guess."""

import secrets
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from crinoid.core.api.errors import ResourceExhausted
from crinoid.core.lifecycle.streams import StreamChoice

MAX_TICKETS = 1000
"""Promises at one time, as with peers."""

_TOKEN_BYTES = 16


@dataclass(frozen=True, slots=True)
class ExecTicket:
    """An exec."""

    container_id: str
    command: tuple[str, ...]
    streams: StreamChoice


@dataclass(frozen=True, slots=True)
class AttachTicket:
    """An attach."""

    container_id: str
    streams: StreamChoice


@dataclass(frozen=True, slots=True)
class ForwardTicket:
    """A port forward; ``ports`` are for the old WebSocket protocol, which does not name them itself."""

    pod_id: str
    ports: tuple[int, ...] = ()


Ticket = ExecTicket | AttachTicket | ForwardTicket


class Tickets:
    """Tickets by token, the oldest first."""

    def __init__(self, ttl_s: float, now: Callable[[], float]) -> None:
        """``now`` is a clock in seconds that never goes back."""
        self._ttl_s = ttl_s
        self._now = now
        self._tickets: OrderedDict[str, tuple[float, Ticket]] = OrderedDict()

    def issue(self, ticket: Ticket) -> str:
        """Keep a ticket; return its token. Raises ResourceExhausted while too many wait to be used."""
        self._drop_expired()
        if len(self._tickets) >= MAX_TICKETS:
            raise ResourceExhausted(
                f"{MAX_TICKETS} streaming URLs wait to be used; try again once they are, or in {self._ttl_s:g} s"
            )
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        self._tickets[token] = (self._now() + self._ttl_s, ticket)
        return token

    def redeem(self, token: str) -> Ticket | None:
        """Return the ticket of a token, once; ``None`` when there is none, or it came too late."""
        self._drop_expired()
        _, ticket = self._tickets.pop(token, (0.0, None))
        return ticket

    def _drop_expired(self) -> None:
        now = self._now()
        while self._tickets:
            token, (expires, _) = next(iter(self._tickets.items()))
            if expires > now:
                return
            del self._tickets[token]
