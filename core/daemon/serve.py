"""``crinoid serve``: starts the node, serves until SIGTERM or SIGINT, and leaves all pods running."""

import asyncio
import fcntl
import logging
import os
import signal
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from crinoid import __version__
from crinoid.core.api.errors import ConfigurationError
from crinoid.core.api.linux import memory
from crinoid.core.config.loader import ConfigPaths, Loaded, load
from crinoid.core.config.models import Config
from crinoid.core.cri.calls import CallHooks
from crinoid.core.cri.server import Endpoint, Server
from crinoid.core.daemon import logs
from crinoid.core.daemon.composition import compose
from crinoid.core.daemon.instruments import DaemonInstruments
from crinoid.core.daemon.notify import notify
from crinoid.core.daemon.settling import settling
from crinoid.core.daemon.watchdog import Watchdog
from crinoid.core.slots.binding import bind
from crinoid.core.slots.running import HookCalls

LOG = logging.getLogger(__name__)
_THREADS = 16
"""For what blocks. Python takes four more than there are processors; ours wait for the kernel, not for a processor."""


def serve(paths: ConfigPaths) -> None:
    """Run the daemon to its end. Raises ConfigurationError when it can't start."""
    memory.limit_arenas(1)  # threads hold the interpreter's lock while they allocate, mostly
    loaded = load(paths)
    logs.set_up(loaded.config.log)
    if os.geteuid() != 0:
        raise ConfigurationError("crinoid serve needs root: it makes namespaces, mounts and cgroups")
    _make_folders(loaded.config)
    with _locked(loaded.config.root / "lock"):
        watchdog = Watchdog(HookCalls(loaded.config.deadlines.grace_s), loaded.config.watchdog.stall_s)
        watchdog.start()
        with asyncio.Runner(loop_factory=lambda: watchdog.loop) as runner:
            _run(runner.get_loop(), _serve(loaded, watchdog))
        watchdog.stop()


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


async def _serve(loaded: Loaded, watchdog: Watchdog) -> None:
    config = loaded.config
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "worker"))
    stopping = _stop_signals()
    instruments = DaemonInstruments(config.metrics, config.tracing, __version__, watchdog)
    slots = bind(config, loaded.origins, instruments, __version__, watchdog.calls)
    watchdog.know(slots.all())
    node = compose(config, slots, __version__)
    try:
        await node.recover()
        hooks = CallHooks(instruments.observe_rpc, instruments.rpc_span if instruments.traces else None)
        server = Server(_endpoint(config), node, hooks)
        await node.streams.start()
        await server.start()
        LOG.info("crinoid %s serves CRI v1 on unix://%s", __version__, config.server.socket)
        watchdog.phase = "serving"
        notify("READY=1", f"STATUS=serving {config.server.socket}")
        async with settling(instruments):
            await stopping.wait()
        watchdog.phase = "stopping"
        notify("STOPPING=1")
        LOG.info("stopping; pods and containers run on")
        node.events.close()  # whoever follows them would follow for ever
        await server.stop(config.server.graceful_stop_s)
    finally:
        await node.close()
        await instruments.close()


def _stop_signals() -> asyncio.Event:
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


def _make_folders(config: Config) -> None:
    for folder, mode in ((config.root, 0o711), (config.run, 0o711), (config.run / "pods", 0o711)):
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=mode)
        except OSError as error:
            raise ConfigurationError(f"{folder} can't be made: {error.strerror}") from error


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the state alone: a second daemon over the same folder would undo what the first one makes."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise ConfigurationError(f"another crinoid runs over {path.parent}: stop it, or set another root") from error
    try:
        yield
    finally:
        os.close(descriptor)
