"""``crinoid serve``: starts the node, serves until SIGTERM or SIGINT, and leaves all pods running."""

import asyncio
import contextlib
import logging
import os
import resource
import signal
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace

from crinoid import __version__
from crinoid.core.api.errors import ConfigurationError, CrinoidError, StateUnavailable
from crinoid.core.api.linux import memory, rights
from crinoid.core.api.linux.sockets import SocketPlace
from crinoid.core.config.loader import ConfigPaths, Loaded, load
from crinoid.core.config.models import Config
from crinoid.core.cri.calls import CallHooks
from crinoid.core.cri.server import AGE_S, Endpoint, Listener, Server
from crinoid.core.daemon import directories, logs, nulldevice
from crinoid.core.daemon.composition import Composition, compose
from crinoid.core.daemon.deferred import deferred_initialisation
from crinoid.core.daemon.directories import Taken
from crinoid.core.daemon.figures import NodeFigures
from crinoid.core.daemon.instruments import DaemonInstruments
from crinoid.core.daemon.notify import notify, ping_watchdog
from crinoid.core.daemon.recording import Recordings
from crinoid.core.daemon.reload import NewSlots, Reload
from crinoid.core.daemon.takeover import Handover, Predecessor, only_successor
from crinoid.core.daemon.watchdog import Watchdog
from crinoid.core.lifecycle.resources.host_calls import HostCalls
from crinoid.core.slots.binding import bind_in_turns, prepare_reload
from crinoid.core.slots.running import HookCalls
from crinoid.core.slots.selection import ValidSlot, check

LOG = logging.getLogger(__name__)
_CLOSE_S = 5.0
"""How long the services may take to give up what is under way, once the server has stopped."""
_FORWARD_S = 6 * AGE_S
"""How long calls are passed on to a successor: no connection is older, and streams of events have moved by then (
``lifecycle.events`` may take ``KEPT_S`` and ``MOVE_WITHIN_S`` longer than ``cri.server.RELAY_S`` for that)."""
_LEAST_DESCRIPTORS = 256
_READY_S = 10.0
"""How long the node's conditions may take for ``/readyz``."""
_CANCEL_S = 2.0
"""How long what is still under way then may take to end."""


def serve(paths: ConfigPaths, *, takeover: bool = False) -> None:
    """Run the daemon to its end; with ``takeover`` in the place of the one that runs, if there is one.

    Raises ConfigurationError when it can't start, StateUnavailable if not now; where it has not taken over by then,
    the one that runs serves on.
    """
    os.umask(rights.UMASK)
    _take_descriptors()
    memory.limit_arenas(1)  # threads hold the interpreter's lock while they allocate, mostly
    loaded = load(paths)
    logs.set_up(loaded.config.log)
    if os.geteuid() != 0:
        raise ConfigurationError("crinoid serve needs root: it makes namespaces, mounts and cgroups")
    watchdog = Watchdog(HookCalls(loaded.config.deadlines.grace_s), loaded.config.watchdog.stall_s)
    # Also before it takes over: with drivers that can't be used it is better to leave all as it is. And before the loop
    # runs: imports take long.
    start = Start(paths, loaded, check(loaded.config, loaded.origins), watchdog)
    with ExitStack() as ending, ExitStack() as taking_over:
        succession = None
        if takeover:
            taking_over.enter_context(only_successor(loaded.config))
            runner = ending.enter_context(asyncio.Runner(loop_factory=lambda: watchdog.loop))
            succession = runner.run(_take_over(loaded))
        taken = ending.enter_context(directories.taken(loaded.config))
        taking_over.close()
        if succession is None:
            SocketPlace(loaded.config.server.socket).check()  # a daemon that can't serve must not begin to tidy up
        if problem := nulldevice.find_problem():
            LOG.error("the host's null device: %s", problem)
        watchdog.start()
        if not takeover:
            runner = ending.enter_context(asyncio.Runner(loop_factory=lambda: watchdog.loop))
        _run(runner.get_loop(), _serve(start, taken, succession))
        watchdog.stop()


@dataclass(frozen=True, slots=True)
class Start:
    """What a daemon has from the beginning, and again where it takes back what it has let go of."""

    paths: ConfigPaths
    loaded: Loaded
    drivers: tuple[ValidSlot, ...]
    watchdog: Watchdog


@dataclass(frozen=True, slots=True)
class Succession:
    """What a daemon that takes over has from the start: where clients wait already, and the daemon before it."""

    listener: Listener
    predecessor: Predecessor


async def _take_over(loaded: Loaded) -> Succession | None:
    """Be ready, take the socket's place, and have the daemon that runs let go; ``None`` where none does."""
    if (predecessor := await Predecessor.find(loaded.config)) is None:
        return None
    listener = Listener(_endpoint(loaded.config))
    await listener.listen(taking_over=True)
    listener.publish()
    await predecessor.send_away()
    return Succession(listener, predecessor)


def _run(loop: asyncio.AbstractEventLoop, serving: Coroutine[object, object, None]) -> None:
    """Run the daemon to its end.

    asyncio lets SystemExit and KeyboardInterrupt out of any task and callback: one of a driver's own would end the
    daemon. The loop goes on, then.
    """
    main = loop.create_task(serving, name="serve")
    while True:
        try:
            return loop.run_until_complete(main)
        except (SystemExit, KeyboardInterrupt) as error:
            if main.done():
                raise
            LOG.error("a task or callback outside every request tried to end the daemon", exc_info=error)


async def _serve(start: Start, taken: Taken, succession: Succession | None, *, is_back: bool = False) -> None:
    """Serve until a signal or a successor comes, and end in bounded time then, whatever hangs: see ``_end``.

    ``is_back``: this daemon has let go of all, and its successor has ended.
    """
    loaded, watchdog, config = start.loaded, start.watchdog, start.loaded.config
    stopping, handover = _stop_signals(), Handover(config, os.getpid())
    instruments = DaemonInstruments(config.metrics, config.tracing, __version__, watchdog)
    slots = await bind_in_turns(start.drivers, config, loaded.origins, instruments, watchdog.calls)
    watchdog.know(slots.all())
    with _fault_named():
        node = compose(config.model_copy(update={"run": taken.passage}), slots, __version__, HostCalls())
    _show_figures(instruments, config, node)
    reload = _reloader(start, node, instruments)
    asyncio.get_running_loop().set_default_executor(node.threads)
    failure: BaseException | None = None
    if succession is not None or is_back:
        node.events.keep()
    server: Server | None = None
    try:
        with _fault_named():
            is_up = await _ends_before(stopping, node.recover())
        if not is_up:
            return
        recordings = Recordings(lambda: reload.loaded, taken.passage, node, instruments)
        server = Server(
            _endpoint(config), node, _call_hooks(instruments, node), None if succession is None else succession.listener
        )
        await node.streams.start()
        await server.start()
        _take_commands(handover, reload, recordings)
        with _fault_named():
            await handover.listen()
        LOG.info("crinoid %s serves CRI v1 on unix://%s", __version__, config.server.socket)
        watchdog.phase = "serving"
        notify("READY=1", f"MAINPID={os.getpid()}", f"STATUS=serving {config.server.socket}")
        if succession is not None:
            succession.predecessor.say_up()
        pings = asyncio.create_task(ping_watchdog(), name="systemd's watchdog")
        async with deferred_initialisation(instruments):
            await _first_of(stopping, handover.requested)
        watchdog.phase = "stopping"
        _do_not_reload()
        await _close("a reload", reload.close())
        await _close("the trace that is recorded", recordings.stop("the daemon ends"))
        if handover.requested.is_set():
            LOG.info("another daemon takes over")
            await server.hand_over(config.server.graceful_stop_s, lambda: _hand_over_events(node))
        else:
            pings.cancel()  # an end may take long
            notify("STOPPING=1")
            LOG.info("stopping; pods and containers run on")
            handover.close()
            node.events.close()  # whoever follows them would follow for ever
            await server.stop(config.server.graceful_stop_s)
    except BaseException as error:
        failure = error
        raise
    finally:
        is_closed = await _close("what is under way", node.close())
        node.store.close()  # what hangs is no reason to keep the state open: every moment's ledger can be recovered
        await _close("metrics and traces", instruments.close())
        if is_closed and server is not None and handover.requested.is_set():
            await _let_go(handover, taken, stopping)
            pings.cancel()
            if handover.lost.is_set() and not stopping.is_set():
                await _serve_again(start, reload.loaded)  # to the end, which is this server's, too
            else:
                await _forward(handover, stopping)
                await server.stop(_CLOSE_S)
        handover.close()
        await _end(node, taken.unlock, failure)


def _call_hooks(instruments: DaemonInstruments, node: Composition) -> CallHooks:
    span = instruments.rpc_span if instruments.traces else None
    keep = node.timelines.recording
    return CallHooks(instruments.observe_rpc, span, keep, instruments.count_error, lambda: instruments.tape)


def _show_figures(instruments: DaemonInstruments, config: Config, node: Composition) -> None:
    """Show in the metrics what the node has, and by ``/readyz`` whether a pod could be made."""
    instruments.add(NodeFigures(config, node, __version__))
    loop = asyncio.get_running_loop()

    async def ask() -> tuple[bool, str]:
        async with asyncio.timeout(_READY_S):
            status = await node.node.status(verbose=False)
        wrong = [f"{one.type}: {one.reason}: {one.message}" for one in status.conditions if not one.ready]
        return not wrong, "; ".join(wrong) or "ok"

    def ready() -> tuple[bool, str]:
        asking = asyncio.run_coroutine_threadsafe(ask(), loop)
        try:
            return asking.result(_READY_S + 1)
        except Exception as error:  # noqa: BLE001  # whatever it is, nobody should count on this node
            asking.cancel()
            return False, f"the node's status can't be had: {type(error).__name__} {error}".rstrip()

    instruments.be_ready(ready)


def _reloader(start: Start, node: Composition, instruments: DaemonInstruments) -> Reload:
    def prepare(other: Loaded) -> Callable[[], NewSlots]:
        calls, current = start.watchdog.calls, node.slots.extensions.slots
        make = prepare_reload(other.config, other.origins, instruments, __version__, calls, current)
        return lambda: NewSlots(*make())

    return Reload(start.loaded, lambda: load(start.paths), node.images, node.slots, prepare, node.kernel)


def _take_commands(handover: Handover, reload: Reload, recordings: Recordings) -> None:
    """Let root reload the configuration, change the log's level until the next reload, and record traces."""

    async def apply(_: str) -> str:
        return "\n".join(await reload.apply())

    async def set_level(level: str) -> str:
        logs.set_level(level)
        return f"the log's level is {level} until the next reload or start"

    async def apply_and_log() -> None:
        try:
            notify("RELOADING=1")
            await reload.apply()
        except CrinoidError as error:
            LOG.error("nothing is reloaded: %s", error.message)  # the message says all
        finally:
            notify("READY=1")

    handover.commands |= {"reload": apply, "log-level": set_level, "trace": recordings.command}
    tasks: set[asyncio.Task[None]] = set()

    def begin() -> None:
        tasks.add(task := asyncio.create_task(apply_and_log(), name="reload"))
        task.add_done_callback(tasks.discard)

    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, begin)


async def _hand_over_events(node: Composition) -> None:
    """End the streams of events here when nothing happens any more that they would have to tell.

    Whatever happens from now on the successor finds, and tells.
    """
    await _close("what pods and containers are told by", node.settle())
    node.events.hand_over()


async def _let_go(handover: Handover, taken: Taken, stopping: asyncio.Event) -> None:
    """Let the successor have everything; return once it serves, or has ended, or this daemon is told to stop."""
    taken.release()
    if not stopping.is_set():
        handover.finish()
        LOG.info("another daemon has all; calls of clients that are still connected here are passed on to it")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FORWARD_S):
                await _first_of(stopping, handover.lost, handover.served)
    if stopping.is_set():
        handover.dismiss()


async def _forward(handover: Handover, stopping: asyncio.Event) -> None:
    """Pass calls on until all connections have been made anew."""
    if handover.served.is_set():
        LOG.info("another daemon has taken over")
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), _FORWARD_S)
        LOG.info("ending: clients have had the time to connect to the other daemon")


async def _serve_again(start: Start, in_force: Loaded) -> None:
    """Serve in the place of a successor that has ended; this daemon's clients are passed on to this daemon, then.

    By the configuration that was ``in_force``, with what reloads have changed.
    """
    LOG.error("the daemon that was taking over has ended before it served: this one serves again")
    notify("STATUS=serving again after a takeover that failed")
    if in_force is not start.loaded:
        try:
            drivers = await asyncio.to_thread(check, in_force.config, in_force.origins)
            start = replace(start, loaded=in_force, drivers=drivers)
        except CrinoidError as error:
            LOG.error("what was reloaded is lost, as it can't be had any more: %s", error.message)
    with directories.taken(start.loaded.config) as taken:
        await _serve(start, taken, None, is_back=True)


async def _first_of(*events: asyncio.Event) -> None:
    waits = [asyncio.create_task(event.wait(), name="waiting for the end") for event in events]
    await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()


async def _ends_before(stopping: asyncio.Event, work: Coroutine[object, object, None]) -> bool:
    """Do the work; False, with the work cancelled, where the daemon is told to stop meanwhile."""
    doing, told = asyncio.create_task(work, name="start"), asyncio.create_task(stopping.wait(), name="stop")
    await asyncio.wait({doing, told}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if not doing.done():
        LOG.info("stopping before the start is complete; the next one goes on with it")
        doing.cancel()
        await asyncio.wait({doing}, timeout=_CANCEL_S)
        return False
    doing.result()
    return True


def _take_descriptors() -> None:
    """Take all descriptors that the process may have open; with a few of them gRPC aborts it instead of failing."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most != resource.RLIM_INFINITY and most < _LEAST_DESCRIPTORS:
        raise StateUnavailable(
            f"crinoid may have {most} files open, fewer than the {_LEAST_DESCRIPTORS} that it needs: raise "
            "LimitNOFILE of its service (ulimit -n)"
        )


@contextlib.contextmanager
def _fault_named() -> Iterator[None]:
    """Make a refusal of what the kernel has against the start now, such as a full disk, wherever it shows."""
    try:
        yield
    except OSError as error:
        if error.errno not in StateUnavailable.PASSING:
            raise
        raise StateUnavailable(
            f"crinoid can't start now: {error.filename or 'the host'}: {error.strerror}; pods live on, start again "
            "once it can"
        ) from error


async def _close(what: str, closing: Coroutine[object, object, object]) -> bool:
    """Close something within ``_CLOSE_S``; tell whether it is. What fails or hangs keeps nothing else from that."""
    task = asyncio.create_task(closing, name=f"close {what}")
    await asyncio.wait({task}, timeout=_CLOSE_S)
    if not task.done():
        LOG.error("%s has not ended after %g s: it is left to the next start", what, _CLOSE_S)
    elif (error := task.exception()) is not None:
        LOG.error("%s could not be closed", what, exc_info=error)
    else:
        return True
    return False


async def _end(node: Composition, unlock: Callable[[], None], failure: BaseException | None) -> None:
    """Cancel all tasks; where some don't end (they wait for a child that hangs in the kernel), end the process here.

    asyncio would wait for them without end. Threads that hang are left anyway: none of them is joined. ``failure`` is
    what ends the daemon, if it is not a signal: nobody else could say so.
    """
    for call in node.threads.left_behind():
        LOG.error("a thread for %s is left behind: %s", call.behalf.owner, call)
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    pending = (await asyncio.wait(tasks, timeout=_CANCEL_S))[1] if tasks else set()
    if pending:
        LOG.error("left to the next start: %s", ", ".join(sorted(task.get_name() for task in pending)))
        if failure is not None:
            LOG.critical("the daemon ends: %s", failure, exc_info=failure)
        unlock()
        logging.shutdown()
        error_code = failure.cli_exit_code if isinstance(failure, CrinoidError) else 1
        os._exit(0 if failure is None else error_code)


def _do_not_reload() -> None:
    """Let SIGHUP, which would end the process, do nothing: a start reads the files anyway, an end needs none."""
    words = "SIGHUP: nothing is reloaded while the daemon starts or ends"
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, LOG.info, words)


def _stop_signals() -> asyncio.Event:
    _do_not_reload()
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    return stopping


def _endpoint(config: Config) -> Endpoint:
    server = config.server
    return Endpoint(
        server.socket,
        server.mode_bits,
        server.group,
        server.max_message_bytes,
        max_streams=server.max_streams,
        max_requests=server.max_requests,
        max_connections=server.max_connections,
    )
