"""The loop's threads, divided by whom they work for: what hangs in one pod's volume takes no thread from another pod.

``OwnerThreads`` is the daemon's default executor, so ``asyncio.to_thread``, ``run_in_executor`` and ``call_in_thread``
all come here, those of plugins too. Whoever begins work for a pod, or for an image that is pulled, says so once::

    with on_behalf_of(pod_id, container_id):
        ...

and every call in a thread below that, also from tasks that are made meanwhile, counts against that owner: at most
``per_owner`` run at a time, more wait their turn, and where as many hang (their callers have given up waiting) further
ones raise Unavailable at once. Without an owner a call is the daemon's own. What goes where:

- A pod's owner: the making of containers (volumes, devices, logs, labels, root file systems), runtimes and snapshotters
  that are called for that, execs, streams, updates, the watch for its containers' ends.
- An owner of its own for each end of a pod and each cleanup, as the pod's threads may all hang; for each measuring of a
  writable layer, which may have millions of files; for each pull and each pod's restore, whose source may hang, and
  each checkpoint, whose target may.
- No owner: what nobody else can make hang. That is crinoid's own state, content and layers on the node's own disks,
  cgroups, network namespaces and netlink, the files of bundles on a tmpfs, imports, and the site's own configuration.

All threads are daemons: none is joined when the process ends.
"""

import _thread
import concurrent.futures
import functools
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from crinoid.core.api.errors import ResourceExhausted, Unavailable

T = TypeVar("T")
_OWN = 16
"""Threads for the daemon's own. Python takes four more than there are processors; ours wait for the kernel."""
_PER_OWNER = 4
"""Threads for one pod or image: its acts follow one another by its lock, so few of its calls run at the same time."""
_MAX_IDLE = 16
_IDLE_S = 30.0
_END_S = 2.0


@dataclass(frozen=True, slots=True)
class Behalf:
    """For whom a call runs: ``owner`` bounds it (a pod, an image), ``subject`` is what it works on (a ledger owner)."""

    owner: str = ""
    subject: str = ""


_NOBODY = Behalf()
_behalf: ContextVar[Behalf] = ContextVar("behalf", default=_NOBODY)
_here = threading.local()


@contextmanager
def on_behalf_of(owner: str, subject: str = "") -> Iterator[None]:
    """Have all calls in threads from here on count against this owner, for the block and the tasks begun in it."""
    token = _behalf.set(Behalf(owner, subject or owner))
    try:
        yield
    finally:
        _behalf.reset(token)


def has_owner() -> bool:
    """Return whether the caller works on somebody's behalf, so that its calls may be left behind."""
    return bool(_behalf.get().owner)


def current_behalf() -> Behalf:
    """Return for whom the caller works."""
    return _behalf.get()


def touching(path: Path | str) -> None:
    """Note the path that the calling thread goes to next: if it hangs there, this is what is reported."""
    call = current_call()
    if call is not None:
        call.path = str(path)


def current_call() -> "Call | None":
    """Return the call that the calling thread is making; ``None`` in a thread that is none of ``OwnerThreads``."""
    return getattr(_here, "call", None)


def start_thread(function: Callable[[], object]) -> None:
    """Start a thread that nobody joins. Raises ResourceExhausted.

    Not by threading: its start() waits until the thread has begun, for milliseconds where the machine is busy, and its
    threads are joined at the end.
    """
    try:
        _thread.start_new_thread(function, ())
    except RuntimeError as error:
        raise ResourceExhausted(f"no thread can be started: {error}") from error


class Call(concurrent.futures.Future[Any]):  # Any: calls of all kinds of results wait side by side
    """One call: when it began, and where it is. Cancelling one that runs leaves it behind."""

    def __init__(self, behalf: Behalf, function: Callable[[], object]) -> None:
        super().__init__()
        self.behalf = behalf
        self.path = ""
        self.began_s = time.monotonic()
        self.is_left_behind = False
        self._function: Callable[[], object] | None = function

    def cancel(self) -> bool:
        """Cancel a call that waits; leave one that runs behind. asyncio calls this for callers that are cancelled."""
        if super().cancel():
            return True
        self.is_left_behind = self.running()
        return False

    def work(self) -> None:
        """Make the call, in the thread that this is."""
        function, self._function = self._function, None
        if function is None or not self.set_running_or_notify_cancel():
            return
        self.began_s = time.monotonic()
        _here.call = self
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001  # it is raised where the result is wanted
            self.set_exception(error)
        else:
            self.set_result(result)
        finally:
            _here.call = None

    def __str__(self) -> str:
        where = f"{self.path} does not answer" if self.path else "a call into the kernel does not return"
        return f"{where} since {time.monotonic() - self.began_s:.0f} s"


class _Bulkhead:
    """The calls of one owner."""

    def __init__(self, bound: int) -> None:
        self.bound = bound
        self.running: set[Call] = set()
        self.waiting: deque[Call] = deque()


class OwnerThreads(ThreadPoolExecutor):
    """An executor with a bound for each owner. asyncio wants a ThreadPoolExecutor; no thread of that class is used."""

    def __init__(self, own: int = _OWN, per_owner: int = _PER_OWNER) -> None:
        super().__init__(max_workers=1)
        self._own, self._per_owner = own, per_owner
        self._lock = threading.Lock()
        self._bulkheads: dict[str, _Bulkhead] = {}
        self._handed: queue.SimpleQueue[Call | None] = queue.SimpleQueue()
        self._idle = 0
        self._closed = False

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[T]:
        """Make a call in a thread, or have it wait for one of its owner's to end.

        Raises Unavailable, naming what hangs, when all threads that its owner may have were left behind.
        """
        call = Call(_behalf.get(), functools.partial(function, *args, **kwargs))
        owner = call.behalf.owner
        with self._lock:
            if self._closed:
                raise RuntimeError("no call is taken any more: the daemon stops")
            bulkhead = self._bulkheads.get(owner)
            if bulkhead is None:
                bulkhead = self._bulkheads[owner] = _Bulkhead(self._per_owner if owner else self._own)
            if len(bulkhead.running) < bulkhead.bound:
                bulkhead.running.add(call)
                self._start(call, bulkhead)
            elif all(one.is_left_behind for one in bulkhead.running):
                oldest = min(bulkhead.running, key=lambda one: one.began_s)
                raise Unavailable(f"{owner}: {len(bulkhead.running)} calls hang, the oldest: {oldest}")
            else:
                bulkhead.waiting.append(call)
        return call

    def left_behind(self, subject: str = "") -> list[Call]:
        """Return the calls that still run though nobody waits for them: those of one subject, or all."""
        with self._lock:
            running = [call for bulkhead in self._bulkheads.values() for call in bulkhead.running]
        return [call for call in running if call.is_left_behind and subject in ("", call.behalf.subject)]

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more calls; ``wait`` for those that run, but not for what hangs."""
        with self._lock:
            self._closed = True
            running = [one for bulkhead in self._bulkheads.values() for one in bulkhead.running]
            for _ in range(self._idle):
                self._handed.put(None)
            self._idle = 0
        if wait and not cancel_futures:
            concurrent.futures.wait([one for one in running if not one.is_left_behind], timeout=_END_S)

    def _start(self, call: Call, bulkhead: _Bulkhead) -> None:
        """Hand a call to a thread that waits for one, or to a new one; the lock is held."""
        if self._idle:
            self._idle -= 1
        else:
            try:
                start_thread(self._work)
            except ResourceExhausted:
                self._discard(call, bulkhead)
                raise
        self._handed.put(call)  # and not as the thread's argument, which Python keeps as long as the thread lives

    def _work(self) -> None:
        """The life of a thread: one call after the other, of whatever owner."""
        call: Call | None = self._handed.get()
        while call is not None:
            call.work()
            following = self._next_of(call)
            call = None  # while the thread waits, the result is its caller's alone
            call = following or self._next_handed()

    def _discard(self, call: Call, bulkhead: _Bulkhead) -> None:
        bulkhead.running.discard(call)
        if not bulkhead.running:
            del self._bulkheads[call.behalf.owner]

    def _next_of(self, ended: Call) -> Call | None:
        """Take the next call of the same owner."""
        with self._lock:
            bulkhead = self._bulkheads[ended.behalf.owner]
            following = bulkhead.waiting.popleft() if bulkhead.waiting else None
            if following is not None:
                bulkhead.running.add(following)
            self._discard(ended, bulkhead)
            return following

    def _next_handed(self) -> Call | None:
        """Wait a while for a call; ``None`` ends the thread."""
        with self._lock:
            if self._closed or self._idle >= _MAX_IDLE:
                return None
            self._idle += 1
        try:
            return self._handed.get(timeout=_IDLE_S)
        except queue.Empty:
            with self._lock:
                try:  # one was handed over meanwhile, and this thread was counted on
                    return self._handed.get_nowait()
                except queue.Empty:
                    self._idle -= 1
                    return None
