"""Pulling: when, with which credentials, and what is shown meanwhile."""

import asyncio
import io
import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from crinoid.core.api.errors import InvalidArgument, NotFound, Unavailable
from crinoid.core.cli.ctl import progress
from crinoid.core.cli.ctl.progress import Bars, Layer, Lines, read_progress
from crinoid.core.cli.ctl.pull import Policy, Pulling, explain_pull, provide_image, pull_image
from crinoid.core.cli.ctl.session import Session

LAYERS = [
    {"digest": "sha256:" + "a" * 64, "total_bytes": 1000, "fetched_bytes": 500, "state": "fetching"},
    {"digest": "sha256:" + "b" * 64, "total_bytes": 2000, "fetched_bytes": 2000, "state": "done"},
]


class Endpoint(Session):
    """A session with an endpoint that has one image, and pulls for as many looks as it is told."""

    def __init__(self, looks: int = 0, info: Mapping[str, str] | None = None) -> None:
        self.pulls: list[Any] = []
        self.looks = 0
        self._wanted = looks
        self._info = info if info is not None else {"pulls": pulls("docker.io/library/app:latest")}
        self._enough = asyncio.Event()

    async def ask(self, rpc: str, request: Mapping[str, Any] | None = None) -> dict[str, Any]:
        if rpc == "ImageStatus":
            assert request is not None
            return {"image": {"id": "sha256:1"}} if request["image"]["image"] == "there" else {}
        assert (rpc, request) == ("Status", {"verbose": True})
        self.looks += 1
        if self.looks >= self._wanted:
            self._enough.set()
        return {"info": self._info}

    async def wait_for(self, rpc: str, request: Mapping[str, Any], limit_s: float | None) -> dict[str, Any]:
        assert rpc == "PullImage"
        self.pulls.append((request, limit_s))
        if self._wanted:
            await self._enough.wait()
        if request["image"]["image"] == "bad":
            raise Unavailable("the registry is down")
        return {"image_ref": "sha256:2"}


def pulls(reference: str) -> str:
    return json.dumps([{"reference": reference, "started_at_ns": 1, "layers": LAYERS}])


@pytest.mark.parametrize(
    ("policy", "image", "pulled"),
    [("always", "there", 1), ("missing", "there", 0), ("never", "there", 0), ("missing", "app", 1)],
)
async def test_an_image_is_pulled_as_the_policy_says(policy: Policy, image: str, pulled: int) -> None:
    endpoint = Endpoint()
    await provide_image(endpoint, image, policy, Pulling(pull_timeout=7))
    assert endpoint.pulls == [({"image": {"image": image}}, 7)] * pulled


async def test_an_image_that_may_not_be_pulled_must_be_there() -> None:
    with pytest.raises(NotFound, match="image app is not on this node"):
        await provide_image(Endpoint(), "app", "never", Pulling())


async def test_steps_are_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    endpoint = Endpoint(looks=2)
    assert await pull_image(endpoint, {"image": {"image": "app"}}, Pulling()) == {"image_ref": "sha256:2"}
    out, err = capsys.readouterr()
    assert out == ""
    *lines, last = err.splitlines()
    assert lines == ["pulling app", "layer aaaaaaaaaaaaa (1kB): pulling", "layer bbbbbbbbbbbbb (2kB): done"]
    assert last.startswith("pulled app in ")


async def test_an_endpoint_that_tells_nothing_is_not_asked_again() -> None:
    endpoint = Endpoint(looks=1, info={"golang": "go1"})
    await pull_image(endpoint, {"image": {"image": "app"}}, Pulling())
    assert endpoint.looks == 1


async def test_a_pull_that_fails_says_why_and_no_more(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Unavailable, match="registry is down"):
        await pull_image(Endpoint(), {"image": {"image": "bad"}}, Pulling())
    assert capsys.readouterr().err == "pulling bad\n"


@pytest.mark.parametrize("reference", ["docker.io/library/app:latest", "app"])
async def test_the_pull_is_found_under_its_full_name(reference: str) -> None:
    layers = await read_progress(Endpoint(info={"pulls": pulls(reference)}), "app")
    assert layers == tuple(Layer(**layer) for layer in LAYERS)  # type: ignore[arg-type]
    assert await read_progress(Endpoint(info={"pulls": pulls("docker.io/library/other:latest")}), "app") == ()


@pytest.mark.parametrize("text", ["no json", "{}", "[1]", '[{"reference": "app"}]'])
async def test_what_another_runtime_calls_pulls_does_no_harm(text: str) -> None:
    assert not await read_progress(Endpoint(info={"pulls": text}), "app")


def test_bars_show_each_layer_and_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", terminal := io.StringIO())
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    with progress.open_display("[red]app") as display:
        assert isinstance(display, Bars)
        display.update([Layer(**layer) for layer in LAYERS])  # type: ignore[arg-type]
        display._progress.refresh()
    text = terminal.getvalue()
    for words in ("[red]app", "aaaaaaaaaaaaa", "pulling", "1 of 2 layers done", "2.5/3.0 kB", "3.0/3.0 kB"):
        assert words in text


def test_a_display_without_a_terminal_has_lines() -> None:
    assert isinstance(progress.open_display("app"), Lines)


def test_lines_tell_each_quarter_once(capsys: pytest.CaptureFixture[str]) -> None:
    digest, total = f"sha256:{'a' * 64}", 4000
    with Lines("app") as display:
        for fetched in (0, 10, 1000, 1999, 3100, 3999, 4000):
            display.update([Layer(digest, total, fetched, "fetching")])
        display.update([Layer(digest, total, total, "unpacking")])
        display.update([Layer(digest, 0, 0, "fetching")])
    words = [line.partition("): ")[2] for line in capsys.readouterr().err.splitlines()[1:-1]]
    assert words == ["pulling", "1kB pulled", "3.1kB pulled", "4kB pulled", "unpacking", "pulling"]


@pytest.mark.parametrize(
    ("pulling", "auth"),
    [
        (Pulling(), {}),
        (Pulling(creds="alice:a:b"), {"username": "alice", "password": "a:b"}),
        (Pulling(creds="alice"), {"username": "alice", "password": ""}),
        (Pulling(auth="YQ=="), {"auth": "YQ=="}),
    ],
)
def test_credentials_become_an_auth_config(pulling: Pulling, auth: dict[str, str]) -> None:
    assert pulling.make_auth() == auth


@pytest.mark.parametrize("pulling", [Pulling(creds=":x"), Pulling(creds="a", auth="b")])
def test_credentials_that_make_no_sense_are_refused(pulling: Pulling) -> None:
    with pytest.raises(InvalidArgument):
        pulling.make_auth()


class Explaining(Endpoint):
    """An endpoint that has recorded its pulls."""

    def __init__(self, *acts: str, off: bool = False) -> None:
        super().__init__()
        self.asked: list[Any] = []
        self._answer = SimpleNamespace(acts=acts, off=off)

    async def ask_crinoid(self, rpc: str, limit_s: float | None = None, **fields: Any) -> Any:
        assert rpc == "ReadTimeline"
        self.asked.append(fields)
        return self._answer


def recorded(act: str, note: str) -> str:
    steps = [["ask mirror https://mirror.example for /app", 0, 5000, "NotFound", -1, [], [note]]]
    head = {"id": act + note, "act": act, "at": 1, "s": 0.1, "code": "NOT_FOUND", "message": "", "about": []}
    return json.dumps(head | {"steps": steps})


async def test_an_explained_pull_shows_the_last_that_was_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    acts = [recorded("PullImage", "older"), recorded("PullImage", "404 Not Found"), recorded("RemoveImage", "later")]
    endpoint = Explaining(*acts)
    await explain_pull(endpoint, "app", 7)
    assert endpoint.asked == [{"about": ["app"], "since_ns": 7}]
    text = capsys.readouterr().out
    assert "ask mirror https://mirror.example for /app  NotFound" in text
    assert "404 Not Found" in text
    assert "older" not in text
    assert "later" not in text


async def test_a_pull_that_was_not_recorded_is_said_to_be(capsys: pytest.CaptureFixture[str]) -> None:
    await explain_pull(Explaining(off=True), "app", 7)
    assert "timeline.size_bytes is 0" in capsys.readouterr().err


async def test_a_pull_of_nothing_leaves_nothing_to_tell(capsys: pytest.CaptureFixture[str]) -> None:
    await explain_pull(Explaining(), "", 7)
    assert capsys.readouterr() == ("", "")
