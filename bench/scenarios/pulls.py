"""Pulls of a large image and of one with very many files, from a registry on loopback; of what was removed, too."""

import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench.client import forget_pod
from bench.endpoints import Endpoint
from bench.measure import settle
from bench.scenarios.logs import wait_exit
from bench.scenarios.node import Bench
from crinoid.core.cri.wire import api_pb2 as cri

_READ_ALL = "find / -xdev -type f -exec cat {} + >/dev/null"
_numbers = itertools.count()


def turns(bench: Bench) -> Iterator[Any]:
    """Both images a turn."""
    for _ in range(1 if bench.quick else 3):
        yield pull_both


def pull_both(bench: Bench, endpoint: Endpoint) -> None:
    """Pull into fresh directories, which stay until the end: ext4 makes files slowly for minutes after many were
    removed.

    The image of many files comes last, and is removed: how long that takes is a figure, too. What somebody else
    runs has no fresh directories; its images are removed.
    """
    with contextlib.ExitStack() as stack:
        used = endpoint
        if endpoint.make is not None:
            used = stack.enter_context(endpoint.make(bench.logs.parent / f"pull{next(_numbers)}"))
            pull(used, bench.images["busybox"])
        for figure, image in (("pull-large", "large"), ("pull-tiny", "tiny")):
            settle()
            time.sleep(1)
            with bench.results.timed(figure, endpoint.name):
                pull(used, bench.images[image])
            if image == "large":
                read_all(bench, used, bench.images[image])
            if image == "tiny":
                with bench.results.timed("remove-tiny", endpoint.name):
                    remove_image(used, bench.images[image])
            elif used is endpoint:
                remove_image(used, bench.images[image])


def again_turns(bench: Bench) -> Iterator[Any]:
    """Both images a turn, in a scenario of their own: what is removed here slows down whoever pulls after it."""
    for _ in range(1 if bench.quick else 3):
        yield pull_again


def pull_again(bench: Bench, endpoint: Endpoint) -> None:
    """Pull what was removed a moment ago, as on a node whose garbage collection makes room for the next image."""
    with contextlib.ExitStack() as stack:
        used = endpoint
        if endpoint.make is not None:
            used = stack.enter_context(endpoint.make(bench.logs.parent / f"pull{next(_numbers)}"))
            pull(used, bench.images["busybox"])
        for figure, image in (("again-tiny", "tiny"), ("again-large", "large")):
            pull(used, bench.images[image])
            remove_image(used, bench.images[image])
            settle()
            time.sleep(1)
            with bench.results.timed(figure, endpoint.name):
                pull(used, bench.images[image])
            if used is endpoint:
                remove_image(used, bench.images[image])


def read_all(bench: Bench, endpoint: Endpoint, image: str) -> None:
    """Have a container read every file of its image after the kernel has forgotten them."""
    pod = bench.pod(endpoint)
    try:
        os.sync()
        Path("/proc/sys/vm/drop_caches").write_text("3")
        with bench.results.timed("first-read", endpoint.name):
            container = bench.container(endpoint, pod, "sh", "-c", _READ_ALL, image=image)
            status = wait_exit(endpoint, container, 600)
        if status.exit_code:
            raise RuntimeError(f"reading all files of {image} ended with exit code {status.exit_code}")
    finally:
        bench.remove(endpoint, pod)
        forget_pod(pod[1])


def pull(endpoint: Endpoint, image: str) -> None:
    """Pull an image."""
    endpoint.client.call("PullImage", cri.PullImageRequest(image=cri.ImageSpec(image=image)), 600)


def remove_image(endpoint: Endpoint, image: str) -> None:
    """Remove an image."""
    endpoint.client.call("RemoveImage", cri.RemoveImageRequest(image=cri.ImageSpec(image=image)), 600)
