"""The contract of the open role, applied to this driver, and what is its own: list, injector, webhook."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import web
from crinoid_extension_guard import GuardExtension, GuardOptions

from crinoid.core.api.errors import Refused, Unavailable
from crinoid.core.api.host import Host
from crinoid.core.api.testing.extensions import BoundExtension, ExtensionContract, Life
from crinoid.core.api.testing.fakes import FakeKernel

Make = Callable[..., BoundExtension]


@asynccontextmanager
async def webhook(answer: Any, status: int = 200) -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """A webhook that always answers the same: its address, and what it was asked."""
    asked: list[dict[str, Any]] = []

    async def handle(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.Response(text=answer if isinstance(answer, str) else json.dumps(answer), status=status)

    application = web.Application()
    application.router.add_post("/review", handle)
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = runner.addresses[0][1]
        yield f"http://127.0.0.1:{port}/review", asked
    finally:
        await runner.cleanup()


class TestGuard(ExtensionContract):
    def make_driver(self, host: Host) -> object:
        return GuardExtension(GuardOptions.model_validate({"inject": [{"environment": {"SITE": "here"}}]}), host)

    def make_unwilling_driver(self, host: Host) -> object:
        return GuardExtension(GuardOptions(allow=("nowhere.test/*",)), host)

    @pytest_asyncio.fixture
    async def make(self, host: Host) -> AsyncIterator[Make]:
        """Makes drivers with options; they are closed after the test."""
        made: list[BoundExtension] = []

        def make(**options: object) -> BoundExtension:
            made.append(BoundExtension(GuardExtension(GuardOptions.model_validate(options), host)))
            return made[-1]

        yield make
        for one in made:
            await one.call("close")

    async def test_only_images_on_the_list_run(self, make: Make, kernel: FakeKernel) -> None:
        guard = make(allow=["example.org/*"])
        life = Life(guard, kernel)
        allowed = replace(life.container, image_reference="example.org/app@sha256:1")
        assert await guard.call("adjust_container", container=allowed) is None
        foreign = replace(life.container, image_reference="example.com/app:1")
        with pytest.raises(Refused, match=r"image example\.com/app:1 is not on the list.*example\.org/\*"):
            await guard.call("adjust_container", container=foreign)

    async def test_an_exempt_namespace(self, make: Make, kernel: FakeKernel) -> None:
        """What runs the cluster is not to wait for a webhook that runs in it."""
        guard = make(allow=["nowhere/*"], exempt_namespaces=["contract"], webhook="http://127.0.0.1:1/")
        life = Life(guard, kernel)
        await life.start_pod()
        assert await life.adjust() is None

    async def test_what_is_injected(self, make: Make, kernel: FakeKernel) -> None:
        certificates = {"/etc/ssl/site": "/etc/site/certificates"}
        guard = make(
            inject=[
                {"environment": {"A": "all", "B": "all"}},
                {"labels": {"app": "pod"}, "environment": {"B": "some"}, "mounts": certificates},
                {"labels": {"app": "other"}, "environment": {"C": "none"}},
            ]
        )
        life = Life(guard, kernel)
        own = replace(life.container, config=replace(life.container.config, envs=(("A", "own"),)))
        adjustment = await guard.call("adjust_container", container=own)
        assert adjustment.envs == (("B", "some"),)
        (mount,) = adjustment.mounts
        assert (mount.container_path, mount.host_path, mount.readonly) == (*certificates.popitem(), True)

    async def test_the_webhook_is_asked(self, make: Make, kernel: FakeKernel) -> None:
        async with webhook({"allowed": True, "environment": {"FROM": "webhook"}}) as (url, asked):
            life = Life(make(webhook=url), kernel)
            adjustment = await life.adjust()
        assert adjustment is not None
        assert adjustment.envs == (("FROM", "webhook"),)
        assert (asked[0]["pod"]["name"], asked[0]["pod"]["namespace"]) == ("pod", "contract")
        assert asked[0]["privileged"] is False

    async def test_the_webhook_refuses(self, make: Make, kernel: FakeKernel) -> None:
        async with webhook({"allowed": False, "reason": "not on a Friday"}) as (url, _):
            with pytest.raises(Refused, match="not on a Friday"):
                await Life(make(webhook=url), kernel).adjust()

    @pytest.mark.parametrize(
        ("answer", "status", "words"),
        [("{}", 500, "answers 500"), ("no JSON", 200, "no verdict"), ({"reason": "?"}, 200, "no verdict")],
        ids=["status", "text", "field"],
    )
    async def test_a_webhook_that_gives_no_verdict(
        self, make: Make, kernel: FakeKernel, answer: Any, status: int, words: str
    ) -> None:
        """The kernel lets the act fail, as ``on_failure`` says so."""
        async with webhook(answer, status) as (url, _):
            with pytest.raises(Unavailable, match=words):
                await Life(make(webhook=url), kernel).adjust()
        assert GuardExtension.on_failure == "fail"

    async def test_a_webhook_that_is_not_there(self, make: Make, kernel: FakeKernel) -> None:
        with pytest.raises(Unavailable, match="can't be asked"):
            await Life(make(webhook="http://127.0.0.1:1/"), kernel).adjust()
