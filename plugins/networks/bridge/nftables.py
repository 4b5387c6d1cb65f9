"""Two tables of our own in the Linux packet filter: made from text by libnftables, their elements by own messages.

The rules never change while the table stands; a pod is some elements in its sets and maps, added and removed in one
transaction each. Such a transaction carries the number of the rule set's generation that we know: if anybody has
changed any rule on the node since, the kernel refuses it, and only then the tables are looked at and repaired. So a
flush is noticed, and costs nothing while there is none. Sources: linux/netfilter/nf_tables.h, nfnetlink.h.
"""

import ctypes
import errno
import functools
import struct
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crinoid.core.api.errors import DriverError, Unsupported
from crinoid.core.api.linux import memory
from crinoid.plugins.networks.bridge.netlink import (
    ACK,
    CREATE,
    NETFILTER,
    Channel,
    Message,
    NetlinkError,
    attribute,
    iterate,
    nest,
    parse,
    text,
)

INET = 1
BRIDGE = 7
_KINDS = ("inet", "bridge")
LIBRARY = "libnftables.so.1"

_SUBSYSTEM = 10
_HEADER = struct.Struct("!BBH")
_BATCH_BEGIN, _BATCH_END, _BATCH_GENERATION = 0x10, 0x11, 1
_GET_TABLE, _GET_CHAIN, _GET_RULE = 1, 4, 7
_NEW_ELEMENT, _GET_ELEMENT, _DELETE_ELEMENT, _GET_GENERATION = 12, 13, 14, 16
_TABLE_NAME, _CHAIN_TABLE, _CHAIN_NAME, _RULE_TABLE = 1, 1, 3, 1
_LIST_TABLE, _LIST_SET, _LIST_ELEMENTS, _LIST_ITEM = 1, 2, 3, 1
_ELEMENT_KEY, _ELEMENT_DATA, _DATA_VALUE = 1, 2, 1
_GENERATION_ID = 1
_GENERATIONS = 1 << 32
_TRIES = 20
_FAST_TRIES = 3
_PER_MESSAGE = 200  # elements: an attribute has at most 64 KiB


@dataclass(frozen=True, slots=True)
class Place:
    """A set or map: the family of its table, and its name."""

    family: int
    name: str


@dataclass(frozen=True, slots=True)
class Element:
    """An element's place and key; what it maps to is kept beside it, empty in a set."""

    place: Place
    key: bytes


Elements = dict[Element, bytes]


@dataclass(frozen=True, slots=True)
class Ruleset:
    """What the tables are made of: commands for libnftables, and what shows that they are whole.

    ``marker`` is an empty chain of the inet table whose name is a digest of the commands; ``rules`` is the number of
    rules by family.
    """

    commands: str
    marker: str
    rules: Mapping[int, int]


class TakenError(Exception):
    """Another pod has the element's key."""

    def __init__(self, element: Element) -> None:
        self.element = element
        super().__init__(f"a key of {element.place.name} is taken")


class Tables:
    """The tables of one slot, which have the same name in both families. Safe to call from several threads.

    ``places`` are all sets and maps that hold elements of pods.
    """

    def __init__(self, name: str, places: Sequence[Place]) -> None:
        self._name = name
        self._places = tuple(places)
        self._lock = threading.Lock()
        self._elements: Elements = {}
        self._generation: int | None = None
        self._is_verified = False
        self._ruleset: Ruleset | None = None
        self._knows_all = False
        self._opened: Channel | None = None
        self._interpreter: Interpreter | None = None

    @property
    def elements(self) -> Elements:
        """A copy of the elements that should be there, as far as this process knows them."""
        with self._lock:
            return dict(self._elements)

    def require(self, ruleset: Ruleset) -> None:
        """Say what the tables are made of; a change is carried out with the next act."""
        with self._lock:
            if self._ruleset is None or self._ruleset.marker != ruleset.marker:
                self._ruleset = ruleset
                self._generation, self._is_verified = None, False

    def knows_all(self, elements: Elements) -> None:
        """Say that these are all the elements there should be: from now on others are removed."""
        with self._lock:
            self._elements = dict(elements)
            self._knows_all = True
            self._is_verified = False

    def add(self, elements: Elements) -> None:
        """Add elements, all or none; make or repair the tables first where they are not as they should be.

        Raises TakenError for a key that leads elsewhere already.
        """
        with self._lock:
            for element, data in elements.items():
                if self._elements.get(element, data) != data:
                    raise TakenError(element)
            missing = {element: data for element, data in elements.items() if element not in self._elements}
            self._elements.update(missing)
            try:
                if not self._commit_as_known(missing, ()):
                    self._reconcile({})
            except BaseException:
                for element in missing:
                    del self._elements[element]
                self._generation, self._is_verified = None, False
                raise

    def remove(self, elements: Elements) -> None:
        """Remove elements, as far as they are there and lead where they are said to. Idempotent."""
        with self._lock:
            ours = [element for element, data in elements.items() if self._elements.get(element) == data]
            for element in ours:
                del self._elements[element]
            try:
                if self._knows_all and self._commit_as_known({}, ours):
                    return
                if self._are_there():
                    self._reconcile(elements)
            except BaseException:  # the next try has nothing to remove by its own count: it must look
                self._generation, self._is_verified = None, False
                raise

    def repair(self) -> None:
        """Look whether anybody changed the tables, and put them right."""
        with self._lock:
            if not self._is_verified or self._generation != _ask_generation(self._channel):
                self._reconcile({})

    def find_missing(self, elements: Elements) -> list[Element]:
        """Return those of the elements that the tables lack, without repairing them."""
        with self._lock:
            found = self._dump()
        return [element for element, data in elements.items() if found.get(element) != data]

    def are_there(self) -> bool:
        """Return whether the tables stand, whatever is in them; a kernel without nftables has none."""
        try:
            with self._lock:
                return self._are_there()
        except OSError:
            return False

    def drop(self) -> None:
        """Remove both tables. Idempotent."""
        with self._lock:
            self._generation, self._is_verified = None, False
            self._run("".join(f"add table {kind} {self._name}\ndelete table {kind} {self._name}\n" for kind in _KINDS))

    def rest(self) -> None:
        """Free what libnftables keeps for its next use: a copy of all rules of the node, a few MiB or many.

        Takes 15 ms where something was removed, so do it while no pod waits; other threads need not wait for it.
        """
        with self._lock:
            interpreter, self._interpreter = self._interpreter, None
        if interpreter is not None:
            interpreter.close()
            memory.trim()

    def _run(self, commands: str) -> None:
        if self._interpreter is None:
            self._interpreter = Interpreter()
        self._interpreter.run(commands)

    @property
    def _channel(self) -> Channel:
        """The socket, kept open: the kernel lets whoever closes one wait until what was removed is freed, 10 ms."""
        if self._opened is None:
            self._opened = Channel(NETFILTER)
        return self._opened

    def _commit_as_known(self, add: Elements, remove: Iterable[Element]) -> bool:
        """Commit if the rules are as we know them; tell whether they were, else ``_reconcile`` is to do it.

        After a change by others the rules are looked at, and the elements only by the next ``repair``: that takes
        milliseconds where there are many, and services' rules may change many times a second.
        """
        removed = tuple(remove)
        for _ in range(_FAST_TRIES):
            if self._generation is None:
                return False
            if (add or removed) and self._commit(self._generation, add, removed):
                self._generation = _following(self._generation)
                return True
            generation = _ask_generation(self._channel)
            if generation == self._generation:
                return not (add or removed)  # else it was refused for what is in the sets
            self._generation = generation if self._is_whole() else None
            self._is_verified = False
        return False

    def _reconcile(self, gone: Elements) -> None:
        """Bring the tables to what is wanted, whatever others do meanwhile.

        As long as we don't know all elements those that are found stay, but for ``gone``.
        """
        spared: Elements = {}
        for _ in range(_TRIES):
            generation = _ask_generation(self._channel)
            found = self._dump()
            if not self._knows_all:
                spared.update({e: d for e, d in found.items() if gone.get(e) != d and e not in self._elements})
            if not self._is_whole():
                self._make()
                continue
            wanted = spared | self._elements
            surplus = [element for element, data in found.items() if wanted.get(element) != data]
            missing = {element: data for element, data in wanted.items() if found.get(element) != data}
            if not surplus and not missing:
                self._generation, self._is_verified = generation, True
                return
            if self._commit(generation, missing, surplus):
                self._generation, self._is_verified = _following(generation), True
                return
        raise DriverError(f"nft table {self._name}: others change the rule set faster than it can be repaired")

    def _make(self) -> None:
        assert self._ruleset is not None, "require() comes first"
        self._run(self._ruleset.commands)

    def _are_there(self) -> bool:
        payload = _HEADER.pack(INET, 0, 0) + text(_TABLE_NAME, self._name)
        return self._channel.ask(_message(_GET_TABLE, payload, f"look for nft table {self._name}")) is not None

    def _is_whole(self) -> bool:
        """Return whether the rules are all there: the marker's chain, and as many rules as there should be."""
        ruleset = self._ruleset
        if ruleset is None:
            return self._are_there()
        marker = text(_CHAIN_TABLE, self._name) + text(_CHAIN_NAME, ruleset.marker)
        if self._channel.ask(_message(_GET_CHAIN, _HEADER.pack(INET, 0, 0) + marker, "look for the marker")) is None:
            return False
        return all(self._count_rules(family) == count for family, count in ruleset.rules.items())

    def _count_rules(self, family: int) -> int:
        payload = _HEADER.pack(family, 0, 0) + text(_RULE_TABLE, self._name)
        return len(self._channel.dump(_message(_GET_RULE, payload, f"list the rules of nft table {self._name}")))

    def _dump(self) -> Elements:
        found: Elements = {}
        for place in self._places:
            payload = _HEADER.pack(place.family, 0, 0) + self._address(place)
            try:
                entries = self._channel.dump(_message(_GET_ELEMENT, payload, f"list {place.name} of {self._name}"))
            except NetlinkError as error:
                if error.errno != errno.ENOENT:
                    raise
                continue
            for _, entry in entries:
                found.update(_read_elements(place, entry))
        return found

    def _address(self, place: Place) -> bytes:
        return text(_LIST_TABLE, self._name) + text(_LIST_SET, place.name)

    def _commit(self, generation: int, add: Elements, remove: Iterable[Element]) -> bool:
        """Carry out one transaction on this generation; tell whether the generation was still the same."""
        begin = _HEADER.pack(0, 0, _SUBSYSTEM) + attribute(_BATCH_GENERATION, struct.pack("!I", generation))
        messages = [Message(_BATCH_BEGIN, begin, 0, f"change nft table {self._name}")]
        messages += self._changes(_DELETE_ELEMENT, ACK, dict.fromkeys(remove, b""))
        messages += self._changes(_NEW_ELEMENT, ACK | CREATE, add)
        messages.append(Message(_BATCH_END, _HEADER.pack(0, 0, _SUBSYSTEM)))
        outcome = self._channel.send_batch(messages)
        errors = [error for error in outcome.values() if error is not None]
        if any(error.errno in (errno.ERESTART, errno.ENOENT, errno.EEXIST, errno.EBUSY) for error in errors):
            return False
        if errors:
            raise errors[0]
        return True

    def _changes(self, kind: int, flags: int, elements: Elements) -> list[Message]:
        by_place: dict[Place, list[bytes]] = {}
        for element, data in elements.items():
            by_place.setdefault(element.place, []).append(_write_element(element.key, data))
        return [
            _message(
                kind,
                _HEADER.pack(place.family, 0, 0)
                + self._address(place)
                + nest(_LIST_ELEMENTS, *items[start : start + _PER_MESSAGE]),
                f"change {place.name} of nft table {self._name}",
                flags,
            )
            for place, items in by_place.items()
            for start in range(0, len(items), _PER_MESSAGE)
        ]


def _message(kind: int, payload: bytes, what: str, flags: int = 0) -> Message:
    return Message(_SUBSYSTEM << 8 | kind, payload, flags, what)


def _write_element(key: bytes, data: bytes) -> bytes:
    value = nest(_ELEMENT_DATA, attribute(_DATA_VALUE, data)) if data else b""
    return nest(_LIST_ITEM, nest(_ELEMENT_KEY, attribute(_DATA_VALUE, key)), value)


def _read_elements(place: Place, entry: bytes) -> Elements:
    found: Elements = {}
    for _, item in iterate(parse(entry[_HEADER.size :]).get(_LIST_ELEMENTS, b"")):
        parts = parse(item)
        key = parse(parts[_ELEMENT_KEY])[_DATA_VALUE]
        found[Element(place, key)] = parse(parts.get(_ELEMENT_DATA, b"")).get(_DATA_VALUE, b"")
    return found


def _ask_generation(channel: Channel) -> int:
    answer = channel.ask(_message(_GET_GENERATION, _HEADER.pack(0, 0, 0), "ask for the rule set's generation"))
    assert answer is not None
    return int(struct.unpack("!I", parse(answer[_HEADER.size :])[_GENERATION_ID])[0])


def _following(generation: int) -> int:
    """The kernel leaves out 0."""
    return (generation + 1) % _GENERATIONS or 1


@functools.cache
def load_library() -> Any:
    """Load libnftables; raise Unsupported, naming the package, where it is not installed."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError as error:
        raise Unsupported(
            f"the bridge network needs {LIBRARY}, which can't be loaded ({error}): install the package libnftables1 "
            "(Debian, Ubuntu) or nftables"
        ) from error
    library.nft_ctx_new.restype = ctypes.c_void_p
    library.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
    return library


class Interpreter:
    """A context of libnftables, kept open for the reason that Tables' socket is. It belongs to the network namespace in
    which its thread stood when it was made."""

    def __init__(self) -> None:
        self._library = load_library()
        self._context = ctypes.c_void_p(self._library.nft_ctx_new(0))
        self._library.nft_ctx_buffer_error(self._context)
        self._library.nft_ctx_buffer_output(self._context)

    def run(self, commands: str) -> None:
        """Carry out nft commands in one transaction; raise DriverError for what is refused."""
        if self._library.nft_run_cmd_from_buffer(self._context, ctypes.c_char_p(commands.encode())):
            said = self._library.nft_ctx_get_error_buffer(self._context).decode(errors="replace").strip()
            raise DriverError(f"nft refused the rules of the bridge network: {said}")

    def close(self) -> None:
        """Free the context."""
        self._library.nft_ctx_free(self._context)
