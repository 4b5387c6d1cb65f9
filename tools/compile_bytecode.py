"""Compiles the source tree that an editable installation runs from, so that no start of the daemon has to.

``pip install .`` compiles what it installs; ``pip install --editable .`` does not, and a tree that is read-only, or an
environment with PYTHONDONTWRITEBYTECODE, would be compiled anew at each start, which takes half as long again. What
has not changed since is left alone. The files carry their source's time: edited code is never run from an old one.
"""

import compileall
import sys
from pathlib import Path
from py_compile import PycInvalidationMode

_PACKAGE = Path(__file__).absolute().parents[1] / "src" / "crinoid"
_DIRECTORIES = (_PACKAGE, _PACKAGE / "core", _PACKAGE / "plugins")  # compileall does not follow links of itself


def main() -> None:
    """Compile; exit with 1 and name the file when one can't be."""
    stamped = PycInvalidationMode.TIMESTAMP
    compiled = [compileall.compile_dir(directory, quiet=1, invalidation_mode=stamped) for directory in _DIRECTORIES]
    sys.exit(not all(compiled))


if __name__ == "__main__":
    main()
