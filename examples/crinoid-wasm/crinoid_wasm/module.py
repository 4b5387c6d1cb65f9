"""The last step of a container's process: it becomes the module. Imported by the monitor's child, after ``start``."""

import os
import sys
import threading
from pathlib import Path
from typing import Any, NoReturn

import wasmtime

_TRAPPED = 134
"""What a shell shows of a program that aborted: 128 + SIGABRT."""
_NOT_EXECUTABLE = 126


def run(plan: dict[str, Any], module_fd: int) -> NoReturn:
    """Run a module by a plan (``bundle.Plan``) to its end, and the process with it."""
    if plan["oom_score_adj"] is not None:
        Path("/proc/self/oom_score_adj").write_text(str(plan["oom_score_adj"]))
    config = wasmtime.Config()
    config.parallel_compilation = False  # no threads that the container's limits would have to allow for
    config.consume_fuel = bool(plan["fuel"])
    config.epoch_interruption = bool(plan["max_run_s"])
    engine = wasmtime.Engine(config)
    store = wasmtime.Store(engine)
    store.set_limits(memory_size=plan["memory_bytes"])
    if plan["fuel"]:
        store.set_fuel(plan["fuel"])
    if plan["max_run_s"]:
        store.set_epoch_deadline(1)
        timer = threading.Timer(plan["max_run_s"], engine.increment_epoch)
        timer.daemon = True
        timer.start()
    wasi = wasmtime.WasiConfig()
    wasi.argv = plan["args"]
    wasi.env = plan["env"]
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    for host_path, guest_path, is_writable in plan["preopens"]:
        wasi.preopen_dir(host_path, guest_path, is_writable)
    with os.fdopen(module_fd, "rb") as file:
        content = file.read()
    # All directories are open: from here on nothing needs root, and the way to them may be closed to the user.
    os.setgroups(plan["groups"])
    os.setgid(plan["gid"])
    os.setuid(plan["uid"])
    os._exit(_execute(engine, store, wasi, content))


def _execute(engine: wasmtime.Engine, store: wasmtime.Store, wasi: wasmtime.WasiConfig, content: bytes) -> int:
    """Return the exit code: the module's own, or one for a trap or for what can't be run."""
    try:
        module = wasmtime.Module(engine, content)
        linker = wasmtime.Linker(engine)
        linker.define_wasi()
        store.set_wasi(wasi)
        entry = linker.instantiate(store, module).exports(store)["_start"]
        assert isinstance(entry, wasmtime.Func)
    except (wasmtime.WasmtimeError, wasmtime.Trap, KeyError, AssertionError) as error:
        what = "it exports no function _start" if isinstance(error, KeyError | AssertionError) else error
        _say(f"the module can't be run: {what}")
        return _NOT_EXECUTABLE
    try:
        entry(store)
    except wasmtime.ExitTrap as ended:
        return ended.code & 0xFF
    except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
        _say(f"the module was ended: {error}")
        return _TRAPPED
    return 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()
