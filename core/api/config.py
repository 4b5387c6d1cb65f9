"""The base of every driver's ``Config``: what the ``options`` table of a slot may hold."""

from pydantic import BaseModel, ConfigDict


class DriverConfig(BaseModel):
    """A frozen model in which an unknown key is an error and every field has a default and a description.

    ``crinoid config schema`` prints the fields with their descriptions; ``config check`` reports what does
    not validate with file, line and the nearest valid name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class NoOptions(DriverConfig):
    """For a driver that has no options."""
