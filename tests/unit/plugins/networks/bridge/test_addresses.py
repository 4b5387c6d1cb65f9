"""No address is ever given to two pods, whenever the daemon dies; and none is lost."""

import contextlib
import ipaddress
import tempfile
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crinoid.core.api.errors import ResourceExhausted, Unavailable
from crinoid.plugins.networks.bridge.addresses import AddressBook

FOUR = ipaddress.ip_network("10.0.0.0/29")
SIX = ipaddress.ip_network("fd00::/125")


@pytest.fixture
def book(tmp_path: Path) -> AddressBook:
    return AddressBook(tmp_path / "addresses")


def test_all_but_the_reserved_ones_are_given_out(book: AddressBook) -> None:
    assert [str(book.take(f"p{n}", FOUR)) for n in range(5)] == [f"10.0.0.{n}" for n in range(2, 7)]
    assert [str(book.take(f"p{n}", SIX)) for n in range(6)] == [f"fd00::{n}" for n in range(2, 8)]
    with pytest.raises(ResourceExhausted, match=r"no address of 10.0.0.0/29 is free for pod p9: 5 are in use"):
        book.take("p9", FOUR)


def test_an_address_rests_before_it_is_given_again(book: AddressBook) -> None:
    book.take("a", FOUR)
    book.give_back("a")
    assert [str(book.take(owner, FOUR)) for owner in "bcdef"] == [f"10.0.0.{n}" for n in (3, 4, 5, 6, 2)]


def test_a_restart_remembers(book: AddressBook, tmp_path: Path) -> None:
    taken = {owner: (book.take(owner, FOUR), book.take(owner, SIX)) for owner in "ab"}
    again = AddressBook(tmp_path / "addresses")
    assert {owner: again.owned_by(owner) for owner in "ab"} == taken
    assert again.owners == {"a", "b"}
    assert again.take("c", FOUR) not in {address for pair in taken.values() for address in pair}


def test_what_is_no_address_is_left_alone(book: AddressBook, tmp_path: Path) -> None:
    directory = tmp_path / "addresses"
    (directory / "README").write_text("hello")
    (directory / "10.0.0.2").write_text("no link")
    book.reload()
    assert book.owners == set()
    assert str(book.take("a", FOUR)) == "10.0.0.3"


def test_avoided_addresses_are_not_given_out(book: AddressBook) -> None:
    assert str(book.take("a", FOUR, {ipaddress.ip_address("10.0.0.2")})) == "10.0.0.3"


def test_an_address_can_be_asked_for(book: AddressBook) -> None:
    wanted = ipaddress.ip_address("10.0.0.5")
    book.take_this("a", wanted)
    book.take_this("a", wanted)
    with pytest.raises(Unavailable, match=r"pod b asks for address 10.0.0.5, which pod a has"):
        book.take_this("b", wanted)


def test_what_a_record_says_is_adopted(book: AddressBook, tmp_path: Path) -> None:
    """The directory was lost, or the slot has another driver now."""
    first, second = ipaddress.ip_address("10.0.0.2"), ipaddress.ip_address("10.0.0.3")
    book.take_this("other", second)
    book.adopt("a", (first, second))
    assert AddressBook(tmp_path / "addresses").owned_by("a") == (first,)
    assert book.owned_by("other") == (second,)


def test_giving_back_is_idempotent(book: AddressBook, tmp_path: Path) -> None:
    book.take("a", FOUR)
    (tmp_path / "addresses" / "10.0.0.2").unlink()
    book.give_back("a")
    book.give_back("a")
    assert book.owners == set()


class Death(BaseException):
    """The daemon is killed here."""


@contextlib.contextmanager
def dying(after: int) -> Iterator[None]:
    """Die at the n-th change of the disk, before or after it is done."""
    count = 0

    def wrap(real: object) -> object:
        def change(path: Path, *arguments: object, **options: object) -> object:
            nonlocal count
            count += 1
            if count * 2 - 1 == after:
                raise Death
            result = real(path, *arguments, **options)  # type: ignore[operator]
            if count * 2 == after:
                raise Death
            return result

        return change

    with (
        mock.patch.object(Path, "symlink_to", wrap(Path.symlink_to)),
        mock.patch.object(Path, "unlink", wrap(Path.unlink)),
    ):
        yield


Act = tuple[str, str]
ACTS = st.lists(st.tuples(st.sampled_from(["take", "give back"]), st.sampled_from("abc")), max_size=12)


@settings(max_examples=150, deadline=None)
@given(ACTS, st.integers(0, 40))
def test_whenever_the_daemon_dies(acts: list[Act], moment: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        book = AddressBook(Path(directory))
        under_way = ""
        with contextlib.suppress(Death), dying(moment):
            for act, owner in acts:
                under_way = owner
                before = {o: book.owned_by(o) for o in "abc"}
                if act == "take" and not book.owned_by(owner):
                    book.take(owner, FOUR)
                    book.take(owner, SIX)
                elif act == "give back":
                    book.give_back(owner)
            under_way, before = "", {o: book.owned_by(o) for o in "abc"}
        again = AddressBook(Path(directory))
        held = {o: again.owned_by(o) for o in "abc"}
        for owner in "abc":
            if owner != under_way and acts:
                assert held[owner] == before[owner], "who was not touched has what they had"
        if under_way:
            again.give_back(under_way)  # as the kernel's recovery does by the recorded plan
        everyone = [*(again.take(f"new{n}", FOUR) for n in range(5 - sum(map(has_four, "abc", [again] * 3))))]
        addresses = [*everyone, *(a for o in "abc" for a in again.owned_by(o) if a.version == 4)]
        assert len(addresses) == len(set(addresses)) == 5, "each has one owner and none is lost"


def has_four(owner: str, book: AddressBook) -> bool:
    return any(address.version == 4 for address in book.owned_by(owner))
