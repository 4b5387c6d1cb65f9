"""Frozen values whose methods come late: in every way like those of ``dataclasses``, whichever use comes first."""

import contextlib
import copy
import dataclasses
import pickle
import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import pytest
from pydantic import TypeAdapter

from crinoid.core.api.frozen import complete, dataclass


def make() -> tuple[type[Any], type[Any]]:
    """A class that nobody has used yet, and one that inherits from it."""

    @dataclass(frozen=True, slots=True)
    class Part:
        """A part."""

        name: str
        sizes: tuple[int, ...] = ()
        labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
        kind: ClassVar[str] = "part"

        @property
        def title(self) -> str:
            return f"{self.kind} {self.name}"

    @dataclass(frozen=True, slots=True, kw_only=True)
    class Whole(Part):
        inner: Part = Part("inner")

        def __repr__(self) -> str:
            return "a whole"

    return Part, Whole


def test_values_are_made_compared_and_told() -> None:
    part, whole = make()
    one = part("a", sizes=(1,))
    assert (one.name, one.sizes, one.labels, one.title) == ("a", (1,), {}, "part a")
    assert one == part("a", (1,))
    assert one != part("b", (1,))
    assert one != whole(name="a", sizes=(1,))
    assert repr(one) == f"{part.__qualname__}(name='a', sizes=(1,), labels={{}})"
    assert repr(whole(name="b")) == "a whole"
    assert whole(name="b").inner == part("inner")
    assert part("a").labels is not part("a").labels


@pytest.mark.parametrize(
    "use",
    [
        lambda part: part,
        dataclasses.fields,
        lambda part: part.__match_args__,
        lambda part: part(name="a"),
        lambda part: setattr(object.__new__(part), "name", "b"),
        lambda part: delattr(object.__new__(part), "name"),
        lambda part: hash(object.__new__(part)),
        lambda part: repr(object.__new__(part)),
        lambda part: object.__new__(part) == 1,
        lambda part: copy.copy(object.__new__(part)),
        TypeAdapter,
    ],
)
def test_any_use_may_be_the_first(use: Callable[[type[Any]], object]) -> None:
    part, whole = make()
    for cls in (whole, part):
        with contextlib.suppress(AttributeError):  # an object without its values; FrozenInstanceError is one, too
            use(cls)
        with pytest.raises(dataclasses.FrozenInstanceError):
            cls(name="a").name = "b"
        with pytest.raises(dataclasses.FrozenInstanceError):
            del cls(name="a").name
        with pytest.raises(TypeError):
            cls()
    assert hash(part("a", labels=())) == hash(part("a", labels=()))
    assert part("a") == part("a")


def test_the_library_takes_them_for_its_own() -> None:
    part, whole = make()
    assert dataclasses.is_dataclass(part)
    assert [field.name for field in dataclasses.fields(whole)] == ["name", "sizes", "labels", "inner"]
    one = whole(name="a", inner=part("b", labels={"c": "d"}))
    assert dataclasses.replace(one, name="e").inner is one.inner
    assert dataclasses.asdict(one)["inner"] == {"name": "b", "sizes": (), "labels": {"c": "d"}}
    match part("a", (1, 2)):
        case part(name, (1, last)):
            assert (name, last) == ("a", 2)
        case _:
            pytest.fail("no match")


def test_they_have_slots_and_no_more() -> None:
    part, whole = make()
    assert part.__slots__ == ("name", "sizes", "labels")
    assert whole.__slots__ == ("inner",)
    assert not hasattr(whole(name="a"), "__dict__")


def test_pydantic_reads_and_writes_them() -> None:
    _, whole = make()
    codec: TypeAdapter[Any] = TypeAdapter(whole)
    one = codec.validate_json('{"name": "a", "sizes": [1], "inner": {"name": "b"}}')
    assert (one.sizes, one.inner.name) == ((1,), "b")
    assert codec.validate_json(codec.dump_json(one)) == one


@dataclass(frozen=True, slots=True)
class Point:
    """A value that can be found by its name, as pickle wants it."""

    x: int
    y: int = 0


def test_copies() -> None:
    assert copy.deepcopy(Point(1)) == Point(1)
    assert pickle.loads(pickle.dumps(Point(1, 2))) == Point(1, 2)


def test_methods_are_made_once_and_only_when_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def note(*arguments: Any, **options: Any) -> Any:
        made.append(options)
        return original(*arguments, **options)

    original = dataclasses.dataclass
    monkeypatch.setattr(dataclasses, "dataclass", note)
    part, whole = make()
    assert made == [{"frozen": True, "slots": True, "kw_only": False}], "Whole has a Part for a default"
    whole(name="a")
    whole(name="b")
    assert made[1:] == [{"frozen": True, "slots": True, "kw_only": True}]
    assert part("a").name == "a"
    assert len(made) == 2


def test_threads_may_need_them_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second comes while the first is making them: it waits, and does not make them again."""
    begun, again = threading.Event(), threading.Event()

    def hold_up(*arguments: Any, **options: Any) -> Any:
        if begun.is_set():
            again.set()
        begun.set()
        again.wait(0.5)  # in vain
        return original(*arguments, **options)

    @dataclass(frozen=True, slots=True)
    class Late:
        x: int

    original = dataclasses.dataclass
    monkeypatch.setattr(dataclasses, "dataclass", hold_up)
    values: list[Late] = []
    first = threading.Thread(target=lambda: values.append(Late(1)))
    first.start()
    assert begun.wait(60)
    values.append(Late(1))
    first.join(60)
    assert values == [Late(1), Late(1)]
    assert not again.is_set()


def test_what_is_missing_can_be_made_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    @dataclass(frozen=True, slots=True)
    class Late:
        x: int

    monkeypatch.setitem(globals(), "Late", Late)
    assert Late in tuple(complete())
    assert Late not in tuple(complete())
    monkeypatch.setattr(dataclasses, "dataclass", None)
    assert Late(1) == Late(1)


@pytest.mark.parametrize("options", [{"frozen": True, "slots": False}, {"frozen": False, "slots": True}])
def test_other_classes_are_refused(options: Any) -> None:
    with pytest.raises(TypeError, match=r"dataclasses\.dataclass for others"):
        dataclass(**options)
