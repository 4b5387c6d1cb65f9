"""What a seccomp filter answers: an interpreter of the few instructions that libseccomp and runc make (seccomp(2))."""

import struct
from collections.abc import Sequence

_INSTRUCTION = struct.Struct("<HBBI")
_CALL = struct.Struct("<iIQ6Q")  # struct seccomp_data
_LOAD, _AND, _JUMP, _RETURN = 0x20, 0x54, 0x05, 0x06
_TESTS = {
    0x15: lambda value, k: value == k,
    0x25: lambda value, k: value > k,
    0x35: lambda value, k: value >= k,
    0x45: lambda value, k: value & k != 0,
}


def verdict(program: bytes, architecture: int, number: int, arguments: Sequence[int] = (0,) * 6) -> int:
    """Return what a program, eight bytes an instruction, returns for a system call."""
    call, accumulator, place = _CALL.pack(number, architecture, 0, *arguments), 0, 0
    while True:
        code, if_true, if_false, k = _INSTRUCTION.unpack_from(program, place * _INSTRUCTION.size)
        place += 1
        if code == _RETURN:
            return int(k)
        if code == _LOAD:
            (accumulator,) = struct.unpack_from("<I", call, k)
        elif code == _AND:
            accumulator &= k
        elif code == _JUMP:
            place += k
        else:
            place += if_true if _TESTS[code](accumulator, k) else if_false
