"""Notices when the event loop stands still, and says who holds it: from a thread, as the loop can't.

``serve`` runs the loop over a :class:`LoopClock` and starts a :class:`Watchdog`; ``exposition`` answers ``/healthz``
from it, and ``instruments`` exposes what it has measured. While the loop waits, the thread sleeps; while it works, the
thread looks once in ``stall_s``.
"""

import asyncio
import bisect
import logging
import selectors
import sys
import threading
import time
import traceback
from collections.abc import Iterable
from types import FrameType

from crinoid.core.slots.calls import Slot
from crinoid.core.slots.running import HookCall, HookCalls

LOG = logging.getLogger(__name__)
LAG_BOUNDS_S = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
_REMIND_S = 60.0
_FRAMES = 40
_OUR_PLUGINS = "crinoid.plugins."


class LoopClock(selectors.EpollSelector):
    """The selector of a loop that notes how long the loop is away from it: so long does everybody else wait.

    Costs half a microsecond each time round. ``busy_since_s`` is 0 while the loop waits for something to happen.
    """

    def __init__(self, stall_s: float) -> None:
        super().__init__()
        self.busy_since_s = 0.0
        self.counts = [0] * (len(LAG_BOUNDS_S) + 1)
        self.total_s = 0.0
        self._stall_s = stall_s
        self._is_watched = True
        self._woken = threading.Event()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """See the base."""
        if self.busy_since_s:
            lag_s = time.monotonic() - self.busy_since_s
            self.busy_since_s = 0.0
            self.counts[bisect.bisect_left(LAG_BOUNDS_S, lag_s)] += 1
            self.total_s += lag_s
            if lag_s > self._stall_s:
                LOG.warning("the event loop goes on: it has stood still for %.1f s", lag_s)
        events = super().select(timeout)
        self.busy_since_s = time.monotonic()
        if not self._is_watched:
            self.wake()
        return events

    def wait(self, timeout_s: float | None) -> None:
        """Have the watcher's thread sleep until the loop works again."""
        self._woken.clear()
        self._is_watched = False
        if not self.busy_since_s:  # else it began in between
            self._woken.wait(timeout_s)
        self._is_watched = True

    def wake(self) -> None:
        """Wake the watcher."""
        self._is_watched = True
        self._woken.set()

    @property
    def stall_s(self) -> float:
        """How long the loop has been away by now."""
        since_s = self.busy_since_s
        return time.monotonic() - since_s if since_s else 0.0


class Watchdog:
    """Logs what holds the loop, as long as it does, and which hooks were left behind; knows the daemon's health."""

    def __init__(self, calls: HookCalls, stall_s: float) -> None:
        """Belongs to the thread that will run the loop, and that makes this."""
        self.calls = calls
        self.clock = LoopClock(stall_s)
        self.loop = asyncio.SelectorEventLoop(self.clock)
        self.phase = "starting"
        """``serving`` while the daemon answers."""
        self._stall_s = stall_s
        self._loop_thread = threading.get_ident()
        self._drivers: dict[str, str] = {}
        self._next_report: dict[HookCall | None, float] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def start(self) -> None:
        """Watch from now on."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopping.set()
        self.clock.wake()

    def know(self, slots: Iterable[Slot]) -> None:
        """Take the drivers' packages, to recognize their code where it runs outside a hook."""
        for slot in slots:
            module = slot.installed.target.partition(":")[0]
            package = module if module.startswith(_OUR_PLUGINS) else module.partition(".")[0]
            self._drivers.setdefault(package, slot.label)

    def health(self) -> tuple[bool, str]:
        """Return whether the daemon can answer, and what keeps it from that, or what else an operator should know."""
        if (stall_s := self.clock.stall_s) > self._stall_s:
            return False, f"the event loop has stood still for {stall_s:.1f} s: {self._culprit()[0]}"
        if self.phase != "serving":
            return False, self.phase
        left = "".join(f"; left behind: {call}" for call in self.calls.abandoned)
        return True, f"ok{left}"

    def _watch(self) -> None:
        while not self._stopping.is_set():
            if not self.clock.busy_since_s:
                self.clock.wait(_REMIND_S / 2 if self.calls.abandoned else None)
            self._stopping.wait(self._stall_s)
            try:
                self._look()
            except Exception:
                LOG.exception("the watchdog could not look at the loop")

    def _look(self) -> None:
        now_s, since_s = time.monotonic(), self.clock.busy_since_s
        if since_s and now_s - since_s > self._stall_s:
            if now_s >= self._next_report.get(None, 0.0):
                culprit, stack = self._culprit()
                if self.clock.busy_since_s == since_s:  # else it has just gone on
                    LOG.error("the event loop has stood still for %.1f s: %s\n%s", now_s - since_s, culprit, stack)
                    self._next_report[None] = now_s + (now_s - since_s)  # at twice, four, eight times as long
        else:
            self._next_report.pop(None, None)
        abandoned = self.calls.abandoned
        for call in abandoned:
            if now_s >= self._next_report.setdefault(call, call.abandoned_s + _REMIND_S):
                self._next_report[call] = now_s + (now_s - call.abandoned_s)
                LOG.error("%s, which was left behind, has been running for %.0f s", call, now_s - call.started_s)
        for ended in self._next_report.keys() - {None, *abandoned}:
            del self._next_report[ended]

    def _culprit(self) -> tuple[str, str]:
        """Say what the loop's thread runs, and its stack."""
        frame = sys._current_frames().get(self._loop_thread)
        task = asyncio.current_task(self.loop)
        call = self.calls.holding(task)
        if call is not None:
            who = f"{call} holds it"
        elif frame is not None and (label := self._driver_of(frame)):
            who = f"code of {label}, outside a hook, holds it"
        else:
            who = f"task {task.get_name()} holds it" if task else "a callback holds it"
        if running := [str(each) for each in self.calls.running if each is not call]:
            who += f"; hooks under way: {', '.join(running[:20])}"
        return who, "".join(traceback.format_stack(frame, _FRAMES)) if frame else ""

    def _driver_of(self, frame: FrameType | None) -> str | None:
        """Return the slot whose driver's package the innermost frame of any driver belongs to."""
        while frame is not None:
            module = str(frame.f_globals.get("__name__"))
            for package, label in self._drivers.copy().items():
                if module == package or module.startswith(f"{package}."):
                    return label
            frame = frame.f_back
        return None
