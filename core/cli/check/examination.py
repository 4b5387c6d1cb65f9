"""Runs every part of the examination in turn; a part that breaks is itself a finding."""

from collections.abc import AsyncIterator, Callable, Iterator

from crinoid.core.api.errors import ConfigurationError
from crinoid.core.cli.check.cgroups import examine_cgroups
from crinoid.core.cli.check.devices import examine_devices
from crinoid.core.cli.check.disk import examine_disk
from crinoid.core.cli.check.findings import Area, Finding
from crinoid.core.cli.check.isolation import examine_isolation
from crinoid.core.cli.check.kernel_features import examine_kernel
from crinoid.core.cli.check.network import examine_network
from crinoid.core.cli.check.other_runtimes import examine_other_runtimes
from crinoid.core.cli.check.privileges import examine_privileges
from crinoid.core.cli.check.programs import examine_programs
from crinoid.core.cli.check.slots import examine_slots
from crinoid.core.cli.check.state import examine_state
from crinoid.core.config.loader import ConfigPaths, Loaded, load
from crinoid.core.config.models import Config
from crinoid.core.config.origins import NO_ORIGINS

_CONFIGURATION = Area("configuration")

_PARTS: tuple[tuple[str, Callable[[Config], Iterator[Finding]]], ...] = (
    ("kernel", examine_kernel),
    ("privileges", examine_privileges),
    ("cgroups", examine_cgroups),
    ("isolation", examine_isolation),
    ("disk", examine_disk),
    ("network", examine_network),
    ("other runtimes", examine_other_runtimes),
    ("devices", examine_devices),
)
_ASYNC_PARTS: tuple[tuple[str, Callable[[Config], AsyncIterator[Finding]]], ...] = (("programs", examine_programs),)


async def examine(paths: ConfigPaths) -> list[Finding]:
    """Examine the host for what this configuration, or if it can't be used the default one, needs."""
    loaded, findings = _load(paths)
    for name, part in _PARTS:
        findings += _run(name, part, loaded.config)
    for name, awaitable in _ASYNC_PARTS:
        findings += await _run_async(name, awaitable(loaded.config))
    findings += _run("state", lambda _: examine_state(loaded), loaded.config)
    findings += await _run_async("slots", examine_slots(loaded))
    return findings


def _load(paths: ConfigPaths) -> tuple[Loaded, list[Finding]]:
    try:
        loaded = load(paths)
    except ConfigurationError as error:
        failures = [
            _CONFIGURATION.failure("files", line, "correct it; the rest is examined for the defaults")
            for line in error.message.splitlines()
        ]
        return Loaded(Config(), NO_ORIGINS), failures
    files = ", ".join(map(str, loaded.files)) or "no file: all defaults"
    return loaded, [_CONFIGURATION.ok("files", files)]


def _run(name: str, part: Callable[[Config], Iterator[Finding]], config: Config) -> list[Finding]:
    findings: list[Finding] = []
    try:
        findings.extend(part(config))
    except Exception as error:  # noqa: BLE001  # one part's fault must not hide the others
        findings.append(_broken(name, error))
    return findings


async def _run_async(name: str, part: AsyncIterator[Finding]) -> list[Finding]:
    findings: list[Finding] = []
    try:
        async for finding in part:
            findings.append(finding)  # noqa: PERF401  # what came before the fault is kept
    except Exception as error:  # noqa: BLE001
        findings.append(_broken(name, error))
    return findings


def _broken(name: str, error: Exception) -> Finding:
    return Area(name).failure("examination", f"{type(error).__name__}: {error}", "run it as root; else report this")
