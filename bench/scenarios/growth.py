"""How figures grow with the number of pods, of images, and of an image's layers."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from bench.client import forget_pod
from bench.endpoints import Endpoint
from bench.images import push_layered, push_small
from bench.scenarios import life
from bench.scenarios.node import Bench, in_fours
from bench.scenarios.pulls import pull, remove_image
from bench.scenarios.standing import Effort, ask, stand
from crinoid.core.cri.wire import api_pb2 as cri

PODS = (1, 10, 50, 100, 200)
IMAGES = (1, 10, 50, 100)
LAYERS = (1, 10, 50, 100)
_MORE = 3
"""How many more pods or images are made beside those that are there."""


def pod_turns(bench: Bench) -> Iterator[Any]:
    """One number of pods a turn."""
    for count in _shortened(bench, PODS):
        yield partial(_grow, count=count)


def _grow(bench: Bench, endpoint: Endpoint, count: int) -> None:
    effort = Effort(bench.growth_seconds, often=10, restarts=1 if bench.quick else 2, beside=_run_more)
    with bench.results.at("pods", count):
        stand(bench, endpoint, count, effort)


def _run_more(bench: Bench, endpoint: Endpoint) -> None:
    """Run more pods beside those that stand there."""
    for number in range(_MORE + 1):
        life.live(bench, endpoint, warming=number == 0)
    life.crowd(bench, endpoint)


def image_turns(bench: Bench) -> Iterator[Any]:
    """One number of images a turn, each beside those of the turn before; the last turn removes them."""
    assert bench.running_registry is not None
    counts = _shortened(bench, IMAGES)
    references = push_small(bench.logs.parent, bench.running_registry, counts[-1] + _MORE)
    before = 0
    for count in counts:
        yield partial(_with_images, old=references[before:count], more=references[-_MORE:], count=count)
        before = count
    yield partial(_remove_images, images=references[: counts[-1]])


def _with_images(bench: Bench, endpoint: Endpoint, old: list[str], more: list[str], count: int) -> None:
    in_fours(lambda image: pull(endpoint, image), old)
    client, spec = endpoint.client, cri.ImageSpec(image=old[0])
    questions = {
        "list-images": [client.prepare("ListImages", cri.ListImagesRequest())],
        "image-status": [client.prepare("ImageStatus", cri.ImageStatusRequest(image=spec))],
    }
    with bench.results.at("images", count):
        ask(bench, endpoint, questions, 30)
        for image in more:
            with bench.results.timed("pull", endpoint.name):
                pull(endpoint, image)
    for image in more:
        remove_image(endpoint, image)


def _remove_images(bench: Bench, endpoint: Endpoint, images: list[str]) -> None:
    for image in images:
        remove_image(endpoint, image)


def layer_turns(bench: Bench) -> Iterator[Any]:
    """One number of layers a turn: a pull, and containers of that image."""
    assert bench.running_registry is not None
    for count in _shortened(bench, LAYERS):
        for salt in range(1 if bench.quick else 2):
            image = push_layered(bench.logs.parent, bench.running_registry, count, salt)
            yield partial(_with_layers, image=image, count=count)


def _with_layers(bench: Bench, endpoint: Endpoint, image: str, count: int) -> None:
    with bench.results.at("layers", count):
        with bench.results.timed("pull", endpoint.name):
            pull(endpoint, image)
        for _ in range(_MORE):
            request = bench.request(endpoint)
            pod = bench.run(endpoint, request)
            with bench.results.timed("start", endpoint.name):
                bench.container(endpoint, pod, image=image)
            bench.remove(endpoint, pod)
            forget_pod(request)
    remove_image(endpoint, image)


def _shortened(bench: Bench, counts: tuple[int, ...]) -> tuple[int, ...]:
    """Return fewer numbers for a quick run."""
    return counts[:2] if bench.quick else counts
