"""From a configuration to bound slots: options, directories, the hooks a driver has, and what stops the start."""

import asyncio
import importlib.metadata
import re
import stat
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from textwrap import indent
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest

from crinoid.core.api.errors import ConfigurationError, InvalidArgument
from crinoid.core.api.host import Host
from crinoid.core.config.loader import ConfigPaths, Loaded, load
from crinoid.core.config.origins import Problem
from crinoid.core.slots import binding, selection
from crinoid.core.slots.binding import Slots, bind, bind_in_turns, prepare_reload
from crinoid.core.slots.instruments import NO_INSTRUMENTS
from crinoid.core.slots.isolation.proxy import Proxy
from crinoid.core.slots.listing import State, list_plugins
from crinoid.core.slots.roles import ROLES
from crinoid.core.slots.running import HookCalls
from crinoid.core.slots.selection import ValidSlot, check, examine
from support.distributions import NETWORK, QUIET_CONFIG, Site


def load_text(directory: Path, text: str) -> Loaded:
    file = directory / "config.toml"
    file.write_text(QUIET_CONFIG.format(directory=directory) + text)
    return load(ConfigPaths.at(file))


def bind_text(directory: Path, text: str) -> Slots:
    loaded = load_text(directory, text)
    return bind(loaded.config, loaded.origins, version="1")


def refusal(directory: Path, text: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        bind_text(directory, text)
    return str(caught.value).replace(f"{directory}/", "")


QUIET_NETWORK = '[network]\ndriver = "quiet"\n'
STAR = '[network]\ndriver = "star"\n'
LINE = QUIET_CONFIG.count("\n") + 2  # of the driver in STAR


def install_star(site: Site, body: str = "") -> None:
    site.install("star-net", "[crinoid.networks]\nstar = star_net:Driver\n", NETWORK + indent(body, "    "))


def test_a_bound_slot_has_its_name_driver_and_private_directories(quiet: Site, tmp_path: Path) -> None:
    install_star(quiet)
    slots = bind_text(tmp_path, STAR)
    assert repr(slots.network) == '<network "default" (star)>'
    assert slots.network.installed.distribution == "star-net"
    assert slots.network.state_dir == tmp_path / "root/plugins/network/default.star"
    assert slots.network.run_dir == tmp_path / "run/net/default.star"
    assert stat.S_IMODE(slots.network.run_dir.stat().st_mode) == 0o700
    assert stat.S_IMODE(slots.network.state_dir.stat().st_mode) == 0o700
    assert [slot.role for slot in slots.all()] == ["runtime", "network", "snapshotter", "registry"]


async def test_the_daemon_s_loop_goes_on_between_two_drivers(
    quiet: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_text(tmp_path, QUIET_NETWORK)
    turns, made = 0, []
    make = binding.make

    async def count_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def note(slot: ValidSlot, host: Host) -> object:
        made.append(turns)
        return make(slot, host)

    monkeypatch.setattr(binding, "make", note)
    counting = asyncio.create_task(count_turns())
    drivers = check(loaded.config, loaded.origins)
    slots = await bind_in_turns(drivers, loaded.config, loaded.origins, NO_INSTRUMENTS, HookCalls(1))
    counting.cancel()
    assert len(made) == len(set(made)) == len(slots.all()) == 4


def test_a_reload_looks_at_all_drivers_once_and_not_in_the_loops_turn(
    quiet: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A look starts a process for each slot with isolation, which takes half a second."""
    loaded, looks = load_text(tmp_path, QUIET_NETWORK), []

    def look(*given: Any) -> tuple[ValidSlot, ...]:
        looks.append(given)
        return check(*given)

    monkeypatch.setattr(binding, "check", look)
    make = prepare_reload(loaded.config, loaded.origins, NO_INSTRUMENTS, "1", HookCalls(1), ())
    assert len(looks) == 1
    registries, extensions = make()
    assert ([*registries], extensions) == (["quiet"], ())
    assert len(looks) == 1


def test_nothing_is_left_running_of_a_reload_that_fails(
    quiet: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, ended = load_text(tmp_path, QUIET_NETWORK), []
    process: Any = SimpleNamespace(end_now=lambda: ended.append("it"))
    made: Future[Any] = Future()
    made.set_result((Proxy(process), None))
    monkeypatch.setattr(binding._Binder, "start_processes", lambda _self, slots: {id(slot): made for slot in slots})

    def fail(*_: object) -> NoReturn:
        raise ConfigurationError("a key of an extension can't be read")

    monkeypatch.setattr(binding, "_rebind_extensions", fail)
    make = prepare_reload(loaded.config, loaded.origins, NO_INSTRUMENTS, "1", HookCalls(1), ())
    with pytest.raises(ConfigurationError, match="a key of an extension"):
        make()
    assert ended == ["it"]


def test_a_reload_ends_what_it_has_started_and_does_not_use(
    quiet: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the garbage collector, at some time: each is a process of 50 MiB."""
    loaded = load_text(tmp_path, QUIET_NETWORK)
    ended: list[str] = []
    looked = examine(loaded.config, loaded.origins)

    def look(*_: object) -> tuple[tuple[ValidSlot, ...], list[Problem]]:
        slots, problems = looked
        return tuple(
            replace(slot, driver=replace(slot.driver, discard=partial(ended.append, slot.selection.role)))
            for slot in slots
        ), problems

    monkeypatch.setattr(selection, "examine", look)
    prepare_reload(loaded.config, loaded.origins, NO_INSTRUMENTS, "1", HookCalls(1), ())
    assert ended == ["runtime", "network", "snapshotter"]
    ended.clear()
    looked[1].append(Problem(("network",), "is wrong", None))
    with pytest.raises(ConfigurationError, match="is wrong"):
        prepare_reload(loaded.config, loaded.origins, NO_INSTRUMENTS, "1", HookCalls(1), ())
    assert ended == ["runtime", "network", "snapshotter", "registry"]


def test_a_directory_that_was_open_to_others_is_closed(quiet: Site, tmp_path: Path) -> None:
    directory = tmp_path / "run/net/default.quiet"
    directory.mkdir(parents=True, mode=0o755)
    bind_text(tmp_path, '[network]\ndriver = "quiet"\n')
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700


def test_options_reach_the_driver_as_its_own_model(quiet: Site, tmp_path: Path) -> None:
    body = "def __init__(self, config, host):\n    assert config.mtu == 9000 and host.version == '1'\n"
    install_star(quiet, body + "    super().__init__(config, host)\n")
    bind_text(tmp_path, STAR + "options.mtu = 9000\n")
    assert "AssertionError" in refusal(tmp_path, STAR + "options.mtu = 1\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            STAR.replace("star", "satr"),
            f'config.toml:{LINE}: network.driver: no network driver "satr" is installed: install the distribution that'
            " has it (entry point group crinoid.networks), or name another"
            " (docs/troubleshooting.md#driver-not-installed)"
            '; did you mean "star"?',
        ),
        (
            STAR + "[network.options]\nmut = 1\n",
            f'config.toml:{LINE + 2}: network.options.mut: unknown key; did you mean "mtu"?',
        ),
        (
            STAR + 'options = { mtu = "x" }\n',
            f'config.toml:{LINE + 1}: network.options.mtu: should be a valid integer, not "x"',
        ),
    ],
)
def test_a_driver_or_option_that_is_not_there_is_told_with_its_line(
    quiet: Site, tmp_path: Path, text: str, message: str
) -> None:
    install_star(quiet)
    assert refusal(tmp_path, text) == message


def test_every_slot_that_is_wrong_is_told_at_once(quiet: Site, tmp_path: Path) -> None:
    text = '[network]\ndriver = "a"\n[networks.second]\ndriver = "b"\n[extensions.third]\ndriver = "c"\n'
    assert len(refusal(tmp_path, text).splitlines()) == 3


def test_the_metadata_of_what_is_installed_is_read_once(
    quiet: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install_star(quiet)
    readings = []

    def note(**chosen: Any) -> object:
        readings.append(chosen)
        return entry_points(**chosen)

    entry_points = importlib.metadata.entry_points
    monkeypatch.setattr(importlib.metadata, "entry_points", note)
    assert len(bind_text(tmp_path, STAR).all()) == 4
    assert readings == [{}]


def test_the_check_makes_no_driver_and_no_directory(quiet: Site, tmp_path: Path) -> None:
    install_star(quiet, "def __init__(self, config, host):\n    raise RuntimeError\n")
    loaded = load_text(tmp_path, STAR)
    assert [slot.selection.name for slot in check(loaded.config, loaded.origins)] == [
        "quiet",
        *["default"] * 2,
        "quiet",
    ]
    assert not (tmp_path / "root").exists()


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("def __init__(self, config, host):\n    raise OSError('no bus')\n", "can't be made: OSError: no bus"),
        ("def __init__(self):\n    pass\n", "can't be made: TypeError"),
        (
            "from crinoid.core.api.hooks import hookimpl\n@hookimpl\nasync def atach(self, request): ...\n",
            "does not fit its hooks, report it to its authors: star_net.Driver.atach is marked with @hookimpl, but its"
            ' role has no such hook; did its authors mean "attach"?',
        ),
        (
            "from crinoid.core.api.hooks import hookimpl\n@hookimpl\nasync def attach(self, wish): ...\n",
            "does not fit its hooks, report it to its authors: star_net.Driver.attach wants wish, which is none of the"
            " hook's arguments (request, plan)",
        ),
        (
            "detach = None\nplan = None\n",
            "lacks detach, plan, which every network driver must have",
        ),
    ],
)
def test_a_driver_that_does_not_fit_stops_the_start_by_name(quiet: Site, tmp_path: Path, body: str, why: str) -> None:
    install_star(quiet, body)
    text = refusal(tmp_path, STAR)
    head = f'config.toml:{LINE}: network.driver: network driver "star" of distribution star-net 1.0 '
    assert text.startswith(head + why)


@pytest.mark.parametrize("role", ["runtime", "network", "snapshotter", "registry", "extension"])
def test_a_forgotten_mark_stops_the_start_and_every_check_in_all_roles(quiet: Site, tmp_path: Path, role: str) -> None:
    hook = {"runtime": "start_pod", "network": "check", "registry": "close", "extension": "adjust_container"}
    name = hook.get(role, "usage")
    noop = f"Noop{role.capitalize()}"
    module = (
        f"from crinoid.core.api.testing.noops import {noop}\nclass Driver({noop}):\n    async def {name}(self): ...\n"
    )
    quiet.install("bad-one", f"[crinoid.{ROLES[role].group.partition('.')[2]}]\nbad = bad_one:Driver\n", module)
    table = {"runtime": "runtimes.b", "network": "network", "snapshotter": "snapshotters.b", "registry": "registries.b"}
    text = f'[{table.get(role, "extensions.b")}]\ndriver = "bad"\n' + ("" if role == "network" else QUIET_NETWORK)
    directory = tmp_path
    if role == "registry":
        directory.joinpath("conf.d").mkdir()
        directory.joinpath("conf.d/1.toml").write_text('images.sources = ["b"]\n')
    message = (
        f'{role} driver "bad" of distribution bad-one 1.0 does not fit its hooks, report it to its authors: '
        f"bad_one.Driver.{name} has the name of a hook but no @hookimpl"
    )
    assert message in refusal(directory, text)
    loaded = load_text(directory, text)
    with pytest.raises(ConfigurationError, match=re.escape(message)):  # as `crinoid config check` does
        check(loaded.config, loaded.origins)
    (plugin,) = [each for each in list_plugins(loaded.config, loaded.origins) if each.driver.name == "bad"]
    assert plugin.state is State.BROKEN
    assert message in plugin.error


def test_what_an_object_sets_itself_to_is_looked_at_too(quiet: Site, tmp_path: Path) -> None:
    body = "def __init__(self, config, host):\n    super().__init__(config, host)\n    self.check = lambda *_: None\n"
    install_star(quiet, body)
    assert "star_net.Driver.check the object has set itself to a function, which is never called" in refusal(
        tmp_path, STAR
    )


def test_an_extension_without_any_hook_is_logged(quiet: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    module = "from crinoid.core.api.testing.noops import NoopExtension as Driver\n"
    quiet.install("idle", "[crinoid.extensions]\nidle = idle:Driver\n", module)
    bind_text(tmp_path, QUIET_NETWORK + '[extensions.e]\ndriver = "idle"\n')
    assert 'extension driver "idle" of distribution idle 1.0 has no hook, so it will never be called' in caplog.text


def test_what_is_not_selected_does_no_harm(quiet: Site, tmp_path: Path) -> None:
    quiet.install("bad-net", "[crinoid.networks]\nbad = bad_net:Driver\n", "raise RuntimeError('no')\n")
    quiet.install("twin-a", "[crinoid.networks]\ntwin = twin_a:Driver\n")
    quiet.install("twin-b", "[crinoid.networks]\ntwin = twin_b:Driver\n")
    assert bind_text(tmp_path, '[network]\ndriver = "quiet"\n').network.driver == "quiet"


def test_a_source_that_is_not_asked_is_not_loaded(quiet: Site, tmp_path: Path) -> None:
    text = '[network]\ndriver = "quiet"\n[registries.gone]\ndriver = "gone"\n'
    assert list(bind_text(tmp_path, text).registries) == ["quiet"]


def test_a_handler_chooses_its_network_and_snapshotter(quiet: Site, tmp_path: Path) -> None:
    text = """\
[network]
driver = "quiet"
[networks.second]
driver = "quiet"
[snapshotters.third]
driver = "quiet"
[runtimes.fast]
driver = "quiet"
network = "second"
snapshotter = "third"
"""
    slots = bind_text(tmp_path, text)
    assert slots.network_of("fast") is slots.networks["second"]
    assert slots.snapshotter_of("fast") is slots.snapshotters["third"]
    assert slots.network_of("") is slots.network
    assert slots.runtime("").name == "quiet"
    with pytest.raises(
        InvalidArgument, match=r'runtime handler "kata" is not in the configuration; known: fast, quiet'
    ):
        slots.runtime("kata")


def test_slots_of_one_driver_are_apart(quiet: Site, tmp_path: Path) -> None:
    slots = bind_text(tmp_path, '[network]\ndriver = "quiet"\n[networks.second]\ndriver = "quiet"\n')
    first, second = slots.networks["default"], slots.networks["second"]
    assert first.state_dir != second.state_dir
    assert first.run_dir != second.run_dir


def test_extensions_keep_the_order_of_the_file_and_can_be_disabled(quiet: Site, tmp_path: Path) -> None:
    lines = "".join(f'[extensions.{name}]\ndriver = "quiet"\n' for name in "zma")
    slots = bind_text(tmp_path, '[network]\ndriver = "quiet"\n' + lines + "enabled = false\n")
    assert [slot.name for slot in slots.extensions.slots] == ["z", "m"]


async def test_closing_goes_on_after_a_source_that_fails(quiet: Site, tmp_path: Path) -> None:
    module = """\
from crinoid.core.api.testing.fakes import FakeRegistry
from crinoid.core.api.hooks import hookimpl
closed = []
class Driver(FakeRegistry):
    @hookimpl
    async def close(self):
        closed.append(self.host.slot)
        raise RuntimeError
"""
    quiet.install("src", "[crinoid.registries]\nsrc = src:Driver\n", module)
    text = '[network]\ndriver = "quiet"\n[registries.a]\ndriver = "src"\n[registries.b]\ndriver = "src"\n'
    file = tmp_path / "config.toml"
    file.write_text((QUIET_CONFIG + text).format(directory=tmp_path).replace('["quiet"]', '["b", "a"]'))
    loaded = load(ConfigPaths.at(file))
    await bind(loaded.config, loaded.origins).close()
    names: Any = importlib.import_module("src").closed
    assert names == ["b", "a"]
