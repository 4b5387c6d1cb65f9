"""Measures how far a reader has to go to follow an RPC: `make reading` prints a table.

Two measures. One follows live RPCs through a daemon of its own (root; runc and the network bridge) with sys.setprofile:
which files and functions of core/ and plugins/ were entered between request and answer, and how deep the calls lay in
each other. Each RPC is made once before, so that what happens at first use alone is not counted. The other reads the
source: private functions that are used at one place alone, and comments. Of the former most tell a longer step, or
stand in a table, and a reader loses nothing by them; but where one of a few lines is called by another such one alone,
there is a chain to follow before it is seen what happens. Those are listed.
"""

import ast
import io
import json
import os
import signal
import sys
import tempfile
import threading
import time
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

ROOT = Path(__file__).parents[1]
SOURCES = ("core", "plugins")
GENERATED = ("_pb2.py", "_pb2_grpc.py")
SHORT_LINES = 8
sys.path.insert(0, str(ROOT / "tests"))


class Profile:
    """Notes calls between SIGUSR1 and SIGUSR2, and then writes what it saw to a file."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._ours: dict[CodeType, str | None] = {}
        self._functions: set[tuple[str, str]] = set()
        self._depth = 0
        signal.signal(signal.SIGUSR1, self._begin)
        signal.signal(signal.SIGUSR2, self._end)
        self._noting = False
        threading.setprofile(self)
        sys.setprofile(self)

    def __call__(self, frame: FrameType, event: str, _argument: Any) -> None:
        """Take an event of the interpreter."""
        if not self._noting or event != "call" or (file := self._file(frame.f_code)) is None:
            return
        self._functions.add((file, frame.f_code.co_qualname))
        depth, above = 0, frame
        while above is not None:
            depth += self._file(above.f_code) is not None
            above = above.f_back  # type: ignore[assignment]  # None ends the loop
        self._depth = max(self._depth, depth)

    def _file(self, code: CodeType) -> str | None:
        """Return the file of a function of ours; comprehensions and lambdas are read with the function around them."""
        if code not in self._ours:
            path = os.path.realpath(code.co_filename)
            inside = any(path.startswith(f"{ROOT}/{name}/") for name in SOURCES)
            self._ours[code] = path if inside and not code.co_name.startswith("<") else None
        return self._ours[code]

    def _begin(self, *_: object) -> None:
        self._functions, self._depth, self._noting = set(), 0, True

    def _end(self, *_: object) -> None:
        self._noting = False
        found = {"functions": sorted(map(list, self._functions)), "depth": self._depth}
        self._out.with_suffix(".tmp").write_text(json.dumps(found))
        self._out.with_suffix(".tmp").replace(self._out)


def serve(out: str, config: str) -> None:
    """Be the daemon that is looked at."""
    from crinoid.core.cli.main import main

    Profile(Path(out))
    main(["serve", "--config", config])


RPCS = ("RunPodSandbox", "CreateContainer", "StartContainer", "StopContainer", "PullImage")


class Observed:
    """A daemon whose calls are followed."""

    def __init__(self, directory: Path, config: str) -> None:
        from support.daemon import Daemon

        self._seen = directory / "seen.json"
        self.daemon = Daemon(directory / "daemon", config, (sys.executable, __file__, "--serve", str(self._seen)))
        self.figures: dict[str, tuple[int, int, int]] = {}

    def call(self, rpc: str, **fields: Any) -> dict[str, Any]:
        """Make a call, and note how many files and functions it entered and how deep, in place of an earlier one."""
        process = self.daemon.process
        assert process is not None
        self._seen.unlink(missing_ok=True)
        process.send_signal(signal.SIGUSR1)
        answer: dict[str, Any] = self.daemon.cri.call(rpc, **fields)
        process.send_signal(signal.SIGUSR2)
        while not self._seen.exists():
            time.sleep(0.01)
        found = json.loads(self._seen.read_text())
        files = {file for file, _ in found["functions"]}
        self.figures[rpc] = (len(files), len(found["functions"]), found["depth"])
        return answer


def follow() -> dict[str, tuple[int, int, int]]:
    """Live through two pods; return files, functions and depth of the second one's RPCs."""
    from support.daemon import container_config, pod_config
    from support.images import Entry, build_busybox
    from support.registry import running_registry

    with tempfile.TemporaryDirectory() as directory, running_registry(Path(directory) / "registry") as registry:
        directory = Path(directory)
        source = f"driver = 'distribution'\noptions = {{ plain_http = ['{registry.host}'] }}"
        seen = Observed(directory, f"[network]\ndriver = 'bridge'\n[registries.distribution]\n{source}")
        try:
            seen.daemon.start()
            for name in ("first", "second"):
                build_busybox(directory / name, name, extra=[Entry(path=name, content=name.encode())])
                registry.push(directory / name, name, f"{name}:1")
                image = f"{registry.host}/{name}:1"
                seen.call("PullImage", image={"image": image})
                config = pod_config(name, log_directory=str(directory / "logs"))
                pod = seen.call("RunPodSandbox", config=config)["pod_sandbox_id"]
                wanted = container_config(name, image, "sleep", "1000")
                container = seen.call("CreateContainer", pod_sandbox_id=pod, config=wanted)["container_id"]
                seen.call("StartContainer", container_id=container)
                seen.call("StopContainer", container_id=container, timeout=0)
            seen.daemon.clean()
            return seen.figures
        finally:
            seen.daemon.end()


def modules() -> Iterator[Path]:
    """Yield the modules that people read."""
    for name in SOURCES:
        yield from (path for path in sorted((ROOT / name).rglob("*.py")) if not path.name.endswith(GENERATED))


def count_private() -> tuple[int, int]:
    """Return how many private functions and methods there are, and how many are named at one other place alone."""
    names: list[str] = []
    uses: Counter[str] = Counter()
    for path in modules():
        here: list[str] = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _private(node.name):
                here.append(node.name)
            elif isinstance(node, ast.Attribute):
                uses[f"{path}:{node.attr}"] += 1
            elif isinstance(node, ast.Name):
                uses[f"{path}:{node.id}"] += 1
        names += [f"{path}:{name}" for name in here]
    return len(names), sum(uses[name] == 1 for name in names)


def find_chains() -> list[str]:
    """Return the short private functions that another such one alone calls, as ``file: caller, called``."""
    found: list[str] = []
    for path in modules():
        tree = ast.parse(path.read_text())
        functions = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)]
        lengths = {one.name: one.end_lineno - one.lineno + 1 for one in functions if one.end_lineno}
        uses = Counter(_name(node) for node in ast.walk(tree))
        once = {name for name in lengths if _private(name) and uses[name] == 1 and lengths[name] <= SHORT_LINES}
        for caller in (one for one in functions if one.name in once):
            called = {_name(node.func) for node in ast.walk(caller) if isinstance(node, ast.Call)} & once
            found += [f"{path.relative_to(ROOT)}: {caller.name}, {name}" for name in sorted(called - {caller.name})]
    return found


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def count_comments() -> float:
    """Return the comments, without those for linters, in a hundred lines that are not blank."""
    comments = lines = 0
    for path in modules():
        text = path.read_text()
        lines += sum(bool(line.strip()) for line in text.splitlines())
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        found = (token.string for token in tokens if token.type == tokenize.COMMENT)
        comments += sum(not one.startswith(("# noqa", "# type:")) for one in found)
    return 100 * comments / lines


def main() -> None:
    """Print the table."""
    figures = follow()
    print("| way of | files entered | functions | depth of calls |\n|---|---|---|---|")
    for rpc in RPCS:
        print("| {} | {} | {} | {} |".format(rpc, *figures[rpc]))
    private, once = count_private()
    print(f"\nprivate functions with one use: {once} of {private} ({100 * once / private:.0f} %)")
    chains = find_chains()
    print(f"of up to {SHORT_LINES} lines, called by another such one alone: {len(chains)}", *chains, sep="\n  ")
    print(f"comments in a hundred lines: {count_comments():.1f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[-1])
    else:
        main()
