"""What came of each point, in a file that a later run goes on with: one line a point, for one state of the code."""

import hashlib
import json
import threading
from pathlib import Path
from typing import TypedDict

_PROJECT = Path(__file__).parents[2]


class Result(TypedDict):
    """One point's: whether its failure came, and what was wrong afterwards."""

    code: str
    life: str
    point: str
    reached: bool
    wrong: list[str]


class Results:
    """The results for the code of ``core`` and ``plugins`` as it is. Safe to use from several threads."""

    def __init__(self, path: Path | None) -> None:
        """Read what there is; without a path nothing is kept."""
        self._path = path
        self._lock = threading.Lock()
        self.interrupted = threading.Event()
        """Set when no further point is to be tried: the rest is left to the next run."""
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.code = code_digest()
        self.known: dict[tuple[str, str], Result] = {}
        for line in path.read_text().splitlines() if path is not None and path.exists() else ():
            result: Result = json.loads(line)
            if result["code"] == self.code:
                self.known[(result["life"], result["point"])] = result

    def add(self, life: str, point: str, reached: bool, wrong: list[str]) -> Result:
        """Keep a result."""
        result = Result(code=self.code, life=life, point=point, reached=reached, wrong=wrong)
        if self._path is not None:
            with self._lock, self._path.open("a") as file:
                file.write(json.dumps(result) + "\n")
        return result


def code_digest() -> str:
    """What tells one state of the product's code from another."""
    found = hashlib.sha256()
    for path in sorted(path for top in ("core", "plugins") for path in (_PROJECT / top).rglob("*.py")):
        found.update(f"{path.relative_to(_PROJECT)}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]
