"""``crinoid report``: one file for a bug report, with what is needed to understand a node and without its secrets.

``parts`` gathers, ``daemon.redaction`` knows what must not be told; here they become an archive.
"""

import asyncio
import io
import os
import tarfile
import time
from collections.abc import Mapping
from pathlib import Path

import click

from crinoid.core.api.errors import Unavailable
from crinoid.core.cli.options import config_option
from crinoid.core.config.paths import ConfigPaths


@click.command()
@config_option
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), default=None, help="File to write, by default here with a date."
)
@click.option(
    "--log",
    type=click.Path(path_type=Path, dir_okay=False),
    default=None,
    help="The daemon's log, where it is a file; by default what systemd's journal has of crinoid.service.",
)
@click.option("--lines", default=2000, show_default=True, metavar="N", help="How much of the log's end to take.")
def report(paths: ConfigPaths, output: Path | None, log: Path | None, lines: int) -> None:
    """Gather what a bug report needs into one archive: examination, configuration, versions, status, ledger, log, host.

    Of pods, containers and images it has ids, names, states and times, and neither environment nor annotations nor
    logs; the last trace, if `crinoid trace record` has made one, is part of it. Credentials, headers, tokens and all
    that looks like one are replaced by "(redacted)". Works with the daemon running or not. Look at it before you send
    it: `tar xzf FILE`.
    """
    from crinoid.core.cli.report.parts import find_trace, gather

    now = time.gmtime()
    name = f"crinoid-report-{time.strftime('%Y%m%dT%H%M%SZ', now)}"
    file = output or Path(f"{name}.tar.gz")
    texts = asyncio.run(gather(paths, log, lines))
    parts = {part: text.encode(errors="replace") for part, text in texts.items()}
    try:
        if (trace := find_trace(paths)) is not None:
            parts[f"trace/{trace.name}"] = trace.read_bytes()
        _write(file, name, parts, time.mktime(now))
    except OSError as error:
        raise Unavailable(f"{file} can't be written: {error.strerror}") from error
    for part, content in parts.items():
        click.echo(f"{len(content):9,}  {part}")
    click.echo(f"{file}: look through it before you send it to anybody")


def _write(file: Path, name: str, parts: Mapping[str, bytes], at_s: float) -> None:
    """Write the archive as a new file that its owner alone may read."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as out, tarfile.open(fileobj=out, mode="w:gz") as archive:
        for part, data in parts.items():
            member = tarfile.TarInfo(f"{name}/{part}")
            member.size, member.mode, member.mtime = len(data), 0o600, int(at_s)
            archive.addfile(member, io.BytesIO(data))
