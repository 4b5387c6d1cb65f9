"""Runtime handlers of other runtimes as slots: the program's name says which driver fits."""

from pathlib import PurePosixPath

from crinoid.core.cli.migration.draft import Draft

_DRIVERS = {"": "runc", "runc": "runc", "crun": "crun"}


def add_runtime(draft: Draft, name: str, program: str, place: str) -> str:
    """Make a slot for a program; return what was made.

    What is neither runc nor crun has the driver ``oci``, which takes nothing for granted but the command line.
    """
    driver = _DRIVERS.get(PurePosixPath(program).name, "oci")
    draft.set(("runtimes", name, "driver"), driver, place)
    if program not in ("", driver):
        draft.set(("runtimes", name, "options", "binary"), program, place)
    return f'runtimes.{name} of the driver "{driver}"'
