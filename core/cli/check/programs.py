"""Programs that drivers call: where they are, and their versions."""

import os
import shutil
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

from crinoid.core.api.errors import CrinoidError
from crinoid.core.api.linux import process
from crinoid.core.cli.check.findings import Area, Finding
from crinoid.core.config.models import Config

_AREA = Area("programs")
_TIMEOUT_S = 5.0
_CNI_DIRECTORIES = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
_CNI_PLUGINS = ("loopback", "bridge", "host-local", "portmap")
_NETFILTER_ADVICE = (
    "CNI plugins call it for host ports and masquerading; crinoid's own bridge does not: apt-get install"
)


@dataclass(frozen=True, slots=True)
class Program:
    """A program, whether anything configured needs it, and what to do without it."""

    name: str
    needed: bool
    advice: str


async def examine_programs(config: Config) -> AsyncIterator[Finding]:
    """Examine the programs that the configured drivers call by name."""
    for program in _list_programs(config):
        yield await _examine(program)
    if "cni" in {config.network.driver, *(slot.driver for slot in config.networks.values())}:
        yield judge_cni_plugins(_CNI_DIRECTORIES)


def _list_programs(config: Config) -> list[Program]:
    """A driver whose options name another binary probes that itself, which ``slots`` shows."""
    slots = config.enabled_runtimes.values()
    plain = {slot.driver for slot in slots if "binary" not in slot.options}
    own = any("conmon" not in str(slot.options) for slot in slots if slot.driver in ("runc", "crun"))
    init = config.pods.init_binary or "catatonit"
    is_cni = "cni" in {config.network.driver, *(slot.driver for slot in config.networks.values())}
    netfilter = [
        Program(name, False, f"{_NETFILTER_ADVICE} {package}")
        for name, package in (("nft", "nftables"), ("iptables", "iptables"))
        if is_cni or _find(name)
    ]
    return [
        Program("runc", "runc" in plain, "apt-get install runc"),
        Program("crun", "crun" in plain, "apt-get install crun"),
        Program("conmon", own, "apt-get install conmon"),
        Program(init, False, f"pods with a shared PID namespace use {config.pods.pause_image}: apt-get install {init}"),
        *netfilter,
    ]


def _find(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")


async def _examine(program: Program) -> Finding:
    path = _find(program.name)
    if path is None:
        finding = _AREA.failure if program.needed else _AREA.warning
        return finding(program.name, "not installed", program.advice)
    try:
        finished = await process.run([path, "--version"], timeout_s=_TIMEOUT_S)
    except CrinoidError as error:
        return _AREA.failure(program.name, f"{path}: {error.message}", "reinstall it")
    lines = (finished.stdout or finished.stderr).decode(errors="replace").strip().splitlines()
    if finished.exit_code != 0:
        said = lines[-1] if lines else f"ended with exit code {finished.exit_code}"
        return _AREA.failure(program.name, f"{path}: {said}", f"reinstall it: {program.advice}")
    return _AREA.ok(program.name, f"{path}: {lines[0] if lines else 'tells no version'}")


def judge_cni_plugins(directories: tuple[Path, ...]) -> Finding:
    """Judge whether the usual CNI plugins are in one of their directories."""
    found = {
        plugin: directory for directory in directories for plugin in _CNI_PLUGINS if (directory / plugin).is_file()
    }
    missing = [plugin for plugin in _CNI_PLUGINS if plugin not in found]
    where = ", ".join(map(str, directories))
    if missing:
        advice = "install the CNI plugins that your network needs, such as apt-get install containernetworking-plugins"
        return _AREA.warning("CNI plugins", f"without {', '.join(missing)} in {where}", advice)
    return _AREA.ok(
        "CNI plugins", f"{', '.join(_CNI_PLUGINS)} in {', '.join(sorted({str(f) for f in found.values()}))}"
    )
