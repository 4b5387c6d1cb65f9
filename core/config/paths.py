"""Where the files of the configuration lie; apart from ``loader``, so that help and most of ``ctl`` need no models."""

from pathlib import Path

from crinoid.core.api.frozen import dataclass

FOLDER = Path("/etc/crinoid")


@dataclass(frozen=True, slots=True)
class ConfigPaths:
    """The main file and the folder of drop-ins; ``required`` when somebody named the main file."""

    main: Path = FOLDER / "config.toml"
    drop_ins: Path = FOLDER / "conf.d"
    required: bool = False

    @classmethod
    def at(cls, main: Path | None) -> "ConfigPaths":
        """Return the paths for ``--config``: the file that was named and its sibling ``conf.d``, or the defaults."""
        return cls(main, main.parent / "conf.d", required=True) if main else cls()
