#!/usr/bin/env python3
"""Run all tests of examples/crinoid-microvm, with real guests, without KVM: `make test-microvm`.

    python tests/vm/microvm.py [PYTEST ARGUMENT...]

Debian's kernel and QEMU are those of run.py, which gets them once. Some hundred CPU seconds.
"""

import os
import sys

import run  # type: ignore[import-not-found]  # it lies beside this program

TESTS = ("tests/examples/microvm", "tests/integration/test_microvm.py")


def main() -> None:
    """Get what is booted, and become pytest."""
    kernel = run.prepare()
    modules = next((kernel / "lib/modules").iterdir())
    named = {"CRINOID_MICROVM_KERNEL": str(kernel / "vmlinux"), "CRINOID_MICROVM_MODULES": str(modules)}
    slowness = os.environ.get("CRINOID_TEST_SLOWNESS") or "3"
    environment = os.environ | named | {"CRINOID_TEST_SLOWNESS": slowness}
    command = [sys.executable, "-m", "pytest", *TESTS, *sys.argv[1:]]
    os.execve(sys.executable, command, environment)


if __name__ == "__main__":
    main()
