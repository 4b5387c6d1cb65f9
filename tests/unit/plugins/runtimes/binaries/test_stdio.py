"""Standard streams: pipes that can be opened anew, and no device of the host's."""

import os
import stat
import subprocess

from crinoid.plugins.runtimes.binaries.stdio import ended_input, open_streams, without_null_input, without_null_streams


def test_a_command_without_the_hosts_null_device() -> None:
    script = "stat -L -c %F /proc/self/fd/0; cat; echo $#:$1:$2"
    command = without_null_input(("/bin/sh", "-c", script, "name", "one two", "$three"))
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["fifo", "2:one two:$three"]


def test_a_command_without_the_hosts_null_device_as_its_output() -> None:
    command = without_null_streams(("/bin/sh", "-c", "stat -L -c %F /proc/self/fd/0 /proc/self/fd/1 >&2"))
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=True
    )
    assert done.stderr.splitlines() == ["fifo", "fifo"]


def test_the_command_takes_the_place_of_the_shell() -> None:
    process = subprocess.Popen(without_null_input(("/bin/sh", "-c", "echo $$")), stdout=subprocess.PIPE, text=True)
    assert int(process.communicate()[0]) == process.pid


def test_an_input_that_is_at_its_end() -> None:
    with ended_input() as fd:
        assert os.read(fd, 10) == b""
        assert stat.S_ISFIFO(os.fstat(fd).st_mode)


def test_pipes_can_be_opened_by_anyone() -> None:
    null = stat.S_IMODE(os.stat("/dev/null").st_mode)
    process = subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    try:
        open_streams(process.pid)
        assert process.stdout is not None
        assert stat.S_IMODE(os.fstat(process.stdout.fileno()).st_mode) == 0o666
        assert stat.S_IMODE(os.stat("/dev/null").st_mode) == null
    finally:
        process.kill()
        process.communicate()
    open_streams(process.pid)  # it has gone
