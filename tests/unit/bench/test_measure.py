"""What is read off the machine."""

import os
import subprocess
import sys
import time

from bench.measure import Busy, cpu_of, descendants, memory_mib, pss_mib, spent
from bench.scenarios import shares


def test_cpu_is_that_of_the_process_and_its_children() -> None:
    own = os.getpid()
    before = cpu_of([own])
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    assert spent(before, cpu_of([own])) >= 0.05
    before = cpu_of([own])
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.3: pass"], check=True)
    assert spent(before, cpu_of([own])) >= 0.28


def test_who_is_gone_counts_nothing() -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert cpu_of([gone.pid]) == {}
    assert memory_mib([gone.pid]) == pss_mib([gone.pid]) == 0


def test_who_came_meanwhile_counts_whole() -> None:
    assert spent({1: 2.0, 2: 9.0}, {1: 3.5, 3: 0.25}) == 1.75


def test_pages_count_once() -> None:
    waiting = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        once, pss = memory_mib([child.pid]), pss_mib([child.pid])
        assert once > 3
        if os.geteuid() == 0:  # others see no page numbers
            assert memory_mib([child.pid, child.pid]) == once
            assert once >= pss


def test_descendants() -> None:
    with subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; wait"], stdout=subprocess.PIPE, text=True) as shell:
        assert shell.stdout is not None
        grandchild = int(shell.stdout.readline())
        try:
            assert {shell.pid, grandchild} <= descendants(os.getpid())
            assert descendants(shell.pid) == {grandchild}
        finally:
            os.kill(grandchild, 9)


def test_shares_of_a_core() -> None:
    before, after = Busy(100.0, 10.0, 20.0, 1.0), Busy(112.0, 11.0, 26.0, 1.5)
    assert shares(before, after, 10.0) == {
        "the bench and its endpoints": 60.0,
        "other processes": 50.0,
        "the kernel": 10.0,
        "the host": 5.0,
    }
