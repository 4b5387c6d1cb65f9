"""What the kernel hands to each driver beside its options: directories of its own, and its name.

Built by ``slots`` once for every slot; a test builds one over ``tmp_path``.
"""

import logging
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from pathlib import Path

from crinoid.core.api.buffers import BufferPool

_BUFFER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Host:
    """A slot's place on the node.

    ``slot`` is the slot's name in the configuration (``runc``, ``default``). ``state_dir`` survives a reboot,
    ``run_dir`` does not (it lies under ``/run``); both exist, are private to the slot (mode 0700) and outlive the
    daemon's process. ``version`` is crinoid's. ``buffers`` is one for the whole daemon: a driver whose sessions keep
    output that was not fetched yet has a share of it for each. ``unremoved`` is where a driver says what it could not
    remove so far and tries again, by path or another name, with the reason: verbose Status lists it, and the metric
    ``crinoid_unremoved`` counts it. Any thread may change it.
    """

    slot: str
    state_dir: Path
    run_dir: Path
    log: logging.Logger
    version: str = ""
    buffers: BufferPool = field(default_factory=lambda: BufferPool(_BUFFER_BYTES))
    unremoved: MutableMapping[str, str] = field(default_factory=dict)
