"""``crinoid check``: examines the host, and says what is fit, what is not, and what to do.

``findings`` is the form of a result, ``examination`` runs all parts and catches what breaks in one; the other modules
are the parts, each a function that yields findings.
"""

import asyncio
import json
from collections.abc import Sequence

import click

from crinoid.core.cli.check.findings import Finding, Verdict
from crinoid.core.cli.options import config_option
from crinoid.core.config.paths import ConfigPaths


@click.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
@click.pass_context
def check(ctx: click.Context, paths: ConfigPaths, as_json: bool) -> None:
    """Examine the host for what pods need: kernel, cgroups, namespaces, mounts, programs, network, disk, privileges.

    Each line is ok, a warning or a failure, with what to do. Namespaces, mounts and a cgroup are tried and undone. The
    exit code is 1 when there is any failure.
    """
    from crinoid.core.cli.check.examination import examine

    findings = asyncio.run(examine(paths))
    if as_json:
        click.echo(json.dumps([finding.as_json() for finding in findings], indent=2))
    else:
        _print(findings)
    if any(finding.verdict is Verdict.FAILURE for finding in findings):
        ctx.exit(1)


_COLOURS = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILURE: "red"}


def _print(findings: Sequence[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    area = ""
    for finding in findings:
        if finding.area != area:
            area = finding.area
            click.secho(area, bold=True)
        verdict = click.style(f"{finding.verdict.value:8}", fg=_COLOURS[finding.verdict])
        click.echo(f"  {verdict} {finding.name:{width}}  {finding.detail}")
        if finding.advice:
            click.echo(f"  {'':8} {'':{width}}  -> {finding.advice}")
    counts = [f"{sum(finding.verdict is verdict for finding in findings)} {verdict.value}" for verdict in Verdict]
    click.echo(", ".join(counts))
