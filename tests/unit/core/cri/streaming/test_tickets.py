"""Tokens: used once, in time, and not too many."""

import pytest

from crinoid.core.api.errors import ResourceExhausted
from crinoid.core.cri.streaming.tickets import MAX_TICKETS, ForwardTicket, Tickets


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_a_ticket_is_redeemed_once() -> None:
    tickets = Tickets(60, Clock())
    first, second = tickets.issue(ForwardTicket("a")), tickets.issue(ForwardTicket("b"))
    assert first != second
    assert len(first) >= 20
    assert tickets.redeem(second) == ForwardTicket("b")
    assert tickets.redeem(second) is None
    assert tickets.redeem(first) == ForwardTicket("a")
    assert tickets.redeem("") is None


def test_a_ticket_expires() -> None:
    clock = Clock()
    tickets = Tickets(60, clock)
    early = tickets.issue(ForwardTicket("early"))
    clock.now += 30
    late = tickets.issue(ForwardTicket("late"))
    clock.now += 30
    assert tickets.redeem(early) is None
    assert tickets.redeem(late) == ForwardTicket("late")


def test_tickets_are_bounded() -> None:
    clock = Clock()
    tickets = Tickets(60, clock)
    tokens = [tickets.issue(ForwardTicket(str(number))) for number in range(MAX_TICKETS)]
    with pytest.raises(ResourceExhausted, match="wait to be used"):
        tickets.issue(ForwardTicket("one too many"))
    assert tickets.redeem(tokens[500]) == ForwardTicket("500")
    tickets.issue(ForwardTicket("room again"))
    clock.now += 61
    for _ in range(MAX_TICKETS):
        tickets.issue(ForwardTicket("all have expired"))
