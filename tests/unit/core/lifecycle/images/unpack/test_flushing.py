"""Flushing while a layer is unpacked: in steps, never more than one at a time, and no error is lost."""

import errno
import threading

import pytest

from crinoid.core.lifecycle.images.unpack import syscalls
from crinoid.core.lifecycle.images.unpack.flushing import Flusher

STEP = 16 << 20


def test_each_step_is_flushed_and_every_chunk_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    flushed = threading.Semaphore(0)
    monkeypatch.setattr(syscalls, "sync_file_system", lambda fd: flushed.release())
    flusher = Flusher(7)
    flusher.start()
    chunks = [bytes([number]) * (STEP // 2) for number in range(6)]
    passed = []
    for number, chunk in enumerate(flusher.watch(iter(chunks))):
        passed.append(chunk)
        if number and number % 2 == 0:  # the step before is told when the next chunk is asked for
            assert flushed.acquire(timeout=60)
    flusher.finish()
    assert passed == chunks


def test_a_slow_disk_holds_up_nothing_but_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    go, calls = threading.Event(), []

    def flush(fd: int) -> None:
        calls.append(fd)
        assert go.wait(60)

    monkeypatch.setattr(syscalls, "sync_file_system", flush)
    flusher = Flusher(7)
    flusher.start()
    assert sum(map(len, flusher.watch(bytes(STEP) for _ in range(20)))) == 20 * STEP
    go.set()
    flusher.finish()
    assert 1 <= len(calls) <= 2, "what waits is flushed once"


def test_an_error_is_raised_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_fd: int) -> None:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr(syscalls, "sync_file_system", refuse)
    flusher = Flusher(7)
    flusher.start()
    for _ in flusher.watch(bytes(STEP) for _ in range(3)):
        pass
    with pytest.raises(OSError, match="input/output error"):
        flusher.finish()


def test_a_small_layer_is_left_to_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(syscalls, "sync_file_system", lambda fd: pytest.fail("flushed"))
    flusher = Flusher(7)
    flusher.start()
    assert list(flusher.watch(iter([b"x"]))) == [b"x"]
    flusher.finish()
