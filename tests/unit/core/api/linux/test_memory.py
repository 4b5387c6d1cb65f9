"""What is given back is gone from memory; what is in use, code included, is as it was."""

import subprocess
import sys

PROLOGUE = """
import ctypes, hashlib, json, os, re, ssl, sqlite3, sys, threading
from pathlib import Path
from crinoid.core.api.linux import memory

def kib(field):
    return int(re.search(rf"^{field}:\\s+(\\d+) kB", Path("/proc/self/status").read_text(), re.M)[1])

def libraries():
    '''Digests of all that is mapped of files and can't be written now: text, constants, relocated tables.'''
    found = {}
    with open("/proc/self/mem", "rb", buffering=0) as file:
        for line in Path("/proc/self/maps").read_text().splitlines():
            words = line.split(None, 5)
            if len(words) == 6 and words[5].startswith("/") and words[1] in ("r--p", "r-xp"):
                start, end = (int(word, 16) for word in words[0].split("-"))
                file.seek(start)
                found[words[0]] = hashlib.sha256(file.read(end - start)).hexdigest()
    return found
"""


def run(program: str) -> str:
    command = [sys.executable, "-c", PROLOGUE + program]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_programs_are_unmapped_and_no_byte_of_them_changes() -> None:
    run("""
before = libraries()
full = kib("RssFile")
memory.release_programs()
left = kib("RssFile")
assert left < full / 2, (full, left)
assert libraries() == before
assert len(before) > 10
""")


def test_programs_run_on_while_they_are_unmapped() -> None:
    run("""
stop = threading.Event()
found = []

def work():
    while not stop.is_set():
        text = hashlib.sha256(json.dumps(list(range(100))).encode()).hexdigest()
        found.append((text, sqlite3.connect(":memory:").execute("select 6 * 7").fetchone()))

threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads:
    thread.start()
for _ in range(100):
    memory.release_programs()
stop.set()
for thread in threads:
    thread.join()
work_once = set(found)
assert len(work_once) == 1, work_once
""")


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
