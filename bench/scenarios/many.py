"""Removal of images on a node that has hundreds: what each one costs, and what everybody else waits meanwhile."""

import threading
import time
from collections.abc import Iterator
from typing import Any

from bench.endpoints import Endpoint
from bench.images import push_many
from bench.scenarios.node import Bench, in_fours
from bench.scenarios.pulls import pull, remove_image
from crinoid.core.cri.wire import api_pb2 as cri

IMAGES = 400
LAYERS = 11
_MEASURED = 20


def turns(bench: Bench) -> Iterator[Any]:
    """All images at once, one turn."""
    assert bench.running_registry is not None
    images = push_many(bench.running_registry, 20 if bench.quick else IMAGES, LAYERS)
    yield lambda bench, endpoint: _remove_of_many(bench, endpoint, images)


def _remove_of_many(bench: Bench, endpoint: Endpoint, images: list[str]) -> None:
    in_fours(lambda image: pull(endpoint, image), images)
    waits: list[float] = []
    ended = threading.Event()
    asking = threading.Thread(target=_ask_on, args=(endpoint, ended, waits))
    asking.start()
    try:
        for image in images[:_MEASURED]:
            with bench.results.timed("remove-of-many", endpoint.name):
                remove_image(endpoint, image)
    finally:
        ended.set()
        asking.join()
    bench.results.add("longest-wait", endpoint.name, 1000 * max(waits))
    for image in images[_MEASURED:]:
        remove_image(endpoint, image)


def _ask_on(endpoint: Endpoint, ended: threading.Event, waits: list[float]) -> None:
    while not ended.wait(0.005):
        began = time.perf_counter()
        endpoint.client.call("Version", cri.VersionRequest(), 60)
        waits.append(time.perf_counter() - began)
