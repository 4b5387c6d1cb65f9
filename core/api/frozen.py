"""``dataclass`` for frozen values: the library's own, but each class's methods are made when they are first needed.

``dataclasses`` writes and compiles six functions for every class, half a millisecond that most of some two hundred
classes don't need before the daemon serves, and many never. ``complete`` makes what is missing, once there is time.
For a type checker this is ``dataclasses.dataclass``, and for ``fields``, ``replace``, ``asdict``, ``is_dataclass`` and
pydantic a dataclass like any other. Authors of drivers may use either.
"""

import dataclasses
import inspect
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_origin

__all__ = ["complete", "dataclass"]

C = TypeVar("C", bound=type[Any])

_METHODS = ("__init__", "__repr__", "__eq__", "__hash__", "__setattr__", "__delattr__", "__getstate__", "__setstate__")
_FACTS = ("__dataclass_fields__", "__dataclass_params__", "__match_args__")

_making = threading.RLock()
"""Held by the one thread that makes methods; making a class's may want those of the class it inherits from."""


class _Fact:
    """An attribute of a class that is made when somebody reads it."""

    def __init__(self, name: str, make: Callable[[], None]) -> None:
        self.name = name
        self.make = make

    def __get__(self, instance: object, owner: type) -> Any:
        self.make()
        return getattr(owner, self.name)


if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(*, frozen: bool, slots: bool, kw_only: bool = False) -> Callable[[C], C]:
        """Make a class a frozen dataclass with slots; only its methods are left for later."""
        if not (frozen and slots):
            raise TypeError("this is for frozen classes with slots; take dataclasses.dataclass for others")
        return lambda cls: _defer(cls, kw_only)


def complete() -> Iterator[type]:
    """Make the methods of every class of an imported module, one at each step."""
    for module in tuple(sys.modules.values()):
        for found in tuple(vars(module).values()):
            fact = vars(found).get(_FACTS[0]) if isinstance(found, type) else None
            if isinstance(fact, _Fact):
                fact.make()
                yield found


def _defer(cls: C, kw_only: bool) -> C:
    """Make the class with its slots, and with stand-ins for its methods."""
    names = [name for name, kind in inspect.get_annotations(cls).items() if not _is_of_class(kind)]
    body = {name: part for name, part in vars(cls).items() if name not in (*names, "__dict__", "__weakref__")}
    inherited = {name for base in cls.__mro__[1:] for name in getattr(base, "__slots__", ())}

    def make() -> None:
        with _making:
            if not missing:  # another thread has made them meanwhile
                return
            whole = vars(dataclasses.dataclass(frozen=True, slots=True, kw_only=kw_only)(cls))
            for name in missing:
                setattr(made, name, whole[name])
            missing.clear()

    missing = [name for name in (*_METHODS, *_FACTS) if body.get(name) is None]  # an own __eq__ makes __hash__ None
    body |= {name: _stand_in(name, make) if name in _METHODS else _Fact(name, make) for name in missing}
    body["__slots__"] = tuple(name for name in names if name not in inherited)
    metaclass: Any = type(cls)
    made: C = metaclass(cls.__name__, cls.__bases__, body)
    made.__qualname__ = cls.__qualname__
    return made


def _stand_in(name: str, make: Callable[[], None]) -> Callable[..., Any]:
    def method(self: object, *arguments: Any, **named: Any) -> Any:
        make()
        return getattr(self, name)(*arguments, **named)

    return method


def _is_of_class(annotation: object) -> bool:
    return annotation is ClassVar or get_origin(annotation) is ClassVar
