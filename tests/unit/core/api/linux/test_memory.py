"""What is given back is gone from memory, and threads share what is kept."""

import subprocess
import sys

PROLOGUE = """
import ctypes, re, threading
from pathlib import Path
from crinoid.core.api.linux import memory

def kib(field):
    return int(re.search(rf"^{field}:\\s+(\\d+) kB", Path("/proc/self/status").read_text(), re.M)[1])
"""


def run(program: str) -> str:
    command = [sys.executable, "-c", PROLOGUE + program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_what_lies_free_between_what_is_in_use_is_given_back() -> None:
    run("""
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(16 << 10) for _ in range(4096)]
for block in blocks:
    ctypes.memset(block, 1, 16 << 10)
for block in blocks[:-1]:
    libc.free(block)
held = kib("RssAnon")
memory.trim()
assert kib("RssAnon") < held - (32 << 10), (held, kib("RssAnon"))
""")


def test_threads_take_their_memory_from_as_few_arenas_as_are_allowed() -> None:
    allocate = """
libc = ctypes.CDLL(None)
{limit}
barrier = threading.Barrier(8)

def take():
    libc.malloc(1 << 10)
    barrier.wait()

threads = [threading.Thread(target=take) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
libc.malloc_stats()
"""
    assert run(allocate.format(limit="memory.limit_arenas(1)")).count("Arena ") == 1
    assert run(allocate.format(limit="")).count("Arena ") > 1
