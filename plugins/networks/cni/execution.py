"""One plugin, run once: the environment and standard input it gets, and what its end means (SPEC.md, "Section 2").

Every way a plugin can fail becomes an error that names the plugin, the network and its file, the command and the
plugin's own words.
"""

import asyncio
import errno
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from crinoid.core.api.errors import CrinoidError, DeadlineExceeded, DriverError, Unavailable
from crinoid.core.api.linux import process
from crinoid.core.api.linux.bulkheads import touching
from crinoid.core.api.linux.probes import may_hang
from crinoid.core.api.linux.threads import call_within
from crinoid.plugins.networks.cni import versions
from crinoid.plugins.networks.cni.results import shorten

UNKNOWN_CONTAINER = 3
"""The error code that says there is nothing to clean up."""

TRY_AGAIN_LATER = 11
"""The error code that says the same call may succeed later."""

_MEANINGS = {
    1: "incompatible CNI version",
    2: "unsupported field in the network configuration",
    UNKNOWN_CONTAINER: "unknown container",
    4: "invalid environment variables",
    5: "I/O failure",
    6: "content can't be decoded",
    7: "invalid network configuration",
    TRY_AGAIN_LATER: "try again later",
    50: "plugin not available",
    51: "plugin not available, existing pods may have limited connectivity",
}
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_NOT_INHERITED = ("CNI_", "LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_")
_BY_SHELL = ("/bin/sh", "-c", 'exec "$0"')
_BUSY_TRIES = 5
_BUSY_PAUSE_S = 0.2
_MAX_OUTPUT_BYTES = 4 << 20


class PluginFailed(DriverError):
    """A plugin ended with an error, or printed what is no answer; ``code`` is CNI's, 0 for none."""

    def __init__(self, message: str, code: int = 0) -> None:
        self.code = code
        super().__init__(message)


class PluginUnavailable(Unavailable):
    """A plugin asked to be called again later."""


class PluginMissing(PluginFailed):
    """The directories hold no executable of the plugin's name."""


class PluginTimeout(PluginFailed, DeadlineExceeded):
    """A plugin had not ended at its deadline and was killed."""

    grpc_status = DeadlineExceeded.grpc_status
    reason = DeadlineExceeded.reason


class _Error(BaseModel):
    """What a plugin prints when it fails (SPEC.md, "Error")."""

    model_config = ConfigDict(extra="ignore", frozen=True, defer_build=True)

    code: int = 0
    msg: str = ""
    details: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One run of a plugin.

    ``network`` and ``file`` are for messages. ``parameters`` are the environment variables of the attachment, without
    the command and the path; ``content`` is what the plugin reads.
    """

    plugin: str
    network: str
    file: str
    command: str
    bin_dirs: Sequence[str]
    timeout_s: float
    content: Mapping[str, Any]
    parameters: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"plugin {self.plugin} ({self.file}, network {self.network!r}) {self.command}"


@dataclass(frozen=True, slots=True)
class Executable:
    """A plugin's file: what tells it from a later one of its name, and whether it lies where a server may be gone."""

    path: Path
    version: tuple[int, int]
    is_served: bool


async def find_plugin(plugin: str, bin_dirs: Sequence[str], timeout_s: float) -> Executable | None:
    """Return the plugin's executable in the first directory that has one, as every runtime looks it up.

    Raises DeadlineExceeded, naming the path, for a directory that does not answer.
    """
    return await call_within(timeout_s, f"plugin {plugin}", lambda: _find(plugin, bin_dirs))


def _find(plugin: str, bin_dirs: Sequence[str]) -> Executable | None:
    for directory in bin_dirs:
        binary = Path(directory, plugin)
        touching(binary)
        if binary.is_file() and os.access(binary, os.X_OK):
            status = binary.stat()
            return Executable(binary, (status.st_ino, status.st_mtime_ns), may_hang(str(binary)))
    return None


async def execute(call: Call) -> bytes:
    """Run a plugin and return what it printed. Raises PluginFailed, PluginMissing, PluginTimeout, PluginUnavailable."""
    try:
        binary = await find_plugin(call.plugin, call.bin_dirs, call.timeout_s)
    except (CrinoidError, OSError) as error:
        raise PluginFailed(f"{call}: {error}") from error
    if binary is None:
        raise PluginMissing(
            f"{call}: there is no executable {call.plugin!r} in {', '.join(call.bin_dirs)}; "
            "install the plugin or correct bin_dirs"
        )
    finished = await _run(call, binary)
    if finished.exit_code != 0:
        raise _failure(call, finished)
    return finished.stdout


async def _run(call: Call, binary: Executable) -> process.Finished:
    """Run the executable; one that is being written at this moment (an update of the plugins) is tried again.

    To start a program is to wait for its execve(2), which reads the file: where its server may be gone, a shell waits.
    """
    command = [*(_BY_SHELL if binary.is_served else ()), str(binary.path)]
    for attempt in range(_BUSY_TRIES):
        try:
            return await process.run(
                command,
                timeout_s=call.timeout_s,
                stdin=json.dumps(call.content).encode(),
                env=_environment(call),
                max_output_bytes=_MAX_OUTPUT_BYTES,
            )
        except DeadlineExceeded as error:
            raise PluginTimeout(f"{call}: it had not ended after {call.timeout_s:g} s and was killed") from error
        except OSError as error:
            if error.errno != errno.ETXTBSY or attempt == _BUSY_TRIES - 1:
                raise PluginFailed(f"{call}: {binary.path} can't be executed: {error.strerror}") from error
            await asyncio.sleep(_BUSY_PAUSE_S)
        except CrinoidError as error:
            raise PluginFailed(f"{call}: {error}") from error
    raise AssertionError("unreachable")


def _environment(call: Call) -> dict[str, str]:
    """The daemon's own environment, less what is meant for it alone, with the protocol's parameters."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(_NOT_INHERITED)}
    own = {"CNI_COMMAND": call.command, "CNI_PATH": ":".join(call.bin_dirs), **call.parameters}
    return {"PATH": _DEFAULT_PATH, **inherited, **own}


def _failure(call: Call, finished: process.Finished) -> CrinoidError:
    if finished.exit_code < 0:
        words = shorten(finished.stderr, 1000)
        return PluginFailed(f"{call}: it was killed by signal {-finished.exit_code}; it said {words}")
    error = _read_error(finished.stdout)
    if error is None:
        words = shorten(finished.stdout.strip() or finished.stderr, 1000)
        return PluginFailed(f"{call}: exit code {finished.exit_code} and no CNI error but {words}")
    message = f"{call}: exit code {finished.exit_code}, {_describe(error)}"
    return PluginUnavailable(message) if error.code == TRY_AGAIN_LATER else PluginFailed(message, error.code)


def _read_error(output: bytes) -> _Error | None:
    try:
        error = _Error.model_validate_json(output)
    except ValidationError:
        return None
    return error if error.code or error.msg else None


def _describe(error: _Error) -> str:
    meaning = f" ({_MEANINGS[error.code]})" if error.code in _MEANINGS else ""
    details = f"; {error.details}" if error.details and error.details != error.msg else ""
    return f"CNI error {error.code}{meaning}: {error.msg}{details}"


class SupportedVersions:
    """Asks plugins by VERSION what they speak, and remembers the answer until their file changes."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._known: dict[tuple[str, int, int], frozenset[str]] = {}

    async def ask(self, binary: Executable) -> frozenset[str] | None:
        """Return the versions that the plugin says it speaks, ``None`` when it gives no such answer."""
        key = (str(binary.path), *binary.version)
        if key in self._known:
            return self._known[key]
        answer = await self._ask(binary.path)
        if answer is not None:
            self._known[key] = answer
        return answer

    async def _ask(self, binary: Path) -> frozenset[str] | None:
        call = Call(
            plugin=binary.name,
            network="",
            file=str(binary),
            command="VERSION",
            bin_dirs=(str(binary.parent),),
            timeout_s=self._timeout_s,
            content={"cniVersion": versions.KNOWN[-1]},
            # Plugins older than VERSION look at these before they look at the command.
            parameters={"CNI_NETNS": "none", "CNI_IFNAME": "none", "CNI_CONTAINERID": "none"},
        )
        try:
            answer = json.loads(await execute(call))
            return frozenset(str(version) for version in answer["supportedVersions"])
        except (CrinoidError, ValueError, TypeError, KeyError):
            return None
