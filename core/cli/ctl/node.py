"""The verbs about the endpoint itself: version, info, status, runtime-config, update-runtime-config, events,
completion."""

import json
from collections.abc import Mapping
from typing import Any

import click
from click.shell_completion import get_completion_class

from crinoid.core.cli.ctl.flags import JSON, TABLE, YAML, flag, output
from crinoid.core.cli.ctl.json_documents import print_answer, print_document, to_camel, unfold
from crinoid.core.cli.ctl.session import Json, Session, in_session
from crinoid.core.cli.tables import print_table


@click.command()
@output()
@in_session
async def version(session: Session, output: str) -> None:
    """Show name and versions of the runtime."""
    answer = await session.ask("Version", {"version": "v1"})
    if output != TABLE:
        print_answer(answer, output)
        return
    for name in ("version", "runtime_name", "runtime_version", "runtime_api_version"):
        title = "".join(word.capitalize() for word in name.split("_"))
        click.echo(f"{title}:  {answer[name]}")


@click.command()
@output(JSON)
@flag("--quiet", "-q", help="Without verbose information.")
@in_session
async def info(session: Session, output: str, quiet: bool) -> None:
    """Show health, features and all that the runtime tells of itself, as a document."""
    await _show_status(session, output, not quiet)


@click.command()
@output()
@in_session
async def status(session: Session, output: str) -> None:
    """Show the same as info, as tables for people."""
    await _show_status(session, output, verbose=True)


@click.command("runtime-config")
@output()
@in_session
async def runtime_config(session: Session, output: str) -> None:
    """Show the cgroup driver that the runtime uses."""
    answer = await session.ask("RuntimeConfig")
    if output != TABLE:
        print_answer(answer, output)
    elif "linux" in answer:
        click.echo(f"cgroup driver:   {answer['linux']['cgroup_driver']}")


@click.command("update-runtime-config")
@click.option("--pod-cidr", "-p", required=True, metavar="CIDR[,CIDR]", help="Address ranges of this node's pods.")
@in_session
async def update_runtime_config(session: Session, pod_cidr: str) -> None:
    """Tell the runtime the address ranges of the node's pods."""
    await session.act("UpdateRuntimeConfig", {"runtime_config": {"network_config": {"pod_cidr": pod_cidr}}})


@click.command()
@output(JSON, (JSON, YAML))
@in_session
async def events(session: Session, output: str) -> None:
    """Show what happens to containers, until it is interrupted."""
    async for event in session.stream("GetContainerEvents"):
        print_answer(event, output)


@click.command()
@click.argument("shell", default="bash", type=click.Choice(("bash", "zsh", "fish")))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a script that lets a shell complete the commands of crinoid; source it."""
    kind = get_completion_class(shell)
    assert kind is not None, "the choices are those that click knows"
    click.echo(kind(ctx.find_root().command, {}, "crinoid", "_CRINOID_COMPLETE").source())


VERBS = (version, info, status, runtime_config, update_runtime_config, events, completion)


async def _show_status(session: Session, output: str, verbose: bool) -> None:
    answer = await session.ask("Status", {"verbose": verbose})
    document = _to_document(answer)
    if output != TABLE:
        print_document(document, output)
        return
    conditions = answer["status"]["conditions"]
    rows = [(one["type"], str(one["status"]).lower(), one["reason"] or "-", one["message"]) for one in conditions]
    print_table(("CONDITION", "STATUS", "REASON", "MESSAGE"), rows)
    if answer["runtime_handlers"]:
        click.echo()
        print_table(("HANDLER", "FEATURES"), [_make_handler_row(handler) for handler in answer["runtime_handlers"]])
    for name, text in answer["info"].items():
        click.echo()
        _print_info(name, unfold(text))


def _to_document(answer: Json) -> Json:
    """Make the document; handlers and features have the names of the ``.proto`` and only what is set, as in crictl."""
    document = {"status": to_camel(answer["status"])}
    if handlers := [_set_fields(handler) for handler in answer["runtime_handlers"]]:
        document["runtimeHandlers"] = handlers
    if "features" in answer:
        document["features"] = _set_fields(answer["features"])
    return document | {key: unfold(text) for key, text in sorted(answer["info"].items())}


def _set_fields(message: Json) -> Json:
    values = {name: _set_fields(value) if isinstance(value, dict) else value for name, value in message.items()}
    return {name: value for name, value in values.items() if value or isinstance(value, dict)}


def _make_handler_row(handler: Json) -> tuple[str, str]:
    features = [name for name, there in handler.get("features", {}).items() if there]
    return handler["name"] or "(default)", ", ".join(features) or "-"


def _print_info(name: str, value: Any) -> None:
    """Print an entry of the verbose info: a list of objects as a table, anything else as it is."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        titles = list(value[0])
        rows = [[_tell(item.get(title)) for title in titles] for item in value]
        click.secho(name, bold=True)
        print_table([title.upper() for title in titles], rows)
    else:
        click.echo(f"{click.style(name, bold=True)}: {_tell(value)}")


def _tell(value: object) -> str:
    if value in (None, "", [], {}):
        return "-"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
