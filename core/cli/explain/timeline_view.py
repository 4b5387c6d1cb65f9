"""Prints a story for people: what took longest first, then act by act with its stages."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import click

from crinoid.core.api.timeline import OK, RUNNING
from crinoid.core.cli.explain.story import START_OF_ALL, Story, slowest
from crinoid.core.state.timelines import RecordedAct, RecordedStep

_SHORT_S = 0.001
_LEAST_TOLD_S = 0.0005


def print_story(story: Story, everything: bool) -> None:
    """Print all of a story; ``everything``: with steps of less than a millisecond."""
    click.secho(story.title, bold=True)
    _print_sum(story)
    for act in story.acts:
        print_act(act, everything, story.pod_id)


def print_act(act: RecordedAct, everything: bool, pod_id: str = "") -> None:
    """Print an act with its stages; of one about all pods those of ``pod_id``."""
    steps: Sequence[RecordedStep] = act.steps
    if act.name.startswith(START_OF_ALL) and pod_id:
        steps = [step for step in steps if pod_id in step.subjects]
    began = datetime.fromtimestamp(act.began_ns / 1e9, UTC).astimezone()
    code = act.code or "not ended when this was written: the daemon ended, or it goes on"
    click.echo()
    head = f"{began:%Y-%m-%d %H:%M:%S}.{began.microsecond // 1000:03d}  {act.name}"
    click.echo(f"{click.style(head, bold=True)}  {_code(code)}  {_time(act.seconds)}")
    if act.message:
        click.echo(f"    {act.message}")
    hidden = 0
    for step in steps:
        if not everything and _is_dull(step, act):
            hidden += 1
            continue
        depth = _depth(act.steps, step) if len(steps) == len(act.steps) else 0
        took = "goes on" if step.seconds is None else _time(step.seconds)
        outcome = "" if step.outcome in (OK, RUNNING) else f"  {_code(step.outcome)}"
        click.echo(f"    {_time(step.began_s):>10} {took:>10}  {'  ' * depth}{step.name}{outcome}")
        for note in step.notes:
            click.echo(f"    {'':21}  {'  ' * depth}  - {note}")
    if hidden or act.left_out:
        left = f"; {act.left_out} were too many to be kept" if act.left_out else ""
        click.echo(f"    {hidden} short steps are not shown (--all){left}")


def _print_sum(story: Story) -> None:
    making = story.making
    if making:
        total_s = (max(act.ended_ns for act in making) - making[0].began_ns) / 1e9
        between_s = total_s - _covered(making)
        click.echo(
            f"{_time(total_s)} from RunPodSandbox to the last StartContainer, {_time(between_s)} of it between calls"
        )
    ranking = [(took, name) for took, name in slowest(making or story.acts) if took >= _LEAST_TOLD_S]
    if ranking:
        click.echo("took longest:")
    for took, name in ranking:
        click.echo(f"    {_time(took):>10}  {name}")


def _covered(acts: Iterable[RecordedAct]) -> float:
    covered, end = 0, 0
    for act in sorted(acts, key=lambda one: one.began_ns):
        covered += max(0, act.ended_ns - max(act.began_ns, end))
        end = max(end, act.ended_ns)
    return covered / 1e9


def _is_dull(step: RecordedStep, act: RecordedAct) -> bool:
    """Return whether a step tells little: it is short, or goes on after its act, as waiting for an end does."""
    if step.seconds is None:
        return act.code == "OK"
    return step.seconds < _SHORT_S and step.outcome == OK and not step.notes


def _depth(steps: Sequence[RecordedStep], step: RecordedStep) -> int:
    depth, number = 0, step.parent
    while 0 <= number < len(steps) and depth < 10:
        depth, number = depth + 1, steps[number].parent
    return depth


def _code(code: str) -> str:
    return click.style(code, fg="green" if code in ("OK", OK) else "red")


def _time(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"
