"""From the seccomp profile that a container asks for to the filter in its spec (OCI runtime-spec, "Seccomp").

Profiles are read in Docker's JSON form, of which the OCI's is a part: a rule may depend on the container's
capabilities, the architecture and the kernel. Filters are kept for each profile and set of capabilities.
"""

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from crinoid.core.api.errors import ConfigurationError, CrinoidError, InvalidArgument, RuntimeRefused
from crinoid.core.api.linux.bulkheads import touching
from crinoid.core.api.linux.files import read_regular
from crinoid.core.api.values.pod import ProfileType, SecurityProfile
from crinoid.plugins.runtimes.oci.default_seccomp import default_profile, refuse_by_name

Filter = Mapping[str, Any]
Unsigned = Annotated[int, Field(ge=0, lt=1 << 64)]

Action = Literal[
    "SCMP_ACT_KILL",
    "SCMP_ACT_KILL_PROCESS",
    "SCMP_ACT_KILL_THREAD",
    "SCMP_ACT_TRAP",
    "SCMP_ACT_ERRNO",
    "SCMP_ACT_TRACE",
    "SCMP_ACT_ALLOW",
    "SCMP_ACT_LOG",
    "SCMP_ACT_NOTIFY",
]

# machine as uname tells it: the name in profiles, the architectures a filter must cover
_ARCHITECTURES = {
    "x86_64": ("amd64", ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32")),
    "aarch64": ("arm64", ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM")),
    "armv7l": ("arm", ("SCMP_ARCH_ARM",)),
    "ppc64le": ("ppc64le", ("SCMP_ARCH_PPC64LE",)),
    "s390x": ("s390x", ("SCMP_ARCH_S390X", "SCMP_ARCH_S390")),
    "riscv64": ("riscv64", ("SCMP_ARCH_RISCV64",)),
}
_PROFILE_LIMIT_BYTES = 4 << 20
_EXECUTES = frozenset({"execve", "execveat"})
_PASSES = frozenset({"SCMP_ACT_ALLOW", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY"})


class _Json(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", defer_build=True)


class _Condition(_Json):
    caps: tuple[str, ...] = ()
    arches: tuple[str, ...] = ()
    minKernel: str = ""  # noqa: N815  # the format's own name


class _Argument(_Json):
    index: Annotated[int, Field(ge=0, le=5)]
    value: Unsigned
    valueTwo: Unsigned = 0  # noqa: N815
    op: str


class _Rule(_Json):
    name: str = ""
    names: tuple[str, ...] = ()
    action: Action
    errnoRet: int | None = None  # noqa: N815
    args: tuple[_Argument, ...] | None = None
    includes: _Condition | None = None
    excludes: _Condition | None = None


class _ArchitectureMap(_Json):
    architecture: str
    subArchitectures: tuple[str, ...] | None = None  # noqa: N815


class _Profile(_Json):
    defaultAction: Action  # noqa: N815
    defaultErrnoRet: int | None = None  # noqa: N815
    architectures: tuple[str, ...] | None = None
    archMap: tuple[_ArchitectureMap, ...] | None = None  # noqa: N815
    flags: tuple[str, ...] | None = None
    listenerPath: str | None = None  # noqa: N815
    listenerMetadata: str | None = None  # noqa: N815
    syscalls: tuple[_Rule, ...] | None = None


class SeccompFilters:
    """Finds and makes the filters of one slot; ``site_default`` is the site's profile for RuntimeDefault.

    ``by_name``: the runtime does not answer ENOSYS to calls newer than its libseccomp, so the default filter has to.
    """

    def __init__(self, site_default: Path | None = None, *, by_name: bool = False) -> None:
        self._site_default = site_default
        self._by_name = by_name

    def check(self) -> None:
        """Raise ConfigurationError when the site's profile can't be used."""
        self.resolve(SecurityProfile(ProfileType.RUNTIME_DEFAULT), frozenset())

    def resolve(self, profile: SecurityProfile | None, capabilities: frozenset[str]) -> Filter | None:
        """Return the filter for a container with these capabilities; ``None``: unconfined. Reads files.

        Raises InvalidArgument for a local profile that is not there or is none, ConfigurationError for the site's.
        """
        if profile is None or profile.type is ProfileType.UNCONFINED:
            return None
        if profile.type is ProfileType.LOCALHOST:
            return _from_file(Path(profile.localhost_ref), capabilities, InvalidArgument)
        if self._site_default is not None:
            return _from_file(self._site_default, capabilities, ConfigurationError)
        return _default_filter(capabilities, self._by_name)


def require_execve(found: Filter, profile: SecurityProfile | None) -> None:
    """Raise RuntimeRefused for a filter with which nothing can be started.

    Runtimes say nothing that helps then: runc waits for a thread that was killed, crun for an answer, and what dies
    before its start looks as if it had run.
    """
    rules = [rule for rule in found.get("syscalls", ()) if _EXECUTES & set(rule["names"])]
    denied = {name for rule in rules if not rule.get("args") for name in rule["names"]}
    by_default = found["defaultAction"] in _PASSES and not denied >= _EXECUTES
    if not by_default and not any(rule["action"] in _PASSES for rule in rules):
        path = profile.localhost_ref if profile is not None else ""
        raise RuntimeRefused(
            f"seccomp profile {path or 'of the slot'} allows no execve: nothing can be started with it"
        )


@functools.lru_cache(maxsize=64)
def _default_filter(capabilities: frozenset[str], by_name: bool) -> Filter:
    made = _filter(_Profile.model_validate(default_profile()), capabilities)
    return refuse_by_name(made) if by_name else made


def _from_file(path: Path, capabilities: frozenset[str], failure: type[CrinoidError]) -> Filter:
    touching(path)
    try:
        seen = path.stat()
        return _filter_of_file(path, capabilities, (seen.st_mtime_ns, seen.st_ino, seen.st_size))
    except OSError as error:
        raise failure(f"seccomp profile {path} can't be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise failure(f"seccomp profile {path} is not valid: {where}: {first['msg']}") from error


@functools.lru_cache(maxsize=64)
def _filter_of_file(path: Path, capabilities: frozenset[str], _version: tuple[int, int, int]) -> Filter:
    content = read_regular(path, _PROFILE_LIMIT_BYTES)
    return _filter(_Profile.model_validate_json(content), capabilities)


def _filter(profile: _Profile, capabilities: frozenset[str]) -> Filter:
    made: dict[str, Any] = {
        "defaultAction": profile.defaultAction,
        "defaultErrnoRet": profile.defaultErrnoRet,
        "architectures": _architectures(profile),
        "flags": profile.flags,
        "listenerPath": profile.listenerPath,
        "listenerMetadata": profile.listenerMetadata,
        "syscalls": [_rule(rule) for rule in profile.syscalls or () if _applies(rule, capabilities)],
    }
    return {name: value for name, value in made.items() if value not in (None, (), [])}


def _architectures(profile: _Profile) -> tuple[str, ...]:
    """The profile's own list; else what it maps to this machine; else what this machine can run."""
    native = _ARCHITECTURES.get(os.uname().machine, ("", ()))[1]
    if profile.architectures:
        return profile.architectures
    for entry in profile.archMap or ():
        if native and entry.architecture == native[0]:
            return (entry.architecture, *(entry.subArchitectures or ()))
    return native


def _rule(rule: _Rule) -> Filter:
    made: dict[str, Any] = {
        "names": [*rule.names, *([rule.name] if rule.name else [])],
        "action": rule.action,
        "errnoRet": rule.errnoRet,
        "args": [argument.model_dump() for argument in rule.args or ()] or None,
    }
    return {name: value for name, value in made.items() if value is not None}


def _applies(rule: _Rule, capabilities: frozenset[str]) -> bool:
    """``includes`` must all hold, of ``excludes`` none may."""
    wanted, unwanted = rule.includes, rule.excludes
    if wanted and not (
        set(wanted.caps) <= capabilities and _here(wanted, default=True) and _kernel() >= _version(wanted.minKernel)
    ):
        return False
    return not (
        unwanted
        and (
            set(unwanted.caps) & capabilities
            or _here(unwanted, default=False)
            or (unwanted.minKernel and _kernel() >= _version(unwanted.minKernel))
        )
    )


def _here(condition: _Condition, *, default: bool) -> bool:
    if not condition.arches:
        return default
    return _ARCHITECTURES.get(os.uname().machine, ("", ()))[0] in condition.arches


def _kernel() -> tuple[int, ...]:
    return _version(os.uname().release)


def _version(text: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"[0-9]{1,9}", text)[:2]))
