#!/usr/bin/env python3
"""Run tests in virtual machines, one after the other, until every test has ended once; then sum up.

    python tests/vm/suite.py [--systemd] [--results FILE] [--failed-again] [--budget 900] TEST...

A machine takes on tests until its budget is spent, and the next one goes on: what one of them spoils lasts no longer,
and a test that hangs costs no more than itself. FILE remembers how each test ended (see record.py), and a run that was
interrupted goes on where it was; once all have ended, the next begins anew. Exit status: 1 says that a test failed.
"""

import argparse
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import record  # type: ignore[import-not-found]  # it lies beside this program

HERE = Path(__file__).parent
SLOWNESS = "10"
STOPPED, TIMED_OUT, COMPLETE = 2, 124, (0, 1, 5)
"""A machine's exit status: pytest was stopped by the budget; a test hung; pytest came to its end."""
DONE = ".done.jsonl"
"""What the results of a whole run are called."""


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default="build/test-vm.jsonl", metavar="FILE")
    parser.add_argument("--systemd", action="store_true", help="as the first process of each machine")
    parser.add_argument("--failed-again", action="store_true", help="run again what failed, and what never ran")
    parser.add_argument("--budget", type=float, default=900, metavar="SECONDS", help="of each machine")
    parser.add_argument("--cpus", default="2", help="of each machine")
    parser.add_argument("tests", nargs="+", metavar="TEST")
    return parser.parse_args()


def boot(options: argparse.Namespace, results: Path) -> int:
    """Run a machine to its end; return its exit status."""
    machine = [sys.executable, str(HERE / "run.py"), "--cpus", options.cpus, "--out", str(results.parent)]
    machine += ["--timeout", str(options.budget + 1500)]  # a test's own limit is 1,200 s
    machine += ["--systemd"] if options.systemd else []
    pytest = [sys.executable, str(HERE / "record.py"), f"/run/vm/out/{results.name}", str(options.budget)]
    pytest += ["-p", "no:cacheprovider", "-v", "-rN", "--color=no", *options.tests]
    environment = os.environ | {"CRINOID_TEST_SLOWNESS": SLOWNESS}
    return subprocess.run([*machine, "--", *pytest], env=environment, check=False).returncode


def run(options: argparse.Namespace, results: Path) -> int:
    """Run machines until none is needed; return the last one's exit status."""
    while True:
        before = ended(results)
        status = boot(options, results)
        for test, entry in record.read(results).items():
            if entry["outcome"] == "started":
                record.append(results, test, "failed", f"the machine ended in it, with status {status}")
        if status not in (STOPPED, TIMED_OUT) or ended(results) == before:
            return status


def ended(results: Path) -> int:
    """Count the tests that have ended."""
    return sum(entry["outcome"] in record.ENDS for entry in record.read(results).values())


def sum_up(entries: dict[str, dict[str, Any]]) -> str:
    """Return a table with a line a file, why tests were skipped, and how they failed."""
    counts: dict[str, Counter[str]] = {}
    for test, entry in entries.items():
        counts.setdefault(test.partition("::")[0], Counter())[entry["outcome"]] += 1
    total = sum(counts.values(), Counter[str]())
    lines = [f"{name:52}" + "".join(f"{count[one]:9}" for one in record.ENDS) for name, count in sorted(counts.items())]
    skips = Counter(entry["reason"] for entry in entries.values() if entry["outcome"] == "skipped")
    lines += [f"skipped {number}: {reason}" for reason, number in skips.most_common()]
    lines += [f"FAILED {test}\n{e['reason'][-1500:]}" for test, e in entries.items() if e["outcome"] == "failed"]
    head = f"{'':52}" + "".join(f"{one:>9}" for one in record.ENDS)
    return "\n".join([head, *lines, ", ".join(f"{total[one]} {one}" for one in record.ENDS)])


def resume(results: Path, again: bool) -> None:
    """Tell what is left from a run before; ask for its failures again."""
    if again and not results.exists():
        results.with_suffix(DONE).rename(results)
    before = record.read(results)
    if before:
        print(f"{len(before)} tests were begun already; to begin anew, remove {results}", flush=True)
    for test, entry in before.items():
        if again and entry["outcome"] == "failed":
            record.append(results, test, "again")


def main() -> int:
    """Prepare, run, sum up."""
    options = arguments()
    results = options.results.absolute()
    results.parent.mkdir(parents=True, exist_ok=True)
    resume(results, options.failed_again)
    collect = [sys.executable, "-m", "pytest", "--collect-only", "-qq", *options.tests]
    subprocess.run(collect, check=True, stdout=subprocess.DEVNULL)  # compiles: each machine would have to, slowly
    status = run(options, results)
    entries = record.read(results)
    print(sum_up(entries))
    if status not in COMPLETE:
        return status
    results.rename(results.with_suffix(DONE))
    return int(any(entry["outcome"] == "failed" for entry in entries.values()))


if __name__ == "__main__":
    sys.exit(main())
