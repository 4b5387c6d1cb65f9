"""No coroutine of ours calls what waits for somebody outside on the event loop's thread, itself or by a function of its
module.

Each such call has a thread, a helper process or a non-blocking form instead. A wait of one millisecond here is a
millisecond for every pod of the node; one that somebody outside can prolong makes the daemon deaf.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PARTS = ("core/lifecycle", "core/cri", "core/slots", "core/state", "core/daemon", "core/api", "plugins")
NOT_OURS = ("core/api/testing/", "core/cri/streaming/client/", "core/lifecycle/images/unpack/")
"""Run by tests, by the client, and in a process of its own."""

BLOCKING = frozenset(
    {"time.sleep", "os.system", "os.popen", "os.wait", "os.waitpid", "os.waitid", "os.fsync", "os.fdatasync", "os.sync"}
    | {"subprocess.run", "subprocess.call", "subprocess.check_call", "subprocess.check_output", "subprocess.Popen"}
    | {"socket.create_connection", "socket.getaddrinfo", "socket.gethostbyname", "socket.getfqdn"}
    | {"fcntl.lockf", "fcntl.flock", "select.select", "sqlite3.connect", "urllib.request.urlopen", "shutil.rmtree"}
    | {"shutil.copytree", "shutil.copyfile", "shutil.copy", "signal.sigwait", "signal.pause", "input"}
)


def modules() -> Iterator[Path]:
    for part in PARTS:
        for path in sorted((REPOSITORY / part).rglob("*.py")):
            if not path.relative_to(REPOSITORY).as_posix().startswith(NOT_OURS):
                yield path


def calls_of(function: ast.AST) -> Iterator[ast.Call]:
    """Return the calls in a function's own body: what it only hands on (lambdas, inner functions) runs elsewhere."""
    for child in ast.iter_child_nodes(function):
        if isinstance(child, ast.Lambda | ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if isinstance(child, ast.Call):
            yield child
        yield from calls_of(child)


def blocking_calls(source: str) -> Iterator[str]:
    """Name what coroutines of a module call that blocks, with the way there through plain functions of the module."""
    tree = ast.parse(source)
    defined = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    imported = {
        alias.asname or alias.name: f"{node.module}.{alias.name}"
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }

    def follow(function: ast.AST, way: tuple[str, ...]) -> Iterator[str]:
        for call in calls_of(function):
            name = ast.unparse(call.func)
            if imported.get(name, name) in BLOCKING:
                yield f"{' -> '.join(way)}: {name}, line {call.lineno}"
            local = defined.get(name.removeprefix("self."))
            if isinstance(local, ast.FunctionDef) and local.name not in way:
                yield from follow(local, (*way, local.name))

    for name, node in defined.items():
        if isinstance(node, ast.AsyncFunctionDef):
            yield from follow(node, (name,))


@pytest.mark.parametrize(
    "source",
    [
        "async def f():\n    time.sleep(1)",
        "from time import sleep\nasync def f():\n    if x:\n        sleep(1)",
        "def g():\n    subprocess.run(x)\nasync def f():\n    await h(g())",
        "class C:\n    def g(self):\n        self.h()\n    def h(self):\n        os.fsync(1)\n"
        "    async def f(self):\n        self.g()",
    ],
)
def test_it_finds_them(source: str) -> None:
    assert len(list(blocking_calls(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        "def g():\n    time.sleep(1)\nasync def f():\n    await asyncio.to_thread(g)",
        "async def f():\n    await asyncio.to_thread(lambda: time.sleep(1))",
        "def g():\n    time.sleep(1)",
        "async def f():\n    def g():\n        os.fsync(1)\n    await asyncio.to_thread(g)",
    ],
)
def test_it_leaves_threads_in_peace(source: str) -> None:
    assert list(blocking_calls(source)) == []


def test_no_coroutine_blocks() -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}: {call}" for path in modules() for call in blocking_calls(path.read_text())
    ]
    assert found == []
