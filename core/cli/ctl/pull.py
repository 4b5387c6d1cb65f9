"""The verb pull, and pulling on behalf of ``run`` and ``create``."""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import click

from crinoid.core.api.errors import CrinoidError, InvalidArgument, NotFound
from crinoid.core.cli.ctl.completion import IMAGE
from crinoid.core.cli.ctl.durations import DURATION
from crinoid.core.cli.ctl.flags import PAIR, flag, gather
from crinoid.core.cli.ctl.progress import Display, open_display, read_progress
from crinoid.core.cli.ctl.queries import find_image_id, image_spec
from crinoid.core.cli.ctl.session import Json, Session, in_session, tell

Policy = Literal["never", "missing", "always"]
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Pulling:
    """Credentials and deadlines of pulls, in seconds; 0 is no deadline of the pull and no addition to others."""

    creds: str = ""
    auth: str = ""
    username: str = ""
    pull_timeout: float = 0.0
    cancel_timeout: float = 0.0

    def make_auth(self) -> Json:
        """Return the AuthConfig, empty without credentials; asks for a password where only a name was given."""
        if self.username:
            return {"username": self.username, "password": click.prompt("Password", hide_input=True, err=True)}
        if self.creds and self.auth:
            raise InvalidArgument("--creds and --auth exclude each other; give one of them")
        if self.creds:
            username, _, password = self.creds.partition(":")
            if not username:
                raise InvalidArgument("--creds must be USERNAME[:PASSWORD]; the user name is empty")
            return {"username": username, "password": password}
        return {"auth": self.auth} if self.auth else {}


_CREDENTIALS = (
    click.option("--creds", default="", envvar="CRICTL_CREDS", metavar="USERNAME[:PASSWORD]", help="For the registry."),
    click.option("--auth", default="", envvar="CRICTL_AUTH", metavar="BASE64", help="The same in base64."),
    click.option("--username", "-u", default="", help="For the registry; the password is asked for."),
    click.option(
        "--pull-timeout",
        "--pt",
        type=DURATION,
        default=0.0,
        envvar="CRICTL_PULL_TIMEOUT",
        metavar="DURATION",
        help="How long a pull may take; 0 is no limit.",
    ),
    click.option(
        "--cancel-timeout", "-T", type=DURATION, default=0.0, metavar="DURATION", help="Wait so much longer for acts."
    ),
)
pulling = gather("pulling", Pulling, *_CREDENTIALS)


@click.command()
@click.argument("image", type=IMAGE)
@pulling
@click.option("--annotation", "-a", "annotations", type=PAIR, multiple=True, help="Annotation of the image.")
@click.option("--runtime", "-r", default="", metavar="HANDLER", help="Runtime handler that it is for.")
@click.option("--pod-config", type=click.Path(path_type=Path), help="Configuration of the pod that it is for.")
@flag("--explain", help="Tell then which host was asked, by which CA and whose credentials, and what it answered.")
@in_session
async def pull(
    session: Session,
    image: str,
    pulling: Pulling,
    annotations: tuple[tuple[str, str], ...],
    runtime: str,
    pod_config: Path | None,
    explain: bool,
) -> None:
    """Pull an image, and show how its layers arrive."""
    request: Json = {"image": image_spec(image, runtime) | {"annotations": dict(annotations)}}
    if pod_config:
        from crinoid.core.cli.ctl.manifests import read_pod_config  # with YAML

        request["sandbox_config"] = read_pod_config(pod_config)
    began_ns = time.time_ns()
    try:
        answer = await pull_image(session, request, pulling)
    finally:
        if explain:
            await explain_pull(session, image, began_ns)
    click.echo(f"Image is up to date for {answer['image_ref']}")


VERBS = (pull,)


async def explain_pull(session: Session, image: str, since_ns: int) -> None:
    """Print what the daemon recorded of the pull that has just ended: what was asked, and what was answered."""
    from crinoid.core.cli.explain.timeline_view import print_act
    from crinoid.core.state.timelines import parse_act

    if not image:  # refused before there was anything to tell of
        return
    try:
        answer = await session.ask_crinoid("ReadTimeline", 30.0, about=[image], since_ns=since_ns)
    except CrinoidError as error:  # the pull's own outcome is what counts
        tell(f"the pull can't be explained: {error.message}")
        return
    acts = [act for line in answer.acts if (act := parse_act(line)) is not None and act.name == "PullImage"]
    if acts:
        print_act(acts[-1], everything=True)
    else:
        why = "timeline.size_bytes is 0" if answer.off else "no room on the disk, or it can't be written; see its log"
        tell(f"the daemon has kept no timeline of the pull: {why}")


async def provide_image(session: Session, image: str, policy: Policy, pulling: Pulling, runtime: str = "") -> None:
    """Pull an image for a handler as the policy says. Raises NotFound when it is not there and may not be pulled."""
    if policy != "always" and await find_image_id(session, image, runtime):
        return
    if policy == "never":
        raise NotFound(f"image {image} is not on this node, and --pull=never forbids to pull it")
    await pull_image(session, {"image": image_spec(image, runtime)}, pulling)


async def pull_image(session: Session, request: Mapping[str, Json], pulling: Pulling) -> Json:
    """Pull with a display on standard error, and return the answer."""
    if auth := pulling.make_auth():
        request = {**request, "auth": auth}
    image = request["image"]["image"]
    with open_display(image) as display:
        work = asyncio.create_task(session.wait_for("PullImage", request, pulling.pull_timeout or None))
        try:
            await _watch(session, image, work, display)
            return await work
        finally:
            work.cancel()


async def _watch(session: Session, image: str, work: "asyncio.Task[Json]", display: Display) -> None:
    """Update the display until the pull has ended, or right away no more if the endpoint tells nothing."""
    while not work.done():
        await asyncio.wait([work], timeout=POLL_S)
        if work.done():
            return
        layers = await read_progress(session, image)
        if layers is None:
            return
        display.update(layers)
