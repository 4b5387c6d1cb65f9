"""Parts of an OCI specification that an extension may add to a container (OCI runtime-spec, config.md)."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class OciMount:
    """A mount in the terms of the runtime-spec, for what a :class:`VolumeMount` can't say."""

    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class OciDevice:
    """A device node to make, whether the host has it or not; ``permissions`` of ``r``, ``w``, ``m``.

    ``type`` is ``b``, ``c``, ``u`` or ``p``; what is ``None`` is left to the runtime.
    """

    path: str
    type: str
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    permissions: str = "rwm"


@dataclass(frozen=True, slots=True, kw_only=True)
class OciDeviceRule:
    """Whether processes may use devices, by the devices cgroup. ``None``: every number; ``type`` ``a``: all devices."""

    allow: bool
    type: str = "a"
    major: int | None = None
    minor: int | None = None
    access: str = "rwm"


@dataclass(frozen=True, slots=True)
class OciHook:
    """A program that the runtime runs at a ``stage``: ``prestart``, ``createRuntime``, ``createContainer``,
    ``startContainer``, ``poststart`` or ``poststop``. ``timeout_s`` 0: none."""

    stage: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout_s: int = 0


@dataclass(frozen=True, slots=True)
class Rlimit:
    """A resource limit of the first process; ``type`` such as ``RLIMIT_NOFILE``."""

    type: str
    soft: int
    hard: int
