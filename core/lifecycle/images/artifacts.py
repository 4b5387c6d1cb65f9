"""Files of artifacts: a blob of the content store becomes a file of a layer, without another copy where that can be.

Called by ``layers`` for what ``plans`` says is a file. The layer is only ever mounted read-only.
"""

import os
import shutil
from pathlib import Path

from crinoid.core.api.linux import rights


def place_file(blob: Path, root: Path, name: str) -> None:
    """Link or copy a blob to ``name`` below a directory that holds nothing but such files. Blocks."""
    target = root / name
    for directory in reversed(target.relative_to(root).parents[:-1]):
        rights.make_directories(root / directory, rights.SHOWN_DIRECTORY)
    try:
        os.link(blob, target)
    except OSError:  # another file system, or too many links
        shutil.copyfile(blob, target)
    target.chmod(rights.SHOWN_FILE)  # a link's is the blob's, too, which lies behind a private directory
