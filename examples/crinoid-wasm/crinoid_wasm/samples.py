"""Small WebAssembly modules for tests, written as text and compiled by wasmtime."""

from functools import cache

import wasmtime

_HEAD = """
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $exit (param i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "args_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_sizes_get" (func $environ_sizes (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "environ_get" (func $environ (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "path_open"
    (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func $say (param $fd i32) (param $at i32) (param $length i32)
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (local.get $length))
    (drop (call $fd_write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
"""


@cache
def module(body: str, data: str = "") -> bytes:
    """Compile a module whose ``_start`` is the body; ``data`` lies at 1024."""
    start = f'(func (export "_start") {body})'
    text = f'(module {_HEAD} (data (i32.const 1024) "{data}") {start})'
    return bytes(wasmtime.wat2wasm(text))


ENDS = module("")
SPEAKS_AND_FAILS = module(
    "(call $say (i32.const 1) (i32.const 1024) (i32.const 4)) (call $say (i32.const 2) (i32.const 1028) (i32.const 4))"
    "(call $exit (i32.const 7))",
    "out\\0aerr\\0a",
)
SPINS = module("(loop $again (br $again))")
# One subscription to the monotonic clock, of a thousand seconds (WASI preview 1, ``subscription``).
SLEEPS = module(
    "(call $say (i32.const 1) (i32.const 1024) (i32.const 6))"
    "(i32.store8 (i32.const 2056) (i32.const 0)) (i32.store (i32.const 2064) (i32.const 1))"
    "(i64.store (i32.const 2072) (i64.const 1000000000000))"
    "(drop (call $poll (i32.const 2048) (i32.const 3072) (i32.const 1) (i32.const 8)))",
    "ready\\0a",
)
TRAPS = module("unreachable")
GROWS = module("(call $exit (i32.eq (memory.grow (i32.const 1024)) (i32.const -1)))")
"""Ends with 1 where it can't have 64 MiB more."""
# Writes its first argument but the program's name, a newline, and its first variable. The strings follow each other.
TELLS = module(
    "(drop (call $args_sizes (i32.const 16) (i32.const 20))) (drop (call $args (i32.const 4096) (i32.const 8192)))"
    "(call $say (i32.const 1) (i32.load (i32.const 4100))"
    " (i32.sub (i32.add (i32.const 8191) (i32.load (i32.const 20))) (i32.load (i32.const 4100))))"
    "(call $say (i32.const 1) (i32.const 1024) (i32.const 1))"
    "(drop (call $environ_sizes (i32.const 16) (i32.const 20)))"
    "(drop (call $environ (i32.const 16384) (i32.const 32768)))"
    "(call $say (i32.const 1) (i32.const 32768) (i32.sub (i32.load (i32.const 20)) (i32.const 1)))"
    "(call $say (i32.const 1) (i32.const 1024) (i32.const 1))",
    "\\0a",
)
# Copies the file "hello" of the fourth preopened directory, counted from 3, to its output: that of a volume.
READS_VOLUME = module(
    "(drop (call $open (i32.const 4) (i32.const 0) (i32.const 1024) (i32.const 5) (i32.const 0) (i64.const 2)"
    " (i64.const 2) (i32.const 0) (i32.const 16)))"
    "(i32.store (i32.const 0) (i32.const 4096)) (i32.store (i32.const 4) (i32.const 100))"
    "(drop (call $fd_read (i32.load (i32.const 16)) (i32.const 0) (i32.const 1) (i32.const 20)))"
    "(call $say (i32.const 1) (i32.const 4096) (i32.load (i32.const 20)))",
    "hello",
)
