"""Where the files of the configuration lie; apart from ``loader``, so that help and most of ``ctl`` need no models."""

from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path("/etc/crinoid")


@dataclass(frozen=True, slots=True)
class ConfigPaths:
    """The main file and the directory of drop-ins; ``required`` when somebody named the main file."""

    main: Path = DIRECTORY / "config.toml"
    drop_ins: Path = DIRECTORY / "conf.d"
    required: bool = False

    @classmethod
    def at(cls, main: Path | None) -> "ConfigPaths":
        """Return the paths for ``--config``: the file that was named and its sibling ``conf.d``, or the defaults."""
        return cls(main, main.parent / "conf.d", required=True) if main else cls()
