"""posix_spawnp(3) with every signal as the kernel has it at first: Python's own can't say so of all of them.

A C library ignores the signals that it uses itself (32 and 33) in whatever it spawns, unless they are named in
``setsigdefault``, and an ignored signal stays ignored across exec: down through monitor and OCI runtime into
containers, where a C library of another kind may want them. Python's ``os.posix_spawn`` can't name them. And what the
daemon's own parent had it ignore (SIGHUP with nohup) is no concern of containers.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Mapping, Sequence

_LIBC = ctypes.CDLL(None)
_SETSIGDEF, _SETSIGMASK, _SETSID = 0x04, 0x08, 0x80  # spawn.h, of glibc and musl
_ATTRIBUTES_BYTES = 512  # glibc's posix_spawnattr_t has 336, and its file actions 80; musl's are smaller
_ACTIONS_BYTES = 128
_SIGNALS_BYTES = 128  # sigset_t


def posix_spawnp(
    program: str,
    arguments: Sequence[str],
    environment: Mapping[str, str],
    copies: Sequence[tuple[int, int]],
    new_session: bool,
) -> int:
    """Start a program, found by PATH, and return its process id; raise OSError.

    ``copies`` are pairs of a descriptor of ours and the child's, done in their order. No signal is blocked, and none
    ignored. Audit hooks see ``os.posix_spawn``.
    """
    sys.audit("os.posix_spawn", program, arguments, environment)
    argv = _strings(arguments)
    envp = _strings([f"{name}={value}" for name, value in environment.items()])
    actions = ctypes.create_string_buffer(_ACTIONS_BYTES)
    _check(_LIBC.posix_spawn_file_actions_init(actions), program)
    try:
        for ours, child in copies:
            _check(_LIBC.posix_spawn_file_actions_adddup2(actions, ours, child), program)
        pid = ctypes.c_int()
        name = os.fsencode(program)
        attributes = _attributes(new_session)
        _check(_LIBC.posix_spawnp(ctypes.byref(pid), name, actions, attributes, argv, envp), program)
        return pid.value
    finally:
        _LIBC.posix_spawn_file_actions_destroy(actions)


@functools.cache
def _attributes(new_session: bool) -> "ctypes.Array[ctypes.c_char]":
    """Attributes that are only read from here on, by any number of threads."""
    attributes = ctypes.create_string_buffer(_ATTRIBUTES_BYTES)
    flags = _SETSIGDEF | _SETSIGMASK | (_SETSID if new_session else 0)
    every, none = b"\xff" * _SIGNALS_BYTES, bytes(_SIGNALS_BYTES)  # sigfillset() leaves out the library's own
    _check(_LIBC.posix_spawnattr_init(attributes), "")
    _check(_LIBC.posix_spawnattr_setflags(attributes, ctypes.c_short(flags)), "")
    _check(_LIBC.posix_spawnattr_setsigdefault(attributes, every), "")
    _check(_LIBC.posix_spawnattr_setsigmask(attributes, none), "")
    return attributes


def _strings(texts: Sequence[str]) -> "ctypes.Array[ctypes.c_char_p]":
    encoded = [os.fsencode(text) for text in texts]
    if any(b"\0" in text for text in encoded):
        raise ValueError("embedded null byte")
    return (ctypes.c_char_p * (len(encoded) + 1))(*encoded)


def _check(code: int, program: str) -> None:
    if code:
        raise OSError(code, os.strerror(code), program or None)
