"""What becomes the command: it enters the container's cgroups and namespaces, gives up every privilege, and executes.

The order is the kernel's: files of the host (cgroups, oom_score_adj) while they can be seen, then namespaces; a seccomp
filter before the capabilities go unless no_new_privs is set, as only then it can be loaded without them; the working
directory after all descriptors but one are closed, so that none of them can be it (CVE-2024-21626), and before the
capabilities go, as it may be open to root alone. Before it executes, nobody in the container can look into the process
but with CAP_SYS_PTRACE and no user namespace (PR_SET_DUMPABLE; ``joined_execs`` leaves those to the binary), and
``/proc/self/exe`` is a file on a mount that can't be written through (CVE-2019-5736); ``helper`` and
``joining_process`` see to that.

Sources: OCI runtime-spec, config.md, "POSIX process"; capabilities(7), "Transformation of capabilities during
execve()"; setns(2); seccomp(2).
"""

import ctypes
import errno
import os
import signal

STDIN, STDOUT, STDERR, PIDFD, FAILURE = range(5)
"""The descriptors that come with a request, in their order; ``FAILURE`` is told why nothing was executed."""
FDS = 5

REFUSED, CANT_JOIN = b"refused", b"can't join"
"""Of whom a failure is the fault: the request's, or else the runtime's binary is to try it."""

_LIBC = ctypes.CDLL(None, use_errno=True)
_PR_SET_KEEPCAPS, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 8, 4, 24, 38, 47
_PR_CAPBSET_READ, _AMBIENT_RAISE, _AMBIENT_CLEAR = 23, 2, 4
_CAPABILITY_VERSION_3 = 0x20080522
_SECCOMP_SET_MODE_FILTER = 1
_SECCOMP_SPEC_ALLOW = 1 << 2  # what runc and crun add where a filter names no flags; before Linux 5.16 it matters
_KEYCTL_JOIN_SESSION_KEYRING = 1
_CLOSE_RANGE = 436
_SECCOMP, _KEYCTL = {"x86_64": (317, 250), "aarch64": (277, 219)}.get(os.uname().machine, (0, 0))
_FAILURE_FD = 3
_SIGNALS = 65
_MOST_CAPABILITIES = 64

CAN_FILTER = _SECCOMP != 0
"""Whether the numbers of the system calls are known here."""


class Failed(Exception):
    """A step that failed: of whom it is the fault, and the words."""

    def __init__(self, whose: bytes, words: str) -> None:
        super().__init__(words)
        self.whose = whose
        self.words = words


def become(request: dict, fds: list[int]) -> None:  # type: ignore[type-arg]  # what marshal made of it
    """Become the command, else write to ``FAILURE`` why not: whoever comes back from here is to end."""
    try:
        for wanted, fd in enumerate((fds[STDIN], fds[STDOUT], fds[STDERR], fds[FAILURE])):
            os.dup2(fd, wanted, inheritable=wanted != _FAILURE_FD)
        pidfd = fds[PIDFD]
        _enter(request, pidfd)
        _close_from(_FAILURE_FD + 1)
        is_there = _is_entered(request["cwd"])
        _give_up(request)
        _execute(request, is_there)
    except Failed as error:
        os.write(_FAILURE_FD, error.whose + b"\0" + error.words.encode(errors="surrogateescape")[:4000])
    except BaseException as error:  # noqa: BLE001  # nothing may go back to the helper's loop
        words = f"{type(error).__name__}: {error}"
        os.write(_FAILURE_FD, CANT_JOIN + b"\0" + words.encode(errors="surrogateescape")[:4000])


def set_namespaces(fd: int, kinds: int) -> None:
    """Enter namespaces of a process (a pidfd), or one by its own descriptor: setns(2)."""
    _check(_LIBC.setns(fd, kinds), "setns")


def hide() -> None:
    """Let nobody look into this process, and those forked of it, without CAP_SYS_PTRACE where it was executed."""
    _prctl(_PR_SET_DUMPABLE, 0)


def _enter(request: dict, pidfd: int) -> None:  # type: ignore[type-arg]
    """Enter the container's cgroups, limits and namespaces. Its PID namespace the helper has chosen already."""
    for file in request["cgroups"]:
        _write(file, b"0")
    if request["oom_score_adj"] is not None:
        _write("/proc/self/oom_score_adj", b"%d" % request["oom_score_adj"])
    os.setsid()
    _join_keyring(request["keyring"])
    for number, soft, hard in request["rlimits"]:
        _check(_LIBC.prlimit64(0, number, (ctypes.c_uint64 * 2)(soft, hard), None), "setrlimit")
    if request["namespaces"]:
        set_namespaces(pidfd, request["namespaces"])


def _give_up(request: dict) -> None:  # type: ignore[type-arg]
    """Become the container's user, with no more capabilities than are asked for, and its filter."""
    wanted = request["capabilities"]
    for capability in range(_MOST_CAPABILITIES):  # before a filter can have an answer of its own to whether it is there
        if wanted["bounding"] >> capability & 1:
            continue
        if _LIBC.prctl(_PR_CAPBSET_READ, ctypes.c_long(capability), 0, 0, 0) == 1:
            _prctl(_PR_CAPBSET_DROP, capability)
    if request["seccomp"] is not None and not request["no_new_privileges"]:
        _filter(request["seccomp"])
    _prctl(_PR_SET_KEEPCAPS, 1)
    for fd in (STDIN, STDOUT, STDERR):
        try:
            os.fchown(fd, request["uid"], -1)
        except OSError:  # in a user namespace: everybody may open the pipes by their mode
            break
    os.setgroups(request["groups"])
    os.setresgid(request["gid"], request["gid"], request["gid"])
    os.setresuid(request["uid"], request["uid"], request["uid"])
    os.umask(request["umask"])
    _prctl(_PR_SET_KEEPCAPS, 0)
    _set_capabilities(wanted)
    if request["no_new_privileges"]:
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def _is_entered(directory: str) -> bool:
    """Go to the working directory as root; return whether that could be done. Where root may not, its user may."""
    try:
        os.chdir(directory)
    except OSError:
        return False
    return True


def _execute(request: dict, is_there: bool) -> None:  # type: ignore[type-arg]
    """Go to the working directory, find the program there, and execute it."""
    directory = request["cwd"]
    try:
        if not is_there:
            os.chdir(directory)
        is_inside = os.getcwd().startswith("/")  # noqa: PTH109  # the kernel names what is outside of the root "(unreachable)"
    except OSError as error:
        raise Failed(REFUSED, f"chdir to cwd ({directory!r}): {_lowered(error)}") from error
    if not is_inside:
        raise Failed(REFUSED, f"chdir to cwd ({directory!r}): it is outside of the container's root")
    program = _found(request["args"][0], request["path"])
    for number in range(1, _SIGNALS):  # Python ignores some
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            _LIBC.signal(number, None)
    if request["seccomp"] is not None and request["no_new_privileges"]:
        _filter(request["seccomp"])
    _LIBC.execve(program, _strings(request["args"]), _strings(request["env"]))
    code = ctypes.get_errno()
    why = f"exec {os.fsdecode(program)!r}: {os.strerror(code).lower()}"
    if code != errno.ENOEXEC:
        raise Failed(REFUSED, why)
    os.write(STDERR, why.encode(errors="surrogateescape") + b"\n")  # as runc and crun have it
    os._exit(1)


def _found(name: bytes, path: bytes) -> bytes:
    """Find a program as execvp(3) does, but that a directory, or what nobody may execute, is passed over."""
    if b"/" in name:
        if os.path.isdir(name):  # noqa: PTH112  # no pathlib here
            raise Failed(REFUSED, f"exec: {os.fsdecode(name)!r}: is a directory")
        return name
    denied = False
    for directory in path.split(b":"):
        found = (directory or b".") + b"/" + name
        if os.path.isfile(found):  # noqa: PTH113
            if os.access(found, os.X_OK):
                return found
            denied = True
    why = "permission denied" if denied else "executable file not found in $PATH"
    raise Failed(REFUSED, f"exec: {os.fsdecode(name)!r}: {why}")


def _strings(strings: list[bytes]) -> "ctypes.Array[ctypes.c_char_p]":
    return (ctypes.c_char_p * (len(strings) + 1))(*strings, None)


def _set_capabilities(wanted: dict[str, int]) -> None:
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    sets = [wanted[name] for name in ("effective", "permitted", "inheritable")]
    data = (ctypes.c_uint32 * 6)(*(one >> shift & 0xFFFFFFFF for shift in (0, 32) for one in sets))
    _check(_LIBC.capset(header, data), "capset")
    _LIBC.prctl(_PR_CAP_AMBIENT, _AMBIENT_CLEAR, 0, 0, 0)
    for capability in range(_MOST_CAPABILITIES):
        if wanted["ambient"] >> capability & 1:
            _check(_LIBC.prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, ctypes.c_long(capability), 0, 0), "ambient capability")


def _filter(program: bytes) -> None:
    """Load a program of the kernel's ``struct sock_filter``, eight bytes each."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    loaded = Program(len(program) // 8, program)
    _check(
        _LIBC.syscall(
            ctypes.c_long(_SECCOMP),
            ctypes.c_long(_SECCOMP_SET_MODE_FILTER),
            ctypes.c_long(_SECCOMP_SPEC_ALLOW),
            ctypes.byref(loaded),
        ),
        "seccomp",
    )


def _join_keyring(name: bytes) -> None:
    """Leave the daemon's session keyring. Without keys in the kernel there is none; else nothing may keep it."""
    if _KEYCTL:
        joined = _LIBC.syscall(
            ctypes.c_long(_KEYCTL), ctypes.c_long(_KEYCTL_JOIN_SESSION_KEYRING), ctypes.c_char_p(name)
        )
        if joined == -1 and ctypes.get_errno() != errno.ENOSYS:
            _check(joined, "keyctl")


def _close_from(first: int) -> None:
    _check(
        _LIBC.syscall(ctypes.c_long(_CLOSE_RANGE), ctypes.c_long(first), ctypes.c_long(0xFFFFFFFF), ctypes.c_long(0)),
        "close_range",
    )


def _write(file: str, content: bytes) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    os.write(fd, content)
    os.close(fd)


def _prctl(option: int, argument: int) -> None:
    _check(_LIBC.prctl(option, ctypes.c_long(argument), ctypes.c_long(0), ctypes.c_long(0), ctypes.c_long(0)), "prctl")


def _check(result: int, what: str) -> None:
    if result == -1:
        raise OSError(ctypes.get_errno(), f"{what}: {os.strerror(ctypes.get_errno())}")


def _lowered(error: OSError) -> str:
    """The kernel's words as a C runtime writes them, by which errors are told apart."""
    return os.strerror(error.errno or errno.EIO).lower()
