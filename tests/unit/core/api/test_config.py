"""Descriptions of a driver's options: read from the source when the schema is wanted, and not before."""

from typing import Annotated

import pytest
from pydantic import Field

from crinoid.core.api import config
from crinoid.core.api.config import DriverConfig


class Base(DriverConfig):
    """Options that two drivers share."""

    binary: str = ""
    """Path of the binary;
    empty looks in PATH."""
    plain: int = 0
    told: Annotated[int, Field(description="By its field.")] = 0
    """By its string."""


class Options(Base):
    """Options of one driver."""

    plain: int = 1
    """Said here."""
    named: Annotated[bool, Field(alias="Named")] = False
    """By its alias."""
    inner: Base = Base()
    """A table."""


def test_a_string_below_a_field_describes_it() -> None:
    properties = Base.model_json_schema()["properties"]
    assert properties["binary"]["description"] == "Path of the binary;\nempty looks in PATH."
    assert "description" not in properties["plain"]
    assert properties["told"]["description"] == "By its field."


def test_a_sub_class_inherits_and_replaces_descriptions() -> None:
    schema = Options.model_json_schema()
    assert schema["properties"]["binary"]["description"] == "Path of the binary;\nempty looks in PATH."
    assert schema["properties"]["plain"]["description"] == "Said here."
    assert schema["properties"]["Named"]["description"] == "By its alias."
    assert schema["properties"]["inner"] == {**schema["properties"]["inner"], "description": "A table."}
    assert "description" in schema["$defs"]["Base"]["properties"]["binary"]


def test_no_source_no_description() -> None:
    made = type("Made", (DriverConfig,), {"__annotations__": {"size": int}, "size": 1, "__module__": "nowhere"})
    assert "description" not in made.model_json_schema()["properties"]["size"]  # type: ignore[attr-defined]


def test_the_source_is_not_read_where_a_class_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(what: object) -> str:
        raise AssertionError(f"the source of {what} is read at each start")

    monkeypatch.setattr("inspect.findsource", refuse)
    config._classes_of.cache_clear()  # what other tests have read already

    class Late(DriverConfig):
        size: int = 1
        """How large."""

    assert Late().size == 1
    with pytest.raises(AssertionError, match="is read"):
        Late.model_json_schema()
